// What a policy says, before it is compiled: prefixes, ports, rules, layers. Plain values, no
// kernel.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.hpp"
#include "base/result.hpp"

namespace sluice {

enum class Mode : std::uint8_t {
  block_all = 0,
  allowlist = 1,
  denylist = 2,
  disabled = 3
};  // as sluice_mode
[[nodiscard]] std::string_view to_string(Mode mode);
[[nodiscard]] Result<Mode> parse_mode(
    std::string_view text);  // "block-all", "allowlist", "denylist", "disabled"

enum class Action : std::uint8_t { allow, deny };

// A CIDR prefix. `address` is network byte order, 16 bytes; IPv4 occupies the first 4 and the rest
// is zero. Host bits are zero: parse() refuses others, so that a typing error is never silently
// widened.
struct Prefix {
  std::array<std::uint8_t, 16> address{};
  std::uint8_t family = 4;  // 4 or 6
  std::uint8_t length = 0;  // 0..32 or 0..128

  auto operator<=>(const Prefix&) const = default;
  // "10.0.0.0/8", "2001:db8::/32", or a bare address (a host). IPv4-mapped IPv6 prefixes are
  // refused: write the IPv4.
  [[nodiscard]] static Result<Prefix> parse(std::string_view text);
  [[nodiscard]] std::string text() const;
  [[nodiscard]] bool covers(const Prefix& other) const;
  // What parse() guarantees, for a prefix that came another way (the plugin boundary).
  [[nodiscard]] Status check() const;
};

// Part of one IP protocol. "tcp/443", "udp/8000-8100", "tcp" (all ports), "icmp", "icmpv6",
// "sctp/1-10", "proto/47".
struct PortRange {
  std::uint8_t protocol = 0;
  bool any_port = true;
  std::uint16_t first = 0, last = 65535;  // host order, inclusive; unused with any_port

  auto operator<=>(const PortRange&) const = default;
  [[nodiscard]] static Result<PortRange> parse(std::string_view text);
  [[nodiscard]] std::string text() const;
  // What parse() guarantees, for a range that came another way: a protocol whose ports the programs
  // read, first <= last.
  [[nodiscard]] Status check() const;
};
// TCP, UDP, SCTP, DCCP and UDP-Lite: protocols whose destination port the kernel programs read.
[[nodiscard]] bool has_ports(std::uint8_t protocol);

// What a resolver calls a domain rule (see PolicyCache). No part of what the rule says: all compare
// equal.
struct RuleId {
  std::uint32_t value = 0;
  bool operator==(const RuleId&) const { return true; }
};

struct Rule {
  Action action = Action::deny;
  std::optional<Prefix> prefix{};  // exactly one of prefix and domain is set
  std::string domain{};            // pattern: "pypi.org", "*.pypi.org", ".pypi.org"
  std::vector<PortRange> ports{};  // empty: every protocol and port
  BootTime expires{};              // never, or the moment it ends (kernel clock)
  std::string name{};              // for reports: who or what line it came from
  // Of domain rules that allow.
  std::vector<Prefix> ranges{};        // reserved ranges whose addresses it may grant
  std::vector<std::uint16_t> types{};  // RR types let through beside A, AAAA, HTTPS and SVCB
  bool public_suffix = false;          // its pattern may cover a public suffix ("*.com")

  RuleId id{};  // in DomainRules only

  bool operator==(const Rule&) const = default;
};

// What one source says of one attachment. A source owns its layer whole.
struct Layer {
  std::optional<Mode> mode;   // not set: the source leaves the mode to others
  std::optional<bool> audit;  // likewise
  std::optional<bool> replies;
  std::vector<Rule> rules;

  bool operator==(const Layer&) const = default;
};

// Host-wide denies. See DESIGN section 4 rule 2 for what overrules them.
struct Floor {
  std::vector<Prefix> deny;
};

}  // namespace sluice
