#include "dataplane/pinned_tree.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

namespace sluice {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kMapsPrefix = "maps-";
constexpr std::string_view kTemporaryPrefix = "new-";

unsigned long serial_of(const fs::path& maps) {
  return std::strtoul(maps.filename().c_str() + kMapsPrefix.size(), nullptr, 10);
}

// There is no file on a bpffs that could hold a process id; the kernel's table of locks knows it.
std::string holder_of(const struct stat& directory) {
  const auto id = fmt::format("{:02x}:{:02x}:{}", major(directory.st_dev), minor(directory.st_dev),
                              directory.st_ino);
  std::ifstream locks("/proc/locks");
  for (std::string line; std::getline(locks, line);) {
    int pid = 0;
    char place[64] = {};
    if (std::sscanf(line.c_str(), "%*s FLOCK %*s WRITE %d %63s", &pid, place) == 2 && id == place &&
        pid > 0)
      return fmt::format("process {}", pid);
  }
  return "another process";
}

// Is there, on a writable bpffs.
Status prepare(const fs::path& root) {
  fs::path existing = root;
  std::error_code ignored;
  while (!existing.empty() && !fs::exists(existing, ignored)) existing = existing.parent_path();
  struct statfs info {};
  if (statfs(existing.c_str(), &info) != 0 || info.f_type != BPF_FS_MAGIC)
    return fail_with(
        ENODEV,
        "{}: not on a BPF file system; run `mount -t bpf bpf /sys/fs/bpf`, or set host.bpffs",
        root.string());
  if ((info.f_flags & 1 /* ST_RDONLY */) != 0)
    return fail_with(EROFS,
                     "{}: the BPF file system is mounted read-only; run `mount -o remount,rw {}`",
                     root.string(), existing.string());
  std::error_code error;
  fs::create_directories(root / "links", error);
  if (error)
    return fail_with(error.value(),
                     "{}: cannot create: {}; make it writable for the user sluiced runs as",
                     root.string(), error.message());
  chmod(root.c_str(), 0700);
  if (access(root.c_str(), W_OK) != 0)
    return fail_with(errno, "{}: not writable: {}; make it writable for the user sluiced runs as",
                     root.string(), strerror(errno));
  return {};
}

}  // namespace

Result<Fd> PinnedTree::lock(const fs::path& root) {
  for (;;) {
    if (auto prepared = prepare(root); !prepared) return std::unexpected(prepared.error());
    Fd directory(::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    struct stat opened {
    }, present{};
    if (!directory || ::fstat(directory.get(), &opened) != 0)
      return fail_with(errno, "{}: cannot be opened: {}", root.string(), strerror(errno));
    if (::flock(directory.get(), LOCK_EX | LOCK_NB) != 0)
      return fail_with(EBUSY,
                       "{}: these filters belong to a sluiced that is running ({}); stop it first, "
                       "or give this one its own host.bpffs",
                       root.string(), holder_of(opened));
    // Whoever had the lock may have removed the tree meanwhile: then this one is nobody's.
    if (::stat(root.c_str(), &present) == 0 && present.st_ino == opened.st_ino) return directory;
  }
}

Result<PinnedTree> PinnedTree::open(const fs::path& root) {
  if (auto prepared = prepare(root); !prepared) return std::unexpected(prepared.error());
  std::error_code error;
  PinnedTree tree(root);
  // What a start that was killed left behind: pins under a temporary name hold nothing that is
  // attached.
  for (const auto& entry : fs::directory_iterator(root, error))
    if (entry.path().filename().string().starts_with(kTemporaryPrefix)) remove(entry.path());
  return tree;
}

std::vector<fs::path> PinnedTree::map_directories() const {
  std::vector<fs::path> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(root_, error))
    if (entry.path().filename().string().starts_with(kMapsPrefix)) found.push_back(entry.path());
  std::ranges::sort(found, {}, serial_of);
  return found;
}

Result<fs::path> PinnedTree::begin() const {
  const auto path = root_ / fmt::format("{}{}", kTemporaryPrefix, getpid());
  std::error_code error;
  fs::create_directories(path, error);
  if (error)
    return fail_with(error.value(), "{}: cannot create: {}", path.string(), error.message());
  return path;
}

Result<fs::path> PinnedTree::commit(const fs::path& temporary) const {
  const auto existing = map_directories();
  const auto path = root_ / fmt::format("{}{}", kMapsPrefix,
                                        existing.empty() ? 1 : serial_of(existing.back()) + 1);
  std::error_code error;
  fs::rename(temporary, path, error);
  if (error)
    return fail_with(error.value(), "{}: cannot be renamed to {}: {}", temporary.string(),
                     path.string(), error.message());
  return path;
}

void PinnedTree::remove(const fs::path& directory) {
  std::error_code ignored;
  fs::remove_all(directory, ignored);
}

}  // namespace sluice
