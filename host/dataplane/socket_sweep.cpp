#include "dataplane/socket_sweep.hpp"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <utility>
#include <vector>

#include "dataplane/cgroup_filter.hpp"
#include "dataplane/cgroup_walk.hpp"
#include "dataplane/tc_filter.hpp"

namespace sluice {
namespace fs = std::filesystem;
namespace {

// As sluice_list_sockets writes them (bpf/sockets.h).
struct SocketRow {
  std::uint64_t inode;
  std::uint32_t task, thread, fd, family;
};
using Lineage = std::vector<std::uint64_t>;  // ids of a cgroup and of those above it
bool contains(const Lineage& lineage, std::uint64_t cgroup) {
  return std::ranges::find(lineage, cgroup) != lineage.end();
}
struct HeldSocket : SocketRow {
  Lineage of_socket, of_task;
};

int pidfd_open(std::uint32_t pid) {
  return static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
}
// Of one thread: kernel 6.9, EINVAL before.
int pidfd_open_thread(std::uint32_t thread) {
  constexpr unsigned kOneThread = O_EXCL;  // PIDFD_THREAD; Debian 12's header lacks it
  return static_cast<int>(syscall(SYS_pidfd_open, thread, kOneThread));
}
int pidfd_getfd(int pidfd, std::uint32_t fd) {
  return static_cast<int>(syscall(SYS_pidfd_getfd, pidfd, fd, 0));
}

std::string command_of(std::uint32_t task) {
  std::ifstream file(fmt::format("/proc/{}/comm", task));
  std::string name;
  std::getline(file, name);
  return name;
}

// A manager forks, puts the child into its cgroup and only then executes: until then the child has
// its parent's sockets, which must not be shut for the parent.
bool has_not_executed(std::uint32_t task) {
  constexpr unsigned kForkedWithoutExecution = 0x40;  // PF_FORKNOEXEC
  std::ifstream file(fmt::format("/proc/{}/stat", task));
  std::string line;
  std::getline(file, line);
  // Behind the command, which may be anything: state, ... flags (9th of all).
  const auto command_ends = line.rfind(')');
  unsigned flags = 0;
  return command_ends != std::string::npos &&
         std::sscanf(line.c_str() + command_ends + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) == 1 &&
         (flags & kForkedWithoutExecution) != 0;
}

bool closes_on_execution(std::uint32_t thread, std::uint32_t fd) {
  std::ifstream file(fmt::format("/proc/{}/fdinfo/{}", thread, fd));
  for (std::string line; std::getline(file, line);) {
    unsigned flags = 0;
    if (std::sscanf(line.c_str(), "flags: %o", &flags) == 1) return (flags & O_CLOEXEC) != 0;
  }
  return false;
}

// The iterator runs over one thread group (kernel 6.1); older kernels walk all.
std::vector<HeldSocket> sockets_of(std::uint32_t task, int pidfd, int program) {
  std::vector<HeldSocket> sockets;
  union bpf_iter_link_info info {};
  // struct { __u32 tid, pid, pid_fd; } task; Debian 12's header has it
  info.task.pid_fd = static_cast<std::uint32_t>(pidfd);
  LIBBPF_OPTS(bpf_link_create_opts, options, .iter_info = &info, .iter_info_len = sizeof(info));
  const Fd link(bpf_link_create(program, 0, BPF_TRACE_ITER, &options));
  if (!link) return sockets;
  const Fd iterator(bpf_iter_create(link.get()));
  if (!iterator) return sockets;
  std::vector<char> bytes;
  char buffer[4096];
  for (ssize_t got = 0; (got = read(iterator.get(), buffer, sizeof(buffer))) > 0;)
    bytes.insert(bytes.end(), buffer, buffer + got);
  std::size_t at = 0;
  const auto next = [&](auto& value) {
    if (bytes.size() - at < sizeof(value)) return false;
    std::memcpy(&value, bytes.data() + at, sizeof(value));
    at += sizeof(value);
    return true;
  };
  for (SocketRow row{}; next(row);) {
    HeldSocket socket{row, {}, {}};
    for (Lineage* lineage : {&socket.of_socket, &socket.of_task})
      for (std::uint64_t id = 0; next(id) && id != 0;) lineage->push_back(id);
    if (row.task == task) sockets.push_back(std::move(socket));
  }
  return sockets;
}

// For so long a socket may be the parent's of a task that is about to execute.
constexpr std::uint64_t kUntilExecution = 1'000'000'000;

// A socket that was tagged while another thread accepted from it may have one more.
constexpr int kPasses = 8;

// From the first tag on, for this daemon and the next.
Status stop_tagged_sockets(const SocketSweep& sweep, const fs::path& root) {
  if (open_link(sweep.stop_pin)) return {};
  const Fd directory(open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory) return fail_with(errno, "{}: {}", root.string(), strerror(errno));
  auto made = attach_cgroup_guard(directory.get(), sweep.programs->program(Program::stop_swept),
                                  sweep.stop_pin);
  if (!made) return fail_with(made.error().code, "{}: {}", root.string(), made.error().message);
  return {};
}

enum class Tag : std::uint8_t { made, was_there, failed };

Tag tag(int tags, int socket) {
  const std::uint32_t on = 1;
  const auto put = [&] { return bpf_map_update_elem(tags, &socket, &on, BPF_NOEXIST) == 0; };
  if (put()) return Tag::made;
  if (errno == ENOMEM) {
    // It counts against the socket's option memory, which its owner may have filled.
    const int error = errno, nothing = 0;
    setsockopt(socket, SOL_SOCKET, SO_DETACH_FILTER, &nothing, sizeof(nothing));
    if (put()) return Tag::made;
    if (errno != EEXIST) errno = error;
  }
  return errno == EEXIST ? Tag::was_there : Tag::failed;
}

// What one task brought along.
struct Visit {
  const SocketSweep& sweep;
  std::uint32_t task;
  int pidfd;
  std::string path;                     // of the attached cgroup that it is in
  std::set<std::uint32_t> unreachable;  // told once
  std::size_t shut = 0;
  int failure = 0;            // errno of the last tag that could not be made
  bool out_of_reach = false;  // in the table of one thread, on a kernel that does not open it
};

// From the table that it is in: a thread may have one for itself. Its errno where there is none.
std::expected<Fd, int> taken(const Visit& visit, const SocketRow& row) {
  Fd thread;
  if (row.thread != row.task && !(thread = Fd(pidfd_open_thread(row.thread))))
    return std::unexpected(errno);
  Fd socket(pidfd_getfd(thread ? thread.get() : visit.pidfd, row.fd));
  if (!socket) return std::unexpected(errno);
  return socket;
}

// Returns whether the socket was not known before.
bool shut_socket(Visit& visit, const SocketRow& row) {
  const auto socket = taken(visit, row);
  if (!socket) {
    const int code = socket.error();
    // Also of a thread that ends at this moment (to kernel 6.14): no process is ended for that.
    visit.out_of_reach |= code == EINVAL && !Fd(pidfd_open_thread(static_cast<unsigned>(getpid())));
    if (code == EPERM && visit.unreachable.insert(row.fd).second)
      spdlog::error(
          "{}: {} (pid {}) brought socket {} into the cgroup, and it cannot be reached to be shut: "
          "{}; CAP_SYS_PTRACE is needed",
          visit.path, command_of(visit.task), visit.task, row.fd, strerror(code));
    // It may have another number by now, or its thread has ended.
    return code == EBADF || code == ESRCH || code == EINVAL;
  }
  // Another socket may have the number by now, one of the workload's own.
  struct stat info {};
  if (fstat(socket->get(), &info) != 0 || info.st_ino != row.inode) return true;
  const Tag tagged = tag(visit.sweep.programs->map(Map::swept_sockets), socket->get());
  if (tagged == Tag::was_there) return false;
  if (tagged == Tag::failed) visit.failure = errno;
  if (row.family == AF_PACKET && tagged == Tag::made)
    spdlog::warn(
        "{}: {} (pid {}) brought packet socket {} into the cgroup; only the uplink guard stops it: "
        "set guard.uplinks, or give the workload a network namespace",
        visit.path, command_of(visit.task), visit.task, row.fd);
  // ENOTCONN is the answer for unconnected UDP, which is shut all the same; packet sockets refuse.
  shutdown(socket->get(), SHUT_RDWR);
  visit.shut += tagged == Tag::made ? 1 : 0;
  return true;
}

// Shuts the sockets of a task that come from outside the attached cgroup that it is in. The one
// deepest down decides: what belongs to it belongs to all above it. A task where there was always
// something new, or where it is too early to tell whose a socket is, leaves its cgroup unsettled.
void shut_sockets_of(SocketSweep& sweep, const Unsettled& before, const fs::path& root,
                     std::uint32_t task) {
  const Fd pidfd(pidfd_open(task));
  if (!pidfd) return;
  Visit visit{sweep, task, pidfd.get(), {}, {}};
  Unsettled left;
  // Once it waits, a socket waits no longer for having come to another task: a chain of forks would
  // keep it for ever.
  const auto may_wait = [&](std::uint64_t place, std::uint64_t inode) {
    const auto now = boot_now();
    auto since = now;
    if (const auto known = before.find(place); known != before.end())
      if (const auto at = known->second.find(inode); at != known->second.end()) since = at->second;
    if (now.nanoseconds - since.nanoseconds > kUntilExecution) return false;
    left[place].emplace(inode, since);
    return true;
  };
  bool again = true, found = false;
  for (int pass = 0; pass < kPasses && again; ++pass) {
    again = false;
    left.clear();
    const bool not_executed = has_not_executed(task);
    visit.failure = 0;
    visit.out_of_reach = false;
    for (const HeldSocket& socket :
         sockets_of(task, pidfd.get(), sweep.programs->program(Program::list_sockets))) {
      const auto place = std::ranges::find_if(
          socket.of_task, [&](std::uint64_t id) { return sweep.attached.contains(id); });
      if (place == socket.of_task.end() || contains(socket.of_socket, *place)) continue;
      visit.path = sweep.attached.at(*place);
      if (not_executed && closes_on_execution(socket.thread, socket.fd) &&
          may_wait(*place, socket.inode))
        continue;
      if (!std::exchange(found, true))
        if (auto stopped = stop_tagged_sockets(sweep, root); !stopped)
          spdlog::error(
              "{}: sockets brought into the cgroup can only be shut, which is not for good: {}",
              visit.path, stopped.error().message);
      if (!shut_socket(visit, socket)) continue;
      again = true;
      left.try_emplace(*place);
    }
    if (visit.failure != 0) usleep(1000);  // the kernel may be short of memory for a moment
  }
  if (visit.shut != 0)
    spdlog::info("{}: shut {} socket(s) that {} (pid {}) brought into the cgroup", visit.path,
                 visit.shut, command_of(task), task);
  if (visit.failure == 0 && !visit.out_of_reach) {
    for (auto& [id, waiting] : left) sweep.unsettled[id].merge(waiting);
    return;
  }
  if (visit.out_of_reach) {
    spdlog::error(
        "{}: {} (pid {}) holds a socket from outside in descriptors that one thread has for "
        "itself, which kernels before 6.9 do not give out",
        visit.path, command_of(task), task);
  } else {
    spdlog::error("{}: {} (pid {}) holds a socket from outside that is shut, but not for good: {}",
                  visit.path, command_of(task), task, strerror(visit.failure));
    if (visit.failure != ENOMEM) return;
  }
  // Whoever keeps a socket out of reach, or fills its option memory to keep it, loses the process.
  if (syscall(SYS_pidfd_send_signal, pidfd.get(), SIGKILL, nullptr, 0) == 0)
    spdlog::error("{}: pid {} is ended for it", visit.path, task);
  else
    spdlog::error("{}: pid {} cannot be ended: {}; CAP_KILL is needed", visit.path, task,
                  strerror(errno));
}

}  // namespace

void shut_foreign_sockets(SocketSweep& sweep) {
  const auto root = find_cgroup2();
  if (!root) return;
  const Unsettled before = sweep.unsettled;
  for (const auto& [id, path] : sweep.attached) {
    if (!sweep.moves.everything && !sweep.moves.cgroups.contains(id)) continue;
    sweep.unsettled.erase(id);
    for (const auto& [directory_id, directory] :
         cgroups_below(*root / fs::path(path).relative_path()))
      for (const std::uint32_t task : tasks_of(directory))
        shut_sockets_of(sweep, before, *root, task);
  }
  for (const std::uint32_t task : sweep.moves.tasks) shut_sockets_of(sweep, before, *root, task);
}

}  // namespace sluice
