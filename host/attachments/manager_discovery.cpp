// Attachments that come, go and are claimed, and who is told of it.

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "attachments/attachment_state.hpp"
#include "attachments/targets.hpp"

namespace sluice {

void AttachmentManager::warn_unwired(const Attachment& attachment) {
  if (attachment.wire != closed_wire()) return;
  const auto text = fmt::format(
      "{} ({}; found by {}): no [[wire]] matches it, so nothing may leave; "
      "add a wire that names it",
      target_name(attachment.target), labels_text(attachment.labels), attachment.discovered_by);
  if (warned_unwired_.insert(attachment.discovered_by).second) {
    spdlog::warn("{} (said once for {}; further ones at log level debug)", text,
                 attachment.discovered_by);
  } else {
    spdlog::debug("{}", text);
  }
}

// The resolver is there and serves, but no question of this one comes to it.
void AttachmentManager::warn_unredirectable(const Attachment& attachment,
                                            const std::string* resolver,
                                            const std::string& domain) {
  if (resolver == nullptr || attachment.redirectable ||
      std::exchange(attachment.told_unredirectable, true))
    return;
  const auto* interface = std::get_if<InterfaceTarget>(&attachment.target);
  const bool elsewhere = interface != nullptr && !interface->netns_path.empty();
  spdlog::warn(
      "{}: its policy allows names ({}), but its port 53 cannot be taken to {}, since {}; so its "
      "questions are judged as any other packet, and names open nothing; attach the host's end of "
      "the workload's own link (a tap or veth) instead, or allow networks",
      target_name(attachment.target), domain, *resolver,
      elsewhere ? "the interface is in another network namespace"
                : "the workload's packets go out by it (side = \"egress\")");
}

// Domain rules that nobody resolves allow nothing: that is not what whoever wrote them expects.
void AttachmentManager::warn_unresolved(const Attachment& attachment) {
  const auto& rules = attachment.domains->rules;
  const auto allow = std::ranges::find(rules, Action::allow, &Rule::action);
  if (allow == rules.end() || attachment.wire == closed_wire()) return;
  bool resolved = false;
  // One without sockets pushes what it knows from elsewhere, and waits for no question.
  const std::string* serving = nullptr;
  for (const auto& source : attachment.wire->sources) {
    const auto found = instances_.find(source);
    if (found == instances_.end() || !found->second.roles.resolver) continue;
    resolved = true;
    if (serving == nullptr && found->second.served) serving = &source;
  }
  if (resolved) {
    warn_unredirectable(attachment, serving, allow->domain);
    return;
  }
  if (!warned_unresolved_.insert(attachment.wire).second) return;
  spdlog::warn(
      "{}: its policy allows names ({}), but its [[wire]] names no resolver, so they open nothing; "
      "add a [plugin.dns] and name it in the wire's sources (said once for this wire)",
      target_name(attachment.target), allow->domain);
}

// Tells sources that came, went or stayed with a change of wire or labels.
void AttachmentManager::tell_rewired(const Attachment& attachment, const WirePtr& before,
                                     bool domains_changed, bool is_new) {
  if (events_ == nullptr) return;
  const auto info = info_of(attachment);
  const auto telling = events_->telling();
  const std::vector<std::string> none;
  const auto& old_sources = before ? before->sources : none;
  for (const auto& source : old_sources) {
    if (!std::ranges::count(attachment.wire->sources, source)) {
      events_->attachment_removed(source, info, "its wire no longer names this source");
    }
  }
  for (const auto& source : attachment.wire->sources) {
    const bool knows_it = std::ranges::count(old_sources, source) != 0;
    if (knows_it) {
      events_->attachment_changed(source, info);
    } else {
      events_->attachment_added(source, info);
    }
    if (knows_it ? domains_changed : !attachment.domains->rules.empty()) {
      events_->domain_rules(source, attachment.id, attachment.domains->rules);
    }
  }
  // Observers know of adopted ones from the list they began with.
  if (is_new) {
    events_->attachment_added(kObservers, info);
  } else {
    events_->attachment_changed(kObservers, info);
  }
}

// After a change of policy that `speaker` made (empty: nobody): the others learn of another mode or
// audit, resolvers of other domain rules.
void AttachmentManager::tell_policy(const Change& change, const std::string& speaker) {
  const auto& attachment = *change.attachment;
  if (change.mode_changed && events_ != nullptr) {
    const auto info = info_of(attachment);
    for (const auto& source : attachment.wire->sources) {
      if (source != speaker) events_->attachment_changed(source, info);
    }
    events_->attachment_changed(kObservers, info);
  }
  if (change.domains_changed) tell_domain_rules(attachment);
}

Result<AttachmentId> AttachmentManager::attach(const std::string& instance, const Target& target,
                                               const Labels& labels) {
  // A device that went before this one came may have had its ifindex: hear of that first.
  plane_.poll(data_plane_events());
  remove_gone();
  const auto now = clock_();
  const auto wire = match_wire(wiring_, target, labels, instance);
  const std::vector<LayerPtr> silent(wire->sources.size());
  auto composed = compose(wiring_, wire, silent, now);
  if (!composed) return std::unexpected(composed.error());

  // The data plane is always asked, since only it knows whether a known ifindex or path is still
  // the same object. A known one keeps its policy (no `initial`).
  auto* known = find_target(target);
  const PublishRequest initial{.slot = 0,
                               .mode = composed->mode,
                               .options = composed->options(),
                               .policy = &composed->image->compiled,
                               .tightening = false};
  const bool closed_first = may_be_known(target);
  const auto* first = closed_first ? nullptr : &initial;
  auto kernel =
      std::visit([&](const auto& precise) { return plane_.attach(precise, first); }, target);
  if (!kernel) return std::unexpected(kernel.error());

  auto* in_slot = kernel->slot < by_slot_.size() ? by_slot_[kernel->slot] : nullptr;
  if (in_slot != nullptr && in_slot->incarnation == kernel->incarnation) {
    return claim(*in_slot, instance, target, labels);
  }
  if (in_slot != nullptr) erase(*in_slot, "its target is gone and its place was taken");
  if (known != nullptr && known != in_slot) {
    const auto stale = known->slot;
    erase(*known, "its target is gone; another took its name or number");
    (void)plane_.detach(stale);  // the data plane may have let go of it by itself
  }

  auto& attachment = insert(*kernel);
  attachment.target = target;
  if (auto* interface = std::get_if<InterfaceTarget>(&attachment.target);
      interface != nullptr && kernel->interface) {
    interface->netns_cookie = kernel->interface->netns_cookie;
  }
  if (auto* cgroup = std::get_if<CgroupTarget>(&attachment.target);
      cgroup != nullptr && kernel->cgroup) {
    cgroup->cgroup_id = kernel->cgroup->cgroup_id;
  }
  by_target_.emplace(target_key(attachment.target), &attachment);
  attachment.claimed = true;
  attachment.discovered_by = instance;
  attachment.labels = labels;
  attachment.run = run_of(instance);
  attachment.wire = wire;
  attachment.layers = silent;
  if (closed_first) {
    if (auto status = publish(attachment, *composed, false); !status) {
      const auto slot = attachment.slot;
      attachment.wire = nullptr;  // nobody was told of it
      erase(attachment, "");
      (void)plane_.detach(slot);
      return fail_with(status.error().code, "{}: {}", target_name(target), status.error().message);
    }
  } else {
    attachment.mode = composed->mode;
    attachment.audit = composed->audit;
    attachment.replies = composed->replies;
    attachment.options_of = wire;
    attachment.resolver = composed->resolver;
    attachment.image = composed->image;
    attachment.digest = composed->image->digest();
  }
  attachment.composed = composed->image;
  attachment.domains = cache_.domain_rules({}, now);
  settle_learned(attachment);
  note_asker(attachment);
  warn_unwired(attachment);
  tell_rewired(attachment, nullptr, false, true);
  return attachment.id;
}

Result<AttachmentId> AttachmentManager::claim(Attachment& attachment, const std::string& instance,
                                              const Target& target, const Labels& labels) {
  const auto run = run_of(instance);
  if (attachment.claimed && attachment.discovered_by != instance) {
    remember_ask(attachment, {instance, run, target, labels});
    return fail_with(EEXIST,
                     "{}: already attached by {}; let only one discovery match it, or detach it "
                     "there first",
                     target_name(target), attachment.discovered_by);
  }
  const auto now = clock_();
  const bool was_claimed = attachment.claimed;
  const bool first_time = attachment.wire == nullptr;
  const auto before = attachment.wire;
  // By another discovery, or by another run of the same with other options.
  const bool anew = !was_claimed || attachment.run != run;
  const auto wire =
      reloading_ && anew && !first_time ? before : match_wire(wiring_, target, labels, instance);
  const bool same_name = target_name(attachment.target) == target_name(target);
  if (was_claimed && wire == before && labels == attachment.labels && same_name) {
    confirm(attachment);
    attachment.run = run;
    return attachment.id;
  }

  if (first_time && !wire->sources.empty()) {
    attachment.held = true;
    attachment.held_until = after(now, timing_.hold);
    held_ += 1;
  }
  std::vector<Change> changes;
  changes.push_back(Change::of(attachment, wire, carry_over(attachment, wire)));
  if (auto status = transact(wiring_, changes); !status) {
    if (first_time && attachment.held) {
      attachment.held = false;
      held_ -= 1;
    }
    return std::unexpected(status.error());
  }
  if (attachment.held) wake_at(attachment.held_until);
  // Its number and namespace are the same object's; its name may have changed.
  if (auto* interface = std::get_if<InterfaceTarget>(&attachment.target)) {
    const auto& described = std::get<InterfaceTarget>(target);
    interface->name = described.name;
    if (!described.netns_path.empty()) interface->netns_path = described.netns_path;
    interface->side = described.side;
  } else {
    std::get<CgroupTarget>(attachment.target).path = std::get<CgroupTarget>(target).path;
  }
  learned_.rename(attachment.id, target_name(attachment.target));
  if (!was_claimed) unclaimed_ -= 1;
  attachment.claimed = true;
  attachment.discovered_by = instance;
  attachment.run = run;
  attachment.labels = labels;
  std::erase_if(attachment.asks, [&](const Ask& ask) { return ask.instance == instance; });
  confirm(attachment);
  warn_unwired(attachment);
  tell_rewired(attachment, before, changes.front().domains_changed, false);
  return attachment.id;
}

Status AttachmentManager::relabel(const std::string& instance, AttachmentId id,
                                  const Labels& labels) {
  auto* attachment = find(id);
  if (auto status = owned_by(attachment, instance, id); !status) return status;
  const Target target = attachment->target;
  if (auto done = claim(*attachment, instance, target, labels); !done) {
    return std::unexpected(done.error());
  }
  return {};
}

Status AttachmentManager::detach(const std::string& instance, AttachmentId id,
                                 const std::string& reason) {
  auto* attachment = find(id);
  if (auto status = owned_by(attachment, instance, id); !status) return status;
  if (is_asked_for(*attachment)) {
    let_go(*attachment);
    if (attachment->claimed) {
      attachment->confirm_by = after(clock_(), timing_.confirmation);
      wake_at(attachment->confirm_by);
      unconfirmed_ += 1;
    }
    return {};
  }
  auto status = plane_.detach(attachment->slot);
  if (!status && status.error().code != ENOENT && status.error().code != ENODEV) {
    return fail_with(status.error().code, "{}: {}", target_name(attachment->target),
                     status.error().message);
  }
  erase(*attachment, reason);
  return {};
}

// ---- from one discovery to another
// ---------------------------------------------------------------

void AttachmentManager::remember_ask(Attachment& attachment, Ask ask) {
  for (auto& known : attachment.asks) {
    if (known.instance != ask.instance) continue;
    known = std::move(ask);
    return;
  }
  attachment.asks.push_back(std::move(ask));
}

bool AttachmentManager::is_asked_for(const Attachment& attachment) const {
  return std::ranges::any_of(attachment.asks, [&](const Ask& ask) {
    const auto found = instances_.find(ask.instance);
    return found != instances_.end() && found->second.run == ask.run;
  });
}

// Its discovery answers for it no more.
void AttachmentManager::let_go(Attachment& attachment) {
  confirm(attachment);
  attachment.claimed = false;
  attachment.let_go_at = clock_();
  unclaimed_ += 1;
  hand_over(attachment);
}

// To the first that has asked for it, as if it asked now. Where that fails it stays unclaimed under
// the policy that it has; it is tried again with the next round of claims.
void AttachmentManager::hand_over(Attachment& attachment) {
  std::erase_if(attachment.asks, [&](const Ask& ask) {
    const auto found = instances_.find(ask.instance);
    return found == instances_.end() || found->second.run != ask.run;
  });
  if (attachment.asks.empty()) return;
  const auto ask = attachment.asks.front();
  const auto former = attachment.discovered_by;
  if (auto claimed = claim(attachment, ask.instance, ask.target, ask.labels); !claimed) {
    spdlog::error("{}: cannot be handed over from {} to {}: {}; it keeps its policy, trying again",
                  target_name(attachment.target), former, ask.instance, claimed.error().message);
    return;
  }
  spdlog::info("{}: handed over from {} to {}", target_name(attachment.target), former,
               ask.instance);
}

void AttachmentManager::confirm(Attachment& attachment) {
  if (attachment.confirm_by.never()) return;
  attachment.confirm_by = {};
  unconfirmed_ -= 1;
}

// Its discovery has let go of it, or has begun another run and not come to it yet. What it is known
// by is of the past, and so is no measure for another wiring.
bool AttachmentManager::may_change_hands(const Attachment& attachment, BootTime now) const {
  if (!attachment.claimed) return !due(after(attachment.let_go_at, timing_.listing), now);
  const auto found = instances_.find(attachment.discovered_by);
  if (found == instances_.end()) return false;
  const auto& instance = found->second;
  if (attachment.run == instance.run || instance.listed) return false;
  if (instance.state == InstanceState::running) {
    return !due(after(instance.running_since, timing_.listing), now);
  }
  return instance.state == InstanceState::starting;
}

// What is let go of meanwhile is not: whoever answers for it next says what it is known by.
bool AttachmentManager::is_left_to_rewire(const Attachment& attachment) const {
  return !attachment.rewire_by.never() && attachment.claimed &&
         attachment.run != run_of(attachment.discovered_by);
}

std::uint32_t AttachmentManager::run_of(const std::string& instance) const {
  const auto found = instances_.find(instance);
  return found == instances_.end() ? 0 : found->second.run;
}

Status AttachmentManager::listed(const std::string& instance) {
  auto& state = instances_[instance];
  state.listed = true;
  // What an earlier run attached and this one did not find again.
  for (auto& [id, attachment] : attachments_) {
    if (!attachment->claimed || attachment->discovered_by != instance) continue;
    if (attachment->run != state.run) let_go(*attachment);
  }
  if (unclaimed_ != 0) wake_at(clock_());
  return {};
}

void AttachmentManager::instance(const std::string& name, InstanceRoles roles,
                                 InstanceState state) {
  auto& known = instances_[name];
  const bool decides_differently = known.roles.decider != roles.decider;
  known.roles = roles;
  if (decides_differently) {
    for (auto& [id, attachment] : attachments_) {
      if (attachment->wire) settle_learned(*attachment);
    }
  }
  // A discovery attaches and lists before its start() returns, so its run begins with `starting`.
  const bool begins =
      known.run == 0 || (known.state == InstanceState::down && state != InstanceState::down);
  if (begins) {
    known.run += 1;
    known.listed = false;
  }
  if (state == InstanceState::running && (begins || known.state != state)) {
    known.running_since = clock_();
    wake_at(after(known.running_since, timing_.listing));
  }
  known.state = state;
  redirections_stale_ |= roles.resolver;
  wake_at(clock_());
}

void AttachmentManager::release(const std::string& name) {
  for (auto& [id, attachment] : attachments_) {
    std::erase_if(attachment->asks, [&](const Ask& ask) { return ask.instance == name; });
    if (attachment->claimed && attachment->discovered_by == name) let_go(*attachment);
  }
  wake_at(clock_());
}

void AttachmentManager::forget_instance(const std::string& name) {
  release(name);
  instances_.erase(name);
  redirections_stale_ = true;
}

void AttachmentManager::end_reload() {
  reloading_ = false;
  wake_at(clock_());
}

void AttachmentManager::started() {
  started_ = true;
  redirections_stale_ = true;
  wake_at(clock_());
}

}  // namespace sluice
