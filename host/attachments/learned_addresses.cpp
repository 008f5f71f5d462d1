#include "attachments/learned_addresses.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <unordered_set>
#include <utility>

namespace sluice {
namespace {

// Ends are compared with the clock, and zero would mean never: so neither wraps nor is zero.
BootTime after(BootTime now, std::uint64_t nanoseconds) {
  constexpr auto kEnd = ~std::uint64_t{0};
  return {nanoseconds > kEnd - now.nanoseconds ? kEnd : now.nanoseconds + nanoseconds};
}

BootTime not_after(BootTime when, BootTime end) {
  return end.never() ? when : std::min(when, end);
}

// What all owners of one address open together, and the latest of their times.
LearnedAddress sum_of(const Address& address, std::span<const LearnedTable::Owner> owners,
                      std::vector<PortRange>& ports) {
  LearnedAddress sum{.address = address, .active_until = {}, .grace_until = {}};
  bool every_port = false;
  for (const auto& owner : owners) {
    sum.active_until = std::max(sum.active_until, owner.active_until);
    if (owner.grace_until >= sum.grace_until) sum.owner = owner.opening->tag;
    sum.grace_until = std::max(sum.grace_until, owner.grace_until);
    every_port |= owner.opening->ports.empty();
    ports.insert(ports.end(), owner.opening->ports.begin(), owner.opening->ports.end());
  }
  if (owners.size() > 1) sum.owner |= kSeveralOwners;
  if (every_port) ports.clear();
  std::ranges::sort(ports);
  const auto repeated = std::ranges::unique(ports);
  ports.erase(repeated.begin(), repeated.end());
  return sum;
}

// The tag of an address that is about to get one more owner: of the owner that vouches for longest,
// since a later daemon will know no other.
std::uint32_t tag_with(std::span<const LearnedTable::Owner> owners, const Opening& opening,
                       BootTime grace_until) {
  auto tag = opening.tag;
  std::uint32_t several = 0;
  for (const auto& owner : owners) {
    if (owner.opening == &opening) continue;
    several = kSeveralOwners;
    if (owner.grace_until > grace_until) {
      grace_until = owner.grace_until;
      tag = owner.opening->tag;
    }
  }
  return tag | several;
}

}  // namespace

LearnedAddresses::LearnedAddresses(LearnedMap& map, std::function<BootTime()> clock)
    : map_(map), clock_(std::move(clock)) {}

std::shared_ptr<LearnedAddresses::Entry> LearnedAddresses::find(AttachmentId id) const {
  const std::shared_lock lock(mutex_);
  const auto found = entries_.find(id);
  return found == entries_.end() ? nullptr : found->second;
}

// ---- core loop ----------------------------------------------------------------------------------

void LearnedAddresses::add(AttachmentId id, std::uint32_t scope, const std::string& name) {
  auto entry = std::make_shared<Entry>();
  entry->scope = scope;
  entry->name = name;
  for (auto& known : map_.all(scope)) {
    const auto address = known.address.address;
    entry->found.emplace(address, std::move(known));
  }
  const std::lock_guard lock(mutex_);
  entries_.insert_or_assign(id, std::move(entry));
}

void LearnedAddresses::rename(AttachmentId id, const std::string& name) {
  const auto entry = find(id);
  if (!entry) return;
  const std::lock_guard lock(entry->mutex);
  entry->name = name;
}

void LearnedAddresses::remove(AttachmentId id) {
  std::shared_ptr<Entry> entry;
  {
    const std::lock_guard lock(mutex_);
    const auto found = entries_.find(id);
    if (found == entries_.end()) return;
    entry = std::move(found->second);
    entries_.erase(found);
  }
  const std::lock_guard lock(entry->mutex);  // who learns at this moment ends first
  entry->gone = true;
}

bool LearnedAddresses::settle(AttachmentId id, Basis basis) {
  const auto entry = find(id);
  if (!entry) return false;
  // Owners point into the former basis until those that leave have left; it is freed unlocked.
  std::vector<OpeningPtr> former_decided;
  const std::lock_guard lock(entry->mutex);
  const bool same_rules = entry->basis.rules == basis.rules;
  const bool same_decider = entry->basis.decider == basis.decider;
  std::swap(entry->basis, basis);
  if (!same_decider) former_decided.swap(entry->decided);
  std::vector<Address> contested, orphaned, narrowed;
  const auto now = clock_();
  if (entry->basis.settled && !entry->found.empty()) claim_found(*entry, now, contested);
  if ((!same_rules || !same_decider) && !entry->table.empty()) {
    std::unordered_set<const Opening*> in_force;
    for (const auto& opening : entry->basis.rules->openings) in_force.insert(opening.get());
    for (const auto& opening : entry->decided) in_force.insert(opening.get());
    entry->table.keep([&](const Opening* opening) { return in_force.contains(opening); }, now,
                      orphaned, narrowed);
  }
  for (const auto& address : contested) {
    (entry->table.owners(address).empty() ? orphaned : narrowed).push_back(address);
  }
  return withdraw(*entry, orphaned, narrowed);
}

// Gives what an earlier daemon learned to the openings in force that its tags name. `contested`
// receives the addresses whose place in the kernel is more than their owners have: others vouched
// for them, known to that daemon alone.
void LearnedAddresses::claim_found(Entry& entry, BootTime now, std::vector<Address>& contested) {
  std::unordered_map<std::uint32_t, const Opening*> by_tag;
  for (const auto& opening : entry.basis.rules->openings) {
    if (opening) by_tag.emplace(opening->tag, opening.get());
  }
  const auto decider_tag =
      entry.basis.decider.empty() ? 0 : Opening::decided(entry.basis.decider, {}).tag;
  for (const auto& [address, known] : std::exchange(entry.found, {})) {
    if (known.address.active_until <= now && known.address.grace_until <= now) continue;
    const auto tag = known.address.owner & ~kSeveralOwners;
    const bool several = (known.address.owner & kSeveralOwners) != 0;
    const bool learned_again = !entry.table.owners(address).empty();
    const Opening* opening = nullptr;
    if (const auto found = by_tag.find(tag); found != by_tag.end()) {
      opening = found->second;
    } else if (decider_tag != 0 && tag == decider_tag && !several && known.ports) {
      opening = decided(entry, *known.ports);
    }
    if (opening != nullptr) {
      entry.table.make_room(std::span(&address, 1));
      entry.table.add(address, {opening, known.address.active_until, known.address.grace_until});
    }
    if (opening == nullptr || several || learned_again) contested.push_back(address);
  }
}

bool LearnedAddresses::expire(AttachmentId id) {
  const auto entry = find(id);
  if (!entry) return false;
  const std::lock_guard lock(entry->mutex);
  if (entry->table.empty()) return false;
  std::vector<Address> orphaned, narrowed;
  const auto now = clock_();
  std::unordered_set<const Opening*> in_use;
  entry->table.keep([&](const Opening* opening) { return in_use.insert(opening), true; }, now,
                    orphaned, narrowed);
  std::erase_if(entry->decided,
                [&](const OpeningPtr& opening) { return !in_use.contains(opening.get()); });
  return withdraw(*entry, orphaned, narrowed);
}

// Takes addresses out of the kernel whose rules are gone. One that other rules still vouch for
// keeps their ports only.
bool LearnedAddresses::withdraw(Entry& entry, const std::vector<Address>& orphaned,
                                const std::vector<Address>& narrowed) {
  if (orphaned.empty() && narrowed.empty()) return false;
  if (!orphaned.empty()) {
    if (auto status = map_.revoke(entry.scope, orphaned); !status) {
      spdlog::error(
          "{}: {} addresses learned under removed domain rules could not be revoked: {}; they stay "
          "until they expire",
          entry.name, orphaned.size(), status.error().message);
    }
  }
  for (const auto& address : narrowed) {
    std::vector<PortRange> ports;
    const auto sum = sum_of(address, entry.table.owners(address), ports);
    const auto replaced = map_.replace(entry.scope, sum, ports);
    if (replaced) continue;
    // Better a lost address, which the next answer brings back, than a port too many.
    entry.table.remove(address);
    const auto revoked = map_.revoke(entry.scope, std::span(&address, 1));
    spdlog::warn(
        "{}: {} lost one of several domain rules, and the ports of the others could not "
        "be written: {}; {}",
        entry.name, text_of(address), replaced.error().message,
        revoked ? "it is learned again with the next answer"
                : "it keeps all its ports until it expires");
  }
  return true;
}

// ---- any thread ---------------------------------------------------------------------------------

Status LearnedAddresses::may_learn(const Entry* entry, const std::string& instance,
                                   AttachmentId id) {
  if (entry == nullptr || entry->gone) {
    return fail_with(ENOENT, "attachment {:x}: there is none; it was detached, or its target went",
                     id.value);
  }
  if (!entry->basis.wire || !std::ranges::count(entry->basis.wire->sources, instance)) {
    return fail_with(
        EPERM, "{}: {} is not among the sources of its [[wire]]; name it there to let it speak",
        entry->name, instance);
  }
  return {};
}

Status LearnedAddresses::learn(const std::string& instance, AttachmentId id,
                               std::span<const Address> addresses, std::uint64_t ttl_ns,
                               std::uint64_t grace_ns, std::uint32_t rule_id) {
  const auto entry = find(id);
  if (!entry) return may_learn(nullptr, instance, id);
  const std::lock_guard lock(entry->mutex);
  if (auto status = may_learn(entry.get(), instance, id); !status) return status;
  const auto& rules = *entry->basis.rules;
  const auto known = rules.by_id.find(rule_id);
  if (known == rules.by_id.end()) {
    return fail_with(ESTALE,
                     "{}: domain rule {} is not in force any more; use the list that came last",
                     entry->name, rule_id);
  }
  const auto index = known->second;
  const auto& rule = rules.rules[index];
  if (rule.action != Action::allow) {
    return fail_with(EACCES, "{}: domain rule {} ({}) is a deny; it grants nothing", entry->name,
                     rule_id, rule.domain);
  }
  const auto now = clock_();
  const auto active = not_after(after(now, ttl_ns), rule.expires);
  if (active <= now) {
    return fail_with(ESTALE, "{}: domain rule {} ({}) has expired", entry->name, rule_id,
                     rule.domain);
  }
  return grant(
      *entry, addresses,
      {rules.openings[index].get(), active, not_after(after(active, grace_ns), rule.expires)}, now);
}

Status LearnedAddresses::learn_decided(const std::string& instance, AttachmentId id,
                                       std::span<const Address> addresses, std::uint64_t ttl_ns,
                                       std::uint64_t grace_ns, std::span<const PortRange> ports) {
  const auto entry = find(id);
  if (!entry) return may_learn(nullptr, instance, id);
  const std::lock_guard lock(entry->mutex);
  if (auto status = may_learn(entry.get(), instance, id); !status) return status;
  if (entry->basis.decider.empty()) {
    return fail_with(EPERM,
                     "{}: no source of its [[wire]] decides single names; only domain rules open "
                     "addresses there",
                     entry->name);
  }
  const auto now = clock_();
  const auto active = after(now, ttl_ns);
  if (active <= now) {
    return fail_with(ESTALE, "{}: the decision of {} has ended", entry->name, entry->basis.decider);
  }
  return grant(*entry, addresses, {decided(*entry, ports), active, after(active, grace_ns)}, now);
}

const Opening* LearnedAddresses::decided(Entry& entry, std::span<const PortRange> ports) {
  auto wanted = Opening::decided(entry.basis.decider, {ports.begin(), ports.end()});
  for (const auto& opening : entry.decided) {
    if (*opening == wanted) return opening.get();
  }
  entry.decided.push_back(std::make_shared<const Opening>(std::move(wanted)));
  return entry.decided.back().get();
}

// With the entry's lock held. All or nothing.
Status LearnedAddresses::grant(Entry& entry, std::span<const Address> addresses, const Grant& grant,
                               BootTime now) {
  const auto& opening = *grant.opening;
  for (std::uint32_t i = 0; i < addresses.size(); ++i) {
    if (!entry.basis.image || !denies(*entry.basis.image, addresses[i], opening.ports, now))
      continue;
    auto error =
        Error{.message = fmt::format(
                  "{}: {} is denied by an explicit rule or the floor, and a name ({}) "
                  "does not overrule that; allow the network itself to open it",
                  entry.name, text_of(addresses[i]),
                  opening.domain.empty() ? "decided by " + entry.basis.decider : opening.domain),
              .code = EACCES};
    error.rule_index = static_cast<std::uint32_t>(i);
    return std::unexpected(std::move(error));
  }
  std::vector<LearnedAddress> entries;
  entries.reserve(addresses.size());
  for (const auto& address : addresses) {
    auto tag = tag_with(entry.table.owners(address), opening, grant.grace_until);
    if (!entry.found.empty() && entry.found.contains(address)) tag |= kSeveralOwners;
    entries.push_back({.address = address,
                       .active_until = grant.active_until,
                       .grace_until = grant.grace_until,
                       .owner = tag});
  }
  entry.table.make_room(addresses);  // so that what is in the kernel has its owner, come what may
  if (auto status = map_.learn(entry.scope, entries, opening.ports); !status) {
    return fail_with(status.error().code, "{}: {}", entry.name, status.error().message);
  }
  for (const auto& address : addresses) {
    entry.table.add(address, {grant.opening, grant.active_until, grant.grace_until});
  }
  return {};
}

Status LearnedAddresses::revoke(const std::string& instance, AttachmentId id,
                                std::span<const Address> addresses) {
  const auto entry = find(id);
  if (!entry) return may_learn(nullptr, instance, id);
  const std::lock_guard lock(entry->mutex);
  if (auto status = may_learn(entry.get(), instance, id); !status) return status;
  if (auto status = map_.revoke(entry->scope, addresses); !status) {
    return fail_with(status.error().code, "{}: {}", entry->name, status.error().message);
  }
  for (const auto& address : addresses) {
    entry->table.remove(address);
    entry->found.erase(address);
  }
  return {};
}

}  // namespace sluice
