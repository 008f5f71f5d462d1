// A subtree of the real cgroup2 hierarchy under a name of this process' own, removed at the end,
// also when the test fails. Needs root.
#pragma once

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

#include "cgroups/hierarchy.hpp"

namespace sluice::test {

// Events that an inotify queue holds here; a storm of more overflows it.
inline std::size_t queue_length() {
  std::size_t length = 0;
  std::ifstream("/proc/sys/fs/inotify/max_queued_events") >> length;
  return length;
}

class ThrowawayCgroup {
 public:
  // Empty name(): cgroups cannot be made here.
  ThrowawayCgroup() : mount_(cgroups::find_cgroup2()) {
    const std::string name = "/slu-unit-" + std::to_string(getpid());
    if (mkdir((mount_ + name).c_str(), 0755) == 0) name_ = name;
  }
  ~ThrowawayCgroup() {
    if (!name_.empty()) remove_all("");
  }
  ThrowawayCgroup(const ThrowawayCgroup&) = delete;
  ThrowawayCgroup& operator=(const ThrowawayCgroup&) = delete;

  [[nodiscard]] const std::string& mount() const { return mount_; }
  [[nodiscard]] const std::string& name() const { return name_; }  // "/slu-unit-17"

  // Paths below the subtree: "/a/b".
  [[nodiscard]] bool make(const std::string& path) const {
    return mkdir((mount_ + name_ + path).c_str(), 0755) == 0;
  }
  [[nodiscard]] bool remove(const std::string& path) const {
    return rmdir((mount_ + name_ + path).c_str()) == 0;
  }
  void remove_all(const std::string& path) const {
    const std::string full = mount_ + name_ + path;
    std::vector<std::string> children;
    if (DIR* directory = opendir(full.c_str())) {
      while (const dirent* entry = readdir(directory))
        if (entry->d_type == DT_DIR && entry->d_name[0] != '.') children.push_back(entry->d_name);
      closedir(directory);
    }
    for (const auto& child : children) remove_all(path + "/" + child);
    rmdir(full.c_str());
  }
  [[nodiscard]] std::uint64_t id(const std::string& path) const {
    struct stat facts {};
    return stat((mount_ + name_ + path).c_str(), &facts) == 0 ? facts.st_ino : 0;
  }

 private:
  std::string mount_, name_;
};

}  // namespace sluice::test
