#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dns/budget.hpp"

#include <doctest/doctest.h>

#include <deque>
#include <map>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

using namespace sluice::dns;
using sluice::sdk::AttachmentId;
using sluice::sdk::Time;
using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {
Time at(double s) {
  return Time(std::chrono::nanoseconds(static_cast<std::int64_t>(s * 1e9)));
}
constexpr AttachmentId kOne{1}, kTwo{2};
Name numbered(int i) {
  return *Name::from_text("n" + std::to_string(i) + ".example.org");
}
}  // namespace

TEST_CASE("queries at once are counted, and a place is given back when it ends") {
  Budgets budgets({.in_flight = 2});
  const auto budget = budgets.of(kOne);
  auto first = budget->admit(at(0));
  auto second = budget->admit(at(0));
  CHECK(first);
  CHECK(second);
  const auto third = budget->admit(at(0));
  CHECK_FALSE(third);
  CHECK(third.cap() == Cap::in_flight);
  CHECK(budget->refused(Cap::in_flight) == 1);
  CHECK(budget->in_flight() == 2);
  auto moved = std::move(first);
  CHECK(budget->in_flight() == 2);
  second = {};
  CHECK(budget->in_flight() == 1);
  moved.release();
  moved.release();
  CHECK(budget->in_flight() == 0);
  // Another attachment has its own.
  CHECK(budgets.of(kTwo)->admit(at(0)));
  CHECK(budgets.of(kOne) == budget);
}

TEST_CASE("a place outlives the attachment") {
  auto budgets = std::make_unique<Budgets>(BudgetOptions{});
  auto place = budgets->of(kOne)->admit(at(0));
  budgets->forget(kOne);
  budgets.reset();
  CHECK(place);
  place.release();
}

TEST_CASE("a rate lets a burst through and then its share") {
  RateLimit limit(10, 5);
  const auto taken = [&](double now, int tries) {
    int count = 0;
    for (int i = 0; i < tries; ++i) count += limit.take(at(now));
    return count;
  };
  CHECK(taken(100, 20) == 5);
  CHECK(taken(100.05, 20) == 0);
  CHECK(taken(100.1, 20) == 1);
  CHECK(taken(100.3, 20) == 2);
  CHECK(taken(200, 20) == 5);  // no more than the burst after a pause
  CHECK(taken(199, 20) == 0);  // a clock that another thread read earlier
}

TEST_CASE("over a second no more than burst and rate pass, whatever the timing") {
  std::mt19937 random(3);
  for (int round = 0; round < 50; ++round) {
    RateLimit limit(100, 20);
    std::deque<double> passed;
    double now = 1000;
    for (int i = 0; i < 5000; ++i) {
      now += static_cast<double>(random() % 1000) / 1e6 * (random() % 50 == 0 ? 300 : 1);
      if (!limit.take(at(now))) continue;
      passed.push_back(now);
      while (passed.front() <= now - 1) passed.pop_front();
      REQUIRE(passed.size() <= 120);
    }
  }
}

TEST_CASE("a rate of nothing passes nothing") {
  RateLimit limit(0, 100);
  CHECK_FALSE(limit.take(at(5)));
}

// The refusal is an answer and a report; only the rate bounds how many of them a guest may cause.
TEST_CASE("a query refused for its number takes from the rate like any other") {
  Budgets budgets({.in_flight = 1, .rate = 1, .burst = 3});
  const auto budget = budgets.of(kOne);
  const auto first = budget->admit(at(0));
  CHECK(first);
  for (int i = 0; i < 2; ++i) CHECK(budget->admit(at(0)).cap() == Cap::in_flight);
  for (int i = 0; i < 10; ++i) CHECK(budget->admit(at(0)).cap() == Cap::rate);
  CHECK(budget->admit(at(1)).cap() == Cap::in_flight);
  CHECK(budget->in_flight() == 1);
  CHECK(budget->refused(Cap::in_flight) == 3);
  CHECK(budget->refused(Cap::rate) == 10);
}

TEST_CASE("connections and questions to upstreams have caps of their own") {
  Budgets budgets({.connections = 1, .upstream_rate = 1, .upstream_burst = 2});
  const auto budget = budgets.of(kOne);
  const auto connection = budget->connect();
  CHECK(connection);
  CHECK(budget->connect().cap() == Cap::connections);
  CHECK(budget->ask_upstream(at(0)) == Cap::none);
  CHECK(budget->ask_upstream(at(0)) == Cap::none);
  CHECK(budget->ask_upstream(at(0)) == Cap::upstream_rate);
  CHECK(budget->ask_upstream(at(1)) == Cap::none);
  CHECK(budget->refused(Cap::connections) == 1);
  CHECK(budget->refused(Cap::upstream_rate) == 1);
}

TEST_CASE(
    "different names under a wildcard are counted once each, and none again before its window") {
  Budgets budgets({.names_per_wildcard = 3, .names = 100, .window = seconds(10)});
  const auto budget = budgets.of(kOne);
  constexpr std::uint64_t kWild = 77, kOther = 78;
  for (int round = 0; round < 5; ++round)
    for (int i = 0; i < 3; ++i) CHECK(budget->ask_name(kWild, numbered(i), at(i)) == Cap::none);
  CHECK(budget->ask_name(kWild, numbered(3), at(3)) == Cap::wildcard_names);
  CHECK(budget->ask_name(kOther, numbered(3), at(3)) == Cap::none);
  CHECK(budget->ask_name(kWild, numbered(3), at(9.9)) == Cap::wildcard_names);
  CHECK(budget->ask_name(kWild, numbered(3), at(10)) == Cap::none);  // the first has aged out
  CHECK(budget->ask_name(kWild, numbered(0), at(10)) == Cap::wildcard_names);
  CHECK(budget->ask_name(kWild, numbered(1), at(10)) == Cap::none);
  CHECK(budgets.of(kTwo)->ask_name(kWild, numbered(9), at(10)) == Cap::none);
  CHECK(budget->refused(Cap::wildcard_names) == 3);
}

TEST_CASE("the names of all wildcards together are bounded") {
  Budgets budgets({.names_per_wildcard = 10, .names = 25, .window = seconds(10)});
  const auto budget = budgets.of(kOne);
  int counted = 0;
  Cap last = Cap::none;
  for (int i = 0; i < 100; ++i) {
    last = budget->ask_name(static_cast<std::uint64_t>(i / 5), numbered(i), at(0));
    counted += last == Cap::none;
  }
  CHECK(counted == 25);
  CHECK(last == Cap::names);
}

TEST_CASE("no timing gets more names through any window than the cap") {
  constexpr std::uint32_t kCap = 40;
  std::mt19937 random(5);
  for (int round = 0; round < 30; ++round) {
    Budgets budgets({.names_per_wildcard = kCap, .names = 10000, .window = seconds(10)});
    const auto budget = budgets.of(kOne);
    // By wildcard: which names were first let through, and when. The oracle looks at each window.
    std::map<std::uint64_t, std::map<int, double>> since;
    double now = 100;
    for (int i = 0; i < 4000; ++i) {
      now += static_cast<double>(random() % 1000) / 1e5 * (random() % 40 == 0 ? 50 : 1);
      const std::uint64_t base = random() % 3;
      const int name = static_cast<int>(random() % 300);
      auto& names = since[base];
      std::erase_if(names, [&](const auto& one) { return one.second <= now - 10; });
      const bool expected = names.contains(name) || names.size() < kCap;
      REQUIRE((budget->ask_name(base, numbered(name), at(now)) == Cap::none) == expected);
      if (expected) names.try_emplace(name, now);
    }
  }
}

TEST_CASE("an idle attachment takes next to nothing, a busy one a bounded amount") {
  Budgets budgets(BudgetOptions{});
  for (std::uint64_t id = 1; id <= 1000; ++id) (void)budgets.of({id});
  CHECK(budgets.size().attachments == 1000);
  CHECK(budgets.size().bytes / 1000 < 400);
  const auto busy = budgets.of(kOne);
  for (int i = 0; i < 20000; ++i)
    (void)busy->ask_name(static_cast<std::uint64_t>(i / 500), numbered(i), at(0));
  CHECK(busy->bytes() > 4000 * 16);
  CHECK(busy->bytes() < 256 * 1024);
  budgets.sweep(at(601));
  CHECK(busy->bytes() < 400);
}

TEST_CASE("workers share one budget exactly") {
  Budgets budgets({.in_flight = 10,
                   .rate = 1000000,
                   .burst = 1000000,
                   .upstream_rate = 1,
                   .upstream_burst = 500,
                   .names_per_wildcard = 300,
                   .names = 300});
  std::atomic<int> most{0}, upstream{0}, names{0};
  std::vector<std::jthread> workers;
  for (int w = 0; w < 4; ++w)
    workers.emplace_back([&] {
      const auto budget = budgets.of(kOne);
      for (int i = 0; i < 1000; ++i) {
        const auto place = budget->admit(at(0));
        const int now = static_cast<int>(budget->in_flight());
        if (place && now > most) most = now;
        upstream += budget->ask_upstream(at(0)) == Cap::none;
        names += budget->ask_name(1, numbered(i), at(0)) == Cap::none;
      }
    });
  workers.clear();
  CHECK(upstream == 500);
  CHECK(names == 1200);  // 300 names, each let through to four workers
  CHECK(budgets.of(kOne)->in_flight() == 0);
  CHECK(most <= 10 + 4);  // a try that is refused counts for a moment
}

TEST_CASE("each cap has a text and a name of its own") {
  std::set<std::string_view> texts, names;
  for (std::size_t i = 0; i < kCaps; ++i) {
    texts.insert(describe(static_cast<Cap>(i)));
    names.insert(name_of(static_cast<Cap>(i)));
  }
  CHECK(texts.size() == kCaps);
  CHECK(names.size() == kCaps);
}

TEST_CASE("the largest window there can be is filled, emptied and filled again") {
  Budgets budgets({.names_per_wildcard = 65'000, .names = 65'000, .window = seconds(10)});
  const auto budget = budgets.of(kOne);
  constexpr std::uint64_t kWild = 77;
  for (int turn = 0; turn < 3; ++turn) {
    const double start = 11.0 * turn;
    for (int i = 0; i < 65'000; ++i)
      REQUIRE(budget->ask_name(kWild, numbered(turn * 100'000 + i), at(start)) == Cap::none);
    CHECK(budget->ask_name(kWild, numbered(turn * 100'000 + 99'999), at(start)) != Cap::none);
  }
}
