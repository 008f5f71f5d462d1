// SPDX-License-Identifier: Apache-2.0
// Big-endian integers at a place that the caller has checked to lie inside.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace sluice::dns {

using Bytes = std::span<const std::uint8_t>;
using Room = std::span<std::uint8_t>;

[[nodiscard]] inline std::uint16_t load16(const std::uint8_t* at) {
  return static_cast<std::uint16_t>(at[0] << 8 | at[1]);
}

[[nodiscard]] inline std::uint32_t load32(const std::uint8_t* at) {
  return static_cast<std::uint32_t>(load16(at)) << 16 | load16(at + 2);
}

inline void store16(std::uint8_t* at, std::size_t value) {
  at[0] = static_cast<std::uint8_t>(value >> 8);
  at[1] = static_cast<std::uint8_t>(value);
}

inline void store32(std::uint8_t* at, std::uint32_t value) {
  store16(at, value >> 16);
  store16(at + 2, value & 0xffff);
}

}  // namespace sluice::dns
