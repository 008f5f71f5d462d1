// Resolvers learn on threads of their own while attachments come and go and their rules change. No
// address may outlive the rule it was learned under, nor its attachment, and none that was
// confirmed may be missing.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <random>
#include <thread>

#include "stage.hpp"

using namespace sluice;
using namespace sluice::test;

namespace {

constexpr std::uint32_t kPlaces = 4, kRules = 3, kWorkers = 4;
constexpr std::uint64_t kTtl = 3'600'000'000'000;

// Rule `index` of an attachment. Its text changes with each version; its place in the list does
// not.
Rule named(std::uint32_t index, std::uint32_t version) {
  return allow_name("v" + std::to_string(version) + ".r" + std::to_string(index) + ".example",
                    {port("tcp/" + std::to_string(1000 + index))});
}

// Where an attachment is at one time. The epoch of a rule is odd while it is being replaced.
struct Place {
  std::atomic<std::uint64_t> id{0};
  std::array<std::atomic<std::uint32_t>, kRules> epoch{}, rule_id{}, version{};
};
struct Learned {
  std::uint64_t id;
  std::uint32_t rule;
  Address address;
  std::uint32_t before, after;  // the rule's epoch
};

Address unique_address(std::uint32_t worker, std::uint32_t number) {
  Address address{0x20, 0x01, 0x0d, 0xb8, static_cast<std::uint8_t>(worker)};
  for (int i = 0; i < 4; ++i) address[12 + i] = static_cast<std::uint8_t>(number >> (24 - 8 * i));
  return address;
}

Status learn(Stage& stage, AttachmentId id, const Address& address, std::uint32_t rule,
             std::string_view name = "r.example") {
  const NameGrant grant{.rule = rule, .addresses = std::span(&address, 1), .ttl_ns = kTtl};
  return stage.manager.learn("dns", id, {std::span(&name, 1), std::span(&grant, 1)});
}

}  // namespace

TEST_CASE("learning threads against changing rules, and attachments that come and go") {
  Stage stage(config_of({wire({"one", "dns"})}));
  std::array<Place, kPlaces> places;
  std::array<std::array<std::uint32_t, kRules>, kPlaces> versions{};
  std::uint32_t next_ifindex = 1;
  const auto speak = [&](std::size_t at) {
    std::vector<Rule> rules;
    for (std::uint32_t i = 0; i < kRules; ++i) rules.push_back(named(i, versions[at][i]));
    REQUIRE(stage.manager.replace_layer("one", {places[at].id.load()}, allowlist(rules)));
    for (std::uint32_t i = 0; i < kRules; ++i) {
      places[at].rule_id[i] = stage.listener.domains[i].id.value;
      places[at].version[i] = versions[at][i];
    }
  };
  const auto renew = [&](std::size_t at) {
    const auto ifindex = next_ifindex++;
    places[at].id = stage.attach(tap("tap" + std::to_string(ifindex), ifindex)).value;
    for (auto& epoch : places[at].epoch) epoch = 0;
    speak(at);
  };
  for (std::size_t at = 0; at < kPlaces; ++at) renew(at);

  std::atomic<bool> stop{false}, learned_when_gone{false};
  // However few CPUs there are, something is learned between two changes, and not too much.
  std::atomic<std::uint32_t> calls{0}, allowed{0};
  std::array<std::vector<Learned>, kWorkers> logs;
  std::vector<std::thread> workers;
  for (std::uint32_t worker = 0; worker < kWorkers; ++worker) {
    workers.emplace_back([&, worker] {
      std::mt19937 random(worker);
      for (std::uint32_t number = 0; !stop; ++number) {
        if (calls.load() >= allowed.load()) {
          std::this_thread::yield();
          continue;
        }
        auto& place = places[random() % kPlaces];
        const auto id = place.id.load();
        const auto rule = static_cast<std::uint32_t>(random() % kRules);
        const auto address = unique_address(worker, number);
        const auto before = place.epoch[rule].load();
        if (place.id.load() != id) continue;  // the epoch may be its successor's
        const auto status = learn(stage, {id}, address, place.rule_id[rule],
                                  named(rule, place.version[rule]).domain);
        const auto after = place.epoch[rule].load();
        ++calls;
        if (!status || place.id.load() != id) continue;
        logs[worker].push_back({id, rule, address, before, after});
      }
      // What has been detached for long is refused.
      const auto address = unique_address(worker, ~0u);
      for (std::uint32_t i = 0; i < kPlaces; ++i) {
        if (learn(stage, {places[i].id.load() + 1}, address, 0)) learned_when_gone = true;
      }
    });
  }

  std::mt19937 random(99);
  std::vector<std::pair<AttachmentId, std::uint32_t>> detached;  // with their scopes
  for (int step = 0; step < 600; ++step) {
    // One look for both: the workers may reach `allowed` before a second one, and then wait for it.
    const auto before = calls.load();
    allowed = before + 48;
    while (calls.load() < before + 8) std::this_thread::yield();
    const auto at = random() % kPlaces;
    if (random() % 10 == 0) {
      const AttachmentId id{places[at].id.load()};
      const auto scope = stage.in_kernel(id).attachment.scope;
      REQUIRE(stage.manager.detach("taps", id, "test"));
      detached.emplace_back(id, scope);
      const auto address = unique_address(kWorkers, static_cast<std::uint32_t>(step));
      CHECK_FALSE(learn(stage, id, address, 0));
      renew(at);
    } else {
      const auto rule = random() % kRules;
      places[at].epoch[rule] += 1;
      versions[at][rule] += 1;
      speak(at);
      places[at].epoch[rule] += 1;
    }
    if (step % 50 == 0) stage.turn();
  }
  stop = true;
  for (auto& worker : workers) worker.join();
  CHECK_FALSE(learned_when_gone.load());

  for (const auto& [id, scope] : detached) CHECK_FALSE(stage.kernel->learned.contains(scope));
  std::size_t checked = 0;
  for (const auto& place : places) {
    const AttachmentId id{place.id.load()};
    const auto in_kernel = stage.learned(id);
    std::map<Address, const Learned*> accepted;
    for (const auto& log : logs) {
      for (const auto& entry : log) {
        if (entry.id != id.value) continue;
        accepted[entry.address] = &entry;
        const auto epoch = place.epoch[entry.rule].load();
        const bool there = in_kernel.contains(entry.address);
        // Under the rules that are in force now: there. Before they were made: gone.
        if (entry.before == epoch) CHECK(there);
        if (entry.after + 2 <= epoch) CHECK_FALSE(there);
        checked += 1;
      }
    }
    for (const auto& [address, entry] : in_kernel) {
      const auto found = accepted.find(address);
      if (found == accepted.end()) continue;  // its worker was interrupted by a change of place
      CHECK(entry.ports == named(found->second->rule, 0).ports);
    }
    // All of what is left hangs on its rules.
    REQUIRE(stage.manager.replace_layer("one", id, allowlist({})));
    CHECK(stage.learned(id).empty());
  }
  CHECK(checked > 0);
}
