// Where questions wait for an answer or a decision that is under way: one line for each, first come
// first served. Many lines share the room; memory grows to the most that ever waited and is used
// again.
//
//   Line line;  // the caller's, beside what is waited for
//   if (!room.join(line, asked, std::move(place))) return fail(...);
//   ...
//   room.serve(line, [&](WaitingRoom::Waiter& waiter) { ... });
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>

#include "dns/asked.hpp"
#include "dns/budget.hpp"
#include "dns/client.hpp"
#include "dns/message.hpp"
#include "dns/respond.hpp"

namespace sluice::dns {

struct Line {
  static constexpr std::uint32_t kNobody = UINT32_MAX;
  std::uint32_t first = kNobody, last = kNobody;
};

class WaitingRoom {
 public:
  struct Waiter {
    std::uint32_t next = Line::kNobody;
    std::uint64_t attachment = 0;
    Client client;
    DecisionPtr decision;
    std::uint64_t stamp = 0;                   // of the state in which it began to wait
    std::shared_ptr<AttachmentBudget> budget;  // outlives `place`
    AttachmentBudget::Place place;
    std::uint64_t arrived = 0, decision_ns = 0;

    // Header, question and the OPT's gist: all that an answer depends on. Reads as the query did.
    [[nodiscard]] Bytes query() const { return Bytes(kept).first(size); }
    std::uint16_t size = 0;
    std::array<std::uint8_t, kHeaderSize + kLongestName + 4 + kOptSize> kept;
  };

  // False: too many wait; nothing has changed then, but that the place is given back.
  [[nodiscard]] bool join(Line& line, const Asked& asked, AttachmentBudget::Place place);

  // Calls `each(waiter)` for all in the line and lets them go; it may move from the waiter, and
  // others may join other lines meanwhile. The line is over: it is the caller's copy.
  template <typename Each>
  void serve(Line line, Each each) {
    for (std::uint32_t index = line.first; index != Line::kNobody;) {
      auto& waiter = waiters_[index];  // a deque: the place stays while others join
      const std::uint32_t next = waiter.next;
      each(waiter);
      waiter.place.release();
      waiter.budget.reset();
      waiter.decision.reset();
      waiter.next = free_;
      free_ = index;
      index = next;
    }
  }

 private:
  std::deque<Waiter> waiters_;
  std::uint32_t free_ = Line::kNobody;
};

}  // namespace sluice::dns
