// One table per sentence of the policy semantics, then what an image must be besides: bounded,
// deterministic, shared, small.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "policy/compiler.hpp"

#include <doctest/doctest.h>

#include <cstring>
#include <initializer_list>
#include <string>

#include "policy/explain.hpp"
#include "unit/policy/walk.hpp"

namespace sluice::test {
namespace {

constexpr std::uint64_t kNow = 1000;

Rule rule(Action action, const char* prefix, std::initializer_list<const char*> ports = {},
          std::uint64_t expires = 0) {
  Rule rule{.action = action,
            .prefix = *Prefix::parse(prefix),
            .domain = {},
            .ports = {},
            .expires = BootTime{expires},
            .name = {}};
  for (const char* text : ports) rule.ports.push_back(*PortRange::parse(text));
  return rule;
}
Rule allow(const char* prefix, std::initializer_list<const char*> ports = {},
           std::uint64_t expires = 0) {
  return rule(Action::allow, prefix, ports, expires);
}
Rule deny(const char* prefix, std::initializer_list<const char*> ports = {},
          std::uint64_t expires = 0) {
  return rule(Action::deny, prefix, ports, expires);
}

// Layers that a source wrote, and the operator's own, which may overrule the floor.
struct Policy {
  std::vector<Rule> source, second_source, operators_own;
  std::vector<const char*> floor;

  [[nodiscard]] Result<CompiledPolicy> compiled(std::uint64_t now = kNow,
                                                CompileLimits limits = {}) const {
    const std::array<Layer, 3> layers{
        Layer{.mode = {}, .audit = {}, .replies = {}, .rules = source},
        Layer{.mode = {}, .audit = {}, .replies = {}, .rules = second_source},
        Layer{.mode = {}, .audit = {}, .replies = {}, .rules = operators_own}};
    const std::array<LayerInput, 3> inputs{{{.layer = &layers[0]},
                                            {.layer = &layers[1]},
                                            {.layer = &layers[2], .overrules_floor = true}}};
    Floor denied;
    for (const char* text : floor) denied.deny.push_back(*Prefix::parse(text));
    return compile(inputs, denied, BootTime{now}, limits);
  }
};

// "10.1.2.3" and "tcp/443", "icmp", "proto/47" or "tcp/fragment" (a later one).
std::string says(const CompiledPolicy& policy, const char* address, const char* what,
                 std::uint64_t now = kNow) {
  const Prefix host = *Prefix::parse(address);
  Packet packet;
  packet.address = host.address;
  packet.family = host.family;
  std::string text = what;
  if (text.ends_with("/fragment")) {
    packet.protocol = PortRange::parse(text.substr(0, text.find('/')))->protocol;
  } else {
    const PortRange range = *PortRange::parse(text);
    packet.protocol = range.protocol;
    if (!range.any_port) packet.port = range.first;
  }
  switch (verdict(policy, packet, now)) {
    case SLUICE_LEAF_NONE:
      return "none";
    case SLUICE_LEAF_ALLOW:
      return "allow";
    case SLUICE_LEAF_DENY:
      return "deny";
    case SLUICE_LEAF_FLOOR:
      return "floor";
    default:
      return "broken";
  }
}

struct Row {
  const char* address;
  const char* packet;
  const char* verdict;
  std::uint64_t now = kNow;
};

// Each table is asked twice: of the policy alone, and among 5,000 other prefixes of each family,
// where a direct table stands for the first levels.
void check(const Policy& policy, std::initializer_list<Row> rows) {
  Policy crowded = policy;
  for (int i = 0; i < 5000; ++i) {
    crowded.source.push_back(deny(fmt::format("100.64.{}.{}", i / 250, i % 250).c_str()));
    crowded.source.push_back(deny(fmt::format("2620:0:{:x}::/48", i).c_str()));
  }
  for (const Policy* asked : {&policy, static_cast<const Policy*>(&crowded)}) {
    const auto compiled = asked->compiled();
    REQUIRE_MESSAGE(compiled, (compiled ? "" : compiled.error().message));
    CHECK((compiled->descriptor.ip4.direct_bits != 0) == (asked == &crowded));
    for (const Row& row : rows) {
      CAPTURE(row.address);
      CAPTURE(row.packet);
      CAPTURE(row.now);
      CAPTURE(compiled->descriptor.ip4.direct_bits);
      CHECK(says(*compiled, row.address, row.packet, row.now) == row.verdict);
    }
  }
}

TEST_CASE("the most specific prefix wins, whatever the action and the order of the rules") {
  for (bool reversed : {false, true}) {
    Policy policy;
    policy.source = {allow("10.0.0.0/8"),   deny("10.1.0.0/16"),    allow("10.1.1.0/24"),
                     deny("10.1.1.1"),      allow("2001:db8::/32"), deny("2001:db8:1::/48"),
                     allow("2001:db8:1::1")};
    if (reversed) std::ranges::reverse(policy.source);
    check(policy, {{"10.0.0.0", "tcp/1", "allow"},
                   {"9.255.255.255", "tcp/1", "none"},
                   {"11.0.0.0", "tcp/1", "none"},
                   {"10.0.255.255", "tcp/1", "allow"},
                   {"10.1.0.0", "tcp/1", "deny"},
                   {"10.1.255.255", "tcp/1", "deny"},
                   {"10.2.0.0", "tcp/1", "allow"},
                   {"10.1.1.0", "tcp/1", "allow"},
                   {"10.1.1.1", "tcp/1", "deny"},
                   {"10.1.1.2", "tcp/1", "allow"},
                   {"10.1.1.255", "tcp/1", "allow"},
                   {"10.1.2.0", "tcp/1", "deny"},
                   {"2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", "udp/1", "none"},
                   {"2001:db8::", "udp/1", "allow"},
                   {"2001:db8:1::", "udp/1", "deny"},
                   {"2001:db8:1::1", "udp/1", "allow"},
                   {"2001:db8:1::2", "udp/1", "deny"},
                   {"2001:db8:2::", "udp/1", "allow"},
                   {"2001:db9::", "udp/1", "none"}});
  }
}

TEST_CASE("deny wins a tie, over layers too") {
  Policy policy;
  policy.source = {deny("10.0.0.0/8"), allow("10.0.0.0/8"), allow("192.0.2.1")};
  policy.second_source = {deny("192.0.2.1"), allow("198.51.100.0/24")};
  policy.operators_own = {allow("10.0.0.0/8"), allow("192.0.2.1"), deny("198.51.100.0/24")};
  check(policy, {{"10.1.1.1", "tcp/1", "deny"},
                 {"192.0.2.1", "tcp/1", "deny"},
                 {"198.51.100.1", "tcp/1", "deny"}});
}

TEST_CASE("layers are united; the same prefix twice is fine") {
  Policy policy;
  policy.source = {allow("10.0.0.0/8", {"tcp/443"}), allow("10.0.0.0/8", {"tcp/443"})};
  policy.second_source = {allow("10.0.0.0/8", {"tcp/80"}), allow("10.0.0.0/8", {"tcp/443"})};
  check(policy, {{"10.0.0.1", "tcp/443", "allow"},
                 {"10.0.0.1", "tcp/80", "allow"},
                 {"10.0.0.1", "tcp/81", "none"}});
}

TEST_CASE(
    "a rule speaks for its ports only; what it leaves out is decided by the covering prefix") {
  Policy policy;
  policy.source = {allow("10.0.0.0/8"), deny("10.1.0.0/16", {"tcp/25", "udp/53-54"}),
                   allow("10.1.1.0/24", {"tcp/25"}), allow("192.0.2.0/24", {"tcp"})};
  check(policy, {{"10.1.2.3", "tcp/25", "deny"},
                 {"10.1.2.3", "tcp/24", "allow"},
                 {"10.1.2.3", "tcp/26", "allow"},
                 {"10.1.2.3", "udp/25", "allow"},
                 {"10.1.2.3", "udp/52", "allow"},
                 {"10.1.2.3", "udp/53", "deny"},
                 {"10.1.2.3", "udp/54", "deny"},
                 {"10.1.2.3", "udp/55", "allow"},
                 {"10.1.1.3", "tcp/25", "allow"},
                 {"10.1.1.3", "udp/53", "deny"},
                 {"10.1.1.3", "icmp", "allow"},
                 {"192.0.2.1", "tcp/0", "allow"},
                 {"192.0.2.1", "tcp/65535", "allow"},
                 {"192.0.2.1", "udp/1", "none"},
                 {"192.0.2.1", "icmp", "none"},
                 {"192.0.2.1", "proto/47", "none"}});
}

TEST_CASE("many spans, touching, overlapping, at the ends of the port range") {
  Policy policy;
  policy.source = {allow("10.0.0.0/8", {"tcp/0", "tcp/65535", "tcp/10-20", "tcp/21-30", "tcp/15-25",
                                        "tcp/40", "tcp/42", "tcp/44", "tcp/46", "udp/0-65535"})};
  check(policy, {{"10.0.0.1", "tcp/0", "allow"},
                 {"10.0.0.1", "tcp/1", "none"},
                 {"10.0.0.1", "tcp/9", "none"},
                 {"10.0.0.1", "tcp/10", "allow"},
                 {"10.0.0.1", "tcp/30", "allow"},
                 {"10.0.0.1", "tcp/31", "none"},
                 {"10.0.0.1", "tcp/40", "allow"},
                 {"10.0.0.1", "tcp/41", "none"},
                 {"10.0.0.1", "tcp/46", "allow"},
                 {"10.0.0.1", "tcp/65534", "none"},
                 {"10.0.0.1", "tcp/65535", "allow"},
                 {"10.0.0.1", "udp/0", "allow"},
                 {"10.0.0.1", "udp/65535", "allow"}});
}

TEST_CASE("a later fragment is never passed by a port rule, and is stopped by one") {
  Policy policy;
  policy.source = {allow("10.0.0.0/8", {"tcp/443"}), allow("10.1.0.0/16", {"tcp"}),
                   allow("10.2.0.0/16"), deny("10.2.1.0/24", {"tcp/25"}),
                   allow("10.3.0.0/16", {"tcp/0-65535"})};
  check(policy, {{"10.0.0.1", "tcp/fragment", "none"},
                 {"10.1.0.1", "tcp/fragment", "allow"},
                 {"10.1.0.1", "udp/fragment", "none"},
                 {"10.2.0.1", "tcp/fragment", "allow"},
                 {"10.2.1.1", "tcp/fragment", "deny"},
                 {"10.2.1.1", "udp/fragment", "allow"},
                 {"10.3.0.1", "tcp/fragment", "none"}});
}

TEST_CASE("an allow with ports does not hide a deny with ports from a later fragment") {
  Policy policy;
  policy.source = {allow("10.0.0.0/8"), deny("10.0.0.0/16", {"tcp/443"}),
                   allow("10.0.0.0/24", {"tcp/1-1000"})};
  check(policy, {{"10.0.0.1", "tcp/443", "allow"},
                 {"10.0.0.1", "tcp/fragment", "deny"},
                 {"10.0.1.1", "tcp/443", "deny"}});
}

TEST_CASE("an expired rule falls to its covering decision, at its very nanosecond") {
  Policy policy;
  policy.source = {allow("10.0.0.0/8", {}, 3000), deny("10.1.0.0/16", {}, 2000),
                   allow("10.1.1.0/24", {"tcp/443"}, 4000), deny("10.1.1.1", {}, 1500)};
  check(policy, {{"10.1.1.1", "tcp/443", "deny", 1499},
                 {"10.1.1.1", "tcp/443", "allow", 1500},
                 {"10.1.1.1", "tcp/80", "deny", 1500},
                 {"10.1.1.1", "tcp/80", "deny", 1999},
                 {"10.1.1.1", "tcp/80", "allow", 2000},
                 {"10.1.1.1", "tcp/80", "allow", 2999},
                 {"10.1.1.1", "tcp/80", "none", 3000},
                 {"10.1.1.1", "tcp/443", "allow", 3999},
                 {"10.1.1.1", "tcp/443", "none", 4000},
                 {"10.2.0.0", "tcp/80", "allow", 2999},
                 {"10.2.0.0", "tcp/80", "none", 3000}});
}

TEST_CASE("of two equal rules with different expiries the later one holds") {
  Policy policy;
  policy.source = {allow("10.0.0.0/8", {"tcp/443"}, 2000), allow("10.0.0.0/8", {"tcp/443"}, 3000),
                   allow("192.0.2.0/24", {}, 2000), allow("192.0.2.0/24")};
  check(policy, {{"10.0.0.1", "tcp/443", "allow", 2999},
                 {"10.0.0.1", "tcp/443", "none", 3000},
                 {"192.0.2.1", "tcp/443", "allow", 99999}});
}

TEST_CASE(
    "rules expired before the compilation are not in the image; next_expiry is the first to come") {
  Policy policy;
  policy.source = {allow("10.0.0.0/8", {}, kNow), allow("192.0.2.0/24", {}, kNow + 5),
                   deny("192.0.2.1", {}, kNow + 1)};
  const auto compiled = policy.compiled();
  REQUIRE(compiled);
  CHECK(says(*compiled, "10.0.0.1", "tcp/1", 0) == "none");
  CHECK(compiled->next_expiry == BootTime{kNow + 1});
  policy.source = {allow("10.0.0.0/8")};
  CHECK(policy.compiled()->next_expiry.never());
}

TEST_CASE("the floor: what overrules it and what does not") {
  Policy policy;
  policy.floor = {"169.254.0.0/16", "169.254.169.254/32", "fd00:ec2::254/128"};
  policy.source = {allow("0.0.0.0/0"),     allow("169.254.169.254"), allow("169.254.1.0/24"),
                   deny("169.254.2.0/24"), allow("169.254.2.1"),     allow("::/0"),
                   allow("fd00:ec2::254")};
  policy.operators_own = {allow("169.254.3.0/24"), allow("169.254.4.0/24", {"tcp/80"}),
                          allow("169.254.0.0/15"), allow("169.254.5.0/24", {}, 2000)};
  check(policy,
        {{"169.253.255.255", "tcp/80", "allow"},
         {"169.255.0.0", "tcp/80", "allow"},
         {"169.254.0.1", "tcp/80", "floor"},      // the operator's /15 is shorter than the floor
         {"169.254.169.254", "tcp/80", "floor"},  // a source cannot, however specific
         {"169.254.1.1", "tcp/80", "floor"},
         {"169.254.2.2", "tcp/80", "deny"},  // an explicit deny stays one
         {"169.254.2.1", "tcp/80", "deny"},  // and the allow inside it is as if it were not there
         {"169.254.3.3", "tcp/80", "allow"},
         {"169.254.4.4", "tcp/80", "allow"},
         {"169.254.4.4", "tcp/81", "floor"},
         {"169.254.5.5", "tcp/1", "allow", 1999},
         {"169.254.5.5", "tcp/1", "floor", 2000},
         {"fd00:ec2::254", "tcp/80", "floor"},
         {"fd00:ec2::255", "tcp/80", "allow"}});
}

TEST_CASE(
    "the floor at the same prefix: an operator's allow overrules it, a source's does not, a deny "
    "is said first") {
  Policy policy;
  policy.floor = {"192.0.2.1/32", "192.0.2.2/32", "192.0.2.3/32"};
  policy.source = {allow("192.0.2.1"), deny("192.0.2.3")};
  policy.operators_own = {allow("192.0.2.2")};
  check(policy, {{"192.0.2.1", "tcp/1", "floor"},
                 {"192.0.2.2", "tcp/1", "allow"},
                 {"192.0.2.3", "tcp/1", "deny"}});
}

TEST_CASE("a source's allow inside an operator's allow inside the floor: the operator's holds") {
  Policy policy;
  policy.floor = {"10.0.0.0/8"};
  policy.operators_own = {allow("10.1.0.0/16", {"tcp/443"})};
  policy.source = {allow("10.1.1.0/24")};
  check(policy, {{"10.1.1.1", "tcp/443", "allow"}, {"10.1.1.1", "tcp/80", "floor"}});
}

TEST_CASE("a floor inside a floor: only an allow as long as the longer one overrules there") {
  Policy policy;
  policy.floor = {"10.0.0.0/8", "10.1.0.0/16"};
  policy.operators_own = {allow("10.0.0.0/12"), allow("10.1.1.0/24")};
  check(policy, {{"10.0.0.1", "tcp/1", "allow"},
                 {"10.1.0.1", "tcp/1", "floor"},
                 {"10.1.1.1", "tcp/1", "allow"},
                 {"10.16.0.1", "tcp/1", "floor"}});
}

TEST_CASE(
    "neighbours that say the same under the same cover differ where only one is in the floor") {
  Policy policy;
  policy.floor = {"10.0.0.0/8"};
  policy.source = {deny("10.1.0.0/16"), allow("10.1.1.0/24", {"tcp/443"}), deny("11.0.0.0/8"),
                   allow("11.1.0.0/16", {"tcp/443"})};
  check(policy, {{"10.1.1.1", "tcp/443", "deny"}, {"11.1.0.1", "tcp/443", "allow"}});
  policy.floor = {"11.0.0.0/8"};
  check(policy, {{"10.1.1.1", "tcp/443", "allow"}, {"11.1.0.1", "tcp/443", "deny"}});
}

TEST_CASE("the edges: everything, one address, nothing") {
  Policy policy;
  check(policy, {{"0.0.0.0", "tcp/1", "none"}, {"::", "tcp/1", "none"}});
  policy.source = {deny("0.0.0.0/0")};
  check(
      policy,
      {{"0.0.0.0", "tcp/1", "deny"}, {"255.255.255.255", "icmp", "deny"}, {"::", "tcp/1", "none"}});
  policy.source = {allow("::/0")};
  check(policy, {{"0.0.0.0", "tcp/1", "none"},
                 {"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "tcp/1", "allow"}});
  policy.source = {allow("0.0.0.0"), allow("255.255.255.255"), allow("::"),
                   allow("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")};
  check(policy, {{"0.0.0.0", "tcp/1", "allow"},
                 {"0.0.0.1", "tcp/1", "none"},
                 {"255.255.255.254", "tcp/1", "none"},
                 {"255.255.255.255", "tcp/1", "allow"},
                 {"::", "tcp/1", "allow"},
                 {"::1", "tcp/1", "none"},
                 {"ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", "tcp/1", "none"},
                 {"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "tcp/1", "allow"}});
}

TEST_CASE("rules for names are left to the resolvers") {
  Policy policy;
  policy.source = {Rule{.action = Action::allow,
                        .prefix = {},
                        .domain = "pypi.org",
                        .ports = {},
                        .expires = {},
                        .name = {}}};
  const auto compiled = policy.compiled();
  REQUIRE(compiled);
  CHECK(compiled->elements.empty());
  CHECK(compiled->descriptor.ip4.root == SLUICE_NO_TRIE);
  CHECK(compiled->descriptor.ip4.leaf == SLUICE_LEAF_NONE);
}

TEST_CASE("every prefix length alone, IPv4 and IPv6: inside, and on both sides of it") {
  for (int family : {4, 6}) {
    const int bits = family == 4 ? 32 : 128;
    for (int length = 1; length <= bits; ++length) {
      CAPTURE(family);
      CAPTURE(length);
      Prefix prefix{.address = {},
                    .family = static_cast<std::uint8_t>(family),
                    .length = static_cast<std::uint8_t>(length)};
      for (int i = 0; i < length; ++i)  // 1010... so that neither neighbour wraps
        if (i % 2 == 0 || i == length - 1)
          prefix.address[static_cast<std::size_t>(i) / 8] |=
              static_cast<std::uint8_t>(0x80 >> i % 8);
      Layer layer;
      layer.rules.push_back({.action = Action::allow,
                             .prefix = prefix,
                             .domain = {},
                             .ports = {},
                             .expires = {},
                             .name = {}});
      const LayerInput input{.layer = &layer};
      const auto compiled = compile({&input, 1}, {}, BootTime{kNow});
      REQUIRE(compiled);
      Packet first;
      first.address = prefix.address;
      first.family = prefix.family;
      Packet last = first;
      for (int i = length; i < bits; ++i)
        last.address[static_cast<std::size_t>(i) / 8] |= static_cast<std::uint8_t>(0x80 >> i % 8);
      Packet before = first, after = last;
      for (int i = bits / 8; i-- > 0;)
        if (before.address[static_cast<std::size_t>(i)]-- != 0) break;
      bool wrapped = true;
      for (int i = bits / 8; i-- > 0;)
        if (++after.address[static_cast<std::size_t>(i)] != 0) {
          wrapped = false;
          break;
        }
      CHECK(verdict(*compiled, first, kNow) == SLUICE_LEAF_ALLOW);
      CHECK(verdict(*compiled, last, kNow) == SLUICE_LEAF_ALLOW);
      CHECK(verdict(*compiled, before, kNow) == SLUICE_LEAF_NONE);
      if (!wrapped) CHECK(verdict(*compiled, after, kNow) == SLUICE_LEAF_NONE);
      // A lone prefix is one element, and its lookup two steps at most.
      CHECK(compiled->elements.size() == 1);
    }
  }
}

TEST_CASE("a chain too long for the kernel is refused, by rule") {
  Policy policy;
  policy.source = {allow("10.0.0.0/8")};
  for (std::uint64_t i = 0; i < 64; ++i)
    policy.second_source.push_back(deny("192.0.2.0/24", {"tcp/1-10"}, kNow + 1 + i));
  REQUIRE(policy.compiled());  // the same ports: one decision holds longest
  policy.second_source.clear();
  for (int i = 0; i < 64; ++i)
    policy.second_source.push_back(
        deny("192.0.2.0/24", {}, kNow + 1 + static_cast<std::uint64_t>(i)));
  REQUIRE(policy.compiled());

  const auto many = [](int count) {
    std::vector<Rule> rules;
    for (int i = 0; i < count; ++i) {
      Rule rule = deny("192.0.2.0/24");
      rule.ports = {{.protocol = static_cast<std::uint8_t>(100 + i),
                     .any_port = true,
                     .first = 0,
                     .last = 65535}};
      rule.name = "row " + std::to_string(i);
      rules.push_back(rule);
    }
    return rules;
  };
  policy.second_source = many(64);
  const auto longest = policy.compiled();
  REQUIRE(longest);
  CHECK(says(*longest, "192.0.2.1", "proto/163") == "deny");  // the 64th decision is reached
  CHECK(says(*longest, "192.0.2.1", "proto/164") == "none");

  policy.second_source = many(65);
  const auto refused = policy.compiled();
  REQUIRE(!refused);
  CHECK(refused.error().code == E2BIG);
  CHECK(refused.error().item_index == 1);
  CHECK(refused.error().rule_index == 64);
  CHECK(refused.error().message.find("192.0.2.0/24") != std::string::npos);
  CHECK(refused.error().message.find("row 64") != std::string::npos);

  // The prefixes around it count too: the inner rule is at fault.
  policy.second_source = many(64);
  policy.operators_own = {deny("192.0.2.7", {"tcp/1"})};
  const auto nested = policy.compiled();
  REQUIRE(!nested);
  CHECK(nested.error().item_index == 2);
  CHECK(nested.error().rule_index == 0);
  CHECK(nested.error().message.find("192.0.2.7/32") != std::string::npos);
}

TEST_CASE("a chain written to be endless is refused, not worked through") {
  // 300,000 decisions that cannot be joined: the square of that would not end within this test.
  Policy policy;
  for (std::uint32_t i = 0; i < 300000; ++i) {
    Rule one = deny("192.0.2.0/24", {}, kNow + 1 + i);
    one.ports = {{.protocol = 6,
                  .any_port = false,
                  .first = static_cast<std::uint16_t>(i % 30000 * 2),
                  .last = static_cast<std::uint16_t>(i % 30000 * 2)}};
    policy.source.push_back(one);
  }
  CHECK(policy.compiled().error().code == E2BIG);
  // Unless none of them is ever asked.
  policy.operators_own = {deny("192.0.2.0/24")};
  CHECK(policy.compiled()->elements.size() == 1);
}

TEST_CASE("what an allow would say beyond an unconditional deny does not count against the chain") {
  Policy policy;
  for (int i = 0; i < 100; ++i) {
    Rule one = allow("192.0.2.0/24");
    one.ports = {{.protocol = static_cast<std::uint8_t>(100 + i),
                  .any_port = true,
                  .first = 0,
                  .last = 65535}};
    policy.source.push_back(one);
  }
  CHECK(!policy.compiled());
  policy.source.push_back(deny("192.0.2.0/24"));
  check(policy, {{"192.0.2.1", "proto/100", "deny"}});
}

TEST_CASE("many ports of one prefix share decisions, four spans each") {
  Policy policy;
  Rule wide = allow("10.0.0.0/8");
  for (std::uint16_t i = 0; i < 256; ++i)
    wide.ports.push_back({.protocol = 6,
                          .any_port = false,
                          .first = static_cast<std::uint16_t>(i * 10),
                          .last = static_cast<std::uint16_t>(i * 10)});
  policy.source = {wide};
  const auto compiled = policy.compiled();
  REQUIRE(compiled);
  CHECK(says(*compiled, "10.0.0.1", "tcp/2550") == "allow");
  CHECK(says(*compiled, "10.0.0.1", "tcp/2551") == "none");
  CHECK(compiled->elements.size() == 65);
  wide.ports.push_back({.protocol = 6, .any_port = false, .first = 5000, .last = 5000});
  policy.source = {wide};
  CHECK(!policy.compiled());
}

TEST_CASE("a rule at fault is named with layer, index and name") {
  Policy policy;
  policy.source = {allow("10.0.0.0/8")};
  policy.second_source = {allow("10.0.0.0/8"), allow("10.0.0.0/8")};
  policy.second_source[1].prefix->address[3] = 1;
  policy.second_source[1].name = "agents.toml:7";
  auto refused = policy.compiled();
  REQUIRE(!refused);
  CHECK(refused.error().message ==
        "layer 1, rule 1 (agents.toml:7): 10.0.0.1/8 has host bits set; write 10.0.0.0/8");
  CHECK(refused.error().item_index == 1);
  CHECK(refused.error().rule_index == 1);
  policy.second_source = {allow("10.0.0.0/8")};
  policy.second_source[0].ports = {{.protocol = 1, .any_port = false, .first = 8, .last = 8}};
  refused = policy.compiled();
  REQUIRE(!refused);
  CHECK(refused.error().rule_index == 0);
  CHECK(refused.error().message.find("IP protocol 1 has no ports") != std::string::npos);
}

TEST_CASE("an image beyond the limit is refused whole") {
  Policy policy;
  for (int i = 0; i < 100; ++i)
    policy.source.push_back(allow(fmt::format("10.{}.{}.0/24", i, i * 2).c_str()));
  CHECK(policy.compiled());
  const auto refused = policy.compiled(kNow, {.max_elements = 20});
  REQUIRE(!refused);
  CHECK(refused.error().code == ENOSPC);
}

TEST_CASE(
    "equal policies have equal images, whatever the order and the layers; different ones do not") {
  Policy a, b;
  a.source = {allow("10.0.0.0/8", {"tcp/443", "tcp/80"}), deny("10.1.0.0/16", {}, 5000),
              allow("2001:db8::/32", {"udp/53"}), deny("192.0.2.0/24", {"tcp/1", "udp/1"})};
  b.source = {deny("192.0.2.0/24", {"udp/1"}), allow("2001:db8::/32", {"udp/53"})};
  b.second_source = {deny("10.1.0.0/16", {}, 5000), allow("10.0.0.0/8", {"tcp/80"}),
                     deny("192.0.2.0/24", {"tcp/1"}), allow("10.0.0.0/8", {"tcp/443"})};
  const auto first = a.compiled(), second = b.compiled();
  REQUIRE(first);
  REQUIRE(second);
  CHECK(first->elements.size() == second->elements.size());
  CHECK(std::memcmp(first->elements.data(), second->elements.data(),
                    first->elements.size() * sizeof(sluice_element)) == 0);
  CHECK(first->descriptor.digest[0] == second->descriptor.digest[0]);
  CHECK(first->descriptor.digest[1] == second->descriptor.digest[1]);
  CHECK(first->descriptor.elements == first->elements.size());
  CHECK(first->descriptor.blob == 0);
  CHECK(first->descriptor.base == 0);
  b.source[0] = deny("192.0.2.0/24", {"udp/2"});
  CHECK(b.compiled()->descriptor.digest[0] != first->descriptor.digest[0]);
  // Without an element the tries alone tell policies apart.
  Policy none, everything;
  everything.source = {allow("0.0.0.0/0")};
  CHECK(none.compiled()->descriptor.digest[0] != everything.compiled()->descriptor.digest[0]);
}

TEST_CASE("a decision that changes nothing is not stored") {
  Policy one, nested;
  one.source = {allow("10.0.0.0/8", {"tcp/443"})};
  nested.source = one.source;
  nested.source.push_back(allow("10.1.0.0/16", {"tcp/443"}));
  nested.source.push_back(allow("10.1.1.0/24", {"tcp/443"}, 5000));
  CHECK(one.compiled()->descriptor.digest[0] == nested.compiled()->descriptor.digest[0]);
  // But it is where something stands between.
  nested.source.push_back(deny("10.1.0.0/20"));
  check(nested, {{"10.1.1.1", "tcp/443", "allow"},
                 {"10.1.1.1", "tcp/443", "deny", 5000},
                 {"10.1.2.1", "tcp/443", "deny"},
                 {"10.1.32.1", "tcp/443", "allow"}});
}

TEST_CASE("an index that leaves the image is answered with broken, never followed") {
  Policy policy;
  policy.source = {allow("10.0.0.0/8", {"tcp/443"}), deny("10.1.0.0/16", {"tcp/443"})};
  auto compiled = policy.compiled();
  REQUIRE(compiled);
  compiled->elements.clear();
  CHECK(says(*compiled, "10.0.0.1", "tcp/443") == "broken");
  compiled = policy.compiled();
  for (sluice_element& element : compiled->elements)
    if (element.node.children & SLUICE_IS_SKIP) element.skip.target = SLUICE_LEAF_DECISION + 77;
  CHECK(says(*compiled, "10.0.0.1", "tcp/443") == "broken");
}

TEST_CASE("explain names the rule that decides") {
  Layer source, own;
  source.rules = {allow("10.0.0.0/8"), deny("10.1.0.0/16", {"tcp/25"}), allow("169.254.169.254")};
  own.rules = {allow("10.1.0.0/16", {"tcp/25"}), allow("10.2.0.0/16", {}, 2000)};
  own.rules[0].name = "agents.toml:3";
  const std::array<LayerInput, 2> layers{
      {{.layer = &source}, {.layer = &own, .overrules_floor = true}}};
  const Floor floor{.deny = {*Prefix::parse("192.0.2.1"), *Prefix::parse("169.254.169.254/32")}};
  const auto ask = [&](const char* address, std::optional<std::uint16_t> port,
                       std::uint64_t now = kNow) {
    return explain(
        layers, floor,
        {.address = Prefix::parse(address)->address, .family = 4, .protocol = 6, .port = port},
        BootTime{now});
  };
  using Verdict = Explanation::Verdict;
  CHECK(ask("10.1.1.1", 25).verdict == Verdict::deny);
  CHECK(ask("10.1.1.1", 25).layer == 0);
  CHECK(ask("10.1.1.1", 25).rule == 1);
  CHECK(ask("10.1.1.1", 26).verdict == Verdict::allow);
  CHECK(ask("10.1.1.1", 26).rule == 0);
  CHECK(ask("10.1.1.1", {}).verdict == Verdict::deny);
  CHECK(ask("10.2.1.1", 1).layer == 1);
  CHECK(ask("10.2.1.1", 1).rule == 1);
  CHECK(ask("10.2.1.1", 1, 2000).layer == 0);
  CHECK(ask("169.254.169.254", 80).verdict == Verdict::floor);
  CHECK(ask("169.254.169.254", 80).floor == 1);
  CHECK(ask("11.0.0.0", 80).verdict == Verdict::none);
  CHECK(describe(own.rules[0]) == "allow 10.1.0.0/16 tcp/25 (agents.toml:3)");
}

}  // namespace
}  // namespace sluice::test
