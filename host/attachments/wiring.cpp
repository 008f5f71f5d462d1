#include "attachments/wiring.hpp"

#include <fnmatch.h>

#include <algorithm>

namespace sluice {

Wiring::Wiring() : floor(std::make_shared<const Floor>()) {}

Wiring::Wiring(const Config& config) : floor(std::make_shared<const Floor>(config.floor)) {
  wires.reserve(config.wires.size());
  for (const auto& wire : config.wires) wires.push_back(std::make_shared<const WireConfig>(wire));
  for (const auto& plugin : config.plugins) {
    if (plugin.overrides_floor) overrules_floor.insert(plugin.instance);
  }
}

bool matches_glob(const std::string& pattern, const std::string& text) {
  return ::fnmatch(pattern.c_str(), text.c_str(), 0) == 0;
}

const std::string& target_name(const Target& target) {
  if (const auto* interface = std::get_if<InterfaceTarget>(&target)) return interface->name;
  return std::get<CgroupTarget>(target).path;
}

WirePtr match_wire(const Wiring& wiring, const Target& target, const Labels& labels,
                   std::string_view discovered_by) {
  const auto& name = target_name(target);
  const auto wire = std::ranges::find_if(wiring.wires, [&](const WirePtr& candidate) {
    if (!candidate->discovered_by.empty() && candidate->discovered_by != discovered_by) {
      return false;
    }
    if (!candidate->name.empty() && !matches_glob(candidate->name, name)) return false;
    return std::ranges::all_of(candidate->labels, [&](const auto& wanted) {
      const auto label = labels.find(wanted.first);
      return label != labels.end() && matches_glob(wanted.second, label->second);
    });
  });
  return wire == wiring.wires.end() ? closed_wire() : *wire;
}

const WirePtr& closed_wire() {
  static const WirePtr wire = [] {
    WireConfig closed;
    closed.mode = Mode::block_all;
    closed.options.replies = false;
    return std::make_shared<const WireConfig>(std::move(closed));
  }();
  return wire;
}

}  // namespace sluice
