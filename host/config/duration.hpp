// "30s", "8h", "1h30m", "250ms": how long something holds.
#pragma once

#include <chrono>
#include <string_view>

#include "base/result.hpp"

namespace sluice {

// Units d, h, m, s and ms, largest first, each at most once, without blanks or fractions. Zero and
// anything beyond 100 years are refused.
[[nodiscard]] Result<std::chrono::nanoseconds> parse_duration(std::string_view text);

}  // namespace sluice
