// Carries the contents of maps whose size or layout changed from the pinned set to a new one,
// before any link is switched.
#pragma once

#include "base/result.hpp"
#include "dataplane/programs.hpp"

namespace sluice {

// Copies each of programs.replaced(). Fails, naming the map, when what is in use does not fit the
// new size; nothing that is in force was touched then.
[[nodiscard]] Status carry_over(Programs& programs);

}  // namespace sluice
