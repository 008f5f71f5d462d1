// Names: the domain rules that resolvers are told, who may decide, and whose port 53 goes where.

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "attachments/attachment_state.hpp"

namespace sluice {

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

// ---- resolvers
// ------------------------------------------------------------------------------------

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
  const bool begins = !known.served && !sockets.empty();
  known.served |= begins;
  redirect_anew();
  if (!begins) return {};
  for (const auto& [id, attachment] : attachments_) {
    if (attachment->wire && attachment->domains &&
        std::ranges::count(attachment->wire->sources, instance))
      warn_unresolved(*attachment);
  }
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

}  // namespace sluice
