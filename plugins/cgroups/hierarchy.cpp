#include "cgroups/hierarchy.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <system_error>

namespace sluice::cgroups {
namespace {

constexpr long kCgroup2Magic = 0x63677270;

// Directories only come and go by mkdir and rmdir in this file system: it knows no rename.
constexpr std::uint32_t kWatchFor = IN_CREATE | IN_DELETE | IN_ONLYDIR | IN_EXCL_UNLINK;

// An O_PATH descriptor, closed when it goes out of sight.
class PathFd {
 public:
  explicit PathFd(int fd) : fd_(fd) {}
  ~PathFd() {
    if (fd_ >= 0) close(fd_);
  }
  PathFd(const PathFd&) = delete;
  PathFd& operator=(const PathFd&) = delete;
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

// /proc/mounts writes space, tab, newline and backslash as \ooo.
std::string unescape_mount(std::string_view text) {
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      result += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                                  (text[i + 3] - '0'));
      i += 3;
    } else {
      result += text[i];
    }
  }
  return result;
}

std::string_view next_field(std::string_view& line) {
  const std::size_t end = std::min(line.find(' '), line.size());
  const std::string_view field = line.substr(0, end);
  line.remove_prefix(std::min(end + 1, line.size()));
  return field;
}

bool is_gone(int error) {
  return error == ENOENT || error == ENODEV || error == ENOTDIR;
}

}  // namespace

std::string find_cgroup2(std::string_view mounts) {
  while (!mounts.empty()) {
    const std::size_t end = std::min(mounts.find('\n'), mounts.size());
    std::string_view line = mounts.substr(0, end);
    mounts.remove_prefix(std::min(end + 1, mounts.size()));
    next_field(line);
    const std::string_view place = next_field(line);
    if (next_field(line) == "cgroup2") return unescape_mount(place);
  }
  return {};
}

std::string find_cgroup2() {
  std::ifstream file("/proc/mounts");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  std::string mount = find_cgroup2(text);
  if (mount.empty())
    throw std::runtime_error(
        "no cgroup2 file system in /proc/mounts; mount one: mount -t cgroup2 none /sys/fs/cgroup");
  return mount;
}

KernelHierarchy::KernelHierarchy(std::string mount) : mount_(std::move(mount)), buffer_(65536) {
  struct statfs facts {};
  if (statfs(mount_.c_str(), &facts) != 0)
    throw std::system_error(errno, std::generic_category(), mount_ + ": cannot be read");
  if (facts.f_type != kCgroup2Magic)
    throw std::runtime_error(mount_ + ": is no cgroup2 file system; see /proc/mounts for one");
  inotify_ = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  if (inotify_ < 0 && errno == EMFILE)
    throw std::system_error(
        errno, std::generic_category(),
        "no inotify instance left for this user; raise fs.inotify.max_user_instances by one at "
        "least");
  if (inotify_ < 0) throw std::system_error(errno, std::generic_category(), "inotify_init1");
}

KernelHierarchy::~KernelHierarchy() {
  if (inotify_ >= 0) close(inotify_);
}

Hierarchy::Look KernelHierarchy::look(const std::string& path, bool inside) {
  const std::string full = mount_ + path;
  Look look;
  struct stat facts {};
  if (!inside) {
    if (stat(full.c_str(), &facts) == 0 && S_ISDIR(facts.st_mode)) {
      look.exists = true;
      look.id = facts.st_ino;
    }
    return look;
  }
  const PathFd directory(open(full.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() < 0) {
    if (is_gone(errno)) return look;
    look.error = errno;
    if (stat(full.c_str(), &facts) != 0) return look;
  } else if (fstat(directory.get(), &facts) != 0) {
    return look;
  }
  look.exists = true;
  look.id = facts.st_ino;
  if (directory.get() >= 0) look_inside(directory.get(), look);
  return look;
}

// The descriptor, not the path, is watched and listed: the path may have been given to another
// directory since it was opened.
void KernelHierarchy::look_inside(int directory, Look& look) {
  const std::string self = "/proc/self/fd/" + std::to_string(directory);
  look.watch = inotify_add_watch(inotify_, self.c_str(), kWatchFor);
  if (look.watch < 0) look.error = errno;
  const int readable = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(readable < 0 ? nullptr : fdopendir(readable),
                                                   closedir);
  if (!stream) {
    const int error = errno;
    if (readable >= 0) close(readable);
    // Removed since it was opened: it had no children then, and its parent will say so.
    if (is_gone(error))
      look.exists = false;
    else if (look.error == 0)
      look.error = error;
    return;
  }
  while (const dirent* entry = readdir(stream.get())) {
    const std::string_view name = entry->d_name;
    if (entry->d_type == DT_DIR && name != "." && name != "..") look.children.emplace_back(name);
  }
}

void KernelHierarchy::unwatch(int watch) {
  // Fails when the kernel dropped the watch with its directory; that is what was wanted.
  inotify_rm_watch(inotify_, watch);
}

std::vector<Hierarchy::Event> KernelHierarchy::events(std::size_t most) {
  std::vector<Event> events;
  while (events.size() < most) {
    if (begin_ == end_) {
      const ssize_t got = read(inotify_, buffer_.data(), buffer_.size());
      if (got < 0 && errno == EINTR) continue;
      if (got < 0 && errno != EAGAIN)
        throw std::system_error(errno, std::generic_category(), "cannot read inotify events");
      if (got <= 0) break;
      begin_ = 0;
      end_ = static_cast<std::size_t>(got);
    }
    inotify_event header;
    std::memcpy(&header, buffer_.data() + begin_, sizeof(header));
    const char* name = buffer_.data() + begin_ + sizeof(header);
    begin_ += sizeof(header) + header.len;
    Event event{Event::What::created, header.wd, {name, strnlen(name, header.len)}};
    if ((header.mask & IN_Q_OVERFLOW) != 0)
      event.what = Event::What::overflow;
    else if ((header.mask & IN_UNMOUNT) != 0)
      event.what = Event::What::unmounted;
    else if ((header.mask & IN_IGNORED) != 0)
      event.what = Event::What::unwatched;
    else if ((header.mask & IN_ISDIR) == 0)
      continue;
    else if ((header.mask & IN_CREATE) != 0)
      event.what = Event::What::created;
    else if ((header.mask & IN_DELETE) != 0)
      event.what = Event::What::deleted;
    else
      continue;
    events.push_back(std::move(event));
  }
  return events;
}

}  // namespace sluice::cgroups
