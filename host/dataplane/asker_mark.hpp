// The mark that names an attachment to a resolver; see SLUICE_ASKER_TAG in layout.h.
//
// Of its 24 bits exactly 12 are set. So whatever a firewall of the host sets on the way, or clears,
// makes it invalid: `--or-mark 0x4000` turns no attachment into another one.
#pragma once

#include <array>
#include <bit>
#include <cstdint>

#include "layout.h"

namespace sluice {

namespace detail {
// choose[n][k]: how many words of n bits have k set.
inline constexpr auto choose = [] {
  std::array<std::array<std::uint32_t, SLUICE_ASKER_WEIGHT + 1>, SLUICE_ASKER_BITS + 1> table{};
  for (std::size_t n = 0; n <= SLUICE_ASKER_BITS; ++n) {
    table[n][0] = 1;
    for (std::size_t k = 1; k <= SLUICE_ASKER_WEIGHT && n > 0; ++k)
      table[n][k] = table[n - 1][k - 1] + table[n - 1][k];
  }
  return table;
}();
}  // namespace detail

// 2,704,156 attachments in one boot before a mark comes again.
inline constexpr std::uint32_t kAskerMarks = detail::choose[SLUICE_ASKER_BITS][SLUICE_ASKER_WEIGHT];

// The `scope`th word of that weight, in numerical order.
[[nodiscard]] constexpr std::uint32_t asker_mark(std::uint32_t scope) {
  std::uint32_t rank = scope % kAskerMarks, word = 0;
  std::size_t left = SLUICE_ASKER_WEIGHT;
  for (std::size_t bit = SLUICE_ASKER_BITS; bit-- > 0 && left > 0;) {
    const std::uint32_t without = detail::choose[bit][left];
    if (rank < without) continue;
    rank -= without;
    word |= 1u << bit;
    --left;
  }
  return SLUICE_ASKER_TAG | word;
}

[[nodiscard]] constexpr bool is_asker_mark(std::uint32_t mark) {
  return (mark & SLUICE_ASKER_TAG_MASK) == SLUICE_ASKER_TAG &&
         std::popcount(mark & ~SLUICE_ASKER_TAG_MASK) == SLUICE_ASKER_WEIGHT;
}

}  // namespace sluice
