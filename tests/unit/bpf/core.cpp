// The parser and the decision core in user space, where a test run in the kernel cannot go: packets
// shorter than their fixed header, packets over 64 KiB, options a byte at a time.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "unit/bpf/core.hpp"

#include <doctest/doctest.h>

#include "checksum.h"
#include "packet/verdicts/packets.hpp"
#include "packet/verdicts/verdict_names.hpp"

using namespace sluice;
using namespace sluice::test;

namespace {

struct Stage {
  Layer layer;
  CompiledPolicy policy;
  Core core;

  explicit Stage(std::initializer_list<const char*> prefixes) {
    for (const char* text : prefixes) {
      Rule rule;
      rule.action = Action::allow;
      rule.prefix = Prefix::parse(text).value();
      layer.rules.push_back(rule);
    }
    const LayerInput input{&layer, false};
    policy = compile(std::span(&input, 1), Floor{}, BootTime{1}).value();
    core.tables.now = 1'000'000'000'000;
    core.use(policy, SLUICE_MODE_ALLOWLIST, SLUICE_FLAG_REPLIES | SLUICE_FLAG_ND);
  }
  std::string_view of(const Bytes& packet) {
    return reason_name(core.judge(packet.at(0) >> 4 == 6 ? kIp6Type : kIp4Type, packet));
  }
};

}  // namespace

TEST_CASE("nothing shorter than a fixed header is read") {
  Stage stage{"0.0.0.0/0", "::/0"};
  const Bytes four = ip4("192.0.2.2", "198.51.100.7", 17, udp(1, 2)),
              six = ip6("2001:db8::2", "2001:db8:a::7", 17, udp(1, 2));
  CHECK(stage.of(four) == "ALLOW_RULE");
  CHECK(stage.of(six) == "ALLOW_RULE");
  for (std::size_t size = 1; size < four.size(); ++size)
    CHECK(stage.of(head(four, size)) == "DENY_TRUNCATED");
  for (std::size_t size = 1; size < six.size(); ++size)
    CHECK(stage.of(head(six, size)) == "DENY_TRUNCATED");
  CHECK(reason_name(stage.core.judge(kIp4Type, {})) == "DENY_TRUNCATED");
  CHECK(reason_name(stage.core.judge(kIp6Type, {})) == "DENY_TRUNCATED");
}

TEST_CASE("a length of zero is read as the packet's own only over 64 KiB (BIG TCP)") {
  Stage stage{"198.51.100.0/24", "2001:db8:a::/48"};
  const Bytes syn = tcp(40000, 443);
  const auto four = [&](std::size_t payload) {
    return ip4("192.0.2.2", "198.51.100.7", 6, syn + zeros(payload), {.total = 0});
  };
  const auto six = [&](std::size_t payload) {
    return ip6("2001:db8::2", "2001:db8:a::7", 6, syn + zeros(payload), {.payload_length = 0});
  };
  CHECK(stage.of(four(65535 - 40)) == "DENY_MALFORMED");
  CHECK(stage.of(four(65536 - 40)) == "ALLOW_RULE");
  CHECK(stage.of(six(65535 - 60)) == "DENY_TRUNCATED");
  CHECK(stage.of(six(65536 - 60)) == "ALLOW_RULE");
}

TEST_CASE("a source route is found at every place among the options, and nowhere else") {
  Stage stage{"0.0.0.0/0"};
  for (std::size_t at = 0; at < 37; ++at) {
    CAPTURE(at);
    for (const std::uint8_t type : {131, 137}) {
      Bytes options(40, 1);
      options[at] = type, options[at + 1] = 3, options[at + 2] = 4;
      const auto packet = ip4("192.0.2.2", "198.51.100.7", 17, udp(1, 2), {.options = options});
      CHECK(stage.of(packet) == "DENY_SOURCE_ROUTE");
      // The same byte as the contents of another option.
      options[at] = 7, options[at + 1] = 3, options[at + 2] = type;
      CHECK(stage.of(ip4("192.0.2.2", "198.51.100.7", 17, udp(1, 2), {.options = options})) ==
            "ALLOW_RULE");
    }
  }
}

TEST_CASE("what was parsed is what the packet says") {
  Stage stage{"198.51.100.0/24", "2001:db8:a::/48"};
  CHECK(stage.of(ip4("192.0.2.2", "198.51.100.7", 6, tcp(40000, 443, kAck),
                     {.ttl = 9, .options = Bytes(8, 1)})) == "ALLOW_RULE");
  const sluice_facts& facts = stage.core.facts;
  CHECK(facts.family == 4);
  CHECK(facts.protocol == 6);
  CHECK(facts.hop_limit == 9);
  CHECK(facts.source_port == 40000);
  CHECK(facts.destination_port == 443);
  CHECK(facts.tcp_flags == kAck);
  CHECK(facts.transport_offset == 28);
  CHECK(facts.flags == SLUICE_FACT_PORTS);
  CHECK(std::memcmp(facts.destination, mapped("198.51.100.7").data(), 16) == 0);
  CHECK(stage.of(ip6("2001:db8::2", "2001:db8:a::7", 44,
                     fragment_header(58, 0, true) + icmp(128, 3, 0x1234))) == "ALLOW_RULE");
  CHECK(facts.family == 6);
  CHECK(facts.protocol == 58);
  CHECK(facts.icmp_type == 128);
  CHECK(facts.icmp_code == 3);
  CHECK(facts.icmp_id == 0x1234);
  CHECK(facts.transport_offset == 48);
  CHECK(facts.flags == SLUICE_FACT_FRAGMENT);
  CHECK(std::memcmp(facts.source, mapped("2001:db8::2").data(), 16) == 0);
}

TEST_CASE("a checksum may be filled in at the judged header's own field, or beyond all of it") {
  struct Transport {
    std::uint8_t protocol;
    int size;
    std::uint32_t field;
  };
  for (const Transport& one : {Transport{6, 20, 16},  // TCP
                               {17, 8, 6},            // UDP
                               {136, 8, 6},           // UDP-Lite
                               {33, 12, 6},           // DCCP
                               {1, 8, 2},             // ICMP
                               {58, 8, 2},            // ICMPv6
                               {132, 12, 8},          // SCTP
                               {47, 0, 0}})           // GRE: its header is not judged
    for (const int transport : {20, 40, 48}) {
      sluice_facts facts{};
      facts.protocol = one.protocol;
      facts.transport_offset = static_cast<std::uint32_t>(transport);
      CAPTURE(one.protocol);
      for (int start = -transport - 14; start < transport + 60; ++start)
        for (std::uint32_t offset = 0; offset < 60; ++offset) {
          const bool own = one.size != 0 && start == transport && offset == one.field;
          const bool beyond = start >= transport + one.size;
          REQUIRE((sluice_checksum_spares(&facts, start, offset) != 0) == (own || beyond));
        }
      // Of a later fragment the headers end where its part of the payload begins.
      facts.flags = SLUICE_FACT_FRAGMENT | SLUICE_FACT_LATER_FRAGMENT;
      CHECK(sluice_checksum_spares(&facts, transport, one.field));
      CHECK(!sluice_checksum_spares(&facts, transport - 1, one.field + 1));
    }
  const sluice_facts unread{};  // another EtherType
  CHECK(sluice_checksum_spares(&unread, 0, 0));
  CHECK(!sluice_checksum_spares(&unread, -14, 14));
}

TEST_CASE("TCP's two hours: a flow from outside lives until then, and not longer") {
  Stage stage{"198.51.100.0/24"};
  const auto four = mapped("192.0.2.2"), far = mapped("203.0.113.50");
  stage.core.tables.now = 100'000'000'000'000;
  stage.core.inbound(6, four, 80, far, 5000);
  const Bytes segment = ip4("192.0.2.2", "203.0.113.50", 6, tcp(80, 5000, kAck));
  // Each reply refreshes it, so each question is asked of a flow as it was.
  const auto after = [&](std::uint64_t seconds) {
    auto flows = stage.core.tables.flows;
    const std::uint64_t then = stage.core.tables.now;
    stage.core.tables.now += seconds * 1'000'000'000;
    const auto reason = stage.of(segment);
    stage.core.tables.now = then;
    stage.core.tables.flows = flows;
    return reason;
  };
  CHECK(after(0) == "ALLOW_REPLY");
  CHECK(after(7200) == "ALLOW_REPLY");
  CHECK(after(7201) == "DENY_MODE");
}

TEST_CASE("of a cgroup, a reply leaves by the device that its flow came in by") {
  const auto leaves = [](std::uint32_t came_by, std::uint32_t by, std::uint8_t protocol) {
    sluice_flow flow{};
    flow.ifindex = came_by;
    sluice_facts facts{};
    facts.ifindex = by;
    facts.protocol = protocol;
    return sluice_leaves_as_it_came(&flow, &facts) != 0;
  };
  for (const std::uint8_t protocol : {1, 6, 17, 58}) {
    CAPTURE(protocol);
    CHECK(leaves(2, 2, protocol));
    CHECK_FALSE(leaves(1, 2, protocol));
    CHECK(leaves(0, 0, protocol));  // an interface's: tc_to has asked for the way back
    CHECK(leaves(0, 2, protocol) == (protocol == 6));  // noted by an earlier release
  }
}

TEST_CASE("an address whose entry becomes another's while a packet reads it opens nothing") {
  Stage stage{};
  const std::uint64_t now = stage.core.tables.now, later = now + 3600'000'000'000;
  sluice_port_set web{};
  web.spans = 1;
  web.span[0] = {.protocol = 6, .any_port = 0, .ports = {443, 443}};
  stage.core.tables.port_sets.push_back(web);
  const auto key_of = [&](const char* text) {
    sluice_learned_key key{};
    key.scope = stage.core.slot.scope;
    std::memcpy(key.address, mapped(text).data(), 16);
    return key;
  };
  for (const auto& [one, other] :
       {std::pair{"203.0.113.20", "203.0.113.21"}, std::pair{"2001:db8:b::20", "2001:db8:b::21"}}) {
    CAPTURE(one);
    const bool six = std::string_view(one).contains(':');
    const Bytes syn = six ? ip6("2001:db8::2", one, 6, tcp(40000, 443))
                          : ip4("192.0.2.2", one, 6, tcp(40000, 443));
    const auto key = key_of(one), next = key_of(other);
    sluice_learned entry{};
    entry.port_set = 1;
    entry.active_until = entry.grace_until = later;
    stage.core.learn(key, entry);
    CHECK(stage.of(syn) == "ALLOW_LEARNED");
    // It has ended; the other address's has not.
    entry.active_until = entry.grace_until = now - 1;
    stage.core.learn(key, entry);
    CHECK(stage.of(syn) == "DENY_MODE");
    auto& memory = stage.core.tables.learned[bytes_of(key)];
    stage.core.tables.on_port_set = [&] {
      memory.check = sluice_learned_key_check(&next);
      memory.active_until = memory.grace_until = later;
    };
    CHECK(stage.of(syn) == "DENY_MODE");
    stage.core.tables.on_port_set = nullptr;
  }
}

TEST_CASE("an image that contradicts itself drops") {
  Stage stage{"198.51.100.0/24"};
  const Bytes packet = ip4("192.0.2.2", "198.51.100.7", 17, udp(1, 2));
  REQUIRE(stage.of(packet) == "ALLOW_RULE");
  stage.core.tables.elements = {};
  stage.core.tables.policy.ip4.root = 3;
  stage.core.tables.policy.ip4.direct_bits = 0;
  CHECK(stage.of(packet) == "DENY_INTERNAL");
}
