#include "attachments/learned_table.hpp"

#include <algorithm>

namespace sluice {
namespace {

void extend(LearnedOwner& owner, const LearnedOwner& by) {
  owner.active_until = std::max(owner.active_until, by.active_until);
  owner.grace_until = std::max(owner.grace_until, by.grace_until);
  owner.tag = by.tag;
}

// One owner for each place, in order.
void put_in_order(std::vector<LearnedOwner>& owners) {
  std::ranges::sort(owners, {}, &LearnedOwner::place);
  std::size_t last = 0;
  for (std::size_t i = 1; i < owners.size(); ++i) {
    if (owners[i].place() == owners[last].place())
      extend(owners[last], owners[i]);
    else
      owners[++last] = owners[i];
  }
  if (!owners.empty()) owners.resize(last + 1);
}

OwnerSum sum_of(const std::vector<LearnedOwner>& owners) {
  OwnerSum sum;
  for (const auto& owner : owners) sum.add(owner);
  return sum;
}

BootTime earlier(BootTime one, BootTime other) {
  if (one.never() || other.never()) return one.never() ? other : one;
  return std::min(one, other);
}

bool covers(std::span<const PortRange> wide, const PortRange& one) {
  return std::ranges::any_of(wide, [&](const PortRange& range) {
    if (range.protocol != one.protocol) return false;
    return range.any_port || (!one.any_port && range.first <= one.first && one.last <= range.last);
  });
}

bool covers(std::span<const PortRange> wide, std::span<const PortRange> narrow) {
  if (wide.empty() || narrow.empty()) return wide.empty();
  return std::ranges::all_of(narrow, [&](const PortRange& one) { return covers(wide, one); });
}

std::vector<const Opening*> openings_of(const std::vector<LearnedOwner>& owners) {
  std::vector<const Opening*> openings;
  for (const auto& owner : owners) {
    if (openings.empty() || openings.back() != owner.opening) openings.push_back(owner.opening);
  }
  return openings;
}

}  // namespace

Standing standing(std::span<const Claim> claims, BootTime now) {
  // Those that take new connections; else those that live ones may use; else what is left of all.
  auto end = &Claim::active_until;
  const auto lives = [&](const Claim& claim) { return claim.*end > now; };
  bool any = std::ranges::any_of(claims, lives);
  if (!any) {
    end = &Claim::grace_until;
    any = std::ranges::any_of(claims, lives);
  }
  const Claim* longest = nullptr;
  for (const auto& claim : claims) {
    if (any && !lives(claim)) continue;
    if (longest == nullptr || claim.*end > longest->*end) longest = &claim;
  }
  if (longest == nullptr) return {};
  Standing sum{.active_until = longest->active_until,
               .grace_until = longest->grace_until,
               .ports = {longest->ports.begin(), longest->ports.end()},
               .changes_at = {}};
  for (const auto& claim : claims) {
    if ((any && !lives(claim)) || covers(longest->ports, claim.ports)) continue;
    sum.active_until = std::min(sum.active_until, claim.active_until);
    sum.grace_until = std::min(sum.grace_until, claim.grace_until);
    sum.changes_at = earlier(sum.changes_at, claim.*end);
    // Thousands of names may lead to one address, by a handful of rules.
    if (covers(sum.ports, claim.ports)) continue;
    if (claim.ports.empty())
      sum.ports.clear();
    else
      sum.ports.insert(sum.ports.end(), claim.ports.begin(), claim.ports.end());
  }
  // Where none lives on, the address ends by itself: a change to nothing new would be due on each
  // turn until then.
  if (std::ranges::none_of(claims, [&](const Claim& claim) {
        return claim.grace_until > std::max(now, sum.changes_at);
      }))
    sum.changes_at = {};
  std::ranges::sort(sum.ports);
  const auto repeated = std::ranges::unique(sum.ports);
  sum.ports.erase(repeated.begin(), repeated.end());
  return sum;
}

void OwnerSum::add(const LearnedOwner& owner) {
  if (first_ == nullptr) first_ = owner.opening;
  alike_ = alike_ && (first_ == owner.opening || first_->ports == owner.opening->ports);
  active_until_ = std::max(active_until_, owner.active_until);
  several_ |= tag_ != 0 && tag_ != owner.tag;
  if (tag_ == 0 || owner.grace_until >= grace_until_) tag_ = owner.tag;
  grace_until_ = std::max(grace_until_, owner.grace_until);
}

void LearnedTable::make_room(std::span<const Address> addresses, std::size_t owners) {
  for (const auto& address : addresses) {
    auto& known = held_[address].owners;
    if (known.capacity() - known.size() < owners)
      known.reserve(std::max(known.size() + owners, known.size() * 2));
  }
}

void LearnedTable::drop_room(std::span<const Address> addresses) {
  for (const auto& address : addresses) {
    const auto found = held_.find(address);
    if (found != held_.end() && found->second.owners.empty()) held_.erase(found);
  }
}

void LearnedTable::add(const Address& address, const LearnedOwner& owner) {
  auto& held = held_[address];
  const auto at = std::ranges::lower_bound(held.owners, owner.place(), {}, &LearnedOwner::place);
  if (at != held.owners.end() && at->place() == owner.place()) {
    extend(*at, owner);
  } else {
    held.owners.insert(at, owner);
    owner.under->owners += 1;
    owner_count_ += 1;
  }
  held.sum.add(owner);
  held.changes_at = {};
}

void LearnedTable::set_changes_at(const Address& address, BootTime when) {
  const auto found = held_.find(address);
  if (found == held_.end()) return;
  found->second.changes_at = when;
  changes_at_ = earlier(changes_at_, when);
}

void LearnedTable::remove(const Address& address) {
  const auto found = held_.find(address);
  if (found == held_.end()) return;
  count(found->second.owners, false);
  held_.erase(found);
}

void LearnedTable::count(const std::vector<LearnedOwner>& owners, bool come) {
  for (const auto& owner : owners) {
    owner.under->owners += come ? 1 : -1;
    owner_count_ += come ? 1 : -1;
  }
}

std::span<const LearnedOwner> LearnedTable::owners(const Address& address) const {
  const auto found = held_.find(address);
  if (found == held_.end()) return {};
  return found->second.owners;
}

OwnerSum LearnedTable::sum(const Address& address) const {
  const auto found = held_.find(address);
  return found == held_.end() ? OwnerSum() : found->second.sum;
}

std::vector<Address> LearnedTable::in_grace(BootTime now, std::size_t most) const {
  std::vector<Address> found;
  for (const auto& [address, held] : held_) {
    if (found.size() == most) break;
    if (held.sum.active_until() <= now) found.push_back(address);
  }
  return found;
}

std::size_t LearnedTable::missing(std::span<const Address> addresses,
                                  const LearnedOwner& owner) const {
  return static_cast<std::size_t>(std::ranges::count_if(addresses, [&](const Address& address) {
    return !std::ranges::binary_search(owners(address), owner.place(), {}, &LearnedOwner::place);
  }));
}

LearnedTable::Changes LearnedTable::review(const Judge& judge, BootTime now, BootTime ahead) {
  Changes changes;
  changes_at_ = {};
  std::vector<LearnedOwner> kept;
  for (auto entry = held_.begin(); entry != held_.end();) {
    auto& [address, held] = *entry;
    kept.clear();
    bool lived = false;
    for (const auto& owner : held.owners) {
      if (owner.grace_until <= now) continue;
      lived = true;
      judge(owner, held.owners, kept);
    }
    std::erase_if(kept, [&](const LearnedOwner& owner) { return owner.grace_until <= now; });
    put_in_order(kept);
    count(held.owners, false);
    count(kept, true);
    if (kept.empty()) {
      if (lived) changes.orphaned.push_back(address);
      entry = held_.erase(entry);
      continue;
    }
    const auto sum = sum_of(kept);
    if (sum.active_until() != held.sum.active_until() ||
        sum.grace_until() != held.sum.grace_until() ||
        openings_of(kept) != openings_of(held.owners) ||
        (!held.changes_at.never() && held.changes_at <= ahead))
      changes.narrowed.push_back(address);
    else if (sum.tag() != held.sum.tag())
      changes.marked.push_back(address);
    held.owners.assign(kept.begin(), kept.end());
    held.sum = sum;
    changes_at_ = earlier(changes_at_, held.changes_at);
    ++entry;
  }
  return changes;
}

}  // namespace sluice
