#include "daemon/fd_store.hpp"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "daemon/notify.hpp"

namespace sluice {
namespace {

constexpr std::size_t kLongestName = 255;  // systemd's FDNAME_MAX

// What the manager takes as a name: printable ASCII but ':', which parts them in LISTEN_FDNAMES.
// The name within an instance has no '/', so that the last one parts the two.
bool fits(const std::string& full) {
  return full.size() <= kLongestName && std::ranges::all_of(full, [](const unsigned char byte) {
           return byte >= ' ' && byte < 127 && byte != ':';
         });
}

bool keeps_any() {
  const char* most = std::getenv("FDSTORE");  // since systemd 254: how many it keeps
  return std::getenv("NOTIFY_SOCKET") != nullptr &&
         (most == nullptr || std::strcmp(most, "0") != 0);
}

std::string full_name(const std::string& instance, const std::string& name) {
  return instance + "/" + name;
}

std::string_view instance_of(std::string_view full) {
  return full.substr(0, full.rfind('/'));
}

bool forget(const std::string& full) {
  return notify_manager("FDSTOREREMOVE=1\nFDNAME=" + full);
}

}  // namespace

FdStore FdStore::inherit(int first) {
  FdStore store;
  const char* pid = std::getenv("LISTEN_PID");
  const char* count_text = std::getenv("LISTEN_FDS");
  const char* names_text = std::getenv("LISTEN_FDNAMES");
  const bool ours = pid != nullptr && std::atol(pid) == ::getpid();
  const int count = ours && count_text != nullptr ? std::atoi(count_text) : 0;
  std::string names = names_text != nullptr ? names_text : "";
  for (const char* variable : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"}) {
    ::unsetenv(variable);
  }
  for (int i = 0; i < count; ++i) {
    const auto end = std::min(names.find(':'), names.size());
    const auto name = names.substr(0, end);
    names.erase(0, end + 1);
    Fd fd(first + i);
    const int flags = ::fcntl(fd.get(), F_GETFD);
    if (flags < 0) {
      (void)fd.release();
      continue;
    }
    ::fcntl(fd.get(), F_SETFD, flags | FD_CLOEXEC);
    if (name.find('/') == std::string::npos) {
      spdlog::warn(
          "the service manager handed over a descriptor called \"{}\", which is not ours; "
          "it is closed",
          name);
      continue;
    }
    store.kept_.insert_or_assign(name, std::move(fd));
  }
  return store;
}

Status FdStore::keep(const std::string& instance, const std::string& name, int fd) {
  if (!keeps_any()) {
    return fail_with(
        ENOTSUP,
        "{}: there is no service manager that keeps descriptors; run under systemd with "
        "FileDescriptorStoreMax set",
        instance);
  }
  const auto full = full_name(instance, name);
  if (!fits(full)) {
    return fail_with(
        EINVAL,
        "{}: the service manager takes no descriptor of that name; give the instance a "
        "shorter one, of printable ASCII without ':'",
        full);
  }
  Fd duplicate(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
  if (!duplicate) return fail_with(errno, "{}: cannot be kept: {}", full, std::strerror(errno));
  // The manager would put a second one beside the first.
  if (kept_.contains(full)) forget(full);
  kept_.erase(full);
  // Not polled: it would drop a socket for an error that lies on it.
  if (!notify_manager("FDSTORE=1\nFDPOLL=0\nFDNAME=" + full, duplicate.get())) {
    return fail_with(EAGAIN, "{}: the service manager does not listen; it is not kept", full);
  }
  kept_.insert_or_assign(full, std::move(duplicate));
  return {};
}

Result<int> FdStore::kept(const std::string& instance, const std::string& name) {
  const auto full = full_name(instance, name);
  const auto found = kept_.find(full);
  if (found == kept_.end()) return fail_with(ENOENT, "{}: nothing is kept under that name", full);
  const int duplicate = ::fcntl(found->second.get(), F_DUPFD_CLOEXEC, 3);
  if (duplicate < 0) return fail_with(errno, "{}: {}", full, std::strerror(errno));
  return duplicate;
}

Status FdStore::drop(const std::string& instance, const std::string& name) {
  const auto full = full_name(instance, name);
  if (kept_.erase(full) == 0) {
    return fail_with(ENOENT, "{}: nothing is kept under that name", full);
  }
  forget(full);
  return {};
}

void FdStore::keep_only(const std::set<std::string>& instances) {
  std::erase_if(kept_, [&](const auto& entry) {
    if (instances.contains(std::string(instance_of(entry.first)))) return false;
    forget(entry.first);
    return true;
  });
}

}  // namespace sluice
