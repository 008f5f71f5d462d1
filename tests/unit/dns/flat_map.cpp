#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dns/flat_map.hpp"

#include <doctest/doctest.h>

#include <map>
#include <random>

using sluice::dns::FlatMap;

TEST_CASE("it says what std::map says, through a million changes and long runs of neighbours") {
  std::mt19937_64 random(7);
  // Few keys and a full table: erasing in the middle of runs, around the end of the array too.
  for (const std::uint64_t keys : {12u, 100u, 5000u}) {
    FlatMap<std::uint32_t> map(random());
    std::map<std::uint64_t, std::uint32_t> truth;
    for (int i = 0; i < 300'000; ++i) {
      const std::uint64_t key = random() % keys;
      if (random() % 2 == 0) {
        const auto value = static_cast<std::uint32_t>(random());
        map.put(key, value);
        truth[key] = value;
      } else {
        REQUIRE(map.erase(key) == (truth.erase(key) != 0));
      }
      REQUIRE(map.size() == truth.size());
      const std::uint64_t probe = random() % keys;
      const auto* const found = map.find(probe);
      const auto expected = truth.find(probe);
      REQUIRE((found != nullptr) == (expected != truth.end()));
      if (found != nullptr) REQUIRE(*found == expected->second);
    }
    std::map<std::uint64_t, std::uint32_t> all;
    map.each([&](std::uint64_t key, std::uint32_t value) { all[key] = value; });
    CHECK(all == truth);
    map.clear();
    CHECK(map.size() == 0);
    CHECK_FALSE(map.contains(1));
  }
}
