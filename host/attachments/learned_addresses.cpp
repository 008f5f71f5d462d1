#include "attachments/learned_addresses.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <unordered_set>
#include <utility>

namespace sluice {
namespace {

// Ends are compared with the clock, and zero would mean never: so neither wraps nor is zero.
BootTime after(BootTime now, std::uint64_t nanoseconds) {
  constexpr auto kEnd = ~std::uint64_t{0};
  return {nanoseconds > kEnd - now.nanoseconds ? kEnd : now.nanoseconds + nanoseconds};
}

// An attachment that has its share looks for room no more often, and at so many addresses: the
// thread serves others too.
constexpr std::uint64_t kReclaimEvery = 1'000'000'000;
constexpr std::size_t kMostReclaimed = 1024;
// What is to change is written so long before, since the core loop may be late; then the address
// would have ended for all.
constexpr std::uint64_t kAhead = 2'000'000'000;
constexpr std::uint64_t kWarnEvery = 60'000'000'000;

// What remembering the names of an answer takes of the share. An owner stands for about 500 bytes,
// its names among them; a chain of aliases may be 33 KB of text, chosen by whoever serves the zone.
constexpr std::size_t kNamesOfAnOwner = 512;
std::size_t charge_of(std::string_view names) {
  return names.size() / kNamesOfAnOwner;
}

BootTime not_after(BootTime when, BootTime end) {
  return end.never() ? when : std::min(when, end);
}

LearnedAddress address_of(const Address& address, const OwnerSum& sum) {
  return {.address = address,
          .active_until = sum.active_until(),
          .grace_until = sum.grace_until(),
          .owner = sum.tag()};
}
LearnedAddress address_of(const Address& address, const OwnerSum& sum, const Standing& standing) {
  return {.address = address,
          .active_until = standing.active_until,
          .grace_until = standing.grace_until,
          .owner = sum.tag()};
}

// In what an owner is replaced by when the rules change.
class Review {
 public:
  Review(const NameJudge& judge, std::span<const OpeningPtr> decided)
      : judge_(judge), decided_(decided) {}

  void operator()(const LearnedOwner& owner, std::span<const LearnedOwner> all,
                  std::vector<LearnedOwner>& instead) const {
    const auto& under = *owner.under;
    const bool by_decision = !owner.opening->decider.empty();
    if (by_decision && !std::ranges::count(decided_, owner.opening, &OpeningPtr::get)) return;
    if (under.names.empty()) {
      const bool stands = by_decision ? judge_.decided_tag(owner.opening->tag) == under.tag
                                      : judge_.marked(under.tag) == owner.opening;
      if (stands) instead.push_back(owner);
    } else if (by_decision) {
      if (!under.ruling.unruled || under.ruling.denied) return;
      instead.push_back(owner);
      instead.back().tag = judge_.decided_tag(owner.opening->tag);
    } else if (const auto* right = under.ruling.right(owner.opening)) {
      instead.push_back(under_right(owner, *right));
    } else {
      for (const auto& other : under.ruling.rights) {
        const auto heir = under_right(owner, other);
        // The resolver has held the address against the ranges of the former rule only.
        if (std::ranges::includes(heir.opening->ranges, owner.opening->ranges) &&
            !std::ranges::binary_search(all, heir.place(), {}, &LearnedOwner::place))
          instead.push_back(heir);
      }
    }
  }

 private:
  static LearnedOwner under_right(LearnedOwner owner, const NameJudge::Right& right) {
    owner.opening = right.opening;
    owner.active_until = not_after(owner.active_until, right.until);
    owner.grace_until = not_after(owner.grace_until, right.until);
    owner.tag = right.tag;
    return owner;
  }
  const NameJudge& judge_;
  std::span<const OpeningPtr> decided_;
};

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
  {
    // A long list is read before the lock is held, where somebody will need it.
    std::unique_lock lock(entry->mutex);
    const bool needed = !entry->table.empty() || !entry->found.empty();
    lock.unlock();
    if (needed && basis.rules) (void)basis.rules->judge();
  }
  // Owners point into the former basis until those that leave have left; it is freed unlocked.
  std::vector<OpeningPtr> former_decided;
  const std::lock_guard lock(entry->mutex);
  const bool same_rules = entry->basis.rules == basis.rules;
  const bool same_decider = entry->basis.decider == basis.decider;
  std::swap(entry->basis, basis);
  if (!same_decider) former_decided.swap(entry->decided);
  std::vector<Address> contested;
  LearnedTable::Changes changes;
  const auto now = clock_();
  if (entry->basis.settled && !entry->found.empty()) claim_found(*entry, now, contested);
  if (!same_rules || !same_decider) changes = judge_again(*entry, now);
  for (const auto& address : contested) {
    (entry->table.owners(address).empty() ? changes.orphaned : changes.narrowed).push_back(address);
  }
  return carry_out(*entry, changes, now);
}

// Names that have nothing open any more are not kept, `but` those that are about to open something.
void LearnedAddresses::forget_unused(Entry& entry, const LearnedUnder* but) {
  std::erase_if(entry.under, [&](const auto& known) {
    const auto& [names, under] = known;
    if (under.owners != 0 || &under == but) return false;
    entry.names_charge -= charge_of(names);
    return true;
  });
}

LearnedTable::Changes LearnedAddresses::judge_again(Entry& entry, BootTime now) {
  forget_unused(entry);
  if (entry.table.empty()) return {};
  const auto& judge = entry.basis.rules->judge();
  for (auto& [names, under] : entry.under) {
    if (under.names.empty()) continue;
    auto ruling = judge.rule_on(under.names, now);
    under.ruling = ruling ? std::move(*ruling) : NameJudge::Ruling{.denied = true};
  }
  return entry.table.review(Review(judge, entry.decided), now, after(now, kAhead));
}

// Gives what an earlier daemon learned to the openings in force that its tags name. `contested`
// receives the addresses whose place in the kernel is more than their owners have: others vouched
// for them, known to that daemon alone.
void LearnedAddresses::claim_found(Entry& entry, BootTime now, std::vector<Address>& contested) {
  const auto& judge = entry.basis.rules->judge();
  const auto decider_tag = entry.basis.decider.empty()
                               ? 0
                               : judge.decided_tag(Opening::decided(entry.basis.decider, {}).tag);
  for (const auto& [address, known] : std::exchange(entry.found, {})) {
    if (known.address.active_until <= now && known.address.grace_until <= now) continue;
    const auto tag = known.address.owner & ~kSeveralOwners;
    const bool several = (known.address.owner & kSeveralOwners) != 0;
    const bool learned_again = !entry.table.owners(address).empty();
    const Opening* opening = judge.marked(tag);
    if (opening == nullptr && decider_tag != 0 && tag == decider_tag && !several && known.ports)
      opening = decided(entry, *known.ports);
    if (opening != nullptr) {
      std::string key(" ");
      key.append(reinterpret_cast<const char*>(&tag), sizeof tag);
      auto& under = entry.under.try_emplace(std::move(key)).first->second;
      under.tag = tag;
      entry.table.make_room(std::span(&address, 1));
      entry.table.add(address, {.opening = opening,
                                .under = &under,
                                .active_until = known.address.active_until,
                                .grace_until = known.address.grace_until,
                                .tag = tag});
    }
    if (opening == nullptr || several || learned_again) contested.push_back(address);
  }
}

bool LearnedAddresses::expire(AttachmentId id) {
  const auto entry = find(id);
  if (!entry) return false;
  const std::lock_guard lock(entry->mutex);
  return forget(*entry, clock_());
}

bool LearnedAddresses::narrow(AttachmentId id) {
  const auto entry = find(id);
  if (!entry) return false;
  const std::lock_guard lock(entry->mutex);
  const auto now = clock_();
  const auto change = entry->table.changes_at();
  if (change.never()) return false;
  if (change <= after(now, kAhead)) return forget(*entry, now);
  announce(change);
  return false;
}

// With the entry's lock held.
bool LearnedAddresses::forget(Entry& entry, BootTime now) {
  const bool narrowed_before = std::exchange(entry.narrowed, false);
  if (entry.table.empty()) return narrowed_before;
  std::unordered_set<const Opening*> in_use;
  const auto changes = entry.table.review(
      [&](const LearnedOwner& owner, auto, std::vector<LearnedOwner>& instead) {
        in_use.insert(owner.opening);
        instead.push_back(owner);
      },
      now, after(now, kAhead));
  forget_unused(entry);
  std::erase_if(entry.decided,
                [&](const OpeningPtr& opening) { return !in_use.contains(opening.get()); });
  return carry_out(entry, changes, now) || narrowed_before;
}

void LearnedAddresses::announce(BootTime change) {
  if (change.never()) return;
  const auto when = change.nanoseconds > kAhead ? change.nanoseconds - kAhead : 1;
  auto known = narrow_at_.load();
  while ((known == 0 || when < known) && !narrow_at_.compare_exchange_weak(known, when)) {
  }
}

// Takes addresses out of the kernel that nobody vouches for any more. One that others still vouch
// for keeps what they open. True when something was lost.
bool LearnedAddresses::carry_out(Entry& entry, const LearnedTable::Changes& changes, BootTime now) {
  mark(entry, changes.marked, now);
  announce(entry.table.changes_at());
  if (changes.orphaned.empty() && changes.narrowed.empty()) return false;
  if (!changes.orphaned.empty()) {
    if (auto status = map_.revoke(entry.scope, changes.orphaned); !status) {
      spdlog::error(
          "{}: {} addresses learned under removed domain rules could not be revoked: {}; they stay "
          "until they expire",
          entry.name, changes.orphaned.size(), status.error().message);
    }
  }
  for (const auto& address : changes.narrowed) {
    const auto replaced = rewrite(entry, address, now);
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

// Writes what an address's owners amount to.
Status LearnedAddresses::rewrite(Entry& entry, const Address& address, BootTime now) {
  OwnerSum sum;
  if (alike(entry, address, {}, sum)) {
    const auto value = address_of(address, sum);
    entry.table.set_changes_at(address, {});
    return map_.learn(entry.scope, std::span(&value, 1),
                      entry.table.owners(address)[0].opening->ports);
  }
  const auto amount = standing_of(entry, address, {}, after(now, kAhead));
  const auto value = address_of(address, sum, amount);
  entry.table.set_changes_at(address, amount.changes_at);
  announce(amount.changes_at);
  return map_.learn(entry.scope, std::span(&value, 1), amount.ports);
}

// So that a later daemon with the same rules knows whose they are. What cannot be written it takes
// for nobody's, and closes.
void LearnedAddresses::mark(Entry& entry, const std::vector<Address>& addresses, BootTime now) {
  for (const auto& address : addresses) {
    if (auto status = rewrite(entry, address, now); !status)
      spdlog::debug("{}: {} is not known to a later daemon: {}", entry.name, text_of(address),
                    status.error().message);
  }
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

Status LearnedAddresses::learn(const std::string& instance, AttachmentId id, const NamePush& push) {
  const auto entry = find(id);
  if (!entry) return may_learn(nullptr, instance, id);
  const std::lock_guard lock(entry->mutex);
  if (auto status = may_learn(entry.get(), instance, id); !status) return status;
  const auto now = clock_();
  const auto under = judged(*entry, push.names, now);
  if (!under) return std::unexpected(under.error());
  auto status = learn_under(*entry, **under, push.grants, now);
  if ((*under)->owners == 0) {
    entry->names_charge -= charge_of((*under)->names);
    entry->under.erase(entry->under.find((*under)->names));
  }
  return status;
}

// Who the names are among those that are remembered, and what the rules in force say of them.
Result<LearnedUnder*> LearnedAddresses::judged(Entry& entry,
                                               std::span<const std::string_view> names,
                                               BootTime now) {
  thread_local std::string joined;
  joined.clear();
  for (const auto name : names) {
    if (!joined.empty()) joined += ' ';
    joined += name;
  }
  const auto known = entry.under.find(std::string_view(joined));
  if (known != entry.under.end() && !known->second.ruling.ended(now)) return &known->second;
  auto ruling = entry.basis.rules->judge().rule_on(joined, now);
  if (!ruling) return std::unexpected(ruling.error());
  if (known != entry.under.end()) {
    known->second.ruling = std::move(*ruling);
    return &known->second;
  }
  const auto at = entry.under.emplace(joined, LearnedUnder{}).first;
  entry.names_charge += charge_of(at->first);
  at->second.names = at->first;
  at->second.ruling = std::move(*ruling);
  return &at->second;
}

Status LearnedAddresses::learn_under(Entry& entry, LearnedUnder& under,
                                     std::span<const NameGrant> asked, BootTime now) {
  std::vector<Grant> grants;
  grants.reserve(asked.size());
  std::uint32_t counted = 0;
  for (const auto& one : asked) {
    auto grant = granted(entry, under, one, now);
    if (!grant) return std::unexpected(grant.error());
    if (auto status = check_explicit(entry, *grant, counted, now); !status) return status;
    counted += static_cast<std::uint32_t>(one.addresses.size());
    grants.push_back(*grant);
  }
  if (auto status = make_room(entry, under, grants, now); !status) return status;
  return open(entry, grants, now);
}

// For the owners that the grants bring, within the attachment's share, which the names that they
// hang on are charged to already.
Status LearnedAddresses::make_room(Entry& entry, const LearnedUnder& under,
                                   std::span<const Grant> grants, BootTime now) {
  const std::size_t share = share_.load(std::memory_order_relaxed);
  const auto used = [&] { return entry.table.owner_count() + entry.names_charge; };
  std::size_t most = 0;
  for (const auto& grant : grants) most += grant.addresses.size();
  if (used() + most <= share) return {};
  const auto fits = [&] {
    std::size_t more = 0;
    for (const auto& grant : grants) more += entry.table.missing(grant.addresses, grant.owner);
    return used() + more <= share;
  };
  if (fits()) return {};
  if (entry.reclaim_at <= now) {
    entry.reclaim_at = after(now, kReclaimEvery);
    reclaim(entry, under, now);
    if (fits()) return {};
  }
  if (entry.warn_at <= now) {
    entry.warn_at = after(now, kWarnEvery);
    spdlog::warn(
        "{}: names have opened {} addresses, which with the text of long names is its share of {} "
        "(host.max_learned_per_workload), and {} would open more; it is refused until some have "
        "ended (said once a minute)",
        entry.name, entry.table.owner_count(), share, under.names.substr(0, under.names.find(' ')));
  }
  return fail_with(ENOSPC, "{}: its share of {} is full: {} addresses, and the names to them",
                   entry.name, share, entry.table.owner_count());
}

// Room from what has ended, and from what only live connections might use and none does.
void LearnedAddresses::reclaim(Entry& entry, const LearnedUnder& under, BootTime now) {
  const auto changes =
      entry.table.review([](const LearnedOwner& owner, auto,
                            std::vector<LearnedOwner>& instead) { instead.push_back(owner); },
                         now, after(now, kAhead));
  // The core loop, which may tell the ends of a connection, hears of it with the next expire().
  entry.narrowed |= carry_out(entry, changes, now);
  const auto idle = map_.unused(entry.scope, entry.table.in_grace(now, kMostReclaimed));
  if (!idle.empty() && map_.revoke(entry.scope, idle))
    for (const auto& address : idle) entry.table.remove(address);
  forget_unused(entry, &under);
}

// Under which opening and until when the addresses of a grant may be open, by what is in force.
Result<LearnedAddresses::Grant> LearnedAddresses::granted(Entry& entry, LearnedUnder& under,
                                                          const NameGrant& asked, BootTime now) {
  const auto& rules = *entry.basis.rules;
  if (asked.rule == NameGrant::kDecided) {
    if (entry.basis.decider.empty()) {
      return fail_with(EPERM,
                       "{}: no source of its [[wire]] decides single names; only domain rules open "
                       "addresses there",
                       entry.name);
    }
    if (!under.ruling.unruled || under.ruling.denied) {
      return fail_with(ESTALE, "{}: a domain rule decides on {}, not {}", entry.name, under.names,
                       entry.basis.decider);
    }
    const auto active = after(now, asked.ttl_ns);
    if (active <= now) {
      return fail_with(ESTALE, "{}: the decision of {} has ended", entry.name, entry.basis.decider);
    }
    const auto* opening = decided(entry, asked.ports);
    return Grant{asked.addresses,
                 {.opening = opening,
                  .under = &under,
                  .active_until = active,
                  .grace_until = after(active, asked.grace_ns),
                  .tag = rules.judge().decided_tag(opening->tag)}};
  }
  const auto known = rules.by_id.find(asked.rule);
  if (known == rules.by_id.end()) {
    return fail_with(ESTALE,
                     "{}: domain rule {} is not in force any more; use the list that came last",
                     entry.name, asked.rule);
  }
  const auto index = known->second;
  const auto& rule = rules.rules[index];
  if (rule.action != Action::allow) {
    return fail_with(EACCES, "{}: domain rule {} ({}) is a deny; it grants nothing", entry.name,
                     asked.rule, rule.domain);
  }
  const auto active = not_after(after(now, asked.ttl_ns), rule.expires);
  if (active <= now) {
    return fail_with(ESTALE, "{}: domain rule {} ({}) has expired", entry.name, asked.rule,
                     rule.domain);
  }
  const auto* right = under.ruling.right(rules.openings[index].get());
  if (right == nullptr) {
    return fail_with(ESTALE,
                     "{}: domain rule {} ({}) does not decide on {}; use the list that came "
                     "last",
                     entry.name, asked.rule, rule.domain, under.names);
  }
  return Grant{asked.addresses,
               {.opening = right->opening,
                .under = &under,
                .active_until = active,
                .grace_until = not_after(after(active, asked.grace_ns), rule.expires),
                .tag = right->tag}};
}

// `counted`: the addresses of the grants before this one.
Status LearnedAddresses::check_explicit(const Entry& entry, const Grant& grant,
                                        std::uint32_t counted, BootTime now) {
  if (!entry.basis.image) return {};
  const auto& opening = *grant.owner.opening;
  for (std::uint32_t i = 0; i < grant.addresses.size(); ++i) {
    if (!denies(*entry.basis.image, grant.addresses[i], opening.ports, now)) continue;
    auto error =
        Error{.message = fmt::format(
                  "{}: {} is denied by an explicit rule or the floor, and a name ({}) "
                  "does not overrule that; allow the network itself to open it",
                  entry.name, text_of(grant.addresses[i]),
                  opening.domain.empty() ? "decided by " + entry.basis.decider : opening.domain),
              .code = EACCES};
    error.rule_index = counted + i;
    return std::unexpected(std::move(error));
  }
  return {};
}

const Opening* LearnedAddresses::decided(Entry& entry, std::span<const PortRange> ports) {
  auto wanted = Opening::decided(entry.basis.decider, {ports.begin(), ports.end()});
  for (const auto& opening : entry.decided) {
    if (*opening == wanted) return opening.get();
  }
  entry.decided.push_back(std::make_shared<const Opening>(std::move(wanted)));
  return entry.decided.back().get();
}

// Whether all that vouch for the address, or are about to, have the same ports: then `sum` is what
// they amount to. Of an earlier daemon's owners only their sum is known.
bool LearnedAddresses::alike(const Entry& entry, const Address& address,
                             std::span<const LearnedOwner> fresh, OwnerSum& sum) {
  sum = entry.table.sum(address);
  for (const auto& owner : fresh) sum.add(owner);
  return sum.alike() && (entry.found.empty() || !entry.found.contains(address));
}

Standing LearnedAddresses::standing_of(const Entry& entry, const Address& address,
                                       std::span<const LearnedOwner> fresh, BootTime now) {
  std::vector<Claim> claims;
  const auto claim = [&](const LearnedOwner& owner) {
    claims.push_back({owner.opening->ports, owner.active_until, owner.grace_until});
  };
  for (const auto& owner : entry.table.owners(address)) {
    const auto again = std::ranges::find(fresh, owner.place(), &LearnedOwner::place);
    if (again == fresh.end()) claim(owner);
  }
  for (auto owner : fresh) {
    for (const auto& former : entry.table.owners(address)) {
      if (former.place() != owner.place()) continue;
      owner.active_until = std::max(owner.active_until, former.active_until);
      owner.grace_until = std::max(owner.grace_until, former.grace_until);
    }
    claim(owner);
  }
  if (const auto found = entry.found.find(address);
      found != entry.found.end() && found->second.ports)
    claims.push_back({*found->second.ports, found->second.address.active_until,
                      found->second.address.grace_until});
  return standing(claims, now);
}

// With the entry's lock held. All or nothing, and one write for each address, however many grants
// name it.
Status LearnedAddresses::open(Entry& entry, std::span<const Grant> grants, BootTime now) {
  std::vector<LearnedAddress> of_one;  // of a single grant, whose ports they all have
  std::map<std::vector<PortRange>, std::vector<LearnedAddress>> by_ports;
  std::vector<std::pair<Address, BootTime>> changing;
  const auto add = [&](const Address& address, std::span<const LearnedOwner> fresh) {
    OwnerSum sum;
    if (alike(entry, address, fresh, sum)) {
      const auto value = address_of(address, sum);
      if (grants.size() == 1)
        of_one.push_back(value);
      else
        by_ports[fresh[0].opening->ports].push_back(value);
      return;
    }
    auto amount = standing_of(entry, address, fresh, now);
    auto value = address_of(address, sum, amount);
    if (entry.found.contains(address)) value.owner |= kSeveralOwners;
    by_ports[std::move(amount.ports)].push_back(value);
    if (!amount.changes_at.never()) changing.emplace_back(address, amount.changes_at);
  };
  if (grants.size() == 1) {
    of_one.reserve(grants[0].addresses.size());
    for (const auto& address : grants[0].addresses) add(address, std::span(&grants[0].owner, 1));
  } else {
    std::map<Address, std::vector<LearnedOwner>> owners;
    for (const auto& grant : grants)
      for (const auto& address : grant.addresses) owners[address].push_back(grant.owner);
    for (const auto& [address, fresh] : owners) add(address, fresh);
  }
  std::vector<LearnedPart> parts;
  if (!of_one.empty()) parts.push_back({of_one, grants[0].owner.opening->ports});
  for (const auto& [ports, addresses] : by_ports) parts.push_back({addresses, ports});
  // So that what is in the kernel has its owner, come what may.
  for (const auto& grant : grants) entry.table.make_room(grant.addresses, grants.size());
  if (auto status = map_.learn(entry.scope, parts); !status) {
    for (const auto& grant : grants) entry.table.drop_room(grant.addresses);
    return fail_with(status.error().code, "{}: {}", entry.name, status.error().message);
  }
  for (const auto& grant : grants)
    for (const auto& address : grant.addresses) entry.table.add(address, grant.owner);
  for (const auto& [address, when] : changing) {
    entry.table.set_changes_at(address, when);
    announce(when);
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
