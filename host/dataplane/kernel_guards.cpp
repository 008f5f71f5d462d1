// The two guards that close the moment before discovery (bpf/guards.h).

#include <bpf/bpf.h>
#include <fcntl.h>
#include <net/if.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

#include "dataplane/cgroup_filter.hpp"
#include "dataplane/kernel_data_plane.hpp"
#include "dataplane/tc_filter.hpp"

namespace sluice {
namespace fs = std::filesystem;

Status KernelDataPlane::guard_uplink(const std::string& name) {
  auto link = read_link(name);
  if (!link) return std::unexpected(link.error());
  auto placement = place(*link, Side::workload_egress);
  if (!placement) return std::unexpected(placement.error());
  const int program =
      programs_.program(placement->link_layer == SLUICE_LINK_ETHERNET ? Program::uplink_ethernet
                                                                      : Program::uplink_raw_ip);
  const std::string pin_name = fmt::format("uplink-{}", link->ifindex);
  const auto pin_path = links_ / pin_name;
  if (config_.tc_mechanism == "clsact" || !features_.tcx) {
    if (auto attached = attach_clsact(link->ifindex, Hook::egress, program, ClsactOwner::guard);
        !attached)
      return attached;
    clsact_guards_.insert(link->ifindex);
    return {};
  }
  if (auto existing = open_link(pin_path); existing) {
    if (tcx_ifindex(existing->get()) == link->ifindex) {
      guard_pins_.insert(pin_name);
      return update_link(existing->get(), program);
    }
    unlink(pin_path.c_str());
  }
  if (auto made = attach_tcx(link->ifindex, Hook::egress, program, pin_path); !made)
    return std::unexpected(made.error());
  guard_pins_.insert(pin_name);
  return {};
}

bool KernelDataPlane::is_guarded(const LinkFacts& uplink) const {
  if (clsact_guards_.contains(uplink.ifindex))
    return has_clsact(uplink.ifindex, Hook::egress, ClsactOwner::guard);
  const auto link = open_link(links_ / fmt::format("uplink-{}", uplink.ifindex));
  return link && tcx_ifindex(link->get()) == uplink.ifindex;
}

// Another tool may have deleted the qdisc, and our filter with it.
void KernelDataPlane::audit_guards() {
  for (const auto& name : guards_.uplinks) {
    const auto uplink = read_link(name);
    if (!uplink || is_guarded(*uplink)) continue;
    spdlog::error("guard: {}: its filter was removed by someone else; setting it again", name);
    if (auto guarded = guard_uplink(name); !guarded)
      spdlog::error("guard: {}: unguarded: {}", name, guarded.error().message);
  }
  // A number that was trusted may be another device's, where link events were lost.
  if (!guards_.uplinks.empty())
    if (auto done = trust(guards_.trusted); !done) spdlog::error("guard: {}", done.error().message);
  for (const auto& path : guards_.parent_cgroups) {
    const auto known = guarded_cgroups_.find(path);
    if (known != guarded_cgroups_.end() &&
        (open_link(links_ / fmt::format("guard-{}", known->second.id)) ||
         access(known->second.directory.c_str(), F_OK) != 0))
      continue;
    if (auto guarded = guard_cgroup(path); !guarded)
      spdlog::error("unguarded: {}", guarded.error().message);
  }
}

Status KernelDataPlane::guard_cgroup(const std::string& path) {
  auto root = find_cgroup2();
  if (!root) return std::unexpected(root.error());
  const auto directory_path = *root / fs::path(path).relative_path();
  const Fd directory(::open(directory_path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  struct stat info {};
  if (!directory || fstat(directory.get(), &info) != 0)
    return fail_with(
        errno, "guard.cgroups: {}: cannot open the cgroup: {}; create it before sluiced starts",
        path, strerror(errno));
  const std::uint64_t id = info.st_ino;
  if (const auto known = guarded_cgroups_.find(path);
      known != guarded_cgroups_.end() && known->second.id != id)
    drop_cgroup_guard(known->second.id);
  guarded_cgroups_[path] = {directory_path, id};
  const std::uint32_t on = 1;
  if (bpf_map_update_elem(programs_.map(Map::guarded_cgroups), &id, &on, BPF_ANY) != 0)
    return fail_with(errno, "guard.cgroups: {}: cannot be entered: {}", path, strerror(errno));
  const std::string pin_name = fmt::format("guard-{}", id);
  guard_pins_.insert(pin_name);
  const int program = programs_.program(Program::guard_cgroup);
  if (auto existing = open_link(links_ / pin_name); existing)
    return update_link(existing->get(), program);
  auto made = attach_cgroup_guard(directory.get(), program, links_ / pin_name);
  if (!made)
    return fail_with(made.error().code, "guard.cgroups: {}: {}", path, made.error().message);
  return {};
}

void KernelDataPlane::drop_cgroup_guard(std::uint64_t id) {
  const std::string pin_name = fmt::format("guard-{}", id);
  guard_pins_.erase(pin_name);
  unlink((links_ / pin_name).c_str());
  bpf_map_delete_elem(programs_.map(Map::guarded_cgroups), &id);
}

// A slice goes with its last workload, and is made anew under its name with the next one. A task
// that enters it wakes this thread.
void KernelDataPlane::follow_guarded_cgroups() {
  for (const auto& [path, guarded] : guarded_cgroups_) {
    struct stat info {};
    if (stat(guarded.directory.c_str(), &info) != 0 || info.st_ino == guarded.id) continue;
    if (auto done = guard_cgroup(path); !done)
      spdlog::error("unguarded: {}", done.error().message);
    else
      spdlog::info("guard: {}: was made anew, and is guarded again", path);
  }
}

Status KernelDataPlane::trust(const std::vector<std::string>& names) {
  std::set<std::uint32_t> wanted;
  for (const auto& name : names)
    if (const unsigned ifindex = if_nametoindex(name.c_str()); ifindex != 0) wanted.insert(ifindex);
  const int map = programs_.map(Map::trusted_interfaces);
  std::vector<std::uint32_t> stale;
  std::uint32_t key = 0, next = 0;
  for (const void* at = nullptr; bpf_map_get_next_key(map, at, &next) == 0; at = &key) {
    key = next;
    if (!wanted.contains(key)) stale.push_back(key);
  }
  for (const std::uint32_t ifindex : stale) bpf_map_delete_elem(map, &ifindex);
  const std::uint32_t trusted = SLUICE_GUARD_TRUSTED;
  for (const std::uint32_t ifindex : wanted)
    if (bpf_map_update_elem(map, &ifindex, &trusted, BPF_ANY) != 0)
      return fail_with(errno, "guard.trusted: interface {} cannot be entered: {}", ifindex,
                       strerror(errno));
  return {};
}

Status KernelDataPlane::set_guards(const GuardSettings& guards) {
  // Uplinks are trusted as sources too: what comes in from outside and is routed on is not a
  // workload's.
  std::vector<std::string> trusted = guards.trusted;
  trusted.insert(trusted.end(), guards.uplinks.begin(), guards.uplinks.end());
  // Attached packets must carry the mark before the first uplink asks for it.
  sluice_settings settings{};
  const std::uint32_t zero = 0;
  bpf_map_lookup_elem(programs_.map(Map::settings), &zero, &settings);
  if (!guards.uplinks.empty()) {
    settings.judged_mark = SLUICE_JUDGED_MARK;
    bpf_map_update_elem(programs_.map(Map::settings), &zero, &settings, BPF_ANY);
  }
  if (auto done = trust(trusted); !done) return done;
  const auto before = std::exchange(guard_pins_, {});
  const auto clsact_before = std::exchange(clsact_guards_, {});
  const auto cgroups_before = std::exchange(guarded_cgroups_, {});
  const auto stay = [&] {
    guard_pins_.insert(before.begin(), before.end());
    clsact_guards_.insert(clsact_before.begin(), clsact_before.end());
    guarded_cgroups_.insert(cgroups_before.begin(), cgroups_before.end());
  };
  for (const auto& name : guards.uplinks)
    if (auto done = guard_uplink(name); !done) {
      stay();
      return fail_with(done.error().code, "guard.uplinks: {}", done.error().message);
    }
  for (const auto& path : guards.parent_cgroups)
    if (auto done = guard_cgroup(path); !done) {
      stay();
      return done;
    }
  guards_ = guards;
  guards_.trusted = trusted;
  // Guards that are no longer wanted, of this process or of an earlier one.
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(links_, error)) {
    const std::string name = entry.path().filename().string();
    if (guard_pins_.contains(name)) continue;
    if (name.starts_with("guard-")) {
      const std::uint64_t id = std::strtoull(name.c_str() + 6, nullptr, 10);
      unlink(entry.path().c_str());
      bpf_map_delete_elem(programs_.map(Map::guarded_cgroups), &id);
    } else if (name.starts_with("uplink-")) {
      unlink(entry.path().c_str());
    }
  }
  detach_clsact_guards(clsact_guards_);
  // Last: a guard that is still there would drop all that carries no mark.
  if (guards.uplinks.empty() && settings.judged_mark != 0) {
    settings.judged_mark = 0;
    bpf_map_update_elem(programs_.map(Map::settings), &zero, &settings, BPF_ANY);
  }
  return {};
}

}  // namespace sluice
