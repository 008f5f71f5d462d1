// Whether rules make sense one by one, whoever brought them. Whether they can be compiled together
// is the compiler's to say.
#pragma once

#include <vector>

#include "base/result.hpp"
#include "policy/model.hpp"

namespace sluice {

// The error names the rule at fault by `rule_index`.
[[nodiscard]] Status check_rules(const std::vector<Rule>& rules);

}  // namespace sluice
