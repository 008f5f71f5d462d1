// The programs of one cgroup: ten pinned links. Egress first: from its first moment on, nothing
// passes that is not judged.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "dataplane/programs.hpp"

namespace sluice {

// The cgroup2 mount, from /proc/mounts.
[[nodiscard]] Result<std::filesystem::path> find_cgroup2();

struct CgroupHook {
  Program program;
  int attach_type;
  const char* name;  // suffix of the pin
};
[[nodiscard]] const std::vector<CgroupHook>& cgroup_hooks();

// Attaches all programs to the directory `cgroup` and pins them as `<prefix>-<hook>`. `store_slot`
// is called once the first program is there (the cgroup's storage exists then). On failure nothing
// stays attached.
[[nodiscard]] Status attach_cgroup(int cgroup, const Programs& programs, const std::string& prefix,
                                   std::uint64_t cgroup_id, std::uint32_t slot);
[[nodiscard]] Status update_cgroup(const Programs& programs, const std::string& prefix);
void detach_cgroup(const std::string& prefix);

// The parent guard: one program on a cgroup whose children must be attached.
[[nodiscard]] Result<Fd> attach_cgroup_guard(int cgroup, int program,
                                             const std::filesystem::path& pin);

}  // namespace sluice
