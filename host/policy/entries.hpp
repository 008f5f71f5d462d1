// Prefixes as the compiler sorts and cuts them up: by address, then length, so that a prefix stands
// before all that it covers.
#pragma once

#include <bit>
#include <cstdint>
#include <tuple>
#include <vector>

#include "policy/model.hpp"

namespace sluice::image {

// Different things that rules of one policy can say (24 bits of an Entry4).
constexpr std::uint32_t kMaxShapes = 1u << 24;

// IPv4 in one word, so that a million of them sort and scan in the cache's favour.
struct Entry4 {
  std::uint64_t packed;  // address, 8 bits of length, 24 bits of shape

  static constexpr unsigned kBits = 32;
  static Entry4 make(const Prefix& prefix, std::uint32_t shape) {
    std::uint64_t address = 0;
    for (int i = 0; i < 4; ++i) address = address << 8 | prefix.address[i];
    return {address << 32 | std::uint64_t{prefix.length} << 24 | shape};
  }
  [[nodiscard]] std::uint64_t high() const { return packed & 0xffffffff00000000u; }
  [[nodiscard]] std::uint64_t low() const { return 0; }
  [[nodiscard]] unsigned length() const { return packed >> 24 & 0xff; }
  [[nodiscard]] std::uint32_t shape() const { return packed & 0xffffff; }
  [[nodiscard]] bool same_prefix(const Entry4& other) const {
    return packed >> 24 == other.packed >> 24;
  }
  bool operator<(const Entry4& other) const { return packed < other.packed; }
};

struct Entry6 {
  std::uint64_t high_, low_;
  std::uint32_t length_, shape_;

  static constexpr unsigned kBits = 128;
  static Entry6 make(const Prefix& prefix, std::uint32_t shape) {
    std::uint64_t high = 0, low = 0;
    for (int i = 0; i < 8; ++i) high = high << 8 | prefix.address[i];
    for (int i = 8; i < 16; ++i) low = low << 8 | prefix.address[i];
    return {high, low, prefix.length, shape};
  }
  [[nodiscard]] std::uint64_t high() const { return high_; }
  [[nodiscard]] std::uint64_t low() const { return low_; }
  [[nodiscard]] unsigned length() const { return length_; }
  [[nodiscard]] std::uint32_t shape() const { return shape_; }
  [[nodiscard]] bool same_prefix(const Entry6& other) const {
    return high_ == other.high_ && low_ == other.low_ && length_ == other.length_;
  }
  bool operator<(const Entry6& other) const {
    return std::tie(high_, low_, length_, shape_) <
           std::tie(other.high_, other.low_, other.length_, other.shape_);
  }
};

// Address bits in registers, left-aligned.
struct Bits {
  std::uint64_t high = 0, low = 0;

  [[nodiscard]] Bits shifted(unsigned n) const {
    if (n == 0) return *this;
    if (n >= 128) return {};
    if (n >= 64) return {low << (n - 64), 0};
    return {high << n | low >> (64 - n), low << n};
  }
  [[nodiscard]] Bits first(unsigned n) const {
    if (n >= 128) return *this;
    if (n > 64) return {high, low & ~(~std::uint64_t{0} >> (n - 64))};
    if (n == 64) return {high, 0};
    return {n == 0 ? 0 : high & ~(~std::uint64_t{0} >> n), 0};
  }
};

template <typename Entry>
Bits bits_of(const Entry& entry) {
  return {entry.high(), entry.low()};
}

inline unsigned common_bits(const Bits& a, const Bits& b) {
  if (a.high != b.high) return static_cast<unsigned>(std::countl_zero(a.high ^ b.high));
  return 64 + static_cast<unsigned>(std::countl_zero(a.low ^ b.low));
}

// `count` (at most 63) bits from bit `offset` on.
template <typename Entry>
std::uint32_t bits_at(const Entry& entry, unsigned offset, unsigned count) {
  return static_cast<std::uint32_t>(bits_of(entry).shifted(offset).high >> (64 - count));
}

// By address, then length. What says something of one prefix comes to stand together, in any order.
void sort_entries(std::vector<Entry4>& entries);
void sort_entries(std::vector<Entry6>& entries);

}  // namespace sluice::image
