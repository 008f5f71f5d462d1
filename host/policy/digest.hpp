// The name of a policy image by its content: images with equal digests are stored once and shared.
#pragma once

#include <array>
#include <cstdint>

#include "policy/compiler.hpp"

namespace sluice {

// BLAKE2b-128 over both tries and every element. Collision-resistant, because rules come from
// tenants and a collision would give one tenant another's policy (docs/decisions/0003).
[[nodiscard]] std::array<std::uint64_t, 2> policy_digest(const CompiledPolicy& policy);

}  // namespace sluice
