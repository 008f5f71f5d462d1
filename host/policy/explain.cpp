#include "policy/explain.hpp"

#include <algorithm>

namespace sluice {
namespace {

bool ports_speak(const Rule& rule, const PacketTuple& packet) {
  if (rule.ports.empty()) return true;
  return std::ranges::any_of(rule.ports, [&](const PortRange& range) {
    if (range.protocol != packet.protocol) return false;
    if (range.any_port) return true;
    // Ports nobody can see: an allow does not match, a deny cannot be shown not to.
    if (!packet.port) return rule.action == Action::deny;
    return *packet.port >= range.first && *packet.port <= range.last;
  });
}

}  // namespace

Explanation explain(std::span<const LayerInput> layers, const Floor& floor,
                    const PacketTuple& packet, BootTime now) {
  const Prefix host{.address = packet.address,
                    .family = packet.family,
                    .length = static_cast<std::uint8_t>(packet.family == 4 ? 32 : 128)};
  int floor_shortest = -1, floor_longest = -1;
  std::size_t floor_index = 0;
  for (std::size_t i = 0; i < floor.deny.size(); ++i) {
    if (!floor.deny[i].covers(host)) continue;
    const int length = floor.deny[i].length;
    if (floor_shortest < 0 || length < floor_shortest) floor_shortest = length;
    if (length > floor_longest) floor_longest = length, floor_index = i;
  }

  Explanation best;
  int best_length = -1;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const std::vector<Rule>& rules = layers[l].layer->rules;
    for (std::size_t r = 0; r < rules.size(); ++r) {
      const Rule& rule = rules[r];
      if (!rule.prefix || !rule.prefix->covers(host)) continue;
      if (!rule.expires.never() && rule.expires <= now) continue;
      const int length = rule.prefix->length;
      if (length < best_length) continue;
      const bool allow = rule.action == Action::allow;
      if (length == best_length && (allow || best.verdict == Explanation::Verdict::deny)) continue;
      // Under the floor an allow counts only from a layer that overrules it.
      if (allow && floor_shortest >= 0 && floor_shortest <= length && !layers[l].overrules_floor)
        continue;
      if (!ports_speak(rule, packet)) continue;
      best = {.verdict = allow ? Explanation::Verdict::allow : Explanation::Verdict::deny,
              .layer = l,
              .rule = r};
      best_length = length;
    }
  }
  // A tie with the floor: a deny says more than the floor does, and an allow that got this far
  // overrules it.
  if (floor_longest > best_length)
    return {.verdict = Explanation::Verdict::floor, .floor = floor_index};
  return best;
}

std::string describe(const Rule& rule) {
  std::string text = rule.action == Action::allow ? "allow " : "deny ";
  text += rule.prefix ? rule.prefix->text() : rule.domain;
  for (const PortRange& range : rule.ports) {
    text += ' ';
    text += range.text();
  }
  if (!rule.name.empty()) text += " (" + rule.name + ")";
  return text;
}

}  // namespace sluice
