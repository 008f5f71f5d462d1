#include "dataplane/cgroup_filter.hpp"

#include <bpf/bpf.h>
#include <mntent.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <memory>

#include "dataplane/tc_filter.hpp"

namespace sluice {

Result<std::filesystem::path> find_cgroup2() {
  const std::unique_ptr<FILE, int (*)(FILE*)> mounts(setmntent("/proc/mounts", "r"), endmntent);
  // Not getmntent(), whose buffer all threads share: the background thread looks here too.
  mntent entry{};
  std::array<char, 8192> line;
  if (mounts)
    while (getmntent_r(mounts.get(), &entry, line.data(), static_cast<int>(line.size())) != nullptr)
      if (std::strcmp(entry.mnt_type, "cgroup2") == 0) return std::filesystem::path(entry.mnt_dir);
  return fail_with(
      ENOENT, "no cgroup2 file system in /proc/mounts; run `mount -t cgroup2 none /sys/fs/cgroup`");
}

const std::vector<CgroupHook>& cgroup_hooks() {
  static const std::vector<CgroupHook> hooks = {
      {Program::cgroup_egress, BPF_CGROUP_INET_EGRESS, "egress"},
      {Program::cgroup_ingress, BPF_CGROUP_INET_INGRESS, "ingress"},
      {Program::connect4, BPF_CGROUP_INET4_CONNECT, "connect4"},
      {Program::connect6, BPF_CGROUP_INET6_CONNECT, "connect6"},
      {Program::sendmsg4, BPF_CGROUP_UDP4_SENDMSG, "sendmsg4"},
      {Program::sendmsg6, BPF_CGROUP_UDP6_SENDMSG, "sendmsg6"},
      {Program::recvmsg4, BPF_CGROUP_UDP4_RECVMSG, "recvmsg4"},
      {Program::recvmsg6, BPF_CGROUP_UDP6_RECVMSG, "recvmsg6"},
      {Program::getpeername4, BPF_CGROUP_INET4_GETPEERNAME, "getpeername4"},
      {Program::getpeername6, BPF_CGROUP_INET6_GETPEERNAME, "getpeername6"},
  };
  return hooks;
}

Status attach_cgroup(int cgroup, const Programs& programs, const std::string& prefix,
                     std::uint64_t cgroup_id, std::uint32_t slot) {
  for (const auto& hook : cgroup_hooks()) {
    const std::string pin = prefix + "-" + hook.name;
    const Fd link(bpf_link_create(programs.program(hook.program), cgroup,
                                  static_cast<bpf_attach_type>(hook.attach_type), nullptr));
    if (!link) {
      const int code = errno;
      detach_cgroup(prefix);
      return fail_with(code, "cannot attach {}: {}", hook.name, strerror(code));
    }
    if (bpf_obj_pin(link.get(), pin.c_str()) != 0) {
      const int code = errno;
      detach_cgroup(prefix);
      return fail_with(code, "cannot pin {}: {}", pin, strerror(code));
    }
    if (hook.program != Program::cgroup_egress) continue;
    const std::uint64_t value = slot;
    if (bpf_map_update_elem(programs.map(Map::cgroup_slot), &cgroup_id, &value, BPF_ANY) != 0) {
      const int code = errno;
      detach_cgroup(prefix);
      return fail_with(code, "cannot store its attachment: {}", strerror(code));
    }
  }
  return {};
}

Status update_cgroup(const Programs& programs, const std::string& prefix) {
  for (const auto& hook : cgroup_hooks()) {
    auto link = open_link(prefix + "-" + hook.name);
    if (!link) return std::unexpected(link.error());
    if (auto updated = update_link(link->get(), programs.program(hook.program)); !updated)
      return updated;
  }
  return {};
}

void detach_cgroup(const std::string& prefix) {
  // Egress last: until then what it denies stays denied.
  const auto& hooks = cgroup_hooks();
  for (auto hook = hooks.rbegin(); hook != hooks.rend(); ++hook)
    unlink((prefix + "-" + hook->name).c_str());
}

Result<Fd> attach_cgroup_guard(int cgroup, int program, const std::filesystem::path& pin) {
  Fd link(bpf_link_create(program, cgroup, BPF_CGROUP_INET_EGRESS, nullptr));
  if (!link) return fail_with(errno, "cannot attach: {}", strerror(errno));
  if (bpf_obj_pin(link.get(), pin.c_str()) != 0)
    return fail_with(errno, "cannot pin {}: {}", pin.string(), strerror(errno));
  return link;
}

}  // namespace sluice
