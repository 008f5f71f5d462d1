// Tasks and cgroups whose sockets are to be looked at: what is told while a sweep runs is gathered
// for the next one, so that a flood of moves makes neither a queue nor a longer wait. Beyond a
// bound the next sweep looks at everything, which is bounded by the tasks that there are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <utility>

namespace sluice {

struct Moves {
  bool everything = false;          // every task of every attached cgroup
  std::set<std::uint64_t> cgroups;  // ids: every task of these
  std::set<std::uint32_t> tasks;    // thread groups
};

class PendingMoves {
 public:
  static constexpr std::size_t kMost = 1024;

  void add_task(std::uint32_t thread_group) {
    if (moves_.everything) return;
    moves_.tasks.insert(thread_group);
    bound();
  }
  void add_cgroup(std::uint64_t id) {
    if (moves_.everything) return;
    moves_.cgroups.insert(id);
    bound();
  }
  void add_everything() {
    moves_ = {};
    moves_.everything = true;
  }

  [[nodiscard]] bool empty() const { return !moves_.everything && size() == 0; }
  [[nodiscard]] std::size_t size() const { return moves_.tasks.size() + moves_.cgroups.size(); }
  [[nodiscard]] Moves take() { return std::exchange(moves_, {}); }

 private:
  void bound() {
    if (size() > kMost) add_everything();
  }
  Moves moves_;
};

}  // namespace sluice
