// Tells that files may have changed: inotify on directories, never on files, because editors and
// deployment tools put a new file, or a new symbolic link, in the place of the old one.
#pragma once

#include <sys/inotify.h>

#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "base/fd.hpp"

namespace sluice::static_policy {

// The directories in which an entry decides what `path` names: that of the path itself and of each
// symbolic link on the way to it. Where one does not exist, the nearest above that does.
[[nodiscard]] std::set<std::filesystem::path> deciding_directories(
    const std::filesystem::path& path);

// One inotify instance. Not thread-safe.
class PathWatch {
 public:
  // Readable when something happened. Negative until watch() could open it.
  [[nodiscard]] int fd() const { return inotify_.get(); }
  // Watches what decides these paths, and nothing else. True: a directory is watched that was not,
  // so what was read before may be old already.
  bool watch(const std::set<std::filesystem::path>& paths);
  // The directories that watch() could not watch.
  [[nodiscard]] const std::set<std::filesystem::path>& unwatched() const { return unwatched_; }
  // Why, with the cure.
  [[nodiscard]] const std::string& reason() const { return reason_; }
  // Takes what happened. True: it calls for a look at the files. A write alone does not, for the
  // writer will close the file.
  bool drain();
  // One of these files that was being written when drain() was last called: not closed since it was
  // written to, or only closed since the call before.
  [[nodiscard]] std::optional<std::filesystem::path> being_written(
      const std::set<std::filesystem::path>& paths) const;

 private:
  using Entry = std::pair<int, std::string>;  // watch, name in the directory
  void note(const inotify_event& event);

  Fd inotify_;
  std::map<std::filesystem::path, int> watches_;
  std::set<std::filesystem::path> unwatched_;
  std::string reason_;
  std::map<Entry, bool> open_;  // not closed yet; true: written to
  std::set<Entry> just_closed_;
};

}  // namespace sluice::static_policy
