// One [[policy]] as read and checked: whom it is for and what it says. Kept compact, because a
// policy may hold a million prefixes: 18 bytes for each, where a rule of the SDK takes over 200.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#ifndef SLUICE_SDK_QUALIFIED
#define SLUICE_SDK_QUALIFIED
#endif
#include <sluice/types.hpp>

#include "policy/model.hpp"

namespace sluice::static_policy {

// One [[policy.allow]] or [[policy.deny]].
struct RuleGroup {
  Action action = Action::deny;
  std::vector<Prefix> prefixes;
  std::vector<std::string> domains;  // normal form
  std::vector<PortRange> ports;      // empty: every protocol and port
  // Of its domains: reserved ranges they may resolve to, further RR types, leave for "*.com".
  std::vector<Prefix> addresses;
  std::vector<std::uint16_t> types;
  bool public_suffix = false;
  std::optional<std::chrono::nanoseconds> ttl;
  std::string name;  // for reports: as given, else "agents:allow:2", the second allow of agents

  bool operator==(const RuleGroup&) const = default;
};

struct Policy {
  std::string name;   // unique over all files
  sdk::Labels match;  // label -> glob; all must match; none: every attachment
  std::optional<Mode> mode;
  std::optional<bool> audit, replies;
  std::vector<RuleGroup> groups;
  std::string file;
  std::uint32_t line = 0;
  sdk::Time counted_from{};  // when what it says was first loaded: TTLs run from here

  // Equal but for where it stands and when it was loaded.
  [[nodiscard]] bool says_same(const Policy& other) const;
  [[nodiscard]] bool has_ttl() const;
  [[nodiscard]] std::size_t rule_count() const;
  // Names what it says, its TTLs included: equal for policies that say the same.
  [[nodiscard]] std::string digest() const;
};
using PolicyPtr = std::shared_ptr<const Policy>;

[[nodiscard]] bool matches(const Policy& policy, const sdk::Labels& labels);

// Those of `policies` that are for an attachment with these labels, in order.
[[nodiscard]] std::vector<PolicyPtr> select(const std::vector<PolicyPtr>& policies,
                                            const sdk::Labels& labels);

// What they say together: the rules of all; mode, audit and replies each from the first that sets
// it.
[[nodiscard]] sdk::Layer unite(const std::vector<PolicyPtr>& policies);

}  // namespace sluice::static_policy
