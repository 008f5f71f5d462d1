// What an attachment is on, as two descriptions of it may tell: by name and namespace path, or by
// the kernel's numbers.
#pragma once

#include <cstdint>
#include <string>

#include "attachments/core.hpp"

namespace sluice {

// Interface index or cgroup id; 0: a cgroup by its path alone.
[[nodiscard]] std::uint64_t target_key(const Target& target);
[[nodiscard]] Target target_of(const KernelAttachment& kernel);
// Same kernel object, as far as the two tell.
[[nodiscard]] bool same_target(const Target& known, const Target& asked);
// "class=vm, tenant=a"; "no labels".
[[nodiscard]] std::string labels_text(const Labels& labels);

}  // namespace sluice
