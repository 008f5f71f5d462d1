#include "daemon/state_lock.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <string_view>

namespace sluice {
namespace {

std::string holder_of(int file) {
  std::array<char, 32> text{};
  const auto length = ::pread(file, text.data(), text.size(), 0);
  const std::string_view digits(text.data(), length > 0 ? static_cast<std::size_t>(length) : 0);
  int pid = 0;
  std::from_chars(digits.data(), digits.data() + digits.size(), pid);
  return pid > 0 ? fmt::format("process {}", pid) : std::string{"another process"};
}

}  // namespace

Result<StateLock> StateLock::take(const std::filesystem::path& state_dir) {
  std::error_code error;
  const bool made = std::filesystem::create_directories(state_dir, error);
  if (error) {
    return fail_with(error.value(),
                     "{}: the state directory cannot be created: {}; create it for the user that "
                     "runs sluiced, or set host.state_dir",
                     state_dir.string(), error.message());
  }
  if (made) ::chmod(state_dir.c_str(), 0700);
  const auto path = state_dir / "lock";
  Fd file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file) {
    return fail_with(errno,
                     "{}: cannot be opened: {}; make the state directory writable for the user "
                     "that runs sluiced, or set host.state_dir",
                     path.string(), std::strerror(errno));
  }
  if (::flock(file.get(), LOCK_EX | LOCK_NB) != 0) {
    return fail_with(EBUSY,
                     "{}: sluiced is already running on this state directory ({}); stop it first, "
                     "or give this one its own host.state_dir and host.bpffs",
                     path.string(), holder_of(file.get()));
  }
  const auto text = fmt::format("{}\n", ::getpid());
  if (::ftruncate(file.get(), 0) != 0 ||
      ::pwrite(file.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) {
    return fail_with(errno, "{}: cannot be written: {}; is the disk full?", path.string(),
                     std::strerror(errno));
  }
  return StateLock(std::move(file));
}

}  // namespace sluice
