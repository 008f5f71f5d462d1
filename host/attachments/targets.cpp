#include "attachments/targets.hpp"

namespace sluice {

std::uint64_t target_key(const Target& target) {
  if (const auto* interface = std::get_if<InterfaceTarget>(&target)) return interface->ifindex;
  return std::get<CgroupTarget>(target).cgroup_id;
}

Target target_of(const KernelAttachment& kernel) {
  if (kernel.interface) return *kernel.interface;
  return kernel.cgroup.value_or(CgroupTarget{});
}

bool same_target(const Target& known, const Target& asked) {
  if (known.index() != asked.index()) return false;
  if (const auto* interface = std::get_if<InterfaceTarget>(&asked)) {
    const auto& other = std::get<InterfaceTarget>(known);
    if (interface->ifindex != other.ifindex) return false;
    if (interface->netns_cookie != 0 || interface->netns_path.empty()) {
      return interface->netns_cookie == other.netns_cookie || other.netns_cookie == 0 ||
             interface->netns_cookie == 0;
    }
    return interface->netns_path == other.netns_path;
  }
  const auto& cgroup = std::get<CgroupTarget>(asked);
  const auto& other = std::get<CgroupTarget>(known);
  return cgroup.cgroup_id != 0 ? cgroup.cgroup_id == other.cgroup_id : cgroup.path == other.path;
}

std::string labels_text(const Labels& labels) {
  std::string text;
  for (const auto& [key, value] : labels) {
    if (!text.empty()) text += ", ";
    text += key + "=" + value;
  }
  return text.empty() ? "no labels" : text;
}

}  // namespace sluice
