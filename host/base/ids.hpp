// Identifiers and time as types, so that none is taken for another.
#pragma once

#include <chrono>
#include <compare>
#include <cstdint>
#include <functional>

namespace sluice {

// Names one attachment for the life of its filter; carries the slot and never means another target
// later, because the daemon hands out a fresh one for each attach (adoption keeps it).
struct AttachmentId {
  std::uint64_t value = 0;
  auto operator<=>(const AttachmentId&) const = default;
  explicit operator bool() const { return value != 0; }
};

// Grows by one with each policy of an attachment that reached the kernel.
struct Generation {
  std::uint64_t value = 0;
  auto operator<=>(const Generation&) const = default;
};

// CLOCK_BOOTTIME, the clock that the programs compare expiries against. Zero means "never".
struct BootTime {
  std::uint64_t nanoseconds = 0;
  auto operator<=>(const BootTime&) const = default;
  [[nodiscard]] bool never() const { return nanoseconds == 0; }
};

[[nodiscard]] BootTime boot_now();

}  // namespace sluice

template <>
struct std::hash<sluice::AttachmentId> {
  std::size_t operator()(const sluice::AttachmentId& id) const noexcept {
    return std::hash<std::uint64_t>{}(id.value);
  }
};
