#include "static/path_watch.hpp"

#include <sys/inotify.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <string>
#include <system_error>
#include <utility>

namespace sluice::static_policy {
namespace {

namespace fs = std::filesystem;

// IN_ATTRIB: a change of mode lets a file be read, or forbids it.
constexpr std::uint32_t kEvents = IN_CLOSE_WRITE | IN_CREATE | IN_DELETE | IN_MOVED_FROM |
                                  IN_MOVED_TO | IN_MODIFY | IN_ATTRIB | IN_DELETE_SELF |
                                  IN_MOVE_SELF | IN_ONLYDIR;
constexpr unsigned kMostLinks = 40;  // as the kernel: ELOOP beyond

std::string limit(const char* name) {
  std::string value = "unknown";
  std::ifstream(std::string("/proc/sys/fs/inotify/") + name) >> value;
  return std::string("fs.inotify.") + name + " is " + value;
}

std::string no_instance(int error) {
  if (error != EMFILE) return std::generic_category().message(error);
  return "no inotify instance is left for this user (" + limit("max_user_instances") +
         "); raise the limit: sysctl fs.inotify.max_user_instances=N";
}

std::string no_watch(int error) {
  if (error == EACCES) return "this user may not read the directory; let him";
  if (error != ENOSPC) return std::generic_category().message(error);
  return "the inotify watches of this user are used up (" + limit("max_user_watches") +
         "); raise the limit: sysctl fs.inotify.max_user_watches=N";
}

void follow(const fs::path& path, std::set<fs::path>& out, unsigned& links) {
  fs::path at = "/";
  std::error_code error;
  for (const auto& part : path.relative_path()) {
    const fs::path next = at / part;
    const auto status = fs::symlink_status(next, error);
    if (status.type() == fs::file_type::not_found || status.type() == fs::file_type::none) {
      out.insert(at);
      return;
    }
    if (status.type() == fs::file_type::symlink) {
      out.insert(at);
      if (++links > kMostLinks) return;
      const fs::path target = (at / fs::read_symlink(next, error)).lexically_normal();
      follow(target, out, links);
      at = fs::canonical(next, error);
      if (error || !fs::is_directory(at, error)) return;
      continue;
    }
    if (status.type() != fs::file_type::directory) {
      out.insert(at);
      return;
    }
    at = next;
  }
  out.insert(at);
}

}  // namespace

std::set<fs::path> deciding_directories(const fs::path& path) {
  std::set<fs::path> out;
  unsigned links = 0;
  follow(path.lexically_normal(), out, links);
  return out;
}

bool PathWatch::watch(const std::set<fs::path>& paths) {
  std::set<fs::path> directories;
  for (const auto& path : paths) directories.merge(deciding_directories(path));
  unwatched_.clear();
  if (!inotify_) inotify_ = Fd(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  if (!inotify_) {
    reason_ = no_instance(errno);
    unwatched_ = std::move(directories);
    return false;
  }

  bool is_new = false;
  std::map<fs::path, int> watches;
  for (const auto& directory : directories) {
    const int watch = ::inotify_add_watch(inotify_.get(), directory.c_str(), kEvents);
    // Gone or replaced since it was looked at; the directory above is watched for the next look.
    if (watch < 0 && (errno == ENOENT || errno == ENOTDIR)) {
      is_new = true;
      continue;
    }
    if (watch < 0) {
      reason_ = no_watch(errno);
      unwatched_.insert(directory);
      continue;
    }
    const auto before = watches_.find(directory);
    // Another number for the same path: it is another directory now.
    is_new = is_new || before == watches_.end() || before->second != watch;
    watches.emplace(directory, watch);
  }
  for (const auto& [directory, watch] : watches_) {
    const bool is_kept = std::ranges::any_of(
        watches, [number = watch](const auto& kept) { return kept.second == number; });
    // EINVAL: the kernel has dropped it already, with its directory.
    if (!is_kept) ::inotify_rm_watch(inotify_.get(), watch);
  }
  watches_ = std::move(watches);
  std::erase_if(open_, [&](const auto& file) {
    return std::ranges::none_of(watches_,
                                [&](const auto& kept) { return kept.second == file.first.first; });
  });
  return is_new;
}

bool PathWatch::drain() {
  bool is_news = false;
  just_closed_.clear();
  alignas(inotify_event) std::array<char, 16384> buffer{};
  for (ssize_t length; (length = ::read(inotify_.get(), buffer.data(), buffer.size())) > 0;)
    for (ssize_t at = 0; at < length;) {
      const auto& event = *reinterpret_cast<const inotify_event*>(buffer.data() + at);
      is_news = is_news || event.mask != IN_MODIFY;
      note(event);
      at += static_cast<ssize_t>(sizeof event + event.len);
    }
  return is_news;
}

void PathWatch::note(const inotify_event& event) {
  // Some of them may have been closed.
  if ((event.mask & IN_Q_OVERFLOW) != 0) open_.clear();
  if (event.len == 0 || (event.mask & IN_ISDIR) != 0) return;
  Entry entry(event.wd, event.name);
  if ((event.mask & IN_MODIFY) != 0)
    open_[std::move(entry)] = true;
  else if ((event.mask & IN_CREATE) != 0)
    open_.emplace(std::move(entry), false);
  else if ((event.mask & IN_ATTRIB) == 0)
    open_.erase(entry);
  if ((event.mask & IN_CLOSE_WRITE) != 0) just_closed_.insert(std::move(entry));
}

std::optional<fs::path> PathWatch::being_written(const std::set<fs::path>& paths) const {
  if (open_.empty() && just_closed_.empty()) return {};
  for (const auto& path : paths) {
    std::error_code error;
    const auto file = fs::canonical(path, error);
    if (error) continue;
    const auto watch = watches_.find(file.parent_path());
    if (watch == watches_.end()) continue;
    const Entry entry(watch->second, file.filename());
    if (just_closed_.contains(entry)) return path;
    const auto open = open_.find(entry);
    // A hard link is created too, but not opened; it has its content at once.
    if (open != open_.end() && (open->second || fs::is_empty(file, error))) return path;
  }
  return {};
}

}  // namespace sluice::static_policy
