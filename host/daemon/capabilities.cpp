#include "daemon/capabilities.hpp"

#include <sys/capability.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <type_traits>

namespace sluice {
namespace {

struct Wanted {
  cap_value_t value;
  Capability capability;
};

constexpr Wanted kWanted[] = {
    {CAP_BPF, {"CAP_BPF", "load programs and create maps", true}},
    {CAP_NET_ADMIN, {"CAP_NET_ADMIN", "attach to interfaces and cgroups", true}},
    {CAP_PERFMON, {"CAP_PERFMON", "load programs that read kernel structures", true}},
    {CAP_SYS_ADMIN, {"CAP_SYS_ADMIN", "enter the network namespaces of other targets", false}},
    {CAP_SYS_PTRACE,
     {"CAP_SYS_PTRACE", "shut sockets that a process brings into a filtered cgroup", false}},
    {CAP_KILL, {"CAP_KILL", "end a process whose sockets from outside cannot be stopped", false}},
};

}  // namespace

Result<std::vector<Capability>> missing_capabilities() {
  const std::unique_ptr<std::remove_pointer_t<cap_t>, int (*)(void*)> own(cap_get_proc(), cap_free);
  if (!own) return fail_with(errno, "capabilities: cannot be read: {}", std::strerror(errno));
  std::vector<Capability> missing;
  for (const auto& [value, capability] : kWanted) {
    cap_flag_value_t set = CAP_CLEAR;
    if (cap_get_flag(own.get(), value, CAP_EFFECTIVE, &set) != 0 || set != CAP_SET) {
      missing.push_back(capability);
    }
  }
  return missing;
}

Status check_capabilities(const std::vector<Capability>& missing) {
  std::string names, grant;
  for (const auto& capability : missing) {
    if (!capability.required) continue;
    names +=
        fmt::format("{}{} ({})", names.empty() ? "" : ", ", capability.name, capability.purpose);
    grant += fmt::format("{}{}", grant.empty() ? "" : " ", capability.name);
  }
  if (names.empty()) return {};
  return fail_with(EPERM,
                   "missing {}; run as root, or give them with AmbientCapabilities={} in the "
                   "service unit. Nothing was attached or changed",
                   names, grant);
}

}  // namespace sluice
