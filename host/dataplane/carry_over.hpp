// Carries the contents of maps whose size or layout changed from the pinned set to a new one,
// before any link is switched.
#pragma once

#include <cstdint>
#include <span>

#include "base/result.hpp"
#include "dataplane/programs.hpp"

namespace sluice {

// The maps that are made new when those of `layout` are pinned, also where the shape is the same.
[[nodiscard]] std::span<const Map> changed_since(std::uint32_t layout);

// Copies each of programs.replaced(), from maps of `layout`. Fails, naming the map, when what is in
// use does not fit the new size; nothing that is in force was touched then.
[[nodiscard]] Status carry_over(Programs& programs, std::uint32_t layout);

}  // namespace sluice
