// SPDX-License-Identifier: Apache-2.0
#include "names/rule_pattern.hpp"

#include "names/public_suffix.hpp"

namespace sluice::dns {

std::expected<DomainPattern, std::string> rule_pattern(const RuleText& rule) {
  auto pattern = DomainPattern::parse(rule.domain);
  if (!pattern || rule.action != sdk::Action::allow || rule.public_suffix ||
      pattern->reach == Reach::exact)
    return pattern;
  const Name::Text base = pattern->base.text();
  std::string normal = pattern->reach == Reach::below ? "*." : ".";
  if (names::covers_public_suffix(normal += base.view()))
    return std::unexpected(
        std::string("covers a public suffix, below which anybody may get a name; name the domains "
                    "that are meant, or set public_suffix"));
  return pattern;
}

}  // namespace sluice::dns
