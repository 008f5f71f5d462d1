// What one allowed name opens: the part of a domain rule that learned addresses hang on. For equal
// rules there is one object, so that identity tells whether the rule an address was learned under
// is still in force; its name and its end may have changed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "policy/model.hpp"

namespace sluice {

struct Opening {
  std::string domain = {};            // empty: by a decision
  std::string decider = {};           // whose, by a decision
  std::vector<PortRange> ports = {};  // empty: every protocol and port
  std::vector<Prefix> ranges = {};    // as in Rule
  bool public_suffix = false;
  // The same for equal openings in every daemon, and hardly ever for others: kept in the kernel
  // beside each address, where it outlives us. Of a decision it tells the decider only. Never 0.
  std::uint32_t tag = 0;

  auto operator<=>(const Opening&) const = default;

  [[nodiscard]] static Opening of(const Rule& rule);
  [[nodiscard]] static Opening decided(const std::string& decider, std::vector<PortRange> ports);
};
using OpeningPtr = std::shared_ptr<const Opening>;

// Set in the tag of an address when others vouch for it beside the one that the tag names.
inline constexpr std::uint32_t kSeveralOwners = 1u << 31;

}  // namespace sluice
