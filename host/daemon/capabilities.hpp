// What this process must be allowed to do, checked before anything is attached.
#pragma once

#include <string>
#include <vector>

#include "base/result.hpp"

namespace sluice {

struct Capability {
  const char* name;     // "CAP_BPF"
  const char* purpose;  // "load programs and create maps"
  bool required;        // false: without it `purpose` is what is lost
};

// Those of ours that are not in the effective set; reads the calling thread's.
[[nodiscard]] Result<std::vector<Capability>> missing_capabilities();
// Names every required one that is missing and how to give it. ok when there is none.
[[nodiscard]] Status check_capabilities(const std::vector<Capability>& missing);

}  // namespace sluice
