#include "dataplane/netns_scope.hpp"

#include <fcntl.h>
#include <sched.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <cstring>

namespace sluice {

Result<NetnsScope> NetnsScope::enter(const std::string& path) {
  if (path.empty()) return NetnsScope(Fd{});
  Fd home(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  const Fd there(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!home || !there)
    return fail_with(errno, "{}: cannot open the network namespace: {}", path, strerror(errno));
  if (setns(there.get(), CLONE_NEWNET) != 0)
    return fail_with(
        errno,
        "{}: cannot enter the network namespace: {}; CAP_SYS_ADMIN is needed for targets outside "
        "the daemon's own namespace",
        path, strerror(errno));
  return NetnsScope(std::move(home));
}

NetnsScope::~NetnsScope() {
  if (!home_) return;
  if (setns(home_.get(), CLONE_NEWNET) != 0) {
    // Everything that follows would act on the wrong interfaces.
    spdlog::critical(
        "cannot return to the daemon's network namespace: {}; ending, filters stay in force",
        strerror(errno));
    std::abort();
  }
}

}  // namespace sluice
