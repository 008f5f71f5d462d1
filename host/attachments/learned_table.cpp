#include "attachments/learned_table.hpp"

#include <algorithm>
#include <cstring>

namespace sluice {

std::size_t AddressHash::operator()(const Address& address) const noexcept {
  std::uint64_t high = 0, low = 0;
  std::memcpy(&high, address.data(), 8);
  std::memcpy(&low, address.data() + 8, 8);
  const auto mixed = (high ^ (low * 0x9e3779b97f4a7c15ull)) * 0xff51afd7ed558ccdull;
  return static_cast<std::size_t>(mixed ^ (mixed >> 32));
}

void LearnedTable::add(const Address& address, const Owner& owner) {
  auto& owners = owners_[address];
  auto known = std::ranges::find(owners, owner.rule, &Owner::rule);
  if (known == owners.end()) {
    owners.reserve(owners.size() + 1);
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

void LearnedTable::renumber(std::span<const std::uint32_t> now_at, BootTime now,
                            std::vector<Address>& orphaned, std::vector<Address>& narrowed) {
  for (auto entry = owners_.begin(); entry != owners_.end();) {
    auto& [address, owners] = *entry;
    const auto before = owners.size();
    std::erase_if(owners, [&](Owner& owner) {
      owner.rule = owner.rule < now_at.size() ? now_at[owner.rule] : kGone;
      return owner.rule == kGone || owner.grace_until <= now;
    });
    if (owners.empty()) {
      orphaned.push_back(address);
      entry = owners_.erase(entry);
      continue;
    }
    if (owners.size() != before) narrowed.push_back(address);
    ++entry;
  }
}

void LearnedTable::expire(BootTime now, std::vector<Address>& narrowed) {
  for (auto entry = owners_.begin(); entry != owners_.end();) {
    auto& [address, owners] = *entry;
    const auto before = owners.size();
    std::erase_if(owners, [&](const Owner& owner) { return owner.grace_until <= now; });
    if (owners.empty()) {
      entry = owners_.erase(entry);
      continue;
    }
    if (owners.size() != before) narrowed.push_back(address);
    ++entry;
  }
}

}  // namespace sluice
