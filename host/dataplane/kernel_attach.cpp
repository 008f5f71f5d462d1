// Attaching and detaching. The order is what keeps it closed: the slot is complete before the
// device points to it, the device points to it before the filter is linked, and a filter is
// unlinked before its slot is freed.

#include <bpf/bpf.h>
#include <fcntl.h>
#include <net/if.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "dataplane/asker_mark.hpp"
#include "dataplane/cgroup_filter.hpp"
#include "dataplane/kernel_data_plane.hpp"
#include "dataplane/netns_scope.hpp"
#include "dataplane/per_cpu.hpp"
#include "dataplane/tc_filter.hpp"

namespace sluice {
namespace {

constexpr std::uint64_t kCalm = 500'000'000;  // ns without an attach

Hook workload_hook(const sluice_slot& slot) {
  return slot.workload_is_egress != 0 ? Hook::egress : Hook::ingress;
}
Hook other_hook(Hook hook) {
  return hook == Hook::ingress ? Hook::egress : Hook::ingress;
}

// Where an ifindex is what it was. A workload that was started again has its namespace under the
// same path, and in it another device with the same number.
Result<NetnsScope> enter_namespace(const std::string& path, std::uint64_t cookie) {
  auto scope = NetnsScope::enter(path);
  if (!scope) return scope;
  auto there = netns_cookie();
  if (!there) return std::unexpected(there.error());
  if (*there != cookie) return fail_with(ENODEV, "{}: is another network namespace by now", path);
  return scope;
}

}  // namespace

Status KernelDataPlane::point_interface(std::uint32_t index, bool on) {
  const sluice_slot& slot = slots_.at(index);
  const std::uint32_t value = on ? index : 0;
  if (slot.netns_cookie == own_netns_ && slot.ifindex < SLUICE_DIRECT_IFINDEXES) {
    if (bpf_map_update_elem(programs_.map(Map::interfaces), &slot.ifindex, &value, BPF_ANY) != 0)
      return fail_with(errno, "{}: cannot be entered into the interface table: {}", slot.name,
                       strerror(errno));
    return {};
  }
  sluice_interface_key key{slot.netns_cookie, slot.ifindex, 0};
  if (!on) {
    bpf_map_delete_elem(programs_.map(Map::far_interfaces), &key);
    return {};
  }
  if (bpf_map_update_elem(programs_.map(Map::far_interfaces), &key, &value, BPF_ANY) != 0)
    return fail_with(errno, "{}: cannot be entered into the interface table: {}", slot.name,
                     strerror(errno));
  return {};
}

Status KernelDataPlane::filter_interface(std::uint32_t index, Live& live) {
  const sluice_slot& slot = slots_.at(index);
  const Hook from = workload_hook(slot), to = other_hook(from);
  const int from_program = programs_.program(Program::tc_from),
            to_program = programs_.program(Program::tc_to);
  if (config_.tc_mechanism == "tcx") {
    if (auto link = attach_tcx(slot.ifindex, from, from_program, pin(index, "from")); !link)
      return std::unexpected(link.error());
    live.tcx = true;
    if (auto link = attach_tcx(slot.ifindex, to, to_program, pin(index, "to")); !link)
      return std::unexpected(link.error());
    return {};
  }
  if (auto attached = attach_clsact(slot.ifindex, from, from_program); !attached) return attached;
  live.clsact = true;
  return attach_clsact(slot.ifindex, to, to_program);
}

void KernelDataPlane::unfilter_interface(std::uint32_t index, const Live& live) {
  unlink(pin(index, "to").c_str());
  unlink(pin(index, "from").c_str());
  if (!live.clsact) return;
  const sluice_slot& slot = slots_.at(index);
  detach_clsact(slot.ifindex, Hook::ingress);
  detach_clsact(slot.ifindex, Hook::egress);
}

// In the network namespace of its slot. Another device that has the number by now has no filter of
// ours.
bool KernelDataPlane::is_filtered(std::uint32_t index, const Live& live) const {
  const sluice_slot& slot = slots_.at(index);
  if (!live.tcx) return has_clsact(slot.ifindex, workload_hook(slot));
  const auto link = open_link(pin(index, "from"));
  return link && has_tcx(slot.ifindex, workload_hook(slot), link->get());
}

Result<KernelAttachment> KernelDataPlane::attach(const InterfaceTarget& target,
                                                 const PublishRequest* initial) {
  auto scope = NetnsScope::enter(target.netns_path);
  if (!scope) return std::unexpected(scope.error());
  auto link = target.ifindex != 0 ? read_link(target.ifindex) : read_link(target.name);
  if (!link) return std::unexpected(link.error());
  // An ifindex that now carries another name is a rename, or another device: the caller must look
  // again.
  if (!target.name.empty() && link->name != target.name)
    return fail_with(ENODEV, "{}: interface {} is now called {}", target.name, target.ifindex,
                     link->name);
  std::uint64_t cookie = own_netns_;
  if (!target.netns_path.empty()) {
    auto there = netns_cookie();
    if (!there) return std::unexpected(there.error());
    cookie = *there;
  }
  for (auto& [index, live] : live_) {
    const sluice_slot& slot = slots_.at(index);
    if (slot.type != SLUICE_TYPE_INTERFACE || slot.ifindex != link->ifindex ||
        slot.netns_cookie != cookie)
      continue;
    if (live.doubtful || !is_filtered(index, live)) {
      live.clsact = false;  // a filter that is there lets nothing pass, and is replaced at once
      forget(index);
      break;
    }
    live.name = link->name;
    live.netns_path = target.netns_path;
    // One of the crowd that is claimed after a start, and like any attach it asks the kernel.
    if (adopted_.erase(index) != 0) last_attach_ = boot_now().nanoseconds;
    return describe(index);
  }
  auto placement = place(*link, target.side);
  if (!placement) return std::unexpected(placement.error());
  auto index = free_slot();
  if (!index) return std::unexpected(index.error());

  sluice_slot slot{};
  slot.incarnation = random_incarnation();
  slot.netns_cookie = cookie;
  slot.ifindex = link->ifindex;
  slot.scope = next_scope_++;
  slot.asker_mark = asker_mark(slot.scope);
  slot.type = SLUICE_TYPE_INTERFACE;
  slot.link_layer = placement->link_layer;
  slot.workload_is_egress = placement->workload_is_egress ? 1 : 0;
  link->name.copy(slot.name, sizeof(slot.name) - 1);
  clear_per_cpu<sluice_counters>(programs_.map(Map::counters), *index);
  clear_per_cpu<sluice_dns_budget>(programs_.map(Map::dns_budgets), *index);
  slots_.fill(*index, slot);
  Live& live = live_[*index];
  live.name = link->name;
  live.netns_path = target.netns_path;
  learned_.open(slot.scope, live.name, slots_.learned_hints(*index));

  Status done;
  if (initial != nullptr) {
    PublishRequest request = *initial;
    request.slot = *index;
    request.tightening = false;
    if (auto published = publish(request); !published) done = std::unexpected(published.error());
  }
  if (done) done = point_interface(*index, true);
  if (done) done = filter_interface(*index, live);
  if (!done) {
    const Error error = done.error();
    forget(*index);
    // The device may have gone while it was being attached: then that is the reason worth telling.
    if (char name[IF_NAMESIZE]; if_indextoname(link->ifindex, name) == nullptr)
      return fail_with(ENODEV, "{}: disappeared while it was being attached", link->name);
    return std::unexpected(error);
  }
  if (features_.tcx && config_.tc_mechanism == "auto") to_convert_.push_back(*index);
  last_attach_ = boot_now().nanoseconds;
  return describe(*index);
}

// A clsact filter is in force at once; the TCX link that replaces it takes 13 ms in the kernel, so
// it is made behind it.
void KernelDataPlane::convert_to_tcx(std::uint32_t index) {
  Live& live = live_.at(index);
  live.converting = true;
  conversion_running_ = true;
  const sluice_slot& slot = slots_.at(index);
  const Hook from = workload_hook(slot);
  background_.run([this, index, incarnation = slot.incarnation, ifindex = slot.ifindex, from,
                   netns_path = live.netns_path, cookie = slot.netns_cookie,
                   from_pin = pin(index, "from"),
                   to_pin = pin(index, "to")]() -> Background::Completion {
    Status done;
    {
      auto scope = enter_namespace(netns_path, cookie);
      if (!scope) {
        done = std::unexpected(scope.error());
      } else if (auto first =
                     attach_tcx(ifindex, from, programs_.program(Program::tc_from), from_pin);
                 !first) {
        done = std::unexpected(first.error());
      } else if (auto second = attach_tcx(ifindex, other_hook(from),
                                          programs_.program(Program::tc_to), to_pin);
                 !second) {
        done = std::unexpected(second.error());
      }
    }
    return [this, index, incarnation, ifindex, netns_path, cookie, from_pin, to_pin, done] {
      conversion_running_ = false;
      const auto it = live_.find(index);
      const bool same = it != live_.end() && slots_.at(index).incarnation == incarnation;
      if (!same || !done) {
        unlink(to_pin.c_str());
        unlink(from_pin.c_str());
        if (same) {
          it->second.converting = false;
          if (done.error().code != ENODEV)
            spdlog::warn("{}: stays on clsact: {}", it->second.name, done.error().message);
        }
        return;
      }
      it->second.converting = false;
      it->second.tcx = true;
      it->second.clsact = false;
      if (auto scope = enter_namespace(netns_path, cookie); scope) {
        detach_clsact(ifindex, Hook::ingress);
        detach_clsact(ifindex, Hook::egress);
      }
    };
  });
}

// One at a time, and none while attaches come in: the kernel holds RTNL all the while, so that each
// attach of a crowd would wait 30 ms for a conversion instead of taking 0.1 ms.
void KernelDataPlane::convert_next() {
  if (conversion_running_ || boot_now().nanoseconds - last_attach_ < kCalm) return;
  while (!to_convert_.empty()) {
    const std::uint32_t index = to_convert_.front();
    to_convert_.pop_front();
    const auto it = live_.find(index);
    if (it == live_.end() || !it->second.clsact || it->second.converting) continue;
    convert_to_tcx(index);
    return;
  }
}

Result<KernelAttachment> KernelDataPlane::attach(const CgroupTarget& target,
                                                 const PublishRequest* initial) {
  auto root = find_cgroup2();
  if (!root) return std::unexpected(root.error());
  const auto path = *root / std::filesystem::path(target.path).relative_path();
  const Fd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  struct stat info {};
  if (!directory || fstat(directory.get(), &info) != 0)
    return fail_with(errno, "{}: cannot open the cgroup: {}", target.path, strerror(errno));
  const std::uint64_t id = info.st_ino;
  if (target.cgroup_id != 0 && id != target.cgroup_id)
    return fail_with(ENOENT,
                     "{}: was removed and made anew (id {} instead of {}); it is another cgroup",
                     target.path, id, target.cgroup_id);
  for (auto& [index, live] : live_) {
    const sluice_slot& slot = slots_.at(index);
    if (slot.type != SLUICE_TYPE_CGROUP || slot.cgroup_id != id) continue;
    live.name = target.path;
    adopted_.erase(index);
    return describe(index);
  }
  auto index = free_slot();
  if (!index) return std::unexpected(index.error());
  sluice_slot slot{};
  slot.incarnation = random_incarnation();
  slot.cgroup_id = id;
  slot.scope = next_scope_++;
  slot.asker_mark = asker_mark(slot.scope);
  slot.type = SLUICE_TYPE_CGROUP;
  const std::string leaf = std::filesystem::path(target.path).filename().string();
  leaf.copy(slot.name, sizeof(slot.name) - 1);
  clear_per_cpu<sluice_counters>(programs_.map(Map::counters), *index);
  clear_per_cpu<sluice_dns_budget>(programs_.map(Map::dns_budgets), *index);
  slots_.fill(*index, slot);
  Live& live = live_[*index];
  live.name = target.path;
  learned_.open(slot.scope, live.name, slots_.learned_hints(*index));

  Status done;
  if (initial != nullptr) {
    PublishRequest request = *initial;
    request.slot = *index;
    request.tightening = false;
    if (auto published = publish(request); !published) done = std::unexpected(published.error());
  }
  if (done)
    done = attach_cgroup(directory.get(), programs_, (links_ / std::to_string(*index)).string(), id,
                         *index);
  if (done && bpf_map_update_elem(programs_.map(Map::cgroups), &id, &*index, BPF_ANY) != 0)
    done = fail_with(errno, "cannot be entered into the cgroup table: {}", strerror(errno));
  if (!done) {
    Error error = done.error();
    error.message = fmt::format("{}: {}", target.path, error.message);
    forget(*index);
    return std::unexpected(error);
  }
  // Tasks may be inside already, with sockets from elsewhere.
  moves_.add_cgroup(id);
  start_socket_sweep();
  return describe(*index);
}

Status KernelDataPlane::detach(std::uint32_t slot) {
  const auto it = live_.find(slot);
  if (it == live_.end()) return fail_with(ENOENT, "attachment {}: no longer in the kernel", slot);
  forget(slot);
  return {};
}

// Removes the filter, whatever of it there is, then frees the slot.
void KernelDataPlane::forget(std::uint32_t index) {
  const auto it = live_.find(index);
  if (it == live_.end()) return;
  const sluice_slot& slot = slots_.at(index);
  if (slot.type == SLUICE_TYPE_INTERFACE) {
    if (auto scope = enter_namespace(it->second.netns_path, slot.netns_cookie); scope)
      unfilter_interface(index, it->second);
    // A namespace that is gone took its devices along; pins are removed all the same.
    unlink(pin(index, "to").c_str());
    unlink(pin(index, "from").c_str());
    [[maybe_unused]] const auto cleared = point_interface(index, false);
  } else {
    detach_cgroup((links_ / std::to_string(index)).string());
    bpf_map_delete_elem(programs_.map(Map::cgroups), &slot.cgroup_id);
    const std::uint64_t none = 0;
    bpf_map_update_elem(programs_.map(Map::cgroup_slot), &slot.cgroup_id, &none, BPF_EXIST);
  }
  learned_.close(slot.scope);
  slots_.clear(index);
  policies_.release(it->second.policy);
  adopted_.erase(index);
  live_.erase(it);
}

}  // namespace sluice
