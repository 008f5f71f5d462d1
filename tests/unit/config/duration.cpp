#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "config/duration.hpp"

#include <doctest/doctest.h>

#include <string>

using namespace sluice;
using namespace std::chrono_literals;

TEST_CASE("durations are numbers with units, largest first") {
  struct Row {
    const char* text;
    std::chrono::nanoseconds wanted;
  };
  for (const Row& row :
       {Row{"30s", 30s}, Row{"8h", 8h}, Row{"250ms", 250ms}, Row{"1h30m", 90min}, Row{"2d", 48h},
        Row{"1d2h3m4s5ms", 26h + 3min + 4s + 5ms}, Row{"36525d", 36525 * 24h}, Row{"0h1s", 1s}}) {
    CAPTURE(row.text);
    const auto duration = parse_duration(row.text);
    REQUIRE(duration);
    CHECK(*duration == row.wanted);
  }
}

TEST_CASE("anything else is refused, with the reason") {
  struct Row {
    const char* text;
    const char* reason;
  };
  for (const Row& row :
       {Row{"", "is not a duration"}, Row{"30", "is not a duration"},
        Row{"30 s", "is not a duration"}, Row{"s", "is not a duration"},
        Row{"-3s", "is not a duration"}, Row{"+3s", "is not a duration"},
        Row{"1.5h", "is not a duration"}, Row{"3w", "is not a duration"},
        Row{"1m1h", "is not a duration"}, Row{"1s1s", "is not a duration"},
        Row{"1sm", "is not a duration"}, Row{"99999999999999999999s", "is not a duration"},
        Row{"36526d", "longer than 100 years"}, Row{"36525d1ms", "longer than 100 years"},
        Row{"9223372036854775807d", "longer than 100 years"}, Row{"0s", "no time at all"},
        Row{"0d0ms", "no time at all"}}) {
    CAPTURE(row.text);
    const auto duration = parse_duration(row.text);
    REQUIRE_FALSE(duration);
    CHECK(duration.error().message.find(row.reason) != std::string::npos);
  }
}
