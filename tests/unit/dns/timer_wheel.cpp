#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dns/timer_wheel.hpp"

#include <doctest/doctest.h>

#include <map>
#include <random>

using sluice::dns::TimerWheel;

namespace {

constexpr std::uint64_t kMillisecond = 1'000'000;

}  // namespace

TEST_CASE(
    "every timer fires once, never early, and within two ticks of its time when the wheel is "
    "asked") {
  std::mt19937_64 random(11);
  std::uint64_t now = 1'000'000'000'000;
  TimerWheel wheel(now);
  std::map<std::uint64_t, std::uint64_t> due;  // by generation
  std::uint64_t next = 0;
  for (int i = 0; i < 20'000; ++i) {
    for (std::uint64_t k = random() % 4; k > 0; --k) {
      // Some beyond a whole turn.
      const std::uint64_t at = now + random() % (random() % 8 == 0 ? 30'000 : 500) * kMillisecond;
      wheel.add({.due = at, .kind = 1, .index = 2, .generation = ++next});
      due[next] = at;
    }
    const int wait = wheel.wait_ms(now);
    REQUIRE((wait == -1) == due.empty());
    std::uint64_t step = random() % (30 * kMillisecond);
    if (random() % 5000 == 0) step = 20'000 * kMillisecond;  // the thread was away
    now += step;
    wheel.run(now, [&](const TimerWheel::Entry& entry) {
      REQUIRE(entry.kind == 1);
      REQUIRE(entry.index == 2);
      const auto found = due.find(entry.generation);
      REQUIRE(found != due.end());
      REQUIRE(found->second == entry.due);
      REQUIRE(entry.due <= now);
      due.erase(found);
      // One may set another from inside.
      if (random() % 50 == 0) {
        wheel.add({.due = now, .kind = 1, .index = 2, .generation = ++next});
        due[next] = now;
      }
    });
    for (const auto& [generation, at] : due) REQUIRE(at + 8 * kMillisecond >= now);
    REQUIRE(wheel.size() == due.size());
  }
}

TEST_CASE("waiting as long as it says is long enough and not twice too long") {
  std::uint64_t now = 5 * kMillisecond;
  TimerWheel wheel(now);
  CHECK(wheel.wait_ms(now) == -1);
  for (const std::uint64_t ahead : {1u, 4u, 5u, 100u, 260u, 1000u, 8000u, 9000u, 60'000u}) {
    CAPTURE(ahead);
    bool fired = false;
    wheel.add({.due = now + ahead * kMillisecond});
    const std::uint64_t began = now;
    int rounds = 0;
    while (!fired) {
      const int wait = wheel.wait_ms(now);
      REQUIRE(wait >= 0);
      now += static_cast<std::uint64_t>(wait) * kMillisecond;
      wheel.run(now, [&](const TimerWheel::Entry&) { fired = true; });
      REQUIRE(++rounds < 20);
    }
    CHECK(now - began >= ahead * kMillisecond);
    CHECK(now - began <= (ahead + 10) * kMillisecond);
    CHECK(wheel.wait_ms(now) == -1);
  }
}
