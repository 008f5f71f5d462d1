// The rules read one by one, for comparison with the compiled image. Written from the text of the
// policy semantics, and sharing no code with the compiler, so that one mistake is not in both:
//
//   Of all unexpired rules whose prefix covers the destination and whose ports match, the longest
//   prefix wins; on a tie deny wins. A floor deny loses only to an allow of the same or a longer
//   prefix from a layer that may overrule the floor. Where ports cannot be seen, an allow with
//   ports does not match, a deny with ports of that protocol does.
#pragma once

#include <span>

#include "unit/policy/walk.hpp"

namespace sluice::test {

inline bool bit(const std::array<std::uint8_t, 16>& address, int index) {
  return address[static_cast<std::size_t>(index / 8)] >> (7 - index % 8) & 1;
}

inline bool inside(const Packet& packet, const Prefix& prefix) {
  if (packet.family != prefix.family) return false;
  for (int i = 0; i < prefix.length; ++i)
    if (bit(packet.address, i) != bit(prefix.address, i)) return false;
  return true;
}

inline bool ports_match(const Rule& rule, const Packet& packet) {
  if (rule.ports.empty()) return true;
  for (const PortRange& range : rule.ports) {
    if (range.protocol != packet.protocol) continue;
    if (range.any_port) return true;
    if (!packet.port) {
      if (rule.action == Action::deny) return true;
      continue;
    }
    if (range.first <= *packet.port && *packet.port <= range.last) return true;
  }
  return false;
}

inline std::uint32_t oracle(std::span<const LayerInput> layers, const Floor& floor,
                            const Packet& packet, std::uint64_t now) {
  // Index by prefix length: what is said at each.
  std::array<bool, 129> denied{}, allowed{}, allowed_over_floor{}, floored{};
  for (const LayerInput& input : layers) {
    for (const Rule& rule : input.layer->rules) {
      if (!rule.prefix || !inside(packet, *rule.prefix)) continue;
      if (rule.expires.nanoseconds != 0 && now >= rule.expires.nanoseconds) continue;
      if (!ports_match(rule, packet)) continue;
      if (rule.action == Action::deny)
        denied[rule.prefix->length] = true;
      else if (input.overrules_floor)
        allowed_over_floor[rule.prefix->length] = true;
      else
        allowed[rule.prefix->length] = true;
    }
  }
  int widest_floor = 129;
  for (const Prefix& prefix : floor.deny) {
    if (!inside(packet, prefix)) continue;
    floored[prefix.length] = true;
    widest_floor = std::min(widest_floor, int{prefix.length});
  }
  for (int length = 128; length >= 0; --length) {
    const auto at = static_cast<std::size_t>(length);
    if (denied[at]) return SLUICE_LEAF_DENY;
    if (allowed_over_floor[at]) return SLUICE_LEAF_ALLOW;
    if (allowed[at] && length < widest_floor) return SLUICE_LEAF_ALLOW;
    if (floored[at]) return SLUICE_LEAF_FLOOR;
  }
  return SLUICE_LEAF_NONE;
}

}  // namespace sluice::test
