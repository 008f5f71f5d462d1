// The cgroup2 hierarchy of the kernel: where it is mounted, what is in a directory, what changes.
// Behind an interface, so that every race of creation and removal can be played without one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::cgroups {

// Mount point of the first cgroup2 file system in the text of /proc/mounts ("" when there is none).
[[nodiscard]] std::string find_cgroup2(std::string_view mounts);
// Of this process. Throws std::runtime_error that says what to mount.
[[nodiscard]] std::string find_cgroup2();

class Hierarchy {
 public:
  struct Look {
    bool exists = false;
    std::uint64_t id = 0;  // inode number, which is the kernel's cgroup id
    // Only with `inside`:
    int watch = -1;
    int error = 0;  // errno of what kept the directory from being watched or listed
    std::vector<std::string> children;  // listed after the watch was in place
  };
  struct Event {
    enum class What : std::uint8_t { created, deleted, unwatched, overflow, unmounted };
    What what = What::created;
    int watch = -1;
    std::string name;
  };
  virtual ~Hierarchy() = default;
  // `path` is below the mount, "/" the root. `inside`: watch the directory, then list it. All parts
  // of the answer are of the same directory, even if another takes its name in the meantime.
  virtual Look look(const std::string& path, bool inside) = 0;
  virtual void unwatch(int watch) = 0;
  // In order, at most `most`. Fewer: there are none left. As many: ask again, without waiting for
  // fd().

  virtual std::vector<Event> events(std::size_t most) = 0;
};

// The real one, on a single inotify instance. Single-threaded.
class KernelHierarchy final : public Hierarchy {
 public:
  // Throws std::system_error or std::runtime_error, naming sysctl or mount.
  explicit KernelHierarchy(std::string mount);
  ~KernelHierarchy() override;
  KernelHierarchy(const KernelHierarchy&) = delete;
  KernelHierarchy& operator=(const KernelHierarchy&) = delete;

  // Readable when events() has some.
  [[nodiscard]] int fd() const { return inotify_; }
  Look look(const std::string& path, bool inside) override;
  void unwatch(int watch) override;
  std::vector<Event> events(std::size_t most) override;

 private:
  void look_inside(int directory, Look& look);

  std::string mount_;
  int inotify_ = -1;
  std::vector<char> buffer_;
  std::size_t begin_ = 0, end_ = 0;  // unread events in buffer_
};

}  // namespace sluice::cgroups
