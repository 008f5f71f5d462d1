// Which rule decides: the plain reading of the rules, one by one, for reports and for people. It is
// not the compiled image, and agrees with it (tests/unit/policy/oracle).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "policy/compiler.hpp"

namespace sluice {

// A packet as the explicit rules see it.
struct PacketTuple {
  std::array<std::uint8_t, 16> address{};  // destination, as in Prefix: IPv4 in the first 4 bytes
  std::uint8_t family = 4;
  std::uint8_t protocol = 6;          // IP protocol number
  std::optional<std::uint16_t> port;  // destination, host order; none: a later fragment, or a
                                      // protocol without ports
};

struct Explanation {
  enum class Verdict : std::uint8_t { none, allow, deny, floor };
  Verdict verdict = Verdict::none;  // none: no explicit rule speaks
  std::size_t layer = 0;            // allow and deny: indexes into the arguments of explain()
  std::size_t rule = 0;
  std::size_t floor = 0;  // floor: index into Floor::deny
};

// The first of several equal rules is named. Costs a few nanoseconds per rule.
[[nodiscard]] Explanation explain(std::span<const LayerInput> layers, const Floor& floor,
                                  const PacketTuple& packet, BootTime now);

// "allow 10.0.0.0/8 tcp/443 (agents.toml:7)", for a report.
[[nodiscard]] std::string describe(const Rule& rule);

}  // namespace sluice
