// The cgroup2 hierarchy as it is read from its mount, in any thread. Cgroups may come and go
// meanwhile.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <vector>

namespace sluice {

// The directories from `path` down, itself included, by the ids of their cgroups.
[[nodiscard]] std::map<std::uint64_t, std::filesystem::path> cgroups_below(
    const std::filesystem::path& path);

// The thread groups in a cgroup, without those of its children.
[[nodiscard]] std::vector<std::uint32_t> tasks_of(const std::filesystem::path& cgroup);

}  // namespace sluice
