// Prefixes to measure with. Fixed seeds, so that two runs compare. No prefix covers another:
// nftables' interval sets take only such, and so every peer holds the very same set.
#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <vector>

#include "policy/compiler.hpp"

namespace sluice::bench {

using Address = std::array<std::uint8_t, 16>;  // as Prefix: IPv4 in the first 4 bytes

// Sorted. IPv4: 45 % /24, 33 % hosts, the rest /20 to /30. IPv6: 50 % /48, /56, /64, 20 % hosts,
// below 4,000 allocations of /32.
[[nodiscard]] std::vector<Prefix> mixed_prefixes(std::size_t count, std::uint8_t family,
                                                 std::uint64_t seed = 1);
[[nodiscard]] bool covered(const std::vector<Prefix>& sorted, const Address& address);
[[nodiscard]] std::vector<Address> inside(const std::vector<Prefix>& set, std::size_t count);
// Drawn from the same space as the prefixes, so that the walk goes as deep before it finds nothing.
[[nodiscard]] std::vector<Address> outside(const std::vector<Prefix>& set, std::size_t count);

[[nodiscard]] Layer layer_of(const std::vector<Prefix>& set, Action action);
// With the floor that sluiced has by default. Ends the process, with the reason, on failure.
[[nodiscard]] CompiledPolicy must_compile(const Layer& layer);

// The packet's form: IPv4 mapped.
[[nodiscard]] Address mapped(const Address& address, std::uint8_t family);

}  // namespace sluice::bench
