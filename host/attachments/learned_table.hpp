// Who vouches for each learned address of one attachment, so that removing a rule revokes what only
// it opened. The kernel checks expiry; this is only the ownership.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <unordered_map>
#include <vector>

#include "attachments/policy_cache.hpp"
#include "base/address.hpp"
#include "base/ids.hpp"

namespace sluice {

class LearnedTable {
 public:
  struct Owner {
    const Opening* opening = nullptr;  // kept alive by whoever calls
    BootTime active_until, grace_until;
  };

  // The next `owners` add()s for each of them allocate nothing.
  void make_room(std::span<const Address> addresses, std::size_t owners = 1);
  void add(const Address& address, const Owner& owner);
  void remove(const Address& address) { owners_.erase(address); }
  [[nodiscard]] std::span<const Owner> owners(const Address& address) const;

  // Forgets owners that have ended or are not to be kept; `keep` is asked for the others.
  // `orphaned` receives the addresses that nobody vouches for any more though their time had not
  // come, `narrowed` those that lost one of several owners.
  void keep(const std::function<bool(const Opening*)>& keep, BootTime now,
            std::vector<Address>& orphaned, std::vector<Address>& narrowed);

  [[nodiscard]] bool empty() const { return owners_.empty(); }
  [[nodiscard]] std::size_t size() const { return owners_.size(); }

 private:
  std::unordered_map<Address, std::vector<Owner>, AddressHash> owners_;
};

}  // namespace sluice
