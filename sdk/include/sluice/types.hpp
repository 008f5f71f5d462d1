// SPDX-License-Identifier: Apache-2.0
// The things plugins speak of, as C++ values: targets, attachments, rules, layers, denials.
//
//   Rule rule{.action = Action::allow, .prefix = Prefix::parse("10.20.0.0/16")};
//
// Everything lives in sluice::sdk and is reachable as sluice::Rule etc. too. Define
// SLUICE_SDK_QUALIFIED before the first include to have only the sluice::sdk names, where a
// translation unit has other things called so.
#pragma once

#include <arpa/inet.h>
#include <sluice/plugin_abi.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <compare>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <variant>
#include <vector>

namespace sluice::sdk {

// What a service throws when the host refuses, and what a plugin throws to refuse. Never crosses
// the boundary: the barrier in front of each entry turns it into a negative errno and its message.
class Error : public std::runtime_error {
 public:
  static constexpr std::uint32_t kNoRule = UINT32_MAX;

  // `code`: a positive errno value. `rule_index`: the rule at fault, where the call took rules.
  // `layer_index`: the layer at fault, where it took several.
  Error(int code, const std::string& message, std::uint32_t rule_index = kNoRule,
        std::size_t layer_index = SIZE_MAX)
      : std::runtime_error(message),
        code_(code == 0 ? EIO : (code < 0 ? -code : code)),
        rule_index_(rule_index),
        layer_index_(layer_index) {}

  [[nodiscard]] int code() const noexcept { return code_; }
  [[nodiscard]] std::uint32_t rule_index() const noexcept { return rule_index_; }
  [[nodiscard]] std::size_t layer_index() const noexcept { return layer_index_; }
  [[nodiscard]] std::string message() const { return what(); }

 private:
  int code_;
  std::uint32_t rule_index_;
  std::size_t layer_index_;
};

enum class LogLevel : std::uint32_t { trace = 0, debug = 1, info = 2, warning = 3, error = 4 };

// The kernel programs' clock (CLOCK_BOOTTIME). It has no now() of its own: ask the host
// (Plugin::now()), so that a test can move the hands.
struct BootClock {
  using duration = std::chrono::nanoseconds;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<BootClock>;
  static constexpr bool is_steady = true;
};
using Time = BootClock::time_point;

using Labels = std::map<std::string, std::string>;

// Names one attachment for the life of its filter and never another one later. 0: none.
struct AttachmentId {
  std::uint64_t value = 0;
  auto operator<=>(const AttachmentId&) const = default;
  explicit operator bool() const noexcept { return value != 0; }
};

// Which way the workload's packets take through the device.
enum class Side : std::uint32_t {
  automatic = SLUICE_SIDE_AUTOMATIC,                // derived from the kind of link
  workload_ingress = SLUICE_SIDE_WORKLOAD_INGRESS,  // tap, tun, host-side veth
  workload_egress =
      SLUICE_SIDE_WORKLOAD_EGRESS,  // uplink, macvtap, a device inside the workload's namespace
};

struct InterfaceTarget {
  std::string name{};  // for messages; the ifindex is the identity
  std::uint32_t ifindex = 0;
  Side side = Side::automatic;
  std::string netns_path{};  // how to enter its namespace ("/run/netns/x"); empty: the host's own
  bool operator==(const InterfaceTarget&) const = default;
};

struct CgroupTarget {
  std::string path{};           // below the cgroup2 mount: "/machine.slice/vm-7.scope"
  std::uint64_t cgroup_id = 0;  // inode number of the directory; 0: the host looks it up
  bool operator==(const CgroupTarget&) const = default;
};

using Target = std::variant<InterfaceTarget, CgroupTarget>;

enum class Mode : std::uint32_t {
  block_all = SLUICE_POLICY_BLOCK_ALL,
  allowlist = SLUICE_POLICY_ALLOWLIST,
  denylist = SLUICE_POLICY_DENYLIST,
  disabled = SLUICE_POLICY_DISABLED,
};

enum class Action : std::uint8_t { allow = SLUICE_RULE_ALLOW, deny = SLUICE_RULE_DENY };

// An IP address in network byte order; IPv4 takes the first 4 bytes, the rest is zero.
struct Address {
  std::uint8_t family = 4;  // 4 or 6
  std::array<std::uint8_t, 16> bytes{};
  auto operator<=>(const Address&) const = default;

  // "192.0.2.1", "2001:db8::1". Throws Error(EINVAL).
  [[nodiscard]] static Address parse(std::string_view text) {
    const std::string terminated(text);
    Address address;
    if (inet_pton(AF_INET, terminated.c_str(), address.bytes.data()) == 1) return address;
    address.family = 6;
    if (inet_pton(AF_INET6, terminated.c_str(), address.bytes.data()) == 1) return address;
    throw Error(EINVAL, "\"" + terminated + "\" is no IPv4 or IPv6 address");
  }
  [[nodiscard]] std::string text() const {
    char buffer[INET6_ADDRSTRLEN] = "?";
    inet_ntop(family == 4 ? AF_INET : AF_INET6, bytes.data(), buffer, sizeof buffer);
    return buffer;
  }
};

// A CIDR prefix; host bits are zero.
struct Prefix {
  Address address;
  std::uint8_t length = 0;  // 0..32 or 0..128
  auto operator<=>(const Prefix&) const = default;

  // "10.0.0.0/8", "2001:db8::/32", or a bare address (a host). Throws Error(EINVAL), also when host
  // bits are set: a typing error must not widen a rule.
  [[nodiscard]] static Prefix parse(std::string_view text) {
    const auto slash = text.find('/');
    Prefix prefix{.address = Address::parse(text.substr(0, slash))};
    const unsigned bits = prefix.address.family == 4 ? 32 : 128;
    unsigned length = bits;
    if (slash != std::string_view::npos) {
      const auto digits = text.substr(slash + 1);
      const auto [end, error] =
          std::from_chars(digits.data(), digits.data() + digits.size(), length);
      if (error != std::errc{} || end != digits.data() + digits.size() || length > bits)
        throw Error(EINVAL, "\"" + std::string(text) + "\": the prefix length must be 0 to " +
                                std::to_string(bits));
    }
    prefix.length = static_cast<std::uint8_t>(length);
    for (unsigned bit = length; bit < bits; ++bit)
      if ((prefix.address.bytes[bit / 8] >> (7 - bit % 8) & 1) != 0)
        throw Error(EINVAL, "\"" + std::string(text) +
                                "\" has bits set beyond its prefix length; write the network's "
                                "own address, or lengthen the prefix");
    return prefix;
  }
  [[nodiscard]] std::string text() const { return address.text() + "/" + std::to_string(length); }
};

// Part of one IP protocol.
struct PortRange {
  std::uint8_t protocol = 0;  // IP protocol number
  bool any_port = true;
  std::uint16_t first = 0, last = 65535;  // host order, inclusive; unused with any_port
  auto operator<=>(const PortRange&) const = default;
};

// What Resolver::learn() calls a domain rule. Given by the host, and no part of what the rule says:
// all compare equal.
struct RuleId {
  std::uint32_t value = 0;
  bool operator==(const RuleId&) const { return true; }
};

// Exactly one of `prefix` and `domain` is set.
struct Rule {
  Action action = Action::deny;
  std::optional<Prefix> prefix{};
  std::string domain{};            // "pypi.org", "*.pypi.org", ".pypi.org"
  std::vector<PortRange> ports{};  // empty: every protocol and port
  std::optional<Time> expires{};   // absent: never
  std::string name{};              // for reports: who or what line it came from

  // Of domain rules that allow.
  std::vector<Prefix> ranges{};        // reserved ranges whose addresses it may grant
  std::vector<std::uint16_t> types{};  // RR types let through beside A, AAAA, HTTPS and SVCB
  bool public_suffix = false;          // its pattern may cover a public suffix ("*.com")

  RuleId id{};  // in what domain_rules() brings
  bool operator==(const Rule&) const = default;
};

// What one source says of one attachment. What is not set is left to the other sources.
struct Layer {
  std::optional<Mode> mode{};
  std::optional<bool> audit{};
  std::optional<bool> replies{};
  std::vector<Rule> rules{};
  bool operator==(const Layer&) const = default;
};

struct LayerChange {
  AttachmentId attachment{};
  Layer layer{};
};

// What is in force after a change of policy: in the kernel, read back.
struct Applied {
  std::uint64_t generation = 0;
  std::array<std::uint64_t, 2> digest{};
};

struct AttachmentInfo {
  AttachmentId id{};
  std::uint64_t incarnation = 0;
  std::uint64_t generation = 0;
  Mode mode = Mode::block_all;
  Target target{};
  Labels labels{};
  std::string discovered_by{};  // instance name
  std::string state{};          // "filtering"; "adopted": not yet claimed by a discovery
  bool audit = false;           // what policy denies is reported, and passes
  bool redirected = false;      // its port 53 ends in the sockets that its resolver serves
};

struct Counters {
  std::uint64_t allowed_packets = 0, allowed_bytes = 0, denied_packets = 0, denied_bytes = 0;
  std::uint64_t audited_packets = 0, events_lost = 0;
};

// One denied packet. An audited one passed.
struct Denial {
  AttachmentId attachment{};  // none: a guard's denial
  bool audited = false;
  Time time{};
  std::uint32_t generation = 0;  // low 24 bits
  std::string reason{};
  std::uint8_t protocol = 0, icmp_type = 0, icmp_code = 0;
  std::uint16_t source_port = 0, destination_port = 0;  // host order
  std::uint16_t ethertype = 0;
  std::uint32_t length = 0;         // bytes of the packet
  Address source{}, destination{};  // family 0: not an IP packet
  std::string rule{};               // the rule that explains it, where there is one
};

struct PluginState {
  std::string instance, state, reason;
};

// ---- names ----

// One end of a connection. `port` in host order.
struct Endpoint {
  Address address{};
  std::uint16_t port = 0;
  auto operator<=>(const Endpoint&) const = default;
};

struct StreamAsker {
  AttachmentId attachment{};
  Endpoint asked{};  // the server that the other end thinks it talks to
};

// One question of one attachment. `name`: lower-case ASCII, dots between labels and none at the
// end, \DDD and \. escapes; the root is ".".
struct Query {
  std::uint64_t id = 0;
  AttachmentId attachment{};
  std::string name{};
  std::uint16_t type = 0;  // RR type
  bool operator==(const Query&) const = default;
};

// What a decider says of one query.
struct Decision {
  enum class Action : std::uint32_t {
    none = SLUICE_DECISION_NONE,  // no opinion: a refusal
    allow = SLUICE_DECISION_ALLOW,
    deny = SLUICE_DECISION_DENY,
  };
  Action action = Action::none;
  std::chrono::nanoseconds ttl{};    // may stand this long; zero: for this query only
  std::vector<PortRange> ports{};    // allow; empty: every protocol and port
  std::vector<Address> addresses{};  // allow: answer with these, ask no upstream
  std::chrono::nanoseconds address_ttl{};
  std::vector<Prefix> ranges{};  // allow: as Rule::ranges
  std::string reason{};
  bool operator==(const Decision&) const = default;
};

// Of a push: what one domain rule, or the word of a decider, opens. Borrows.
struct Grant {
  std::uint32_t rule = SLUICE_NO_RULE;  // Rule::id; SLUICE_NO_RULE: a decider allowed the name
  std::span<const Address> addresses{};
  std::chrono::nanoseconds ttl{};      // how long new connections may use them
  std::chrono::nanoseconds grace{};    // how much longer live ones may
  std::span<const PortRange> ports{};  // without a rule; empty: every protocol and port
};

// An answer that another DNS server found and will give once it may.
struct Answer {
  struct Record {
    Address address{};
    std::uint32_t ttl = 0;  // seconds
    bool operator==(const Record&) const = default;
  };
  AttachmentId attachment{};
  std::string name{};                // as asked; form as in Query
  std::vector<std::string> chain{};  // CNAME and DNAME targets in order
  std::vector<Record> addresses{};   // of the last name of the chain
  bool operator==(const Answer&) const = default;
};

enum class QueryVerdict : std::uint8_t {
  allowed = SLUICE_QUERY_ALLOWED,  // answered, also where the answer is "no such name"
  denied = SLUICE_QUERY_DENIED,
  filtered = SLUICE_QUERY_FILTERED,  // the name is allowed, the type or every address is not
  failed = SLUICE_QUERY_FAILED,      // no upstream, no decision, or the kernel did not take it
  limited = SLUICE_QUERY_LIMITED,    // over a budget
  invalid = SLUICE_QUERY_INVALID,    // FORMERR, NOTIMP, BADVERS
};
[[nodiscard]] constexpr std::string_view to_string(QueryVerdict verdict) {
  switch (verdict) {
    case QueryVerdict::allowed:
      return "allowed";
    case QueryVerdict::denied:
      return "denied";
    case QueryVerdict::filtered:
      return "filtered";
    case QueryVerdict::failed:
      return "failed";
    case QueryVerdict::limited:
      return "limited";
    case QueryVerdict::invalid:
      return "invalid";
  }
  return "unknown";
}

// What became of one query. Borrows: its strings and addresses live as long as the call it is
// passed to.
struct QueryReport {
  AttachmentId attachment{};
  Time time{};
  std::string_view name{};  // whoever asked chose every byte of it
  std::uint16_t type = 0;
  QueryVerdict verdict = QueryVerdict::failed;
  bool cached = false, audited = false;
  bool decided = false;  // by a decider, not by a rule
  bool pushed = false;   // the answer came from an answer source
  bool stream = false;   // over TCP
  std::uint16_t response_code = 0;
  std::optional<std::uint16_t> extended_error{};  // RFC 8914
  std::uint32_t count = 1;                        // identical queries it stands for
  std::string_view rule{};                        // the pattern that decided
  std::string_view reason{};                      // why not
  std::string_view upstream{};                    // "192.0.2.53:53"
  std::span<const Address> addresses{};
  std::chrono::nanoseconds decision_time{}, upstream_time{}, push_time{};
};

}  // namespace sluice::sdk

template <>
struct std::hash<sluice::sdk::AttachmentId> {
  std::size_t operator()(const sluice::sdk::AttachmentId& id) const noexcept {
    return std::hash<std::uint64_t>{}(id.value);
  }
};
