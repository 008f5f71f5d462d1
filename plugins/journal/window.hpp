// The events of one window: identical ones are one with a count. What a workload may fill of it is
// bounded, so that a guest that asks for a new name each time crowds out nobody else's events; what
// does not fit is counted by kind and verdict.
#pragma once

#include <cstddef>
#include <string>
#include <unordered_map>
#include <vector>

#include "journal/event.hpp"

namespace sluice::journal {

class Window {
 public:
  struct Limits {
    std::size_t of_workload = 256;  // distinct events
    std::size_t of_all = 8192;
  };
  explicit Window(Limits limits) : limits_(limits) {}

  void add(Event event);
  [[nodiscard]] bool empty() const { return events_.empty(); }
  // In the order in which they were first seen; the window is empty then.
  [[nodiscard]] std::vector<Event> take();

 private:
  const Limits limits_;
  std::vector<Event> events_;
  std::unordered_map<std::string, std::size_t> by_identity_;
  std::unordered_map<std::uint64_t, std::size_t> distinct_;  // by attachment
};

}  // namespace sluice::journal
