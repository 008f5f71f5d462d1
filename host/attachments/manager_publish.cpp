// From layers to what is in the kernel: composed first, then published, then remembered.

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <numeric>
#include <utility>

#include "attachments/attachment_state.hpp"

namespace sluice {

Result<AttachmentManager::Composed> AttachmentManager::compose(const Wiring& wiring,
                                                               const WirePtr& wire,
                                                               const std::vector<LayerPtr>& layers,
                                                               BootTime now) {
  Composed composed{.mode = wire->mode,
                    .audit = wire->options.audit,
                    .replies = wire->options.replies,
                    .wire = wire,
                    .image = nullptr,
                    .resolver = std::nullopt};
  std::optional<Mode> mode;
  std::optional<bool> audit, replies;
  std::vector<LayerUse> uses;
  std::vector<std::uint32_t> source_of;  // beside `uses`
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (!layers[i]) continue;
    source_of.push_back(static_cast<std::uint32_t>(i));
    const auto& layer = layers[i]->layer;
    if (!mode) mode = layer.mode;
    if (!audit) audit = layer.audit;
    if (!replies) replies = layer.replies;
    uses.push_back({layers[i], wiring.overrules_floor.contains(wire->sources[i])});
  }
  composed.mode = mode.value_or(composed.mode);
  composed.audit = audit.value_or(composed.audit);
  composed.replies = replies.value_or(composed.replies);
  auto image = cache_.image(std::move(uses), wiring.floor, now);
  if (!image) {
    auto error = image.error();
    const bool known = error.item_index < source_of.size();
    error.item_index = known ? source_of[error.item_index] : Error::kNoIndex;
    return std::unexpected(std::move(error));
  }
  composed.image = std::move(*image);
  if (const auto* resolver = resolver_of(wire)) composed.resolver = resolver_index(*resolver);
  return composed;
}

std::vector<LayerPtr> AttachmentManager::carry_over(const Attachment& attachment,
                                                    const WirePtr& wire) const {
  std::vector<LayerPtr> layers(wire->sources.size());
  if (!attachment.wire) return layers;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const auto& before = attachment.wire->sources;
    const auto found = std::ranges::find(before, wire->sources[i]);
    if (found != before.end()) layers[i] = attachment.layers[found - before.begin()];
  }
  return layers;
}

// An adopted attachment keeps its policy until all its sources have spoken: with only some of them
// the merge could open what a silent one denies, or cut what it grants. Block-all by the first
// source needs nobody else.
bool AttachmentManager::still_held(const Attachment& attachment, const WirePtr& wire,
                                   const std::vector<LayerPtr>& layers, BootTime now) const {
  if (!attachment.held) return false;
  bool all_spoke = true, some_spoke = false, silent_is_down = false, first = true;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const auto found = instances_.find(wire->sources[i]);
    const bool expected = found == instances_.end() || found->second.roles.policy_source;
    if (!expected && !layers[i]) continue;
    if (layers[i]) {
      if (first && layers[i]->layer.mode == Mode::block_all) return false;
      some_spoke = true;
    } else {
      all_spoke = false;
      silent_is_down |= found != instances_.end() && found->second.state != InstanceState::running;
    }
    first = false;
  }
  if (all_spoke) return false;
  if (!due(attachment.held_until, now)) return true;
  return !some_spoke && silent_is_down;
}

Status AttachmentManager::publish(Attachment& attachment, const Composed& next, bool narrowing) {
  PublishRequest request{.slot = attachment.slot,
                         .mode = next.mode,
                         .options = next.options(),
                         .policy = &next.image->compiled,
                         .tightening = narrowing};
  auto generation = plane_.publish(request);
  if (!generation) return std::unexpected(generation.error());
  publishes_ += 1;
  attachment.generation = *generation;
  attachment.mode = next.mode;
  attachment.audit = next.audit;
  attachment.replies = next.replies;
  attachment.options_of = next.wire;
  attachment.resolver = next.resolver;
  attachment.digest = next.image->digest();
  attachment.image = next.image;
  if (const auto expiry = next.image->compiled.next_expiry; !expiry.never()) {
    wake_at(after(expiry, timing_.recompile_delay));
  }
  return {};
}

namespace {

// Nothing to do in the kernel: the same verdict on every packet, the same options.
template <typename Attachment, typename Composed>
bool in_force(const Attachment& attachment, const Composed& next) {
  return attachment.image && attachment.mode == next.mode && attachment.audit == next.audit &&
         attachment.replies == next.replies && attachment.resolver == next.resolver &&
         (attachment.image == next.image || attachment.digest == next.image->digest()) &&
         (attachment.options_of == next.wire ||
          attachment.options_of->options == next.wire->options);
}

// Modes are numbered from closed to open.
template <typename Attachment, typename Composed>
bool tightens(const Attachment& attachment, const Composed& next, BootTime now) {
  if (next.mode < attachment.mode) return true;
  if (!attachment.image) return attachment.digest != next.image->digest();
  return (attachment.audit && !next.audit) || (attachment.replies && !next.replies) ||
         narrows(*attachment.image, *next.image, now);
}

}  // namespace

Status AttachmentManager::transact(const Wiring& wiring, std::vector<Change>& changes) {
  const auto now = clock_();
  for (std::uint32_t index = 0; index < changes.size(); ++index) {
    auto& change = changes[index];
    auto composed = compose(wiring, change.wire, change.layers, now);
    if (!composed) {
      auto error = composed.error();
      // The rule is one of the caller's only if its own layer is at fault.
      const auto at_fault = error.item_index;
      if (at_fault != change.source) error.rule_index = Error::kNoIndex;
      const bool of_other = at_fault < change.wire->sources.size() && at_fault != change.source;
      error.message = fmt::format("{}: {}{}", target_name(change.attachment->target),
                                  of_other ? change.wire->sources[at_fault] + ": " : std::string{},
                                  error.message);
      error.item_index = index;
      return std::unexpected(std::move(error));
    }
    change.next = std::move(*composed);
    change.hold = still_held(*change.attachment, change.wire, change.layers, now);
  }

  // Those whose former policy is not ours to publish again go last, when nothing else can fail.
  std::vector<std::uint32_t> order(changes.size());
  std::iota(order.begin(), order.end(), 0u);
  std::ranges::stable_partition(
      order, [&](std::uint32_t index) { return changes[index].attachment->image != nullptr; });

  std::vector<std::pair<Attachment*, Composed>> undo;
  for (const auto index : order) {
    auto& change = changes[index];
    auto& attachment = *change.attachment;
    if (change.hold || in_force(attachment, change.next)) continue;
    Composed before{attachment.mode,       attachment.audit, attachment.replies,
                    attachment.options_of, attachment.image, attachment.resolver};
    auto status = publish(attachment, change.next, tightens(attachment, change.next, now));
    if (status) {
      change.mode_changed = before.mode != change.next.mode || before.audit != change.next.audit ||
                            before.resolver != change.next.resolver;
      if (before.image) undo.emplace_back(&attachment, std::move(before));
      continue;
    }
    for (auto& [published, previous] : undo) {
      if (auto back = publish(*published, previous, true); !back) {
        spdlog::error("{}: could not go back to its former policy: {}; the new one stays in force",
                      target_name(published->target), back.error().message);
      }
    }
    auto error = status.error();
    error.message = fmt::format("{}: {}", target_name(attachment.target), error.message);
    error.item_index = index;
    return std::unexpected(std::move(error));
  }

  for (auto& change : changes) {
    auto& attachment = *change.attachment;
    attachment.wire = std::move(change.wire);
    attachment.layers = std::move(change.layers);
    note_asker(attachment);
    if (attachment.held && !change.hold) {
      attachment.held = false;
      held_ -= 1;
    }
    attachment.composed = change.next.image;
    change.domains_changed = settle_domain_rules(attachment, now);
  }
  return {};
}

}  // namespace sluice
