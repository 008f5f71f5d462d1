#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dataplane/asker_mark.hpp"

#include <doctest/doctest.h>

#include <set>

using namespace sluice;

TEST_CASE("each attachment has a mark of its own, of the same weight") {
  std::set<std::uint32_t> seen;
  for (std::uint32_t scope = 0; scope < 20'000; ++scope) {
    const auto mark = asker_mark(scope);
    CHECK(is_asker_mark(mark));
    CHECK(seen.insert(mark).second);
  }
  CHECK(asker_mark(kAskerMarks - 1) != asker_mark(0));
  CHECK(is_asker_mark(asker_mark(kAskerMarks - 1)));
  CHECK(asker_mark(kAskerMarks) == asker_mark(0));
}

TEST_CASE("a firewall that sets or clears bits of a mark makes no other attachment's of it") {
  for (std::uint32_t scope = 1; scope < 2000; scope += 7) {
    const auto mark = asker_mark(scope);
    for (std::uint32_t bits = 1; bits < 1u << 24; bits = bits * 3 + 1) {
      if ((mark | bits) != mark) CHECK_FALSE(is_asker_mark(mark | bits));
      if ((mark & ~bits) != mark) CHECK_FALSE(is_asker_mark(mark & ~bits));
    }
  }
}
