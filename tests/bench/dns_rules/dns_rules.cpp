// What a decision costs before any packet is sent: matching a name, sharing rules, a cache hit, the
// looks into budgets. Processor time of one thread, medians of rounds; random order over far more
// names than fit into the first cache levels. Ratios carry over to other machines, nanoseconds do
// not.
#include <malloc.h>
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "dns/budget.hpp"
#include "dns/cache.hpp"
#include "dns/push_memory.hpp"
#include "dns/reserved.hpp"
#include "dns/rule_book.hpp"

namespace sluice::bench {
namespace {

using namespace sluice::dns;
using sdk::AttachmentId;
using sdk::Time;

constexpr int kRounds = 15;
constexpr std::size_t kQuestions = 1u << 15;

double cpu_ns() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

// Nanoseconds per call.
template <typename Work>
double each(std::size_t count, Work work) {
  std::vector<double> took;
  for (int round = 0; round < kRounds; ++round) {
    const double start = cpu_ns();
    for (std::size_t i = 0; i < count; ++i) work(i);
    took.push_back((cpu_ns() - start) / static_cast<double>(count));
  }
  return median(took);
}

std::size_t heap() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

volatile std::uint64_t sink;

Time at(int seconds) {
  return Time(std::chrono::seconds(seconds));
}

std::string host(std::size_t i) {
  return "service" + std::to_string(i) + ".example-" + std::to_string(i % 997);
}

// A third each: exact names, "*." and "."; two to four labels, as in lists that people write.
std::vector<sdk::Rule> rules(std::size_t count) {
  std::vector<sdk::Rule> all;
  static constexpr const char* kTops[] = {".org", ".com", ".co.uk", ".cloud.net"};
  static constexpr const char* kFronts[] = {"", "*.", "."};
  for (std::size_t i = 0; i < count; ++i) {
    sdk::Rule rule{.action = i % 8 == 7 ? sdk::Action::deny : sdk::Action::allow};
    rule.domain = kFronts[i % 3] + host(i) + kTops[i % 4];
    rule.ports = {{.protocol = 6, .any_port = false, .first = 443, .last = 443}};
    rule.name = "agents:allow:" + std::to_string(i / 1000);
    all.push_back(std::move(rule));
  }
  return all;
}

std::string base_of(const sdk::Rule& rule) {
  const auto& domain = rule.domain;
  return domain.substr(domain.starts_with("*.") ? 2 : domain.starts_with('.') ? 1 : 0);
}

void matching() {
  std::printf("%-10s %12s %10s | %12s %12s %12s %12s %12s   ns per match\n", "rules", "build",
              "index", "exact", "3 below", "20 below", "no rule", "127 labels");
  std::mt19937 random(1);
  for (const std::size_t count : {100u, 10'000u, 100'000u}) {
    const auto written = rules(count);
    const double start = cpu_ns();
    const RuleSet set(written);
    const double built = (cpu_ns() - start) / 1e6;
    std::vector<Name> exact, below, deep, none, longest;
    for (std::size_t i = 0; i < kQuestions; ++i) {
      const std::string base = base_of(written[random() % count]);
      exact.push_back(*Name::from_text(base));
      below.push_back(*Name::from_text("a.b.node7." + base));
      std::string text = base;
      for (int label = 0; label < 20; ++label) text = "l" + std::to_string(label) + "." + text;
      deep.push_back(*Name::from_text(text));
      none.push_back(
          *Name::from_text("www.elsewhere" + std::to_string(random() % 100000) + ".net"));
      std::string labels = "x";
      for (int label = 1; label < 127; ++label)
        labels = std::string(1, static_cast<char>('a' + random() % 26)) + "." + labels;
      longest.push_back(*Name::from_text(labels));
    }
    const auto ns = [&](const std::vector<Name>& names) {
      return each(names.size(),
                  [&](std::size_t i) { sink = set.match(names[i], at(0)).rules.size(); });
    };
    std::printf("%-10zu %9.1f ms %6.1f MiB | %12.0f %12.0f %12.0f %12.0f %12.0f\n", count, built,
                static_cast<double>(set.bytes()) / 1048576, ns(exact), ns(below), ns(deep),
                ns(none), ns(longest));
  }
}

void sharing() {
  RuleBook book;
  const auto written = rules(10'000);
  const std::size_t before = heap();
  book.assign({1}, written);
  const std::size_t one = heap() - before;
  std::vector<double> took;
  for (std::uint64_t id = 2; id <= 1000; ++id) {
    const double start = cpu_ns();
    book.assign({id}, written);
    took.push_back((cpu_ns() - start) / 1e3);
  }
  const std::size_t all = heap() - before;
  const auto size = book.size();
  std::printf(
      "\n10,000 rules: the first attachment %.2f MiB of heap; 1,000 attachments %.2f MiB (%zu "
      "sets), "
      "%.0f bytes each beside the set; assign %.0f us\n",
      static_cast<double>(one) / 1048576, static_cast<double>(all) / 1048576, size.sets,
      static_cast<double>(all - one) / 999, median(took));
  RuleBook::Reader reader(book);
  std::mt19937 random(2);
  std::vector<AttachmentId> ids;
  for (std::size_t i = 0; i < kQuestions; ++i) ids.push_back({1 + random() % 1000});
  const double ns = each(ids.size(), [&](std::size_t i) { sink = reader.get(ids[i])->size(); });
  std::printf("a worker's look at an attachment's rules: %.0f ns\n", ns);
}

void caching() {
  AnswerCache cache({.bytes = 256u << 20});
  std::mt19937 random(3);
  std::vector<Name> names;
  for (std::size_t i = 0; i < 100'000; ++i) {
    names.push_back(*Name::from_text(host(i) + ".org"));
    CachedAnswer answer;
    answer.message.assign(120, 0);
    answer.ttl_offsets = {40, 56};
    answer.grants.resize(2);
    cache.store({names.back()}, std::move(answer), {.attachment = {i % 100}, .by_wildcard = false},
                std::chrono::seconds(1000), at(0));
  }
  std::vector<std::uint32_t> order;
  for (std::size_t i = 0; i < kQuestions; ++i) order.push_back(random() % 100'000);
  const auto find = [&](const Name& name) { return cache.find({name}, {1}, at(1)); };
  const Name none = *Name::from_text("not.here.example");
  std::printf(
      "\ncache of %zu answers, %.0f bytes each: hit hot %.0f ns, random %.0f ns, miss %.0f ns\n",
      cache.statistics().entries,
      static_cast<double>(cache.statistics().bytes) /
          static_cast<double>(cache.statistics().entries),
      each(kQuestions, [&](std::size_t) { sink = find(names[7])->id; }),
      each(kQuestions, [&](std::size_t i) { sink = find(names[order[i]])->id; }),
      each(kQuestions, [&](std::size_t) { sink = find(none) == nullptr; }));
  AnswerCache full({.bytes = 1u << 20, .trial_share = 0});
  std::printf("store into a full cache, one of 100 attachments: %.0f ns\n",
              each(kQuestions, [&](std::size_t i) {
                CachedAnswer answer;
                answer.message.assign(120, 0);
                full.store({names[order[i]]}, std::move(answer),
                           {.attachment = {i % 100}, .by_wildcard = false},
                           std::chrono::seconds(1000), at(0));
              }));
}

void looking() {
  PushMemory memory;
  std::mt19937 random(4);
  for (std::uint64_t id = 1; id <= 1000; ++id)
    for (std::uint64_t answer = 1; answer <= 100; ++answer)
      memory.record({id}, memory.ticket({id}), answer * 31, at(1000));
  std::vector<std::pair<AttachmentId, std::uint64_t>> pushes;
  for (std::size_t i = 0; i < kQuestions; ++i)
    pushes.push_back({{1 + random() % 1000}, (1 + random() % 100) * 31});
  const double push = each(kQuestions, [&](std::size_t i) {
    sink = memory.suffices(pushes[i].first, pushes[i].second, at(10));
  });

  Budgets budgets({.rate = 1'000'000'000, .burst = 1'000'000'000, .upstream_rate = 1'000'000'000});
  const auto budget = budgets.of({1});
  const double admit =
      each(kQuestions, [&](std::size_t) { sink = static_cast<bool>(budget->admit(at(0))); });
  std::vector<Name> names;
  for (int i = 0; i < 1000; ++i)
    names.push_back(*Name::from_text("n" + std::to_string(i) + ".example.org"));
  const double name = each(kQuestions, [&](std::size_t i) {
    sink = static_cast<std::uint64_t>(budget->ask_name(1, names[i % 1000], at(0)));
  });

  const AddressSet own({sdk::Address::parse("203.0.113.5"), sdk::Address::parse("10.0.0.1"),
                        sdk::Address::parse("2001:db8::1"), sdk::Address::parse("fe80::1")});
  const auto v4 = sdk::Address::parse("198.51.100.7"), v6 = sdk::Address::parse("2001:db8:7::1");
  std::printf(
      "\npush memory, 1,000 attachments of 100 answers: %.0f ns; admit a query: %.0f ns; count a "
      "name: "
      "%.0f ns; vet an address: IPv4 %.0f ns, IPv6 %.0f ns\n",
      push, admit, name,
      each(kQuestions, [&](std::size_t) { sink = static_cast<std::uint64_t>(vet(v4, {}, own)); }),
      each(kQuestions, [&](std::size_t) { sink = static_cast<std::uint64_t>(vet(v6, {}, own)); }));
  std::vector<std::shared_ptr<AttachmentBudget>> idle;
  const std::size_t before = heap();
  for (std::uint64_t id = 2; id <= 1001; ++id) idle.push_back(budgets.of({id}));
  std::printf("budget of an idle attachment: %.0f bytes of heap\n",
              static_cast<double>(heap() - before) / 1000);
}

}  // namespace
}  // namespace sluice::bench

int main() {
  // A process of one thread takes locks and counts references without atomic instructions; a
  // resolver is not one.
  const std::jthread other([](const std::stop_token& stop) {
    while (!stop.stop_requested()) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  });
  sluice::bench::matching();
  sluice::bench::sharing();
  sluice::bench::caching();
  sluice::bench::looking();
  return 0;
}
