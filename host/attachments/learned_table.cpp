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

std::vector<const Opening*> openings_of(const std::vector<LearnedOwner>& owners) {
  std::vector<const Opening*> openings;
  for (const auto& owner : owners) {
    if (openings.empty() || openings.back() != owner.opening) openings.push_back(owner.opening);
  }
  return openings;
}

}  // namespace

void OwnerSum::add(const LearnedOwner& owner) {
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

LearnedTable::Changes LearnedTable::review(const Judge& judge, BootTime now) {
  Changes changes;
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
        openings_of(kept) != openings_of(held.owners))
      changes.narrowed.push_back(address);
    else if (sum.tag() != held.sum.tag())
      changes.marked.push_back(address);
    held.owners.assign(kept.begin(), kept.end());
    held.sum = sum;
    ++entry;
  }
  return changes;
}

}  // namespace sluice
