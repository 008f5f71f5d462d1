#include "dataplane/cgroup_walk.hpp"

#include <sys/stat.h>

#include <fstream>

namespace sluice {
namespace fs = std::filesystem;
namespace {

// Each by itself: one that goes meanwhile takes only what is below it along, where
// fs::recursive_directory_iterator would end.
void add_subtree(const fs::path& path, std::map<std::uint64_t, fs::path>& found) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return;
  found[info.st_ino] = path;
  std::error_code gone;
  for (fs::directory_iterator at(path, gone), end; at != end && !gone; at.increment(gone)) {
    std::error_code unknown;
    if (at->is_directory(unknown)) add_subtree(at->path(), found);
  }
}

}  // namespace

std::map<std::uint64_t, fs::path> cgroups_below(const fs::path& path) {
  std::map<std::uint64_t, fs::path> found;
  add_subtree(path, found);
  return found;
}

std::vector<std::uint32_t> tasks_of(const fs::path& cgroup) {
  std::vector<std::uint32_t> tasks;
  std::ifstream file(cgroup / "cgroup.procs");
  for (std::uint32_t task = 0; file >> task;) tasks.push_back(task);
  return tasks;
}

}  // namespace sluice
