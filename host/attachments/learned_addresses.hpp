// The addresses that names have opened: who may add to them, under which domain rule, and which go
// when a rule goes. Learning happens on the threads of resolvers, many at a time, and does not
// touch the core loop; an answer waits for it.
//
//   LearnedAddresses learned(plane.learned(), boot_now);
//   learned.add(id, scope, "tap7");                             // core loop
//   if (learned.settle(id, {wire, {}, rules, image})) sever();  // core loop, after each change
//   learned.learn("dns", id, {names, grants});                  // any thread
//
// Each attachment has a mutex of its own. Rules, owners and what the kernel has change together
// under it, so an address is learned either before a rule goes (and goes with it) or not at all.
// The names come with each push and are judged under it too: a resolver that judged by a former
// list opens nothing for a name that is denied since. Nothing slow happens under it: policies are
// compiled before settle(), a call costs system calls in proportion to its addresses, a change of
// rules a judgement (200 ns) for each answer that is remembered. Lock order: this one, then the
// LearnedMap's.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "attachments/core.hpp"
#include "attachments/learned_table.hpp"
#include "attachments/policy_cache.hpp"
#include "attachments/wiring.hpp"
#include "config/config.hpp"
#include "dataplane/data_plane.hpp"

namespace sluice {

class LearnedAddresses {
 public:
  // What an attachment's learned addresses hang on. Never half of a change.
  struct Basis {
    WirePtr wire;          // its sources may learn
    std::string decider;   // instance whose decisions may open addresses; empty: none
    DomainRulesPtr rules;  // resolvers refer to them by Rule::id
    ImagePtr image;        // what it denies is not learned
    // All sources that are waited for have spoken. Only then are addresses that an earlier daemon
    // learned held against the rules: those that nothing vouches for any more are revoked.
    bool settled = false;
  };

  // `clock` is called from any thread. `map` outlives this.
  LearnedAddresses(LearnedMap& map, std::function<BootTime()> clock);

  // How many addresses one attachment may have, each counted for every rule and answer that opened
  // it, and every 512 bytes of an answer's names counted as one more: the kernel's map is
  // everybody's, and so is the memory here.
  void set_share(std::uint32_t most) { share_ = most; }

  // ---- [core loop] ----

  // Nobody may learn for it before its first settle(). What is in the kernel under its scope was
  // learned by an earlier daemon.
  void add(AttachmentId id, std::uint32_t scope, const std::string& name);
  void rename(AttachmentId id, const std::string& name);
  // From the moment it has returned learning for it is refused. What is in the kernel goes with its
  // scope, which is the data plane's business.
  void remove(AttachmentId id);
  // Another basis: each name that has opened addresses is judged again. What only a removed rule, a
  // former decider or a name that is not allowed any more opened is revoked; where another rule
  // decides on the name now, its ports take the place of the former one's. True when something was
  // lost: connections may have lost what they ran on.
  [[nodiscard]] bool settle(AttachmentId id, Basis basis);
  // Forgets what has ended. True as above: an address may live on with fewer ports.
  [[nodiscard]] bool expire(AttachmentId id);
  // When narrow() is to be called for every attachment, and again: an address that rules with
  // different ports have opened loses those of the first that ends. Any thread may bring it
  // forward.
  [[nodiscard]] BootTime narrow_at() const { return {narrow_at_.load()}; }
  void begin_narrowing() { narrow_at_ = 0; }
  [[nodiscard]] bool narrow(AttachmentId id);

  // ---- [any], as in Core ----

  [[nodiscard]] Status learn(const std::string& instance, AttachmentId id, const NamePush& push);
  [[nodiscard]] Status revoke(const std::string& instance, AttachmentId id,
                              std::span<const Address> addresses);

 private:
  struct NamesHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view names) const {
      return std::hash<std::string_view>{}(names);
    }
  };
  struct Entry {
    std::mutex mutex;
    bool gone = false;
    std::uint32_t scope = 0;
    std::string name;
    Basis basis;
    std::vector<OpeningPtr> decided;  // one for each list of ports that the decider gave
    LearnedTable table;
    // By the names; of an earlier daemon by a space and the tag. Owners point to them.
    std::unordered_map<std::string, LearnedUnder, NamesHash, std::equal_to<>> under;
    std::size_t names_charge = 0;  // what the keys of `under` take of the share
    // Of an earlier daemon, until the sources have spoken.
    std::unordered_map<Address, KnownAddress, AddressHash> found;
    bool narrowed = false;         // by a resolver's thread, since expire()
    BootTime reclaim_at, warn_at;  // not before
  };
  // A grant of a push, once it is allowed.
  struct Grant {
    std::span<const Address> addresses;
    LearnedOwner owner;
  };

  [[nodiscard]] std::shared_ptr<Entry> find(AttachmentId id) const;
  [[nodiscard]] static Status may_learn(const Entry* entry, const std::string& instance,
                                        AttachmentId id);
  [[nodiscard]] static Result<LearnedUnder*> judged(Entry& entry,
                                                    std::span<const std::string_view> names,
                                                    BootTime now);
  [[nodiscard]] Status learn_under(Entry& entry, LearnedUnder& under,
                                   std::span<const NameGrant> asked, BootTime now);
  [[nodiscard]] static Result<Grant> granted(Entry& entry, LearnedUnder& under,
                                             const NameGrant& asked, BootTime now);
  [[nodiscard]] static Status check_explicit(const Entry& entry, const Grant& grant,
                                             std::uint32_t counted, BootTime now);
  [[nodiscard]] Status make_room(Entry& entry, const LearnedUnder& under,
                                 std::span<const Grant> grants, BootTime now);
  void reclaim(Entry& entry, const LearnedUnder& under, BootTime now);
  static void forget_unused(Entry& entry, const LearnedUnder* but = nullptr);
  [[nodiscard]] Status open(Entry& entry, std::span<const Grant> grants, BootTime now);
  [[nodiscard]] static bool alike(const Entry& entry, const Address& address,
                                  std::span<const LearnedOwner> fresh, OwnerSum& sum);
  [[nodiscard]] static Standing standing_of(const Entry& entry, const Address& address,
                                            std::span<const LearnedOwner> fresh, BootTime now);
  [[nodiscard]] bool forget(Entry& entry, BootTime now);
  [[nodiscard]] Status rewrite(Entry& entry, const Address& address, BootTime now);
  void announce(BootTime change);
  [[nodiscard]] static const Opening* decided(Entry& entry, std::span<const PortRange> ports);
  static void claim_found(Entry& entry, BootTime now, std::vector<Address>& contested);
  [[nodiscard]] static LearnedTable::Changes judge_again(Entry& entry, BootTime now);
  [[nodiscard]] bool carry_out(Entry& entry, const LearnedTable::Changes& changes, BootTime now);
  void mark(Entry& entry, const std::vector<Address>& addresses, BootTime now);

  LearnedMap& map_;
  const std::function<BootTime()> clock_;
  std::atomic<std::uint32_t> share_{HostConfig{}.max_learned_per_workload};
  std::atomic<std::uint64_t> narrow_at_{0};  // 0: never
  mutable std::shared_mutex mutex_;          // of entries_, not of what they point to
  std::unordered_map<AttachmentId, std::shared_ptr<Entry>> entries_;
};

}  // namespace sluice
