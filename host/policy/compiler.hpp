// Rules in, a poptrie image out: pure code, no kernel. The image is what the programs walk
// (bpf/layout.h).
//
// Semantics (DESIGN section 4): for a packet, of all unexpired rules whose prefix covers the
// destination and whose ports match, the longest prefix wins and deny wins a tie; a floor deny
// loses only to an allow of the same or a longer prefix from a layer that may overrule the floor.
// The compiler pushes covering prefixes down, so that one longest match carries the whole decision
// chain.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "layout.h"
#include "policy/model.hpp"

namespace sluice {

struct LayerInput {
  const Layer* layer = nullptr;
  bool overrules_floor = false;  // the operator's own TOML
};

// A policy ready to publish. `descriptor` has blob = 0 and base = 0; element indexes are relative.
struct CompiledPolicy {
  std::vector<sluice_element> elements;
  sluice_policy descriptor{};
  // The earliest expiry among the rules used (never if none): recompiling after it frees space, but
  // is not needed for correctness, since the programs check expiry themselves.
  BootTime next_expiry;
};

struct CompileLimits {
  std::size_t max_chain = SLUICE_MAX_CHAIN;
  std::size_t max_elements = std::size_t{1} << 27;
};

// Rules with a domain are skipped (resolvers see them), rules already expired at `now` too. Fails,
// naming the rule, when a chain would be longer than the programs walk or the image larger than the
// limit; nothing partial is returned.
[[nodiscard]] Result<CompiledPolicy> compile(std::span<const LayerInput> layers, const Floor& floor,
                                             BootTime now, const CompileLimits& limits = {});

}  // namespace sluice
