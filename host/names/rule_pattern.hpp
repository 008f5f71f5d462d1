// SPDX-License-Identifier: Apache-2.0
// What names a domain rule speaks of, where it has an effect: whoever judges by domain rules reads
// them here, so that nobody takes a rule for one that another passes over.
//
//   const auto pattern = rule_pattern({"*.com", sdk::Action::allow, false});
//   pattern.error();  // "covers a public suffix, ..."
#pragma once

#include <expected>
#include <string>
#include <string_view>

#ifndef SLUICE_SDK_QUALIFIED
#define SLUICE_SDK_QUALIFIED
#endif
#include <sluice/types.hpp>

#include "names/domain_pattern.hpp"

namespace sluice::dns {

struct RuleText {
  std::string_view domain;
  sdk::Action action = sdk::Action::deny;
  bool public_suffix = false;  // it may cover one
};

// The error is a sentence without a subject, which says why the rule is without effect. [any]
// thread.
[[nodiscard]] std::expected<DomainPattern, std::string> rule_pattern(const RuleText& rule);

}  // namespace sluice::dns
