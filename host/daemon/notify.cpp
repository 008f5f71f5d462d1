#include "daemon/notify.hpp"

#include <spdlog/fmt/fmt.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>

#include "base/fd.hpp"

namespace sluice {

bool notify_manager(std::string_view state, int fd) {
  const char* path = std::getenv("NOTIFY_SOCKET");
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::size_t length = path == nullptr ? 0 : std::strlen(path);
  if (length < 2 || length >= sizeof address.sun_path) return false;
  std::memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = '\0';  // the abstract namespace
  const Fd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!socket) return false;
  iovec text{const_cast<char*>(state.data()), state.size()};
  msghdr message{};
  message.msg_name = &address;
  message.msg_namelen = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length);
  message.msg_iov = &text;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    auto* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  // The manager's queue is short (net.unix.max_dgram_qlen, 10 by default) and a resolver has dozens
  // of descriptors to keep. Nothing else is worth waiting for.
  int flags = MSG_NOSIGNAL | MSG_DONTWAIT;
  if (state.starts_with("FDSTORE")) {
    const timeval patience{.tv_sec = 1, .tv_usec = 0};
    if (::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) == 0)
      flags &= ~MSG_DONTWAIT;
  }
  return ::sendmsg(socket.get(), &message, flags) == static_cast<ssize_t>(state.size());
}

void notify_reloading() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  notify_manager(
      fmt::format("RELOADING=1\nMONOTONIC_USEC={}", now.tv_sec * 1'000'000 + now.tv_nsec / 1'000));
}

std::optional<std::chrono::microseconds> watchdog_interval() {
  const char* period = std::getenv("WATCHDOG_USEC");
  const char* pid = std::getenv("WATCHDOG_PID");
  if (period == nullptr || (pid != nullptr && std::atol(pid) != ::getpid())) return std::nullopt;
  const auto microseconds = std::atoll(period);
  if (microseconds <= 0) return std::nullopt;
  return std::chrono::microseconds(microseconds / 2);
}

}  // namespace sluice
