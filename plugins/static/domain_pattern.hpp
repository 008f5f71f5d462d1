// Domain patterns as operators write them: "pypi.org" is that name, "*.pypi.org" everything below
// it, ".pypi.org" both.
#pragma once

#include <string>
#include <string_view>

#include "base/result.hpp"

namespace sluice::static_policy {

// The pattern in wire form: lower case, international labels as A-labels (IDNA2008, UTS #46
// non-transitional). Refuses what is no name: addresses, URLs, ports, stars elsewhere.
[[nodiscard]] Result<std::string> normal_domain_pattern(std::string_view text);

}  // namespace sluice::static_policy
