// What sources say of their layers, and another wiring or floor.

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "attachments/attachment_state.hpp"
#include "attachments/rule_checks.hpp"

namespace sluice {

Result<Applied> AttachmentManager::change_layer(const std::string& instance, AttachmentId id,
                                                std::optional<Layer> layer) {
  auto* attachment = find(id);
  auto source = source_index(attachment, instance, id);
  if (!source) return std::unexpected(source.error());
  LayerPtr stored;
  if (layer) {
    if (auto status = check_rules(layer->rules); !status) return std::unexpected(status.error());
    stored = cache_.intern(std::move(*layer));
  }
  // The usual news is none.
  if (stored == attachment->layers[*source] && !attachment->held) return applied(*attachment);
  std::vector<Change> changes;
  changes.push_back(Change::of(*attachment, attachment->wire, attachment->layers));
  changes.front().layers[*source] = std::move(stored);
  changes.front().source = *source;
  if (auto status = transact(wiring_, changes); !status) {
    auto error = status.error();
    error.item_index = Error::kNoIndex;
    return std::unexpected(std::move(error));
  }
  tell_policy(changes.front(), instance);
  return applied(*attachment);
}

Result<Applied> AttachmentManager::replace_layer(const std::string& instance, AttachmentId id,
                                                 Layer layer) {
  return change_layer(instance, id, std::move(layer));
}

Result<Applied> AttachmentManager::withdraw_layer(const std::string& instance, AttachmentId id) {
  return change_layer(instance, id, std::nullopt);
}

Result<Applied> AttachmentManager::update_layer(const std::string& instance, AttachmentId id,
                                                Generation base, std::vector<Rule> add,
                                                std::vector<Rule> remove) {
  auto* attachment = find(id);
  auto source = source_index(attachment, instance, id);
  if (!source) return std::unexpected(source.error());
  if (base.value != 0 && base != attachment->generation) {
    return fail_with(ESTALE,
                     "{}: the change was made for generation {}, and {} is in force; replace the "
                     "whole layer, or make the change anew",
                     target_name(attachment->target), base.value, attachment->generation.value);
  }
  if (auto status = check_rules(add); !status) return std::unexpected(status.error());
  Layer layer;
  if (attachment->layers[*source]) layer = attachment->layers[*source]->layer;
  if (!remove.empty()) {
    std::erase_if(layer.rules,
                  [&](const Rule& rule) { return std::ranges::count(remove, rule) != 0; });
  }
  const auto kept = layer.rules.size();
  for (auto& rule : add) {
    const auto known = std::find(layer.rules.begin(), layer.rules.begin() + kept, rule);
    if (known == layer.rules.begin() + kept) layer.rules.push_back(std::move(rule));
  }
  return change_layer(instance, id, std::move(layer));
}

Status AttachmentManager::replace_layers(const std::string& instance,
                                         std::vector<LayerChange> layer_changes) {
  std::vector<Change> changes;
  changes.reserve(layer_changes.size());
  std::unordered_map<std::uint64_t, std::size_t> seen;
  for (std::uint32_t index = 0; index < layer_changes.size(); ++index) {
    auto& [id, layer] = layer_changes[index];
    const auto at = [&](Error error) {
      error.item_index = index;
      return std::unexpected(std::move(error));
    };
    auto* attachment = find(id);
    auto source = source_index(attachment, instance, id);
    if (!source) return at(source.error());
    if (!seen.emplace(id.value, index).second) {
      return at({.message = fmt::format("{}: named twice in one change",
                                        target_name(attachment->target))});
    }
    if (auto status = check_rules(layer.rules); !status) return at(status.error());
    changes.push_back(Change::of(*attachment, attachment->wire, attachment->layers));
    changes.back().layers[*source] = cache_.intern(std::move(layer));
    changes.back().source = *source;
  }
  if (auto status = transact(wiring_, changes); !status) return status;
  for (const auto& change : changes) tell_policy(change, instance);
  return {};
}

// ---- wiring
// ---------------------------------------------------------------------------------------

namespace {

// An equal wire keeps its identity, and so does an equal floor: what did not change is not touched.
Wiring reuse(Wiring next, const Wiring& current) {
  for (auto& wire : next.wires) {
    const auto same = std::ranges::find_if(
        current.wires, [&](const WirePtr& candidate) { return *candidate == *wire; });
    if (same != current.wires.end()) wire = *same;
  }
  if (next.floor->deny == current.floor->deny) next.floor = current.floor;
  return next;
}

}  // namespace

Status AttachmentManager::check_rewire(const Wiring& asked) {
  const auto wiring = reuse(asked, wiring_);
  const auto now = clock_();
  for (auto& [id, attachment] : attachments_) {
    if (!attachment->wire) continue;
    const auto wire =
        match_wire(wiring, attachment->target, attachment->labels, attachment->discovered_by);
    auto composed = compose(wiring, wire, carry_over(*attachment, wire), now);
    if (!composed) {
      return fail_with(composed.error().code, "{}: {}", target_name(attachment->target),
                       composed.error().message);
    }
  }
  auto floor_only = cache_.image({}, wiring.floor, now);
  if (!floor_only) return std::unexpected(floor_only.error());
  return {};
}

Status AttachmentManager::rewire(Wiring asked) {
  auto wiring = reuse(std::move(asked), wiring_);
  const auto now = clock_();
  auto floor_only = cache_.image({}, wiring.floor, now);
  if (!floor_only) return std::unexpected(floor_only.error());
  std::vector<Change> changes;
  std::vector<WirePtr> before;
  for (auto& [id, attachment] : attachments_) {
    if (!attachment->wire) continue;
    auto wire =
        may_change_hands(*attachment, now)
            ? attachment->wire
            : match_wire(wiring, attachment->target, attachment->labels, attachment->discovered_by);
    auto layers = carry_over(*attachment, wire);
    before.push_back(attachment->wire);
    changes.push_back(Change::of(*attachment, std::move(wire), std::move(layers)));
  }
  if (auto status = transact(wiring, changes); !status) return status;
  wiring_ = std::move(wiring);
  floor_only_ = std::move(*floor_only);
  warned_unwired_.clear();
  warned_unresolved_.clear();
  for (std::size_t i = 0; i < changes.size(); ++i) {
    auto& attachment = *changes[i].attachment;
    attachment.rewire_by =
        may_change_hands(attachment, now) ? after(now, timing_.listing) : BootTime{};
    wake_at(attachment.rewire_by);
    tell_matched(changes[i], before[i]);
  }
  return {};
}

void AttachmentManager::tell_matched(const Change& change, const WirePtr& before) {
  const auto& attachment = *change.attachment;
  if (attachment.wire == before) {
    tell_policy(change, {});
    return;
  }
  warn_unwired(attachment);
  tell_rewired(attachment, before, change.domains_changed, false);
}

std::map<std::string, std::size_t> AttachmentManager::left_to_rewire() const {
  std::map<std::string, std::size_t> left;
  for (const auto& [id, attachment] : attachments_)
    if (is_left_to_rewire(*attachment)) left[attachment->discovered_by] += 1;
  return left;
}

// A discovery that hangs does not keep a former wiring in force.
void AttachmentManager::rewire_late(BootTime now) {
  if (reloading_) return;  // its rewire() sees to them
  std::map<std::string, std::size_t> rewired;
  for (auto& [id, attachment] : attachments_) {
    if (attachment->rewire_by.never()) continue;
    if (!is_left_to_rewire(*attachment)) {
      attachment->rewire_by = {};
      continue;
    }
    if (!due(attachment->rewire_by, now)) {
      wake_at(attachment->rewire_by);
      continue;
    }
    const auto before = attachment->wire;
    auto wire =
        match_wire(wiring_, attachment->target, attachment->labels, attachment->discovered_by);
    auto layers = carry_over(*attachment, wire);
    std::vector<Change> changes;
    changes.push_back(Change::of(*attachment, std::move(wire), std::move(layers)));
    if (auto status = transact(wiring_, changes); !status) {
      spdlog::error("{}; it keeps its former wire, trying again", status.error().message);
      attachment->rewire_by = after(now, timing_.hold);
      wake_at(attachment->rewire_by);
      continue;
    }
    attachment->rewire_by = {};
    rewired[attachment->discovered_by] += 1;
    tell_matched(changes.front(), before);
  }
  for (const auto& [discovery, count] : rewired)
    spdlog::warn(
        "{}: has not listed what exists since the wiring changed; its {} attachments are under the "
        "wire that matches what its former run said of them",
        discovery, count);
}

}  // namespace sluice
