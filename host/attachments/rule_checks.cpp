#include "attachments/rule_checks.hpp"

#include <spdlog/fmt/fmt.h>

#include <utility>

namespace sluice {
namespace {

Status check_rule(const Rule& rule, std::uint32_t index) {
  const auto at = [&](Error error) {
    error.rule_index = index;
    return std::unexpected(std::move(error));
  };
  if (rule.prefix.has_value() == !rule.domain.empty()) {
    return at({.message = fmt::format("rule {} ({}): needs either a prefix or a domain, and has {}",
                                      index, rule.name, rule.prefix ? "both" : "neither")});
  }
  if (rule.prefix) {
    if (auto status = rule.prefix->check(); !status) return at(std::move(status.error()));
  }
  for (const auto& range : rule.ports) {
    if (auto status = range.check(); !status) return at(std::move(status.error()));
  }
  const bool has_attributes = !rule.ranges.empty() || !rule.types.empty() || rule.public_suffix;
  if (has_attributes && (rule.prefix || rule.action != Action::allow)) {
    return at({.message = fmt::format("rule {} ({}): ranges, types and public_suffix belong to "
                                      "domain rules that allow",
                                      index, rule.name)});
  }
  for (const auto& range : rule.ranges) {
    if (auto status = range.check(); !status) return at(std::move(status.error()));
  }
  for (const auto type : rule.types) {
    // RFC 6895: 0 is reserved, 41 is OPT, 128 to 255 ask for more than one type or are no data.
    if (type != 0 && type != 41 && (type < 128 || type > 255)) continue;
    return at({.message = fmt::format("rule {} ({}): {} is no type of record that a name can have",
                                      index, rule.name, type)});
  }
  return {};
}

}  // namespace

Status check_rules(const std::vector<Rule>& rules) {
  for (std::uint32_t index = 0; index < rules.size(); ++index) {
    if (auto status = check_rule(rules[index], index); !status) return status;
  }
  return {};
}

}  // namespace sluice
