// Which domain rules vouch for each learned address of one attachment, so that removing a rule
// revokes what only it opened. The kernel checks expiry; this is only the ownership.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/ids.hpp"
#include "policy/model.hpp"

namespace sluice {

using Address = std::array<std::uint8_t, 16>;  // network order, IPv4 mapped

struct AddressHash {
  std::size_t operator()(const Address& address) const noexcept;
};

class LearnedTable {
 public:
  struct Owner {
    std::uint32_t rule = 0;  // index into the attachment's domain rules
    BootTime active_until, grace_until;
  };

  void add(const Address& address, const Owner& owner);
  void remove(const Address& address) { owners_.erase(address); }
  // Rules that vouch for the address now, besides the one given.
  [[nodiscard]] std::span<const Owner> owners(const Address& address) const;

  // The rules were replaced: rule i is now `now_at[i]`, or gone (kGone). `orphaned` receives the
  // addresses that nobody vouches for any more, `narrowed` those that lost one of several owners.
  static constexpr std::uint32_t kGone = UINT32_MAX;
  void renumber(std::span<const std::uint32_t> now_at, BootTime now, std::vector<Address>& orphaned,
                std::vector<Address>& narrowed);

  // Forgets what the kernel has expired by itself. `narrowed` as above.
  void expire(BootTime now, std::vector<Address>& narrowed);

  [[nodiscard]] bool empty() const { return owners_.empty(); }
  [[nodiscard]] std::size_t size() const { return owners_.size(); }

 private:
  std::unordered_map<Address, std::vector<Owner>, AddressHash> owners_;
};

}  // namespace sluice
