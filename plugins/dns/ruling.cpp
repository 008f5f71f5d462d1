#include "dns/ruling.hpp"

#include <algorithm>
#include <utility>

namespace sluice::dns {

Ruling rule_on(const Tenant& tenant, const Name& name, const sdk::Decision* decision, bool may_ask,
               sdk::Time now) {
  const auto& state = tenant.state;
  const auto denied = [&](std::string_view why, std::string_view rule = {}) {
    return Ruling{.kind = state.audit ? Ruling::audited : Ruling::deny, .why = why, .rule = rule};
  };
  if (state.mode == sdk::Mode::disabled) return {.kind = Ruling::pass};
  if (state.mode == sdk::Mode::block_all) return denied("everything is blocked");
  if (state.rules) {
    const auto match = state.rules->match(name, now);
    if (match.verdict != Verdict::none) {
      const auto pattern = state.rules->pattern(match.rules.front());
      if (match.verdict == Verdict::deny) return denied("a rule denies this name", pattern);
      return {.kind = Ruling::rules, .match = match, .rule = pattern};
    }
  }
  if (decision != nullptr) {
    if (decision->action == sdk::Decision::Action::allow) return {.kind = Ruling::decided};
    return denied(decision->reason.empty() ? std::string_view("denied by a decision")
                                           : std::string_view(decision->reason));
  }
  if (may_ask && now >= tenant.no_decider_until) return {.kind = Ruling::ask};
  if (state.mode == sdk::Mode::denylist) return {.kind = Ruling::pass};
  return denied("no rule allows this name");
}

bool lets_type(const Tenant& tenant, const Ruling& ruling, std::uint16_t type,
               std::span<const std::uint16_t> more) {
  if (!ruling.grants()) return true;
  if (is_default_type(type) || std::ranges::binary_search(more, type)) return true;
  return ruling.kind == Ruling::rules && tenant.state.rules->allows_type(ruling.match, type);
}

std::optional<std::string_view> denied_link(const Tenant& tenant, const CachedAnswer& answer,
                                            sdk::Time now) {
  std::optional<std::string_view> denied;
  if (!tenant.state.rules || answer.names.size() < 2) return denied;
  bool first = true;
  answer.names.for_each([&](const Name& name) {
    if (std::exchange(first, false)) return true;  // the question's: judged before
    const auto match = tenant.state.rules->match(name, now);
    if (match.verdict != Verdict::deny) return true;
    denied = tenant.state.rules->pattern(match.rules.front());
    return false;
  });
  return denied;
}

sdk::Time end_of(const Tenant& tenant, const Ruling& ruling) {
  if (ruling.kind != Ruling::rules) return sdk::Time::max();
  auto last = sdk::Time::min();
  for (const auto number : ruling.match.rules) {
    const auto& ends = tenant.state.rules->rule(number).expires;
    if (!ends) return sdk::Time::max();
    last = std::max(last, *ends);
  }
  return last;
}

}  // namespace sluice::dns
