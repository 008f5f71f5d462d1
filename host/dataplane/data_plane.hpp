// The kernel, behind an interface. KernelDataPlane owns the programs, links and maps; FakeDataPlane
// keeps it all in memory so that everything above is tested without root. Only the core loop's
// thread calls it; learned() alone may be used from any.
//
// "Applied" means: in the kernel, read back. A call that fails leaves what was in force as it was.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/address.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"
#include "layout.h"
#include "policy/compiler.hpp"
#include "policy/model.hpp"

namespace sluice {

enum class Side : std::uint8_t {
  automatic,         // derived from the kind of link; an ambiguous kind is refused with the reason
  workload_ingress,  // the workload's packets are the device's ingress: tap, tun, host-side veth
  workload_egress,   // the workload's packets are the device's egress: uplink, macvtap, a device
                     // inside its namespace
};

struct InterfaceTarget {
  std::string name = {};  // for messages; identity is ifindex and namespace
  std::uint32_t ifindex = 0;
  std::uint64_t netns_cookie = 0;  // 0: the daemon's own namespace
  // How to enter another namespace ("/run/netns/x"); empty: the daemon's own.
  std::string netns_path = {};
  Side side = Side::automatic;
};

struct CgroupTarget {
  std::string path = {};  // below the cgroup2 mount, "/machine.slice/vm-7.scope"
  std::uint64_t cgroup_id =
      0;  // inode number; 0: look it up. A directory made anew under the name is another target.
};

// What of the link layer passes besides IP that policy allows, and other per-attachment switches.
// From the wiring.
struct AttachmentOptions {
  bool audit = false;
  bool replies = true;
  bool arp = true, nd = true, dhcp = true;
  bool tell = true;            // answer denied packets with a reset or an ICMP error
  bool loopback = false;       // cgroups: loopback also in the host's namespace
  bool redirect_dns = false;   // port 53 goes to `resolver`; see DataPlane::serve
  std::uint32_t resolver = 0;  // below SLUICE_RESOLVERS
  std::optional<std::array<std::uint8_t, 4>> dhcp4_server;
  std::optional<std::array<std::uint8_t, 16>> dhcp6_server;
  std::vector<std::uint16_t> ethertypes;  // at most SLUICE_MAX_EXTRA_ETHERTYPES
  std::vector<std::uint16_t> vlans;       // at most SLUICE_MAX_VLANS

  bool operator==(const AttachmentOptions&) const = default;
};

// An attachment as the kernel has it: what attach returned, or what adoption found.
struct KernelAttachment {
  std::uint32_t slot = 0;
  std::uint32_t scope = 0;  // of its learned addresses and flows; never another's in one boot
  std::uint64_t incarnation = 0;
  Generation generation;
  Mode mode = Mode::block_all;
  std::optional<InterfaceTarget> interface;  // exactly one of the two is set
  std::optional<CgroupTarget> cgroup;
  std::array<std::uint64_t, 2> policy_digest{};
  std::string mechanism;  // "tcx", "clsact", "cgroup"
  // Names it to a resolver (skb->mark of what it asks); another attachment's never in one boot.
  std::uint32_t asker_mark = 0;
  // False where redirect_dns has no effect: the kernel gives sockets only to what comes in at a
  // device of the daemon's own namespace.
  bool redirectable = false;
};

struct PublishRequest {
  std::uint32_t slot = 0;
  Mode mode = Mode::block_all;
  AttachmentOptions options = {};
  const CompiledPolicy* policy =
      nullptr;              // null: keep the policy in force, change mode and options only
  bool tightening = false;  // sever what the new policy denies
};

struct LearnedAddress {
  Address address{};
  BootTime active_until, grace_until;
  std::uint32_t owner = 0;  // kept with it, for whoever asks; the last one written counts
};
// Addresses that are opened for the same ports. Borrows.
struct LearnedPart {
  std::span<const LearnedAddress> addresses;
  std::span<const PortRange> ports;  // empty: every protocol and port
};
// One that is in the kernel.
struct KnownAddress {
  LearnedAddress address;
  std::optional<std::vector<PortRange>> ports;  // null: nobody knows any more
};

// [any] The addresses that names opened, by the scope of their attachment. A scope is there from
// attach (or adoption) until its attachment goes, be it by detach() or by itself; from then on it
// is refused (ENOENT), and nothing is in the kernel under it.
class LearnedMap {
 public:
  virtual ~LearnedMap() = default;

  // All or nothing, over all parts: times and ports of each address become exactly these, with no
  // moment between in which one that is there is not. Of one that is given twice the last counts.
  [[nodiscard]] virtual Status learn(std::uint32_t scope, std::span<const LearnedPart> parts) = 0;
  [[nodiscard]] Status learn(std::uint32_t scope, std::span<const LearnedAddress> addresses,
                             std::span<const PortRange> ports) {
    const LearnedPart part{addresses, ports};
    return learn(scope, std::span(&part, 1));
  }
  virtual Status revoke(std::uint32_t scope, std::span<const Address> addresses) = 0;
  // Of these, those that open nothing for good though their grace lasts: no new connection may use
  // them, and the last packet of a live one is too long ago.
  [[nodiscard]] virtual std::vector<Address> unused(std::uint32_t scope,
                                                    std::span<const Address> addresses) = 0;
  // What is there and has not ended, be it of an earlier daemon.
  [[nodiscard]] virtual std::vector<KnownAddress> all(std::uint32_t scope) = 0;
};

struct Counters {
  std::uint64_t allowed_packets = 0, allowed_bytes = 0, denied_packets = 0, denied_bytes = 0;
  std::uint64_t audited_packets = 0, events_lost = 0;
};

struct GuardSettings {
  std::vector<std::string> uplinks;         // interface names
  std::vector<std::string> trusted;         // interface names whose traffic is not judged
  std::vector<std::string> parent_cgroups;  // paths below the cgroup2 mount
};

// What the data plane calls back, always on the core loop.
struct DataPlaneEvents {
  std::function<void(const sluice_event&)> on_denial;
  std::function<void(std::uint32_t slot, std::string reason)>
      on_target_gone;  // ENOLINK, device or cgroup removed
};

class DataPlane {
 public:
  virtual ~DataPlane() = default;

  // Attachments found pinned at start, already running the current programs. Each keeps its policy
  // until claimed by an attach of the same target (which then returns the same slot and
  // incarnation) or dropped by detach().
  [[nodiscard]] virtual std::vector<KernelAttachment> adopted() = 0;

  // In force when it returns, with mode block-all for a new attachment; never a window in which it
  // passes unfiltered. `initial`, where given, is published before the filter is linked, so that
  // the target starts under its policy.
  [[nodiscard]] virtual Result<KernelAttachment> attach(const InterfaceTarget& target,
                                                        const PublishRequest* initial) = 0;
  [[nodiscard]] virtual Result<KernelAttachment> attach(const CgroupTarget& target,
                                                        const PublishRequest* initial) = 0;
  virtual Status detach(std::uint32_t slot) = 0;

  // One flip. Returns the new generation, read back.
  [[nodiscard]] virtual Result<Generation> publish(const PublishRequest& request) = 0;

  [[nodiscard]] virtual LearnedMap& learned() = 0;

  [[nodiscard]] virtual Result<Counters> counters(std::uint32_t slot) = 0;
  [[nodiscard]] virtual std::vector<std::uint64_t>
  reason_counters() = 0;  // indexed by enum sluice_reason

  // The sockets that take port 53 of every attachment with `redirect_dns` and this `resolver`:
  // UDP sockets and TCP listeners on port 53 of 127.83.76.N or fd53:6c75:6963:65::N,
  // IP_TRANSPARENT, not SO_REUSEPORT, at most SLUICE_RESOLVER_WORKERS of each family and protocol.
  // They replace the former ones and stay the caller's; one that is closed takes nothing any more.
  // Makes the routes that lead there (dns_route.hpp) and keeps them.
  [[nodiscard]] virtual Status serve(std::uint32_t resolver, std::span<const int> sockets) = 0;
  // No resolver is configured any more: the routes go. What is redirected is dropped.
  [[nodiscard]] virtual Status end_serving() = 0;
  struct Asker {
    std::uint32_t mark = 0;
    std::array<std::uint8_t, 16> asked{};  // network order, IPv4 mapped
  };
  // [any] Who opened a connection that a resolver accepted, and the server it named. ENOENT: nobody
  // that is known.
  [[nodiscard]] virtual Result<Asker> asker_of_stream(int accepted) const = 0;

  [[nodiscard]] virtual Status set_guards(const GuardSettings& guards) = 0;

  // For the loop: readable when poll() has work; poll() calls the events and does background work
  // (grace periods, converting clsact to TCX, expired learned addresses), bounded. Call it also
  // every `poll_interval`.
  [[nodiscard]] virtual std::vector<int> poll_fds() = 0;
  virtual void poll(const DataPlaneEvents& events) = 0;
  static constexpr std::chrono::milliseconds poll_interval{200};
};

}  // namespace sluice
