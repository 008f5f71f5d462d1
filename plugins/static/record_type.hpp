// DNS record types by the names of the IANA registry, for `types = ["MX", "TXT", "TYPE65280"]`.
#pragma once

#include <cstdint>
#include <string_view>

#include "base/result.hpp"

namespace sluice::static_policy {

// Refuses what no rule needs to name (A, AAAA, HTTPS, SVCB: they always pass, and a list of types
// takes nothing away), and what is no type of record (ANY, AXFR, OPT).
[[nodiscard]] Result<std::uint16_t> parse_record_type(std::string_view text);

}  // namespace sluice::static_policy
