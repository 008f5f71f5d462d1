// Who vouches for each learned address of one attachment: an opening, for the names that led to the
// address. So removing a rule, or denying a name, revokes what only it opened. The kernel checks
// expiry; this is only the ownership.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "attachments/name_judge.hpp"
#include "base/address.hpp"
#include "base/ids.hpp"
#include "dataplane/data_plane.hpp"

namespace sluice {

// The names that one answer led through, and what the rules in force say of them.
struct LearnedUnder {
  std::string_view names;  // as NameJudge reads them; empty: an earlier daemon knew them
  std::uint32_t tag = 0;   // then: what it left beside the addresses
  NameJudge::Ruling ruling;
  std::size_t owners = 0;  // in the table
};

struct LearnedOwner {
  const Opening* opening = nullptr;  // both are kept alive by whoever calls
  LearnedUnder* under = nullptr;
  BootTime active_until, grace_until;
  std::uint32_t tag = 0;  // in the kernel

  [[nodiscard]] auto place() const { return std::pair(opening, under); }
};

// What all owners of one address amount to while they have the same ports: the latest of their
// times, and the tag of the one that vouches for longest, since a later daemon will know no other.
class OwnerSum {
 public:
  void add(const LearnedOwner& owner);
  // They have the same ports. If not, standing() says what they amount to.
  [[nodiscard]] bool alike() const { return alike_; }
  [[nodiscard]] BootTime active_until() const { return active_until_; }
  [[nodiscard]] BootTime grace_until() const { return grace_until_; }
  [[nodiscard]] std::uint32_t tag() const { return several_ ? tag_ | kSeveralOwners : tag_; }
  bool operator==(const OwnerSum&) const = default;

 private:
  BootTime active_until_, grace_until_;
  std::uint32_t tag_ = 0;
  const Opening* first_ = nullptr;
  bool several_ = false, alike_ = true;
};

// Ports that somebody vouches for, and until when.
struct Claim {
  std::span<const PortRange> ports;  // empty: every protocol and port
  BootTime active_until, grace_until;
};
// What claims with different ports amount to. The kernel has one list of ports and one pair of ends
// for an address, and must keep them with no daemon alive: so it gets the ports of all that take
// new connections now, until the first of them ends that has a port of its own. Then the daemon
// writes what is left (LearnedAddresses::narrow()); without one the address ends early, never late.
// What is in its grace while others are not counts for nothing.
struct Standing {
  BootTime active_until, grace_until;
  std::vector<PortRange> ports;
  BootTime changes_at;  // never: with its end
};
// As it is from `now` on: claims that end by then count only where no other is left.
[[nodiscard]] Standing standing(std::span<const Claim> claims, BootTime now);

class LearnedTable {
 public:
  // The next `owners` add()s for each of them allocate nothing.
  void make_room(std::span<const Address> addresses, std::size_t owners = 1);
  // Nothing came of it.
  void drop_room(std::span<const Address> addresses);
  void add(const Address& address, const LearnedOwner& owner);
  // When its owners will amount to something else, see Standing; never after an add().
  void set_changes_at(const Address& address, BootTime when);
  // The first of all, or earlier.
  [[nodiscard]] BootTime changes_at() const { return changes_at_; }
  void remove(const Address& address);
  [[nodiscard]] std::span<const LearnedOwner> owners(const Address& address) const;
  [[nodiscard]] OwnerSum sum(const Address& address) const;

  struct Changes {
    std::vector<Address> orphaned;  // nobody vouches for them any more, though their time is not up
    std::vector<Address> narrowed;  // their owners amount to something else than before
    std::vector<Address> marked;    // likewise, but only for a later daemon: another tag
  };
  // Forgets owners that have ended, and puts those in the place of each other one that `judge`
  // gives; it is told all that the address had. What amounts to something else by `ahead` is among
  // the narrowed; whoever writes that says set_changes_at() anew.
  using Judge = std::function<void(const LearnedOwner&, std::span<const LearnedOwner> all,
                                   std::vector<LearnedOwner>& instead)>;
  [[nodiscard]] Changes review(const Judge& judge, BootTime now, BootTime ahead);
  // Some of the addresses that no new connection may use, `most` at most.
  [[nodiscard]] std::vector<Address> in_grace(BootTime now, std::size_t most) const;
  // How many add()s with this place would make an owner more.
  [[nodiscard]] std::size_t missing(std::span<const Address> addresses,
                                    const LearnedOwner& owner) const;

  [[nodiscard]] bool empty() const { return held_.empty(); }
  [[nodiscard]] std::size_t size() const { return held_.size(); }
  // Of all addresses together.
  [[nodiscard]] std::size_t owner_count() const { return owner_count_; }

 private:
  struct Held {
    std::vector<LearnedOwner> owners;  // in order of their places: one address may have thousands
    OwnerSum sum;
    BootTime changes_at;
  };
  void count(const std::vector<LearnedOwner>& owners, bool come);

  std::unordered_map<Address, Held, AddressHash> held_;
  std::size_t owner_count_ = 0;
  BootTime changes_at_;
};

}  // namespace sluice
