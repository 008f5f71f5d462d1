#include "attachments/learned_table.hpp"

#include <algorithm>

namespace sluice {

void LearnedTable::make_room(std::span<const Address> addresses, std::size_t owners) {
  for (const auto& address : addresses) {
    auto& known = owners_[address];
    known.reserve(known.size() + owners);
  }
}

void LearnedTable::add(const Address& address, const Owner& owner) {
  auto& owners = owners_[address];
  auto known = std::ranges::find(owners, owner.opening, &Owner::opening);
  if (known == owners.end()) {
    owners.push_back(owner);
    return;
  }
  known->active_until = std::max(known->active_until, owner.active_until);
  known->grace_until = std::max(known->grace_until, owner.grace_until);
}

std::span<const LearnedTable::Owner> LearnedTable::owners(const Address& address) const {
  const auto found = owners_.find(address);
  if (found == owners_.end()) return {};
  return found->second;
}

void LearnedTable::keep(const std::function<bool(const Opening*)>& keep, BootTime now,
                        std::vector<Address>& orphaned, std::vector<Address>& narrowed) {
  for (auto entry = owners_.begin(); entry != owners_.end();) {
    auto& [address, owners] = *entry;
    const auto before = owners.size();
    bool lived = false;
    std::erase_if(owners, [&](const Owner& owner) {
      const bool ended = owner.grace_until <= now;
      lived |= !ended;
      return ended || !keep(owner.opening);
    });
    if (owners.empty()) {
      if (lived) orphaned.push_back(address);
      entry = owners_.erase(entry);
      continue;
    }
    if (owners.size() != before) narrowed.push_back(address);
    ++entry;
  }
}

}  // namespace sluice
