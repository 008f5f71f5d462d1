// Taking over what an earlier daemon left in the kernel. Links and filters are updated in place to
// this release's programs; slots, policies and learned addresses stay as they are until somebody
// claims the attachment.

#include <bpf/bpf.h>
#include <net/if.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cstring>

#include "dataplane/cgroup_filter.hpp"
#include "dataplane/cgroup_walk.hpp"
#include "dataplane/dns_route.hpp"
#include "dataplane/kernel_data_plane.hpp"
#include "dataplane/tc_filter.hpp"

namespace sluice {
namespace fs = std::filesystem;
namespace {

// Paths of cgroups by id: the kernel has no cheap way back from an id that needs no further
// capability.
std::map<std::uint64_t, std::string> cgroup_paths(const std::set<std::uint64_t>& wanted) {
  std::map<std::uint64_t, std::string> found;
  const auto root = find_cgroup2();
  if (!root || wanted.empty()) return found;
  for (const auto& [id, directory] : cgroups_below(*root))
    if (wanted.contains(id)) found[id] = "/" + directory.lexically_relative(*root).string();
  return found;
}

}  // namespace

Status KernelDataPlane::adopt_interface(std::uint32_t index, Live& live) {
  const sluice_slot& slot = slots_.at(index);
  const Hook from = slot.workload_is_egress != 0 ? Hook::egress : Hook::ingress;
  const Hook to = from == Hook::ingress ? Hook::egress : Hook::ingress;
  const bool here = slot.netns_cookie == own_netns_;
  auto link = open_link(pin(index, "from"));
  if (link && !(here ? has_tcx(slot.ifindex, from, link->get())
                     : tcx_ifindex(link->get()) == slot.ifindex)) {
    // Its device has gone or moved, or it came too late: the earlier daemon ended while it made the
    // links of one whose place was another's by then.
    unlink(pin(index, "from").c_str());
    unlink(pin(index, "to").c_str());
    link = fail_with(ENODEV, "its link is elsewhere");
  }
  if (link) {
    if (auto updated = update_link(link->get(), programs_.program(Program::tc_from)); !updated)
      return updated;
    live.tcx = true;
    if (auto back = open_link(pin(index, "to")); back) {
      if (auto updated = update_link(back->get(), programs_.program(Program::tc_to)); !updated)
        return updated;
    } else if (here) {
      if (auto made =
              attach_tcx(slot.ifindex, to, programs_.program(Program::tc_to), pin(index, "to"));
          !made)
        return std::unexpected(made.error());
    }
  }
  if (!here)
    return live.tcx ? Status{}
                    : fail_with(ENODEV, "no pinned link, and it is in another network namespace");
  char name[IF_NAMESIZE];
  if (if_indextoname(slot.ifindex, name) == nullptr)
    return fail_with(ENODEV, "no such interface any more");
  live.name = name;
  if (has_clsact(slot.ifindex, from)) {
    if (live.tcx) {  // the earlier daemon ended between the two steps of a conversion
      detach_clsact(slot.ifindex, from);
      detach_clsact(slot.ifindex, to);
    } else {
      if (auto made = attach_clsact(slot.ifindex, from, programs_.program(Program::tc_from)); !made)
        return made;
      if (auto made = attach_clsact(slot.ifindex, to, programs_.program(Program::tc_to)); !made)
        return made;
      live.clsact = true;
    }
  }
  if (!live.tcx && !live.clsact) return fail_with(ENOENT, "no filter of ours is on it any more");
  return point_interface(index, true);
}

Status KernelDataPlane::adopt_cgroup(std::uint32_t index, Live&) {
  const sluice_slot& slot = slots_.at(index);
  if (auto updated = update_cgroup(programs_, (links_ / std::to_string(index)).string()); !updated)
    return updated;
  // The programs may have come with new maps; the storage that a link holds is kept by the link.
  const std::uint64_t id = slot.cgroup_id, value = index;
  bpf_map_update_elem(programs_.map(Map::cgroup_slot), &id, &value, BPF_EXIST);
  bpf_map_update_elem(programs_.map(Map::cgroups), &id, &index, BPF_ANY);
  return {};
}

Status KernelDataPlane::adopt() {
  std::map<std::uint32_t, std::uint32_t> references;  // policy index -> words that refer to it
  std::set<std::uint64_t> cgroup_ids;
  std::set<std::uint32_t> found;
  for (std::uint32_t index = 1; index < slots_.size(); ++index) {
    const sluice_slot& slot = slots_.at(index);
    // Also of those that are gone: what the programs still know under their scope is nobody else's.
    next_scope_ = std::max(next_scope_, slot.scope + 1);
    if (slot.state != SLUICE_SLOT_LIVE) continue;
    found.insert(index);
    references[sluice_word_policy(slots_.word(index))]++;
    if (slot.type == SLUICE_TYPE_CGROUP) cgroup_ids.insert(slot.cgroup_id);
  }
  for (const auto& [policy, count] : references)
    if (auto adopted = policies_.adopt(policy, count); !adopted) return adopted;
  const auto paths = cgroup_paths(cgroup_ids);
  for (const std::uint32_t index : found) {
    const sluice_slot& slot = slots_.at(index);
    Live& live = live_[index];
    live.name = slot.name;
    live.policy = sluice_word_policy(slots_.word(index));
    Status adopted;
    if (slot.type == SLUICE_TYPE_INTERFACE) {
      adopted = adopt_interface(index, live);
    } else if (const auto path = paths.find(slot.cgroup_id); path != paths.end()) {
      live.name = path->second;
      adopted = adopt_cgroup(index, live);
    } else {
      adopted = fail_with(ENOENT, "the cgroup is gone");
    }
    if (adopted) {
      adopted_.insert(index);
    } else if (adopted.error().code == ENOLINK || adopted.error().code == ENODEV ||
               adopted.error().code == ENOENT) {
      spdlog::info("{}: not adopted: {}", live.name, adopted.error().message);
      forget(index);
    } else {
      return fail_with(adopted.error().code,
                       "{}: cannot be adopted: {}; its old filter stays in force", live.name,
                       adopted.error().message);
    }
  }
  // Learned addresses belong to a scope; those of scopes that are gone are swept, the others are
  // known again.
  for (const auto& [index, live] : live_)
    learned_.open(slots_.at(index).scope, live.name, slots_.learned_hints(index));
  learned_.adopt();
  if (auto stop = open_link(stop_pin()); stop)
    if (auto updated = update_link(stop->get(), programs_.program(Program::stop_swept)); !updated)
      return updated;
  // Pins without a live slot hold filters that nothing answers for.
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(links_, error)) {
    const std::string name = entry.path().filename().string();
    char* end = nullptr;
    const unsigned long index = std::strtoul(name.c_str(), &end, 10);
    if (end != name.c_str() && !live_.contains(static_cast<std::uint32_t>(index)))
      unlink(entry.path().c_str());
  }
  return {};
}

std::vector<KernelAttachment> KernelDataPlane::adopted() {
  std::vector<KernelAttachment> result;
  for (const std::uint32_t index : adopted_) result.push_back(describe(index));
  return result;
}

Status KernelDataPlane::detach_all(const HostConfig& config) {
  auto tree = PinnedTree::open(config.bpffs);
  if (!tree) return std::unexpected(tree.error());
  if (!tree->map_directories().empty()) {
    auto plane = open(config);
    if (!plane) return std::unexpected(plane.error());
    // First: a guard asks for the mark that only attachments set.
    if (auto unguarded = (*plane)->set_guards({}); !unguarded) return unguarded;
    while (!(*plane)->live_.empty()) (*plane)->forget((*plane)->live_.begin()->first);
  }
  detach_clsact_guards({});
  if (auto removed = remove_dns_routes(); !removed) return removed;
  std::error_code error;
  fs::remove_all(config.bpffs, error);
  if (error)
    return fail_with(error.value(), "{}: cannot remove: {}", config.bpffs.string(),
                     error.message());
  return {};
}

}  // namespace sluice
