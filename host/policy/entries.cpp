#include "policy/entries.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

namespace sluice::image {

void sort_entries(std::vector<Entry6>& entries) {
  if (!std::ranges::is_sorted(entries, std::less<>{})) std::ranges::sort(entries, std::less<>{});
}

// Radix sort over length and address (40 bits, 4 passes of 10): a million in a fifth of the time of
// std::sort. Shapes of one prefix keep no order; they are put in order where they are joined.
void sort_entries(std::vector<Entry4>& entries) {
  if (std::ranges::is_sorted(entries, std::less<>{})) return;
  if (entries.size() < 4096) {
    std::ranges::sort(entries, std::less<>{});
    return;
  }
  constexpr int kPasses = 4, kDigitBits = 10;
  constexpr std::size_t kDigits = 1u << kDigitBits;
  std::vector<std::array<std::uint32_t, kDigits>> counts(kPasses);
  for (const Entry4& entry : entries)
    for (int pass = 0; pass < kPasses; ++pass)
      ++counts[pass][entry.packed >> (24 + pass * kDigitBits) & (kDigits - 1)];
  std::vector<Entry4> other(entries.size());
  for (int pass = 0; pass < kPasses; ++pass) {
    std::uint32_t position = 0;
    for (std::uint32_t& count : counts[pass]) position += std::exchange(count, position);
    for (const Entry4& entry : entries)
      other[counts[pass][entry.packed >> (24 + pass * kDigitBits) & (kDigits - 1)]++] = entry;
    entries.swap(other);
  }
}

}  // namespace sluice::image
