#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dataplane/pending_moves.hpp"

#include <doctest/doctest.h>

using namespace sluice;

TEST_CASE("a task that moves to and fro is looked at once") {
  PendingMoves pending;
  CHECK(pending.empty());
  for (int i = 0; i < 100'000; ++i) pending.add_task(1 + i % 3);
  pending.add_cgroup(77);
  CHECK(pending.size() == 4);
  const Moves moves = pending.take();
  CHECK(moves.tasks == std::set<std::uint32_t>{1, 2, 3});
  CHECK(moves.cgroups == std::set<std::uint64_t>{77});
  CHECK_FALSE(moves.everything);
  CHECK(pending.empty());
}

TEST_CASE("more than the bound is everything, and takes no room") {
  PendingMoves pending;
  for (std::uint32_t task = 1; task <= PendingMoves::kMost; ++task) pending.add_task(task);
  CHECK(pending.size() == PendingMoves::kMost);
  pending.add_cgroup(5);
  for (std::uint32_t task = 1; task < 1'000'000; ++task) {
    pending.add_task(task);
    pending.add_cgroup(task);
    REQUIRE(pending.size() <= PendingMoves::kMost);
  }
  CHECK_FALSE(pending.empty());
  CHECK(pending.take().everything);
  CHECK(pending.empty());
  pending.add_task(9);  // a new turn is told one by one again
  CHECK(pending.take().tasks == std::set<std::uint32_t>{9});
}
