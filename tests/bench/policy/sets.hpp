// Sets of prefixes to measure with. Fixed seeds, so that two runs compare.
#pragma once

#include <algorithm>
#include <array>
#include <random>
#include <vector>

#include "policy/model.hpp"

namespace sluice::bench {

struct LengthShare {
  unsigned first, last;  // prefix lengths, uniform between them
  unsigned percent;
};

// The mix of a real blocklist: half /24, hosts, some wide ranges.
inline constexpr std::array<LengthShare, 5> kMixed4{
    {{12, 16, 3}, {17, 22, 17}, {23, 24, 45}, {25, 31, 15}, {32, 32, 20}}};
inline constexpr std::array<LengthShare, 4> kMixed6{
    {{32, 32, 10}, {33, 48, 50}, {49, 64, 20}, {128, 128, 20}}};

// `count` prefixes over unicast space, unique but for chance.
inline std::vector<Prefix> prefixes(std::size_t count, std::uint8_t family,
                                    std::uint64_t seed = 1) {
  std::mt19937_64 random(seed);
  std::vector<Prefix> out;
  out.reserve(count);
  const auto length = [&](auto& shares) {
    unsigned at = static_cast<unsigned>(random() % 100);
    for (const LengthShare& share : shares) {
      if (at < share.percent)
        return share.first + static_cast<unsigned>(random() % (share.last - share.first + 1));
      at -= share.percent;
    }
    return shares.back().last;
  };
  // IPv6: 4,000 allocations of /32 hold the rest, as in a routing table.
  std::vector<std::uint32_t> allocations;
  for (int i = 0; i < 4000; ++i)
    allocations.push_back(0x20010000u + static_cast<std::uint32_t>(random() % 0x0fff0000u));
  while (out.size() < count) {
    Prefix prefix;
    prefix.family = family;
    prefix.length = static_cast<std::uint8_t>(family == 4 ? length(kMixed4) : length(kMixed6));
    if (family == 4) {
      const std::uint32_t address =
          0x01000000u + static_cast<std::uint32_t>(random() % 0xde000000u);
      for (unsigned i = 0; i < 4; ++i)
        prefix.address[i] = static_cast<std::uint8_t>(address >> (24 - 8 * i));
    } else {
      const std::uint32_t top = allocations[random() % allocations.size()];
      const std::uint64_t middle = random(), low = random();
      for (unsigned i = 0; i < 4; ++i)
        prefix.address[i] = static_cast<std::uint8_t>(top >> (24 - 8 * i));
      for (unsigned i = 0; i < 4; ++i)
        prefix.address[4 + i] = static_cast<std::uint8_t>(middle >> (24 - 8 * i));
      for (unsigned i = 0; i < 8; ++i)
        prefix.address[8 + i] = static_cast<std::uint8_t>(low >> (56 - 8 * i));
    }
    for (unsigned i = prefix.length; i < 128; ++i)
      prefix.address[i / 8] &= static_cast<std::uint8_t>(~(0x80 >> i % 8));
    out.push_back(prefix);
  }
  return out;
}

// An address inside a random one of them.
inline std::array<std::uint8_t, 16> address_in(const std::vector<Prefix>& set,
                                               std::mt19937_64& random) {
  const Prefix& prefix = set[random() % set.size()];
  std::array<std::uint8_t, 16> address = prefix.address;
  for (unsigned i = prefix.length; i < (prefix.family == 4 ? 32u : 128u); ++i)
    if (random() & 1) address[i / 8] |= static_cast<std::uint8_t>(0x80 >> i % 8);
  return address;
}

}  // namespace sluice::bench
