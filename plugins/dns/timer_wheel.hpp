// Timeouts of one thread: put in and forgotten. There is no cancel; an entry carries the generation
// of what it is for, and whoever gets it compares. Slots of 4 ms, so adding and firing are O(1) at
// any number, and nothing is allocated once the slots have grown.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <optional>
#include <vector>

namespace sluice::dns {

class TimerWheel {
 public:
  struct Entry {
    std::uint64_t due = 0;  // ns of the thread's clock
    std::uint32_t kind = 0, index = 0;
    std::uint64_t generation = 0;
  };

  explicit TimerWheel(std::uint64_t now) : tick_(now / kTick) {}

  void add(const Entry& entry) {
    std::uint64_t tick = entry.due / kTick + 1;  // never early
    if (tick <= tick_) tick = tick_ + 1;
    if (tick > tick_ + kSlots - 1) tick = tick_ + kSlots - 1;  // comes round again
    const std::size_t slot = tick % kSlots;
    slots_[slot].push_back(entry);
    busy_[slot / 64] |= 1ULL << (slot % 64);
    ++size_;
  }

  // Calls `fire(entry)` for all that is due; it may add.
  template <typename Fire>
  void run(std::uint64_t now, Fire fire) {
    const std::uint64_t until = now / kTick;
    if (size_ == 0 || until > tick_ + kSlots) {
      if (size_ == 0) {
        if (until > tick_) tick_ = until;
        return;
      }
      // The thread slept through a whole turn: one turn meets every slot.
      tick_ = until - kSlots;
    }
    while (tick_ < until) {
      ++tick_;
      const std::size_t slot = tick_ % kSlots;
      if ((busy_[slot / 64] >> (slot % 64) & 1) == 0) continue;
      busy_[slot / 64] &= ~(1ULL << (slot % 64));
      firing_.swap(slots_[slot]);
      size_ -= firing_.size();
      for (const auto& entry : firing_) {
        if (entry.due > now)
          add(entry);
        else
          fire(entry);
      }
      firing_.clear();
    }
  }

  // Milliseconds until something may be due, for epoll_wait(); -1: nothing is set.
  [[nodiscard]] int wait_ms(std::uint64_t now) const {
    if (size_ == 0) return -1;
    for (std::uint64_t ahead = 1; ahead <= kSlots; ++ahead) {
      const std::size_t slot = (tick_ + ahead) % kSlots;
      const std::uint64_t word = busy_[slot / 64] >> (slot % 64);
      if (word == 0) {
        ahead += 63 - slot % 64;  // the rest of the word is empty
        continue;
      }
      const std::uint64_t at =
          (tick_ + ahead + static_cast<unsigned>(std::countr_zero(word))) * kTick;
      return at <= now ? 0 : static_cast<int>((at - now) / 1'000'000 + 1);
    }
    return static_cast<int>(kTick * kSlots / 1'000'000);
  }
  [[nodiscard]] std::size_t size() const { return size_; }

 private:
  static constexpr std::uint64_t kTick = 4'000'000;
  static constexpr std::size_t kSlots = 2048;  // 8 s round

  std::uint64_t tick_;  // all up to here have fired
  std::array<std::vector<Entry>, kSlots> slots_{};
  std::array<std::uint64_t, kSlots / 64> busy_{};
  std::vector<Entry> firing_;
  std::size_t size_ = 0;
};

}  // namespace sluice::dns
