// Questions of attachments that nothing is known of yet: a moment after their birth, or the
// daemon's. No answer is better than a wrong one, and a moment later there is a right one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "dns/client.hpp"

namespace sluice::dns {

class HeldQuestions {
 public:
  struct Held {
    std::uint64_t attachment = 0, arrived = 0;  // monotonic ns
    Client client;
    std::vector<std::uint8_t> message;
  };

  // False: too many are held, of this attachment or of all.
  [[nodiscard]] bool hold(std::uint64_t attachment, const Client& client, Bytes message,
                          std::uint64_t now) {
    if (held_.size() >= kMost ||
        std::ranges::count(held_, attachment, &Held::attachment) >= kMostOfOne)
      return false;
    held_.push_back({.attachment = attachment,
                     .arrived = now,
                     .client = client,
                     .message = {message.begin(), message.end()}});
    return true;
  }

  // Takes out those of the attachment (0: of all) that came no later than `until`, monotonic ns.
  [[nodiscard]] std::vector<Held> take(std::uint64_t attachment, std::uint64_t until) {
    std::vector<Held> taken;
    std::erase_if(held_, [&](Held& held) {
      if ((attachment != 0 && held.attachment != attachment) || held.arrived > until) return false;
      taken.push_back(std::move(held));
      return true;
    });
    return taken;
  }
  [[nodiscard]] bool empty() const { return held_.empty(); }

 private:
  static constexpr std::size_t kMost = 1024;  // of a worker
  static constexpr int kMostOfOne = 16;       // of an attachment: no budget is known yet
  std::vector<Held> held_;
};

}  // namespace sluice::dns
