#include "dns/waiting_room.hpp"

#include <cstring>
#include <utility>

namespace sluice::dns {
namespace {

constexpr std::size_t kMostWaiters = 65'536;

// Returns the size.
std::size_t keep(const MessageView& query, std::uint8_t* kept) {
  auto* out = kept;
  std::memcpy(out, query.bytes().data(), 4);
  store16(out + 4, 1);
  store16(out + 6, 0);
  store16(out + 8, 0);
  store16(out + 10, query.edns().present ? 1 : 0);
  out += kHeaderSize;
  std::memcpy(out, query.question().wire.data(), query.question().wire.size());
  out += query.question().wire.size();
  if (query.edns().present) {
    *out++ = 0;
    store16(out, type::opt);
    store16(out + 2, query.edns().udp_size);
    store32(out + 4, query.edns().dnssec_ok ? 0x8000u : 0u);
    store16(out + 8, 0);
    out += 10;
  }
  return static_cast<std::size_t>(out - kept);
}

}  // namespace

bool WaitingRoom::join(Line& line, const Asked& asked, AttachmentBudget::Place place) {
  std::uint32_t index = free_;
  if (index != Line::kNobody) {
    free_ = waiters_[index].next;
  } else {
    if (waiters_.size() >= kMostWaiters) return false;
    index = static_cast<std::uint32_t>(waiters_.size());
    waiters_.emplace_back();
  }
  auto& waiter = waiters_[index];
  waiter.next = Line::kNobody;
  waiter.attachment = asked.attachment();
  waiter.client = asked.client;
  waiter.decision = asked.decision;
  waiter.stamp = asked.tenant.state.pushes.stamp;
  waiter.budget = asked.tenant.state.budget;
  waiter.place = std::move(place);
  waiter.arrived = asked.arrived;
  waiter.decision_ns = asked.decision_ns;
  waiter.size = static_cast<std::uint16_t>(keep(asked.query, waiter.kept.data()));

  if (line.first == Line::kNobody)
    line.first = index;
  else
    waiters_[line.last].next = index;
  line.last = index;
  return true;
}

}  // namespace sluice::dns
