// The one writer of the kernel's `learned` map: which addresses names have opened, for what ports,
// until when.
//
// It keeps in memory what it has written, so that an address which is new or gets a later end costs
// one system call (and sixteen of them cost one), and one that is known to live long enough costs
// none. What is there is changed by a program in the kernel (bpf/learn.h), so that the moment of a
// live connection's last packet, which packets write at the same time, is kept. Without it (before
// kernel 6.1) a look-up each fetches that moment, and one that is written meanwhile is lost; a
// packet of the next quarter second writes it again.
//
// Locks: the table of scopes is shared by all who learn; each scope has a mutex of its own, held
// across the system calls, so that attachments do not wait for one another. Nothing else is called
// with it held.
#pragma once

#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>

#include "dataplane/data_plane.hpp"
#include "dataplane/port_set_table.hpp"

namespace sluice {

class KernelLearnedMap final : public LearnedMap {
 public:
  // In grace, the last packet of a live connection is at most this old (ns).
  static constexpr std::uint64_t kIdle = 120'000'000'000;

  // The maps and the program outlive this. `program` is sluice_learn over `map`; -1: there is none.
  KernelLearnedMap(int map, int port_sets, std::uint32_t port_set_entries, int program = -1);

  // [any]
  using LearnedMap::learn;
  [[nodiscard]] Status learn(std::uint32_t scope, std::span<const LearnedPart> parts) override;
  Status revoke(std::uint32_t scope, std::span<const Address> addresses) override;
  [[nodiscard]] std::vector<Address> unused(std::uint32_t scope,
                                            std::span<const Address> addresses) override;
  [[nodiscard]] std::vector<KnownAddress> all(std::uint32_t scope) override;

  // [core loop]
  // From now addresses may be learned under it. `name` is for messages. `hints` are the slot's
  // (sluice_slot.learned), valid until close(); null: there are none to keep.
  void open(std::uint32_t scope, std::string name, __u64* hints = nullptr);
  // Once it has returned nothing is in the kernel under the scope, and nothing will be.
  void close(std::uint32_t scope);
  // After open() of what was found, before anybody learns: what an earlier daemon wrote is known
  // again, and entries of scopes that are gone are removed.
  void adopt();
  // Removes what has ended. The programs stopped honouring it by themselves.
  void sweep(BootTime now);
  // Port lists that no address has any more, see PortSetTable.
  [[nodiscard]] std::vector<PortSetTable::Idle> idle_port_sets() { return port_sets_.idle(); }
  void reclaim_port_sets(const std::vector<PortSetTable::Idle>& sets) { port_sets_.reclaim(sets); }

 private:
  // Of an address that may be in the kernel; never less than what is there. Both times in the past:
  // it may be there, and opens nothing. Its port set is held.
  struct Known {
    std::uint64_t active_until = 0, grace_until = 0;
    std::uint32_t port_set = 0, owner = 0;
    bool operator==(const Known&) const = default;
    [[nodiscard]] bool lives(std::uint64_t now) const {
      return active_until > now || grace_until > now;
    }
  };
  struct Scope {
    std::mutex mutex;
    bool closed = false;
    std::string name;
    __u64* hints = nullptr;
    std::unordered_map<Address, Known, AddressHash> known;
  };
  struct Writes;

  [[nodiscard]] std::shared_ptr<Scope> find(std::uint32_t number) const;
  [[nodiscard]] Status prepare(std::uint32_t number, Scope& scope, const LearnedPart& part,
                               Writes& writes);
  [[nodiscard]] Status write(Scope& scope, Writes& writes);
  void remove(std::uint32_t number, std::span<const Address> addresses);
  void forget(Scope& scope, const Address& address);
  static void forget_hints(Scope& scope);

  const int map_, program_;
  PortSetTable port_sets_;
  mutable std::shared_mutex mutex_;  // of scopes_
  std::unordered_map<std::uint32_t, std::shared_ptr<Scope>> scopes_;
};

}  // namespace sluice
