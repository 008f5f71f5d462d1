// Reasons by name, so that a failing table row reads as a sentence.
#pragma once

#include <cstdint>
#include <string_view>

#include "layout.h"

namespace sluice::test {

inline std::string_view reason_name(std::uint32_t reason) {
  switch (reason) {
#define X(name, text)        \
  case SLUICE_REASON_##name: \
    return #name;
    SLUICE_REASONS(X)
#undef X
    default:
      return "?";
  }
}

}  // namespace sluice::test
