// What names cost the core, which judges them again when rules change (docs/decisions/0007): memory
// for rules that attachments share, the index, a judgement, a whole change, and what one remembered
// name takes. Processor time of one thread, medians of rounds; heap by mallinfo2 before and after.
// The kernel is not in it: its map is one that keeps nothing, or the fake. Ratios carry over to
// other machines, nanoseconds do not.
#include <malloc.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "attachments/attachment_manager.hpp"
#include "attachments/learned_addresses.hpp"
#include "attachments/name_judge.hpp"
#include "attachments/policy_cache.hpp"
#include "dataplane/fake/fake_data_plane.hpp"

namespace sluice::bench {
namespace {

constexpr int kRounds = 15;
constexpr std::size_t kRules = 10'000, kAttachments = 1'000;
constexpr BootTime kNow{1'000'000'000'000};
constexpr std::uint64_t kHour = 3'600'000'000'000;
constexpr AttachmentId kId{1};

double cpu_ns() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

// Median of the rounds, in nanoseconds.
template <typename Work>
double median(Work work) {
  std::vector<double> took;
  for (int round = 0; round < kRounds; ++round) {
    const double start = cpu_ns();
    work(round);
    took.push_back(cpu_ns() - start);
  }
  std::ranges::sort(took);
  return took[took.size() / 2];
}

std::size_t heap() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}
double per(std::size_t after, std::size_t before, std::size_t count) {
  return (static_cast<double>(after) - static_cast<double>(before)) / static_cast<double>(count);
}
double mib(std::size_t after, std::size_t before) {
  return per(after, before, 1u << 20);
}

void must(const Status& status) {
  if (status) return;
  std::fprintf(stderr, "bench_names: %s\n", status.error().message.c_str());
  std::exit(1);
}

// As bench_dns_rules has them: a third each exact names, "*." and "."; one in eight a deny.
std::vector<Rule> rules(std::size_t count) {
  static constexpr const char* kTops[] = {".org", ".com", ".co.uk", ".cloud.net"};
  static constexpr const char* kFronts[] = {"", "*.", "."};
  std::vector<Rule> all;
  for (std::size_t i = 0; i < count; ++i) {
    Rule rule;
    rule.action = i % 8 == 7 ? Action::deny : Action::allow;
    rule.domain = kFronts[i % 3];
    rule.domain += "service" + std::to_string(i) + ".example-" + std::to_string(i % 997);
    rule.domain += kTops[i % 4];
    rule.ports = {{.protocol = 6, .any_port = false, .first = 443, .last = 443}};
    rule.name = "agents:allow:" + std::to_string(i / 1000);
    all.push_back(std::move(rule));
  }
  return all;
}

Layer layer_of(std::vector<Rule> rules) {
  Layer layer;
  layer.mode = Mode::allowlist;
  layer.rules = std::move(rules);
  return layer;
}

// One more rule, of which no name here is.
std::vector<Rule> changed(std::vector<Rule> rules, int version) {
  rules.push_back(rules[0]);
  rules.back().domain = "version" + std::to_string(version) + ".elsewhere.net";
  return rules;
}

// A name below a rule's base, and what it leads to.
struct Chain {
  std::uint32_t rule = 0;  // its place in the list
  std::vector<std::string> names;
  Address address{};
};
std::vector<Chain> chains(const std::vector<Rule>& rules, std::size_t count, bool alias) {
  std::vector<std::uint32_t> wide;
  for (std::uint32_t i = 0; i < rules.size(); ++i)
    if (rules[i].action == Action::allow && rules[i].domain.starts_with("*.")) wide.push_back(i);
  std::mt19937 random(1);
  std::vector<Chain> all;
  for (std::uint32_t i = 0; i < count; ++i) {
    Chain chain;
    chain.rule = wide[random() % wide.size()];
    chain.names.push_back("node" + std::to_string(i) + rules[chain.rule].domain.substr(1));
    if (alias) chain.names.push_back("edge" + std::to_string(i) + ".cdn.elsewhere.net");
    chain.address = {0x20, 0x01, 0x0d, 0xb8};
    for (std::size_t byte = 0; byte < 4; ++byte)
      chain.address[12 + byte] = static_cast<std::uint8_t>(i >> (24 - 8 * byte));
    all.push_back(std::move(chain));
  }
  return all;
}

template <typename Learn>
void push(const Chain& chain, std::uint32_t rule, std::size_t addresses, Learn learn) {
  const std::vector<std::string_view> names(chain.names.begin(), chain.names.end());
  std::vector<Address> all(addresses, chain.address);
  for (std::size_t i = 0; i < addresses; ++i) all[i][11] = static_cast<std::uint8_t>(i);
  const NameGrant grant{.rule = rule, .addresses = all, .ttl_ns = kHour, .grace_ns = kHour};
  must(learn(NamePush{names, std::span(&grant, 1)}));
}

// In place of the kernel's map, whose memory is not what is measured.
class NoMap final : public LearnedMap {
 public:
  Status learn(std::uint32_t, std::span<const LearnedPart>) override { return {}; }
  Status revoke(std::uint32_t, std::span<const Address>) override { return {}; }
  std::vector<Address> unused(std::uint32_t, std::span<const Address>) override { return {}; }
  std::vector<KnownAddress> all(std::uint32_t) override { return {}; }
};

Config one_wire() {
  WireConfig wire;
  wire.sources = {"rules", "dns"};
  Config config;
  config.wires = {wire};
  return config;
}

// A core over the fake; one resolver.
struct Core {
  Core() : manager(plane, Wiring(one_wire()), {}, [] { return kNow; }) {
    manager.instance("dns", {.discovery = false, .policy_source = false, .resolver = true},
                     InstanceState::running);
  }
  AttachmentId attach(std::size_t number) {
    auto made = manager.attach("taps",
                               InterfaceTarget{.name = "tap" + std::to_string(number),
                                               .ifindex = static_cast<std::uint32_t>(number + 2)},
                               {});
    if (!made) must(std::unexpected(made.error()));
    return *made;
  }
  void give(AttachmentId id, Layer layer) {
    if (auto given = manager.replace_layer("rules", id, std::move(layer)); !given)
      must(std::unexpected(given.error()));
  }
  FakeDataPlane plane{std::make_shared<FakeKernel>()};
  AttachmentManager manager;
};

// Attachments without rules first, so that what is left is what the rules add.
void sharing() {
  const auto written = rules(kRules);
  Core core;
  std::vector<AttachmentId> ids;
  const auto empty = heap();
  for (std::size_t i = 0; i < kAttachments; ++i) ids.push_back(core.attach(i));
  for (const auto id : ids) core.give(id, layer_of({}));
  const auto bare = heap();
  core.give(ids[0], layer_of(written));
  const auto one = heap();
  for (const auto id : ids) core.give(id, layer_of(written));
  const auto all = heap();
  // The first name that opens anything has the index made.
  PolicyCache cache;
  const auto list = cache.domain_rules({cache.intern(layer_of(written))}, kNow);
  const auto unindexed = heap();
  (void)list->judge();
  const auto indexed = heap();
  std::printf(
      "%zu rules: the first attachment %.2f MiB of heap, and %.2f MiB their index once a name has "
      "opened an address; %zu attachments %.2f MiB and one index, so %.0f bytes each beside the "
      "rules; one without rules %.0f bytes, the fake kernel's part in it\n",
      kRules, mib(one, bare), mib(indexed, unindexed), kAttachments, mib(all, bare),
      per(all, one, kAttachments - 1), per(bare, empty, kAttachments));
}

void indexing() {
  std::printf("\n%-10s %12s %12s %14s %16s\n", "rules", "index build", "per rule", "judge 1 name",
              "judge an alias");
  for (const std::size_t count : {100u, 10'000u, 100'000u}) {
    PolicyCache cache;
    const auto list = cache.domain_rules({cache.intern(layer_of(rules(count)))}, kNow);
    const double built = median([&](int) { const NameJudge judge(list->rules, list->openings); });
    const auto& judge = list->judge();
    double took[2];
    for (const bool alias : {false, true}) {
      std::vector<std::string> texts;
      for (const auto& chain : chains(list->rules, 1u << 15, alias))
        texts.push_back(alias ? chain.names[0] + " " + chain.names[1] : chain.names[0]);
      took[alias] = median([&](int) {
                      for (const auto& text : texts)
                        if (judge.rule_on(text, kNow)->rights.empty()) std::abort();
                    }) /
                    static_cast<double>(texts.size());
    }
    std::printf("%-10zu %9.2f ms %9.0f ns %11.0f ns %13.0f ns\n", count, built / 1e6,
                built / static_cast<double>(count), took[0], took[1]);
  }
}

// By LearnedAddresses alone, between two lists whose indexes are made.
void remembering() {
  PolicyCache cache;
  const auto written = rules(kRules);
  const auto one = cache.domain_rules({cache.intern(layer_of(written))}, kNow);
  const auto other = cache.domain_rules({cache.intern(layer_of(changed(written, 0)))}, kNow);
  (void)one->judge();
  (void)other->judge();
  const auto wire = std::make_shared<const WireConfig>(one_wire().wires[0]);
  std::printf(
      "\n%zu rules, remembered names: heap for each, and all of them judged again\n%-10s "
      "%8s %10s %14s %14s %14s\n",
      kRules, "names", "aliases", "addresses", "bytes / name", "judged again", "per name");
  struct Row {
    std::size_t names;
    bool alias;
    std::size_t addresses;
  };
  for (const auto& [count, alias, addresses] : {Row{1'000, false, 1},
                                                {10'000, false, 1},
                                                {1'000, true, 1},
                                                {10'000, true, 1},
                                                {1'000, false, 8}}) {
    const auto all = chains(one->rules, count, alias);
    NoMap map;
    LearnedAddresses learned(map, [] { return kNow; });
    learned.add(kId, 1, "tap1");
    const auto settle = [&](const DomainRulesPtr& list) {
      if (learned.settle(
              kId, {.wire = wire, .decider = {}, .rules = list, .image = {}, .settled = true}))
        must(fail("a name was lost in a change that does not concern it"));
    };
    settle(one);
    const auto before = heap();
    for (const auto& chain : all)
      push(chain, one->rules[chain.rule].id.value, addresses,
           [&](const NamePush& what) { return learned.learn("dns", kId, what); });
    const auto after = heap();
    const double again = median([&](int round) { settle(round % 2 == 0 ? other : one); });
    std::printf("%-10zu %8d %10zu %14.0f %11.2f ms %11.0f ns\n", count, alias ? 1 : 0, addresses,
                per(after, before, count), again / 1e6, again / static_cast<double>(count));
  }
}

// A source replaces its layer: read, united, indexed, judged, told.
void changing() {
  std::printf("\na whole change of %zu rules, index included, with that many names remembered:\n",
              kRules);
  const auto written = rules(kRules);
  for (const std::size_t count : {0u, 1'000u, 10'000u}) {
    Core core;
    const auto id = core.attach(0);
    core.give(id, layer_of(written));
    // Ids are given out in order, one for each rule.
    for (const auto& chain : chains(written, count, false))
      push(chain, chain.rule, 1,
           [&](const NamePush& what) { return core.manager.learn("dns", id, what); });
    std::vector<Layer> layers;
    for (int round = 0; round < kRounds; ++round)
      layers.push_back(layer_of(changed(written, round)));
    const double took = median(
        [&](int round) { core.give(id, std::move(layers[static_cast<std::size_t>(round)])); });
    std::printf("%10zu names %10.2f ms\n", count, took / 1e6);
  }
}

}  // namespace
}  // namespace sluice::bench

int main() {
  // A process of one thread takes locks and counts references without atomic instructions; the
  // daemon is not one.
  const std::jthread other([](const std::stop_token& stop) {
    while (!stop.stop_requested()) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  });
  sluice::bench::sharing();
  sluice::bench::indexing();
  sluice::bench::remembering();
  sluice::bench::changing();
  return 0;
}
