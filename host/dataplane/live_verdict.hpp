// The decision core (bpf/verdict.h) in user space, over the maps that are in force: what would the
// kernel say now?
#pragma once

#include <cstdint>

#include "dataplane/programs.hpp"
#include "packet.h"

namespace sluice {

// enum sluice_reason for a packet of the attachment in `slot`; DENY_INTERNAL when it has gone, or
// went meanwhile. Any thread; reads maps only.
[[nodiscard]] std::uint32_t judge_live(const Programs& programs, std::uint32_t slot,
                                       std::uint64_t incarnation, const sluice_facts& facts);

}  // namespace sluice
