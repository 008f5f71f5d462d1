#include "attachments/attachment_manager.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "attachments/attachment_state.hpp"
#include "attachments/targets.hpp"
#include "policy/explain.hpp"

namespace sluice {
namespace {

constexpr std::uint32_t kSlotBits = 24;
constexpr std::size_t kDenialBatch = 256;
constexpr std::chrono::nanoseconds kForgetLearnedEvery = std::chrono::minutes{1};
constexpr std::array<const char*, SLUICE_REASON_COUNT> kReasonTexts = {
#define X(name, text) text,
    SLUICE_REASONS(X)
#undef X
};

// The slot and 40 random bits of the incarnation: adoption finds the same id, reuse of the slot
// does not.
AttachmentId id_of(const KernelAttachment& kernel) {
  return {(kernel.incarnation << kSlotBits) | kernel.slot};
}

}  // namespace

AttachmentManager::AttachmentManager(DataPlane& plane, Wiring wiring, AttachmentTiming timing,
                                     std::function<BootTime()> clock)
    : plane_(plane),
      wiring_(std::move(wiring)),
      timing_(timing),
      clock_(std::move(clock)),
      learned_(plane.learned(), clock_) {
  for (const auto& kernel : plane_.adopted()) {
    auto& attachment = insert(kernel);
    attachment.target = target_of(kernel);
    by_target_.emplace(target_key(attachment.target), &attachment);
    // Questions that waited in kept sockets are read before any discovery claims their asker.
    if (attachment.asker_mark != 0) askers_.put(attachment.asker_mark, attachment.id, {});
    unclaimed_ += 1;
  }
  if (auto image = cache_.image({}, wiring_.floor, clock_())) floor_only_ = std::move(*image);
  wake_at(after(clock_(), kForgetLearnedEvery));
}

AttachmentManager::~AttachmentManager() = default;

// ---- finding
// -------------------------------------------------------------------------------------

AttachmentManager::Attachment* AttachmentManager::find(AttachmentId id) {
  const auto found = attachments_.find(id.value);
  return found == attachments_.end() ? nullptr : found->second.get();
}

AttachmentManager::Attachment* AttachmentManager::find_target(const Target& target) {
  if (target_key(target) == 0) {  // a cgroup by path
    for (auto& [id, attachment] : attachments_) {
      if (same_target(attachment->target, target)) return attachment.get();
    }
    return nullptr;
  }
  auto [first, last] = by_target_.equal_range(target_key(target));
  for (; first != last; ++first) {
    if (same_target(first->second->target, target)) return first->second;
  }
  return nullptr;
}

// An interface may be described in two ways (namespace by cookie or by path). When unsure, say yes:
// the attachment is then made closed and published in a second step.
bool AttachmentManager::may_be_known(const Target& target) const {
  if (target_key(target) == 0) {
    return std::ranges::any_of(
        attachments_, [&](const auto& entry) { return same_target(entry.second->target, target); });
  }
  auto [first, last] = by_target_.equal_range(target_key(target));
  return std::any_of(first, last, [&](const auto& entry) {
    return entry.second->target.index() == target.index();
  });
}

AttachmentManager::Attachment& AttachmentManager::insert(const KernelAttachment& kernel) {
  auto owned = std::make_unique<Attachment>();
  auto& attachment = *owned;
  attachment.id = id_of(kernel);
  attachment.slot = kernel.slot;
  attachment.incarnation = kernel.incarnation;
  attachment.generation = kernel.generation;
  attachment.mode = kernel.mode;
  attachment.digest = kernel.policy_digest;
  attachment.asker_mark = kernel.asker_mark;
  attachment.redirectable = kernel.redirectable;
  if (by_slot_.size() <= kernel.slot) by_slot_.resize(kernel.slot + 1);
  by_slot_[kernel.slot] = &attachment;
  attachments_[attachment.id.value] = std::move(owned);
  learned_.add(attachment.id, kernel.scope, target_name(target_of(kernel)));
  return attachment;
}

// Forgets it and tells its sources. The filter itself is the caller's business.
void AttachmentManager::erase(Attachment& attachment, const std::string& reason) {
  learned_.remove(attachment.id);
  if (events_ != nullptr) {
    auto info = info_of(attachment);
    info.sources = nullptr;
    if (attachment.wire) {
      for (const auto& source : attachment.wire->sources) {
        events_->attachment_removed(source, info, reason);
      }
    }
    events_->attachment_removed(kObservers, info, reason);
  }
  if (!attachment.claimed) unclaimed_ -= 1;
  if (attachment.held) held_ -= 1;
  confirm(attachment);
  auto [first, last] = by_target_.equal_range(target_key(attachment.target));
  for (; first != last; ++first) {
    if (first->second == &attachment) {
      by_target_.erase(first);
      break;
    }
  }
  if (by_slot_[attachment.slot] == &attachment) by_slot_[attachment.slot] = nullptr;
  askers_.erase(attachment.asker_mark);
  attachments_.erase(attachment.id.value);
}

AttachmentInfo AttachmentManager::info_of(const Attachment& attachment) const {
  return {.id = attachment.id,
          .incarnation = attachment.incarnation,
          .generation = attachment.generation,
          .mode = attachment.mode,
          .target = attachment.target,
          .labels = attachment.labels,
          .discovered_by = attachment.discovered_by,
          .state = attachment.claimed ? "filtering" : "adopted",
          .audit = attachment.audit,
          .redirected = attachment.resolver.has_value() && attachment.redirectable,
          .sources = {attachment.wire, attachment.wire ? &attachment.wire->sources : nullptr}};
}

Applied AttachmentManager::applied(const Attachment& attachment) {
  return {.generation = attachment.generation, .digest = attachment.digest};
}

Status AttachmentManager::owned_by(const Attachment* attachment, const std::string& instance,
                                   AttachmentId id) const {
  if (attachment == nullptr) {
    return fail_with(ENOENT, "attachment {:x}: there is none; it was detached, or its target went",
                     id.value);
  }
  if (!attachment->claimed || attachment->discovered_by != instance) {
    return fail_with(
        EPERM,
        "{}: belongs to {}, not to {}; only the discovery that attached a target may do this",
        target_name(attachment->target),
        attachment->claimed ? attachment->discovered_by : "no discovery yet", instance);
  }
  return {};
}

Result<std::size_t> AttachmentManager::source_index(const Attachment* attachment,
                                                    const std::string& instance,
                                                    AttachmentId id) const {
  if (attachment == nullptr) {
    return fail_with(ENOENT, "attachment {:x}: there is none; it was detached, or its target went",
                     id.value);
  }
  if (attachment->wire) {
    const auto& sources = attachment->wire->sources;
    const auto found = std::ranges::find(sources, instance);
    if (found != sources.end()) return static_cast<std::size_t>(found - sources.begin());
  }
  return fail_with(EPERM,
                   "{}: {} is not among the sources of its [[wire]]; name it there to let it speak",
                   target_name(attachment->target), instance);
}

// ---- what the kernel reports
// ---------------------------------------------------------------------

DataPlaneEvents AttachmentManager::data_plane_events() {
  return {.on_denial = [this](const sluice_event& event) { on_denial(event); },
          // Removed after the poll: the data plane is in the middle of its own work here.
          .on_target_gone =
              [this](std::uint32_t slot, std::string reason) {
                gone_.emplace_back(slot, std::move(reason));
              }};
}

void AttachmentManager::on_denial(const sluice_event& event) {
  Denial denial;
  denial.event = event;
  if (event.reason < kReasonTexts.size()) denial.reason = kReasonTexts[event.reason];
  auto* attachment = event.slot < by_slot_.size() ? by_slot_[event.slot] : nullptr;
  if (attachment != nullptr && attachment->incarnation == event.incarnation) {
    denial.attachment = attachment->id;
    const bool by_rule =
        event.reason == SLUICE_REASON_DENY_RULE || event.reason == SLUICE_REASON_DENY_FLOOR;
    if (by_rule && attachment->image) {
      std::vector<LayerInput> inputs;
      for (const auto& use : attachment->image->layers) {
        inputs.push_back({&use.layer->layer, use.overrules_floor});
      }
      PacketTuple packet;
      packet.family = event.family;
      packet.protocol = event.protocol;
      if (has_ports(event.protocol)) packet.port = __builtin_bswap16(event.destination_port_be);
      const auto* address = event.destination + (event.family == 4 ? 12 : 0);
      std::copy_n(address, event.family == 4 ? 4 : 16, packet.address.begin());
      const auto& floor = *attachment->image->floor;
      const auto found = sluice::explain(inputs, floor, packet, clock_());
      if (found.verdict == Explanation::Verdict::deny) {
        denial.rule = describe(inputs[found.layer].layer->rules[found.rule]);
      } else if (found.verdict == Explanation::Verdict::floor) {
        denial.rule = "floor " + floor.deny[found.floor].text();
      }
    }
  }
  denials_.push_back(std::move(denial));
  if (denials_.size() >= kDenialBatch) flush_denials();
}

void AttachmentManager::flush_denials() {
  if (denials_.empty()) return;
  if (events_ != nullptr) events_->denials(denials_);
  denials_.clear();
}

void AttachmentManager::remove_gone() {
  for (auto& [slot, reason] : std::exchange(gone_, {})) {
    auto* attachment = slot < by_slot_.size() ? by_slot_[slot] : nullptr;
    if (attachment == nullptr) continue;
    spdlog::info("{}: gone ({})", target_name(attachment->target), reason);
    erase(*attachment, reason);
    (void)plane_.detach(slot);
  }
}

void AttachmentManager::turn() {
  flush_denials();
  remove_gone();
  const auto now = clock_();
  narrow_learned(now);
  if (!due(wake_, now)) return;
  wake_ = {};
  if (redirections_stale_) {
    redirect_anew();
    end_serving_unless_needed();
  }
  end_holds(now);
  drop_unclaimed(now);
  drop_unconfirmed(now);
  rewire_late(now);
  expire(now);
}

void AttachmentManager::wake_at(BootTime when) {
  if (!when.never() && (wake_.never() || when < wake_)) wake_ = when;
}

void AttachmentManager::end_holds(BootTime now) {
  if (held_ == 0) return;
  for (auto& [id, attachment] : attachments_) {
    if (!attachment->held) continue;
    if (still_held(*attachment, attachment->wire, attachment->layers, now)) {
      // Past the deadline only a change of an instance's state ends it, and that wakes us.
      if (!due(attachment->held_until, now)) wake_at(attachment->held_until);
      continue;
    }
    std::vector<Change> changes;
    changes.push_back(Change::of(*attachment, attachment->wire, attachment->layers));
    if (auto status = transact(wiring_, changes); !status) {
      spdlog::error("{}; it keeps the policy it was found with, trying again",
                    status.error().message);
      attachment->held_until = after(now, timing_.hold);
      wake_at(attachment->held_until);
      continue;
    }
    tell_policy(changes.front(), {});
  }
}

void AttachmentManager::drop_unclaimed(BootTime now) {
  if (unclaimed_ == 0 || !started_ || reloading_) return;
  for (const auto& [name, instance] : instances_) {
    if (!instance.roles.discovery ||
        (instance.state == InstanceState::running && instance.listed)) {
      continue;
    }
    if (instance.state != InstanceState::running) return;  // it may still know them
    const auto deadline = after(instance.running_since, timing_.listing);
    if (!due(deadline, now)) {
      wake_at(deadline);
      return;
    }
  }
  std::vector<Attachment*> unclaimed;
  for (auto& [id, attachment] : attachments_) {
    if (attachment->claimed) continue;
    if (is_asked_for(*attachment)) {
      hand_over(*attachment);  // what hindered it may be over
      if (!attachment->claimed) wake_at(after(now, timing_.hold));
      continue;
    }
    unclaimed.push_back(attachment.get());
  }
  std::string names;
  std::size_t dropped = 0;
  for (auto* attachment : unclaimed) {
    const auto name = target_name(attachment->target);
    auto status = plane_.detach(attachment->slot);
    if (!status && status.error().code != ENOENT && status.error().code != ENODEV) {
      spdlog::error("{}: found at start, claimed by no discovery, and cannot be detached: {}", name,
                    status.error().message);
      wake_at(after(now, timing_.listing));
      continue;
    }
    if (++dropped <= 8) names += (names.empty() ? "" : ", ") + name;
    erase(*attachment, "no discovery claims it");
  }
  if (dropped != 0) {
    spdlog::info("detached {} attachments that no discovery claims: {}{}", dropped, names,
                 dropped > 8 ? ", ..." : "");
  }
}

// Addresses that lose the ports of one of several rules. Any thread may bring the moment forward,
// so it is looked at on each turn.
void AttachmentManager::narrow_learned(BootTime now) {
  if (!due(learned_.narrow_at(), now)) return;
  learned_.begin_narrowing();
  for (auto& [id, attachment] : attachments_)
    if (learned_.narrow(attachment->id) && attachment->wire) sever(*attachment);
}

// Handed over to a discovery that may have stopped wanting it before it was its own: it would have
// had no id to detach.
void AttachmentManager::drop_unconfirmed(BootTime now) {
  if (unconfirmed_ == 0) return;
  std::vector<Attachment*> lapsed;
  for (auto& [id, attachment] : attachments_) {
    if (due(attachment->confirm_by, now)) lapsed.push_back(attachment.get());
    wake_at(attachment->confirm_by);
  }
  for (auto* attachment : lapsed) {
    const auto name = target_name(attachment->target);
    auto status = plane_.detach(attachment->slot);
    if (!status && status.error().code != ENOENT && status.error().code != ENODEV) {
      spdlog::error(
          "{}: its discovery detached it, {} asks for it no more, and it cannot be "
          "detached: {}",
          name, attachment->discovered_by, status.error().message);
      attachment->confirm_by = after(now, timing_.listing);
      wake_at(attachment->confirm_by);
      continue;
    }
    spdlog::info("{}: detached; {} had asked for it and does so no more", name,
                 attachment->discovered_by);
    erase(*attachment, "no discovery claims it");
  }
}

// Rules that ended. The programs stopped honouring them in time; here their space is freed, both
// ends of what they carried are told, and resolvers hear of it.
void AttachmentManager::expire(BootTime now) {
  const bool forget = forget_learned_at_ <= now;
  if (forget) forget_learned_at_ = after(now, kForgetLearnedEvery);
  wake_at(forget_learned_at_);
  for (auto& [id, attachment] : attachments_) {
    if (attachment->image && !attachment->held) {
      const auto expiry = attachment->image->compiled.next_expiry;
      const auto recompile = expiry.never() ? expiry : after(expiry, timing_.recompile_delay);
      if (due(recompile, now)) {
        std::vector<Change> changes;
        changes.push_back(Change::of(*attachment, attachment->wire, attachment->layers));
        if (auto status = transact(wiring_, changes); !status) {
          spdlog::warn("{}; the kernel has stopped honouring what expired", status.error().message);
          wake_at(after(now, timing_.listing));
        }
      } else {
        wake_at(recompile);
      }
    }
    if (!attachment->domains) continue;
    if (due(attachment->domains->next_expiry, now) && settle_domain_rules(*attachment, now)) {
      tell_domain_rules(*attachment);
    }
    wake_at(attachment->domains->next_expiry);
    if (forget && learned_.expire(attachment->id) && attachment->wire) sever(*attachment);
  }
}

// ---- reading
// -------------------------------------------------------------------------------------

Result<Counters> AttachmentManager::counters(AttachmentId id) {
  auto* attachment = find(id);
  if (attachment == nullptr) {
    return fail_with(ENOENT, "attachment {:x}: there is none; it was detached, or its target went",
                     id.value);
  }
  return plane_.counters(attachment->slot);
}

std::vector<AttachmentInfo> AttachmentManager::list() {
  std::vector<AttachmentInfo> infos;
  infos.reserve(attachments_.size());
  for (const auto& [id, attachment] : attachments_) infos.push_back(info_of(*attachment));
  return infos;
}

std::vector<AttachmentInfo> AttachmentManager::attachments_of(const std::string& instance) {
  std::vector<AttachmentInfo> infos;
  for (const auto& [id, attachment] : attachments_) {
    if (attachment->wire && std::ranges::count(attachment->wire->sources, instance)) {
      infos.push_back(info_of(*attachment));
    }
  }
  return infos;
}

bool AttachmentManager::all_listed() const {
  return std::ranges::all_of(instances_, [](const auto& entry) {
    const auto& [name, instance] = entry;
    return !instance.roles.discovery || instance.state == InstanceState::down || instance.listed;
  });
}

std::string AttachmentManager::name_of(AttachmentId id) const {
  const auto found = attachments_.find(id.value);
  if (found == attachments_.end()) return fmt::format("attachment {:x}", id.value);
  return target_name(found->second->target);
}

AttachmentManager::Tally AttachmentManager::tally() const {
  return {.attachments = attachments_.size(),
          .unclaimed = unclaimed_,
          .held = held_,
          .compiles = cache_.compiles(),
          .publishes = publishes_};
}

}  // namespace sluice
