// What a workload may do with a name: what its rules, a decision or its mode say. Functions of
// their arguments; nothing is asked, pushed or sent here.
//
// | No rule | the wire's decider where there is one, else the mode: an allowlist denies, a denylist
// |         | answers and opens nothing
// | Audit   | what would be refused is answered as it came, opens nothing, and is reported
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "dns/cache.hpp"
#include "dns/rule_book.hpp"
#include "dns/tenant.hpp"

namespace sluice::dns {

struct Ruling {
  enum Kind : std::uint8_t {
    deny,
    ask,      // the decider
    pass,     // answered, opens nothing
    audited,  // would be denied, and passes
    rules,    // allowed by `match`
    decided,  // allowed by the decision
  } kind = deny;
  Match match{};
  std::string_view why{};   // of a denial; the decision's or a constant
  std::string_view rule{};  // the pattern that decided; the rules'
  [[nodiscard]] bool grants() const { return kind == rules || kind == decided; }
};

// `decision`: a decider's about this name, or null. `may_ask`: whether "ask the decider" is an
// answer; else the mode speaks.
[[nodiscard]] Ruling rule_on(const Tenant& tenant, const Name& name, const sdk::Decision* decision,
                             bool may_ask, sdk::Time now);

// Whether records of the type are let through under the ruling. `more`, sorted: types beside the
// usual ones that the operator lets through on every allowed name.
[[nodiscard]] bool lets_type(const Tenant& tenant, const Ruling& ruling, std::uint16_t type,
                             std::span<const std::uint16_t> more);

// Of the chain and the target names of an answer, the question's name left out: the pattern of a
// deny rule that speaks of one.
[[nodiscard]] std::optional<std::string_view> denied_link(const Tenant& tenant,
                                                          const CachedAnswer& answer,
                                                          sdk::Time now);

// When the last of the rules that decided ends; Time::max(): never.
[[nodiscard]] sdk::Time end_of(const Tenant& tenant, const Ruling& ruling);

}  // namespace sluice::dns
