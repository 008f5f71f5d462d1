#include "attachments/attachment_manager.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <numeric>
#include <utility>

#include "policy/explain.hpp"

namespace sluice {
namespace {

constexpr std::uint32_t kSlotBits = 24;
constexpr std::size_t kDenialBatch = 256;
const std::string kObservers;  // the empty instance name, see PluginEvents
constexpr std::size_t kNoSource = ~std::size_t{0};
constexpr std::chrono::nanoseconds kForgetLearnedEvery = std::chrono::minutes{1};
constexpr std::array<const char*, SLUICE_REASON_COUNT> kReasonTexts = {
#define X(name, text) text,
    SLUICE_REASONS(X)
#undef X
};

BootTime after(BootTime now, std::chrono::nanoseconds delay) {
  return {now.nanoseconds + static_cast<std::uint64_t>(delay.count())};
}

bool due(BootTime when, BootTime now) {
  return !when.never() && when <= now;
}

// The slot and 40 random bits of the incarnation: adoption finds the same id, reuse of the slot
// does not.
AttachmentId id_of(const KernelAttachment& kernel) {
  return {(kernel.incarnation << kSlotBits) | kernel.slot};
}

std::uint64_t target_key(const Target& target) {
  if (const auto* interface = std::get_if<InterfaceTarget>(&target)) return interface->ifindex;
  return std::get<CgroupTarget>(target).cgroup_id;
}

Target target_of(const KernelAttachment& kernel) {
  if (kernel.interface) return *kernel.interface;
  return kernel.cgroup.value_or(CgroupTarget{});
}

// Same kernel object, as far as two descriptions of it tell.
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

Status check_rule(const Rule& rule, std::uint32_t index) {
  const auto at = [&](Error error) {
    error.rule_index = index;
    return std::unexpected(std::move(error));
  };
  if (rule.prefix.has_value() == !rule.domain.empty()) {
    return at({.message = fmt::format("rule {} ({}): needs either a prefix or a domain, and has {}",
                                      index, rule.name, rule.prefix ? "both" : "neither")});
  }
  if (rule.prefix) {
    if (auto status = rule.prefix->check(); !status) return at(std::move(status.error()));
  }
  for (const auto& range : rule.ports) {
    if (auto status = range.check(); !status) return at(std::move(status.error()));
  }
  const bool has_attributes = !rule.ranges.empty() || !rule.types.empty() || rule.public_suffix;
  if (has_attributes && (rule.prefix || rule.action != Action::allow)) {
    return at({.message = fmt::format("rule {} ({}): ranges, types and public_suffix belong to "
                                      "domain rules that allow",
                                      index, rule.name)});
  }
  for (const auto& range : rule.ranges) {
    if (auto status = range.check(); !status) return at(std::move(status.error()));
  }
  for (const auto type : rule.types) {
    // RFC 6895: 0 is reserved, 41 is OPT, 128 to 255 ask for more than one type or are no data.
    if (type != 0 && type != 41 && (type < 128 || type > 255)) continue;
    return at({.message = fmt::format("rule {} ({}): {} is no type of record that a name can have",
                                      index, rule.name, type)});
  }
  return {};
}

Status check_rules(const std::vector<Rule>& rules) {
  for (std::uint32_t index = 0; index < rules.size(); ++index) {
    if (auto status = check_rule(rules[index], index); !status) return status;
  }
  return {};
}

}  // namespace

struct AttachmentManager::Instance {
  InstanceRoles roles;
  InstanceState state = InstanceState::starting;
  BootTime running_since;
  std::uint32_t run = 0;  // counts its starts; an attachment remembers the one that claimed it
  bool listed = false;
  std::optional<std::uint32_t> resolver;  // its number in the data plane, once it has one
  bool served = false;                    // sockets, at any time

  // Until it runs it may yet serve: what it would be asked is dropped, and goes nowhere else.
  [[nodiscard]] bool takes_port_53() const {
    return roles.resolver && (served || state != InstanceState::running);
  }
};

struct AttachmentManager::Attachment {
  AttachmentId id;
  std::uint32_t slot = 0;
  std::uint32_t run = 0;
  std::uint64_t incarnation = 0;
  Generation generation;
  Target target;
  Labels labels;
  std::string discovered_by;
  bool claimed = false;
  bool held = false;  // keeps the policy it was found with
  BootTime held_until;

  WirePtr wire;                  // null while unclaimed after adoption
  std::vector<LayerPtr> layers;  // beside wire->sources; null: has not spoken

  // In the kernel.
  Mode mode = Mode::block_all;
  bool audit = false, replies = false;
  WirePtr options_of;  // whose other options are in force; null: those it was found with
  std::optional<std::uint32_t> resolver;  // where its port 53 goes
  std::uint32_t asker_mark = 0;
  bool redirectable = false;
  ImagePtr image;  // null: the policy it was found with
  std::array<std::uint64_t, 2> digest{};

  // While the kernel has a policy of a former daemon, the rules at hand are the better guess at
  // what a learned address may not overrule.
  ImagePtr composed;
  DomainRulesPtr domains;
};

// What ought to be in the kernel.
struct AttachmentManager::Composed {
  Mode mode = Mode::block_all;
  bool audit = false, replies = false;
  WirePtr wire;
  ImagePtr image;
  std::optional<std::uint32_t> resolver;

  [[nodiscard]] AttachmentOptions options() const {
    auto options = wire->options;
    options.redirect_dns = resolver.has_value();
    options.resolver = resolver.value_or(0);
    options.audit = audit;
    options.replies = replies;
    return options;
  }
};

// One attachment's part in a change that is made whole or not at all.
struct AttachmentManager::Change {
  Attachment* attachment = nullptr;
  WirePtr wire;
  std::vector<LayerPtr> layers;
  bool hold = false;  // remember, but leave the kernel as it is for now
  Composed next{};
  // After the commit: who is to be told.
  bool domains_changed = false, mode_changed = false;  // mode or audit
  std::size_t source = kNoSource;                      // whose layer is new, where there is one

  [[nodiscard]] static Change of(Attachment& attachment, WirePtr wire,
                                 std::vector<LayerPtr> layers) {
    Change change;
    change.attachment = &attachment;
    change.wire = std::move(wire);
    change.layers = std::move(layers);
    return change;
  }
};

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

// ---- finding ------------------------------------------------------------------------------------

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

// ---- composing and publishing -------------------------------------------------------------------

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

// ---- domain rules and learned addresses ---------------------------------------------------------

// True when resolvers have to be told.
bool AttachmentManager::settle_domain_rules(Attachment& attachment, BootTime now) {
  std::vector<LayerPtr> spoken;
  for (const auto& layer : attachment.layers) {
    if (layer) spoken.push_back(layer);
  }
  auto rules = cache_.domain_rules(std::move(spoken), now);
  wake_at(rules->next_expiry);
  const auto before = std::exchange(attachment.domains, rules);
  settle_learned(attachment);
  if (rules == before) return false;
  warn_unresolved(attachment);
  return before ? before->rules != rules->rules : !rules->rules.empty();
}

void AttachmentManager::settle_learned(Attachment& attachment) {
  const bool withdrawn = learned_.settle(
      attachment.id, {.wire = attachment.wire,
                      .decider = decider_of(attachment.wire),
                      .rules = attachment.domains,
                      .image = attachment.image ? attachment.image : attachment.composed,
                      .settled = !attachment.held});
  if (withdrawn) sever(attachment);
}

// The first source of the wire that decides single names.
std::string AttachmentManager::decider_of(const WirePtr& wire) const {
  for (const auto& source : wire->sources) {
    const auto found = instances_.find(source);
    if (found != instances_.end() && found->second.roles.decider) return source;
  }
  return {};
}

// Addresses left the kernel, which judges by what remains from the next packet on. Tells both ends
// of what was open.
void AttachmentManager::sever(Attachment& attachment) {
  if (attachment.held) return;  // its options are not known
  PublishRequest request{
      .slot = attachment.slot,
      .mode = attachment.mode,
      .options = attachment.options_of ? attachment.options_of->options : attachment.wire->options,
      .policy = nullptr,
      .tightening = true};
  request.options.redirect_dns = attachment.resolver.has_value();
  request.options.resolver = attachment.resolver.value_or(0);
  request.options.audit = attachment.audit;
  request.options.replies = attachment.replies;
  if (auto generation = plane_.publish(request)) {
    attachment.generation = *generation;
    publishes_ += 1;
  } else {
    spdlog::warn("{}: connections to revoked addresses were not cut: {}; their packets are dropped",
                 target_name(attachment.target), generation.error().message);
  }
}

void AttachmentManager::tell_domain_rules(const Attachment& attachment) {
  if (events_ == nullptr) return;
  for (const auto& source : attachment.wire->sources) {
    events_->domain_rules(source, attachment.id, attachment.domains->rules);
  }
}

// ---- discovery ----------------------------------------------------------------------------------

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

// Domain rules that nobody resolves allow nothing: that is not what whoever wrote them expects.
void AttachmentManager::warn_unresolved(const Attachment& attachment) {
  const auto& rules = attachment.domains->rules;
  const auto allow = std::ranges::find(rules, Action::allow, &Rule::action);
  if (allow == rules.end() || attachment.wire == closed_wire()) return;
  const bool resolved = std::ranges::any_of(attachment.wire->sources, [&](const auto& source) {
    const auto found = instances_.find(source);
    return found != instances_.end() && found->second.roles.resolver;
  });
  if (resolved || !warned_unresolved_.insert(attachment.wire).second) return;
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
  if (attachment.claimed && attachment.discovered_by != instance) {
    return fail_with(EEXIST,
                     "{}: already attached by {}; let only one discovery match it, or detach it "
                     "there first",
                     target_name(target), attachment.discovered_by);
  }
  const auto now = clock_();
  const auto wire = match_wire(wiring_, target, labels, instance);
  const bool was_claimed = attachment.claimed;
  const bool first_time = attachment.wire == nullptr;
  const auto before = attachment.wire;
  const bool same_name = target_name(attachment.target) == target_name(target);
  if (was_claimed && wire == before && labels == attachment.labels && same_name) {
    attachment.run = run_of(instance);
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
  attachment.run = run_of(instance);
  attachment.labels = labels;
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
  auto status = plane_.detach(attachment->slot);
  if (!status && status.error().code != ENOENT && status.error().code != ENODEV) {
    return fail_with(status.error().code, "{}: {}", target_name(attachment->target),
                     status.error().message);
  }
  erase(*attachment, reason);
  return {};
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
    if (attachment->run == state.run) continue;
    attachment->claimed = false;
    unclaimed_ += 1;
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

void AttachmentManager::forget_instance(const std::string& name) {
  instances_.erase(name);
  redirections_stale_ = true;
  for (auto& [id, attachment] : attachments_) {
    if (!attachment->claimed || attachment->discovered_by != name) continue;
    attachment->claimed = false;
    unclaimed_ += 1;
  }
  wake_at(clock_());
}

void AttachmentManager::started() {
  started_ = true;
  redirections_stale_ = true;
  wake_at(clock_());
}

// ---- resolvers ----------------------------------------------------------------------------------

// The first of the wire's sources that takes port 53.
const std::string* AttachmentManager::resolver_of(const WirePtr& wire) const {
  for (const auto& source : wire->sources) {
    const auto found = instances_.find(source);
    if (found != instances_.end() && found->second.takes_port_53()) return &found->first;
  }
  return nullptr;
}

// Its number in the data plane, a fresh one where it has none. Nothing: all are taken; then its
// port 53 is judged as any other.
std::optional<std::uint32_t> AttachmentManager::resolver_index(const std::string& instance) {
  auto& known = instances_[instance];
  for (std::uint32_t index = 0; index < SLUICE_RESOLVERS && !known.resolver; ++index) {
    const bool taken = std::ranges::any_of(
        instances_, [&](const auto& entry) { return entry.second.resolver == index; });
    if (!taken) known.resolver = index;
  }
  return known.resolver;
}

void AttachmentManager::note_asker(const Attachment& attachment) {
  const auto* resolver = resolver_of(attachment.wire);
  if (resolver != nullptr && attachment.asker_mark != 0) {
    askers_.put(attachment.asker_mark, attachment.id, *resolver);
  } else {
    askers_.erase(attachment.asker_mark);
  }
}

Status AttachmentManager::serve(const std::string& instance, std::span<const int> sockets) {
  auto& known = instances_[instance];
  const auto index = resolver_index(instance);
  if (!index) {
    return fail_with(ENOSPC, "{}: {} resolvers serve already, and there is room for no more",
                     instance, SLUICE_RESOLVERS);
  }
  if (auto served = plane_.serve(*index, sockets); !served) {
    return fail_with(served.error().code, "{}: {}", instance, served.error().message);
  }
  known.roles.resolver = true;
  known.served |= !sockets.empty();
  redirect_anew();
  return {};
}

// Publishes what differs from who takes port 53 now, and tells.
void AttachmentManager::redirect_anew() {
  redirections_stale_ = false;
  for (auto& [id, attachment] : attachments_) {
    if (!attachment->wire) continue;
    note_asker(*attachment);
    const auto* resolver = resolver_of(attachment->wire);
    const auto index = resolver != nullptr ? resolver_index(*resolver) : std::nullopt;
    if (attachment->held || attachment->resolver == index) continue;
    std::vector<Change> changes;
    changes.push_back(Change::of(*attachment, attachment->wire, attachment->layers));
    if (auto status = transact(wiring_, changes); !status) {
      spdlog::error("{}; its port 53 goes where it went, trying again", status.error().message);
      redirections_stale_ = true;
      wake_at(after(clock_(), timing_.hold));
      continue;
    }
    tell_policy(changes.front(), {});
  }
}

// No configured instance takes port 53: the host's routes for that go.
void AttachmentManager::end_serving_unless_needed() {
  if (!started_) return;
  const bool needed = std::ranges::any_of(
      instances_, [](const auto& entry) { return entry.second.takes_port_53(); });
  if (needed == std::exchange(resolvers_needed_, needed) || needed) return;
  if (auto ended = plane_.end_serving(); !ended) spdlog::warn("{}", ended.error().message);
}

Result<AttachmentId> AttachmentManager::asker_of_mark(const std::string& instance,
                                                      std::uint32_t mark) {
  if (const auto id = askers_.find(mark, instance)) return *id;
  return std::unexpected(Error{.message = {}, .code = ENOENT});
}

Result<StreamAsker> AttachmentManager::asker_of_stream(const std::string& instance, int accepted) {
  const auto asker = plane_.asker_of_stream(accepted);
  if (!asker) return std::unexpected(asker.error());
  const auto id = askers_.find(asker->mark, instance);
  if (!id) return fail_with(ENOENT, "fd {}: its asker is detached", accepted);
  return StreamAsker{.attachment = *id,
                     .asked = {.address = asker->asked, .port = SLUICE_DNS_PORT}};
}

// ---- policy -------------------------------------------------------------------------------------

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

// ---- wiring -------------------------------------------------------------------------------------

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
  auto floor_only = cache_.image({}, wiring.floor, clock_());
  if (!floor_only) return std::unexpected(floor_only.error());
  std::vector<Change> changes;
  std::vector<WirePtr> before;
  for (auto& [id, attachment] : attachments_) {
    if (!attachment->wire) continue;
    auto wire =
        match_wire(wiring, attachment->target, attachment->labels, attachment->discovered_by);
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
    const auto& attachment = *changes[i].attachment;
    if (attachment.wire == before[i]) {
      tell_policy(changes[i], {});
      continue;
    }
    warn_unwired(attachment);
    tell_rewired(attachment, before[i], changes[i].domains_changed, false);
  }
  return {};
}

// ---- what the kernel reports --------------------------------------------------------------------

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
  if (!due(wake_, now)) return;
  wake_ = {};
  if (redirections_stale_) {
    redirect_anew();
    end_serving_unless_needed();
  }
  end_holds(now);
  drop_unclaimed(now);
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
  if (unclaimed_ == 0 || !started_) return;
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
    if (!attachment->claimed) unclaimed.push_back(attachment.get());
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

// ---- reading ------------------------------------------------------------------------------------

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
