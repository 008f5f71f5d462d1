// What a frame and its headers must look like before a policy is asked: everything that cannot be
// read, contradicts itself or takes another way than the one judged is dropped, by its own reason.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "packet/verdicts/gate.hpp"

using namespace sluice;
using namespace sluice::test;

namespace {

const std::string kFrom4 = "192.0.2.2", kFrom6 = "2001:db8::2";
const std::string kAny4 = "198.51.100.7", kAny6 = "2001:db8:a::7";     // every protocol and port
const std::string kPort4 = "203.0.113.10", kPort6 = "2001:db8:b::10";  // tcp/443, udp/53
const std::string kNone4 = "192.0.2.77", kNone6 = "2001:db8:c::1";

std::vector<Rule> rules() {
  return {allowing("198.51.100.0/24"),
          allowing("2001:db8:a::/48"),
          allowing("203.0.113.10/32", {"tcp/443", "udp/53"}),
          allowing("2001:db8:b::10/128", {"tcp/443", "udp/53"}),
          denying("198.51.100.99/32", {"tcp/25"}),
          denying("2001:db8:a::99/128", {"tcp/25"})};
}

Bytes to4(const std::string& to, std::uint8_t protocol, const Bytes& payload,
          const Ip4& with = {}) {
  return framed(ip4(kFrom4, to, protocol, payload, with));
}
Bytes to6(const std::string& to, std::uint8_t next, const Bytes& payload, const Ip6& with = {}) {
  return framed(ip6(kFrom6, to, next, payload, with));
}
Ip4 fragment(std::uint16_t offset_units, bool more) {
  Ip4 with;
  with.fragment = static_cast<std::uint16_t>(offset_units | (more ? 0x2000 : 0));
  return with;
}
Ip4 options(const Bytes& bytes) {
  Ip4 with;
  with.options = bytes;
  return with;
}
// Options whose only interesting part stands first.
Bytes padded(Bytes bytes, std::size_t size) {
  bytes.resize(size, 1);
  return bytes;
}

}  // namespace

TEST_CASE("link layer: IPv4, IPv6 and ARP are read, everything else needs to be allowed") {
  Gate gate;
  const Bytes packet4 = ip4(kFrom4, kAny4, 6, tcp(40000, 80));
  const Bytes packet6 = ip6(kFrom6, kAny6, 6, tcp(40000, 80));
  const Bytes tag5 = be16(5), tag0 = be16(0);
  gate.publish(rules());
  gate.check({
      {"IPv4", ethernet(kIp4Type, packet4), SLUICE_REASON_ALLOW_RULE},
      {"IPv6", ethernet(kIp6Type, packet6), SLUICE_REASON_ALLOW_RULE},
      {"IPv4 under the EtherType of IPv6", ethernet(kIp6Type, packet4 + zeros(20)),
       SLUICE_REASON_DENY_MALFORMED},
      {"IPv6 under the EtherType of IPv4", ethernet(kIp4Type, packet6),
       SLUICE_REASON_DENY_MALFORMED},
      {"LLDP", ethernet(0x88cc, zeros(46)), SLUICE_REASON_DENY_ETHERTYPE},
      {"PPPoE around IPv4", ethernet(0x8864, packet4), SLUICE_REASON_DENY_ETHERTYPE},
      {"MPLS around IPv4", ethernet(0x8847, packet4), SLUICE_REASON_DENY_ETHERTYPE},
      {"802.3 length and LLC", ethernet(0x0026, zeros(46)), SLUICE_REASON_DENY_ETHERTYPE},
      {"a jumbo length field", ethernet(0x05dc, packet4), SLUICE_REASON_DENY_ETHERTYPE},
      {"EtherType 0xffff", ethernet(0xffff, packet4), SLUICE_REASON_DENY_ETHERTYPE},
      {"RARP", ethernet(0x8035, arp()), SLUICE_REASON_DENY_ETHERTYPE},
      {"a VLAN tag left in the frame", ethernet(kVlanType, tag5 + be16(kIp4Type) + packet4),
       SLUICE_REASON_DENY_VLAN},
      {"a priority tag left in the frame", ethernet(kVlanType, tag0 + be16(kIp4Type) + packet4),
       SLUICE_REASON_DENY_VLAN},
      {"QinQ left in the frame", ethernet(kQinQType, tag5 + be16(kIp4Type) + packet4),
       SLUICE_REASON_DENY_VLAN},
  });
  AttachmentOptions options = plain();
  options.ethertypes = {0x88cc, 0x8864};
  gate.publish(rules(), Mode::allowlist, options);
  gate.check({
      {"LLDP, allowed", ethernet(0x88cc, zeros(46)), SLUICE_REASON_ALLOW_RULE},
      {"PPPoE, allowed", ethernet(0x8864, packet4), SLUICE_REASON_ALLOW_RULE},
      {"another one", ethernet(0x8847, packet4), SLUICE_REASON_DENY_ETHERTYPE},
      {"IPv4 is judged all the same", to4(kNone4, 6, tcp(40000, 80)), SLUICE_REASON_DENY_MODE},
  });
  gate.publish(rules(), Mode::block_all, options);
  gate.check(
      {{"block-all lets nothing by", ethernet(0x88cc, zeros(46)), SLUICE_REASON_DENY_BLOCK_ALL},
       {"nor IPv4", ethernet(kIp4Type, packet4), SLUICE_REASON_DENY_BLOCK_ALL},
       {"nor ARP", ethernet(kArpType, arp()), SLUICE_REASON_DENY_BLOCK_ALL}});
  gate.publish(rules(), Mode::denylist);
  gate.check({{"a denylist lets no EtherType by that it cannot read", ethernet(0x88cc, zeros(46)),
               SLUICE_REASON_DENY_ETHERTYPE},
              {"nor a tag", ethernet(kVlanType, tag5 + be16(kIp4Type) + packet4),
               SLUICE_REASON_DENY_VLAN}});
}

TEST_CASE("IPv4 headers") {
  Gate gate;
  gate.publish(rules());
  const Bytes syn = tcp(40000, 443), query = udp(40000, 53);
  Ip4 version5, words4, words6, total_long, total_short, total_zero, total_padding;
  version5.version = 5;
  words4.header_words = 4;
  words6.header_words = 15;
  total_long.total = 60;
  total_short.total = 19;
  total_zero.total = 0;
  gate.check({
      {"TCP to an allowed network", to4(kAny4, 6, syn), SLUICE_REASON_ALLOW_RULE},
      {"TCP to one that is not", to4(kNone4, 6, syn), SLUICE_REASON_DENY_MODE},
      {"UDP to an allowed port", to4(kPort4, 17, query), SLUICE_REASON_ALLOW_RULE},
      {"UDP to another port", to4(kPort4, 17, udp(40000, 54)), SLUICE_REASON_DENY_MODE},
      {"a protocol nobody knows, by a rule for all", to4(kAny4, 253, zeros(1)),
       SLUICE_REASON_ALLOW_RULE},
      {"a protocol nobody knows, by a rule with ports", to4(kPort4, 253, syn),
       SLUICE_REASON_DENY_MODE},
      {"ESP does not match tcp/443 whatever its bytes say", to4(kPort4, 50, syn),
       SLUICE_REASON_DENY_MODE},
      {"AH does not match tcp/443", to4(kPort4, 51, authentication_header(6) + syn),
       SLUICE_REASON_DENY_MODE},
      {"AH by a rule for all", to4(kAny4, 51, authentication_header(6) + syn),
       SLUICE_REASON_ALLOW_RULE},
      {"IP in IP does not match tcp/443", to4(kPort4, 4, ip4(kFrom4, kPort4, 6, syn)),
       SLUICE_REASON_DENY_MODE},
      {"version 5", framed(ip4(kFrom4, kAny4, 6, syn, version5)), SLUICE_REASON_DENY_MALFORMED},
      {"a header of 16 bytes", to4(kAny4, 6, syn, words4), SLUICE_REASON_DENY_MALFORMED},
      {"a header longer than the packet", to4(kAny4, 6, syn, words6), SLUICE_REASON_DENY_MALFORMED},
      {"a total length beyond the frame", to4(kAny4, 6, syn, total_long),
       SLUICE_REASON_DENY_TRUNCATED},
      {"a total length below the header", to4(kAny4, 6, syn, total_short),
       SLUICE_REASON_DENY_MALFORMED},
      {"a total length of zero", to4(kAny4, 6, syn, total_zero), SLUICE_REASON_DENY_MALFORMED},
      {"padding behind the packet", to4(kPort4, 6, syn) + zeros(6), SLUICE_REASON_ALLOW_RULE},
      {"padding does not complete a TCP header", to4(kAny4, 6, head(syn, 16)) + zeros(10),
       SLUICE_REASON_DENY_TRUNCATED},
      {"a TCP header of 16 bytes by its own account",
       to4(kAny4, 6, head(syn, 12) + Bytes{0x40} + slice(syn, 13, 7)),
       SLUICE_REASON_DENY_MALFORMED},
      {"TCP options beyond the packet",
       to4(kAny4, 6, head(syn, 12) + Bytes{0x60} + slice(syn, 13, 7)),
       SLUICE_REASON_DENY_MALFORMED},
      {"UDP of 7 bytes", to4(kAny4, 17, head(query, 7)), SLUICE_REASON_DENY_TRUNCATED},
      {"ICMP of 7 bytes", to4(kAny4, 1, head(icmp(8), 7)), SLUICE_REASON_DENY_TRUNCATED},
      {"SCTP of 11 bytes", to4(kAny4, 132, zeros(11)), SLUICE_REASON_DENY_TRUNCATED},
      {"DCCP of 11 bytes", to4(kAny4, 33, zeros(11)), SLUICE_REASON_DENY_TRUNCATED},
      {"UDP-Lite of 7 bytes", to4(kAny4, 136, zeros(7)), SLUICE_REASON_DENY_TRUNCATED},
      {"SCTP, whole", to4(kAny4, 132, zeros(12)), SLUICE_REASON_ALLOW_RULE},
  });
}

TEST_CASE("IPv4 options: source routes and what cannot be read are dropped") {
  Gate gate;
  gate.publish(rules());
  const Bytes syn = tcp(40000, 443);
  const Bytes route = Bytes{7, 4} + address("192.0.2.77");
  for (const std::uint8_t type : {131, 137}) {
    CAPTURE(static_cast<int>(type));
    gate.check({
        {"first", to4(kAny4, 6, syn, options(padded(Bytes{type} + route, 8))),
         SLUICE_REASON_DENY_SOURCE_ROUTE},
        {"behind no-operation",
         to4(kAny4, 6, syn, options(padded(Bytes{1, 1, 1, type} + route, 12))),
         SLUICE_REASON_DENY_SOURCE_ROUTE},
        {"behind a timestamp",
         to4(kAny4, 6, syn, options(padded(Bytes{68, 4, 5, 0, type} + route, 12))),
         SLUICE_REASON_DENY_SOURCE_ROUTE},
        {"as the last byte", to4(kAny4, 6, syn, options(Bytes{1, 1, 1, type})),
         SLUICE_REASON_DENY_SOURCE_ROUTE},
        {"at the end of the longest header",
         to4(kAny4, 6, syn, options(Bytes(33, 1) + Bytes{type} + route)),
         SLUICE_REASON_DENY_SOURCE_ROUTE},
        {"in a later fragment",
         [&] {
           Ip4 with = fragment(100, false);
           with.options = padded(Bytes{type} + route, 8);
           return to4(kAny4, 6, zeros(16), with);
         }(),
         SLUICE_REASON_DENY_SOURCE_ROUTE},
        {"inside the bytes of another option it is not one",
         to4(kAny4, 6, syn, options(Bytes{68, 8, type, 7, type, 0, 0, 0})),
         SLUICE_REASON_ALLOW_RULE},
        {"behind the end of options it is not one",
         to4(kAny4, 6, syn, options(Bytes{0, type, 7, 4})), SLUICE_REASON_ALLOW_RULE},
    });
  }
  gate.check({
      {"record route is no source route, and ports are found behind it",
       to4(kPort4, 6, syn, options(padded(Bytes{7, 7, 4, 0, 0, 0, 0}, 8))),
       SLUICE_REASON_ALLOW_RULE},
      {"another port behind options",
       to4(kPort4, 6, tcp(40000, 444), options(padded(Bytes{7, 7, 4, 0, 0, 0, 0}, 8))),
       SLUICE_REASON_DENY_MODE},
      {"router alert", to4(kAny4, 6, syn, options({148, 4, 0, 0})), SLUICE_REASON_ALLOW_RULE},
      {"40 bytes of no-operation", to4(kPort4, 6, syn, options(Bytes(40, 1))),
       SLUICE_REASON_ALLOW_RULE},
      {"length 0", to4(kAny4, 6, syn, options({7, 0, 0, 0})), SLUICE_REASON_DENY_MALFORMED},
      {"length 1", to4(kAny4, 6, syn, options({7, 1, 0, 0})), SLUICE_REASON_DENY_MALFORMED},
      {"length beyond the header", to4(kAny4, 6, syn, options({7, 5, 4, 0})),
       SLUICE_REASON_DENY_MALFORMED},
      {"a type without a length", to4(kAny4, 6, syn, options({1, 1, 1, 7})),
       SLUICE_REASON_DENY_MALFORMED},
      {"options that hide a TCP header too short",
       to4(kAny4, 6, head(syn, 19), options({1, 1, 1, 1})), SLUICE_REASON_DENY_TRUNCATED},
  });
}

TEST_CASE("IPv4 fragments: a later one is never passed by a port rule") {
  Gate gate;
  gate.publish(rules());
  const Bytes syn = tcp(40000, 443), query = udp(40000, 53);
  gate.check({
      {"the first, with its ports", to4(kPort4, 6, syn + zeros(4), fragment(0, true)),
       SLUICE_REASON_ALLOW_RULE},
      {"the first, to another port", to4(kPort4, 6, tcp(1, 444) + zeros(4), fragment(0, true)),
       SLUICE_REASON_DENY_MODE},
      {"a tiny first one, TCP", to4(kAny4, 6, head(syn, 16), fragment(0, true)),
       SLUICE_REASON_DENY_TRUNCATED},
      {"a tiny first one, UDP", to4(kAny4, 17, head(query, 4), fragment(0, true)),
       SLUICE_REASON_DENY_TRUNCATED},
      {"TCP options may lie in the next fragment",
       to4(kPort4, 6, head(syn, 12) + Bytes{0x80} + slice(syn, 13, 7), fragment(0, true)),
       SLUICE_REASON_ALLOW_RULE},
      {"TCP at offset 1 rewrites flags (RFC 3128)", to4(kAny4, 6, zeros(24), fragment(1, true)),
       SLUICE_REASON_DENY_FRAGMENT},
      {"UDP at offset 1 by a rule for all", to4(kAny4, 17, zeros(24), fragment(1, false)),
       SLUICE_REASON_ALLOW_RULE},
      {"a later one by a rule for all", to4(kAny4, 6, zeros(24), fragment(3, false)),
       SLUICE_REASON_ALLOW_RULE},
      {"a later one by a port rule", to4(kPort4, 17, query, fragment(3, true)),
       SLUICE_REASON_DENY_FRAGMENT},
      {"the last one by a port rule", to4(kPort4, 6, syn, fragment(3, false)),
       SLUICE_REASON_DENY_FRAGMENT},
      {"a later one against a deny with ports",
       to4("198.51.100.99", 6, zeros(24), fragment(3, false)), SLUICE_REASON_DENY_RULE},
      {"of another protocol, that deny does not speak",
       to4("198.51.100.99", 17, zeros(24), fragment(3, false)), SLUICE_REASON_ALLOW_RULE},
      {"a later one of nothing", to4(kAny4, 17, {}, fragment(8, false)), SLUICE_REASON_ALLOW_RULE},
      {"don't fragment is no fragment",
       [&] {
         Ip4 with;
         with.fragment = 0x4000;
         return to4(kPort4, 6, syn, with);
       }(),
       SLUICE_REASON_ALLOW_RULE},
      {"the reserved bit is no fragment",
       [&] {
         Ip4 with;
         with.fragment = 0x8000;
         return to4(kPort4, 6, syn, with);
       }(),
       SLUICE_REASON_ALLOW_RULE},
  });
}

TEST_CASE("IPv6 headers") {
  Gate gate;
  gate.publish(rules());
  const Bytes syn = tcp(40000, 443), query = udp(40000, 53);
  Ip6 version4, version5, longer, shorter, nothing;
  version4.version = 4;
  version5.version = 5;
  longer.payload_length = 21;
  shorter.payload_length = 19;
  nothing.payload_length = 0;
  gate.check({
      {"TCP to an allowed network", to6(kAny6, 6, syn), SLUICE_REASON_ALLOW_RULE},
      {"TCP to one that is not", to6(kNone6, 6, syn), SLUICE_REASON_DENY_MODE},
      {"UDP to an allowed port", to6(kPort6, 17, query), SLUICE_REASON_ALLOW_RULE},
      {"UDP to another port", to6(kPort6, 17, udp(40000, 54)), SLUICE_REASON_DENY_MODE},
      {"ESP by a rule for all", to6(kAny6, 50, zeros(24)), SLUICE_REASON_ALLOW_RULE},
      {"ESP does not match tcp/443", to6(kPort6, 50, syn), SLUICE_REASON_DENY_MODE},
      {"no next header, by a rule for all", to6(kAny6, 59, {}), SLUICE_REASON_ALLOW_RULE},
      {"no next header, by a rule with ports", to6(kPort6, 59, syn), SLUICE_REASON_DENY_MODE},
      {"IPv4 in IPv6 does not match tcp/443", to6(kPort6, 4, ip4(kFrom4, kPort4, 6, syn)),
       SLUICE_REASON_DENY_MODE},
      {"version 4", ethernet(kIp6Type, ip6(kFrom6, kAny6, 6, syn, version4)),
       SLUICE_REASON_DENY_MALFORMED},
      {"version 5", ethernet(kIp6Type, ip6(kFrom6, kAny6, 6, syn, version5)),
       SLUICE_REASON_DENY_MALFORMED},
      {"a payload length beyond the frame", to6(kAny6, 6, syn, longer),
       SLUICE_REASON_DENY_TRUNCATED},
      {"a payload length that cuts the TCP header", to6(kAny6, 6, syn, shorter),
       SLUICE_REASON_DENY_TRUNCATED},
      {"a payload length of zero in a small packet", to6(kAny6, 6, syn, nothing),
       SLUICE_REASON_DENY_TRUNCATED},
      {"a jumbo payload option in a small packet",
       to6(kAny6, 0, Bytes{6, 0, 0xc2, 4} + be32(28) + syn, nothing), SLUICE_REASON_DENY_TRUNCATED},
      {"a mapped destination on the wire", framed(ip6(kFrom6, "::ffff:198.51.100.7", 6, syn)),
       SLUICE_REASON_DENY_MAPPED},
      {"a mapped source on the wire", framed(ip6("::ffff:192.0.2.2", kAny6, 6, syn)),
       SLUICE_REASON_DENY_MAPPED},
      {"UDP of 7 bytes", to6(kAny6, 17, head(query, 7)), SLUICE_REASON_DENY_TRUNCATED},
      {"ICMPv6 of 7 bytes", to6(kAny6, 58, head(icmp(128), 7)), SLUICE_REASON_DENY_TRUNCATED},
  });
  gate.publish({allowing("::/0"), allowing("0.0.0.0/0")});
  gate.check({{"mapped, even where everything is allowed",
               framed(ip6(kFrom6, "::ffff:198.51.100.7", 6, syn)), SLUICE_REASON_DENY_MAPPED}});
}

TEST_CASE("IPv6 extension headers: the walk finds the ports, is bounded, and never widens") {
  Gate gate;
  gate.publish(rules());
  const Bytes syn = tcp(40000, 443), other = tcp(40000, 444);
  Bytes eight, nine;
  for (int i = 0; i < 8; ++i) eight = eight + options_header(i == 7 ? 6 : 60);
  for (int i = 0; i < 9; ++i) nine = nine + options_header(i == 8 ? 6 : 60);
  gate.check({
      {"hop-by-hop", to6(kPort6, 0, options_header(6) + syn), SLUICE_REASON_ALLOW_RULE},
      {"hop-by-hop, another port", to6(kPort6, 0, options_header(6) + other),
       SLUICE_REASON_DENY_MODE},
      {"destination options", to6(kPort6, 60, options_header(6) + syn), SLUICE_REASON_ALLOW_RULE},
      {"hop-by-hop, destination options, routing done, destination options",
       to6(kPort6, 0,
           options_header(60) + options_header(43) + routing_header(60, 0) + options_header(6) +
               syn),
       SLUICE_REASON_ALLOW_RULE},
      {"hop-by-hop only at the front", to6(kAny6, 60, options_header(0) + options_header(6) + syn),
       SLUICE_REASON_DENY_EXTENSION},
      {"hop-by-hop twice", to6(kAny6, 0, options_header(0) + options_header(6) + syn),
       SLUICE_REASON_DENY_EXTENSION},
      {"AH, its length in words of four", to6(kPort6, 51, authentication_header(6) + syn),
       SLUICE_REASON_ALLOW_RULE},
      {"AH, another port", to6(kPort6, 51, authentication_header(6) + other),
       SLUICE_REASON_DENY_MODE},
      {"AH shorter than its fixed part", to6(kAny6, 51, Bytes{6, 0} + zeros(10) + syn),
       SLUICE_REASON_DENY_MALFORMED},
      {"AH around ESP", to6(kPort6, 51, authentication_header(50) + syn), SLUICE_REASON_DENY_MODE},
      {"a routing header with segments left, type 0", to6(kAny6, 43, routing_header(6, 1) + syn),
       SLUICE_REASON_DENY_SOURCE_ROUTE},
      {"type 2 (mobile IP)", to6(kAny6, 43, routing_header(6, 1, 2) + syn),
       SLUICE_REASON_DENY_SOURCE_ROUTE},
      {"type 4 (segment routing)", to6(kAny6, 43, routing_header(6, 2, 4) + syn),
       SLUICE_REASON_DENY_SOURCE_ROUTE},
      {"behind other headers",
       to6(kAny6, 0, options_header(60) + options_header(43) + routing_header(6, 1) + syn),
       SLUICE_REASON_DENY_SOURCE_ROUTE},
      {"behind a fragment header",
       to6(kAny6, 44, fragment_header(43, 0, true) + routing_header(6, 1) + syn),
       SLUICE_REASON_DENY_SOURCE_ROUTE},
      {"mobility", to6(kAny6, 135, options_header(6) + syn), SLUICE_REASON_DENY_EXTENSION},
      {"HIP", to6(kAny6, 139, options_header(6) + syn), SLUICE_REASON_DENY_EXTENSION},
      {"shim6", to6(kAny6, 140, options_header(6) + syn), SLUICE_REASON_DENY_EXTENSION},
      {"eight headers", to6(kPort6, 60, eight + syn), SLUICE_REASON_ALLOW_RULE},
      {"eight headers, another port", to6(kPort6, 60, eight + other), SLUICE_REASON_DENY_MODE},
      {"nine headers", to6(kAny6, 60, nine + syn), SLUICE_REASON_DENY_EXTENSION},
      {"464 bytes of one header", to6(kPort6, 60, options_header(6, 57) + syn),
       SLUICE_REASON_ALLOW_RULE},
      {"472 bytes in all, the most there may be before the transport",
       to6(kPort6, 60, options_header(6, 58) + syn), SLUICE_REASON_ALLOW_RULE},
      {"more", to6(kAny6, 60, options_header(6, 59) + syn), SLUICE_REASON_DENY_EXTENSION},
      {"2 KiB of one header", to6(kAny6, 60, Bytes{6, 255} + zeros(2046) + syn),
       SLUICE_REASON_DENY_EXTENSION},
      {"a header beyond the packet", to6(kAny6, 60, Bytes{6, 9} + zeros(20)),
       SLUICE_REASON_DENY_TRUNCATED},
      {"a header of 4 bytes", to6(kAny6, 60, zeros(4)), SLUICE_REASON_DENY_TRUNCATED},
      {"TCP cut behind a header", to6(kAny6, 60, options_header(6) + head(syn, 19)),
       SLUICE_REASON_DENY_TRUNCATED},
      {"padding does not complete it", to6(kAny6, 60, options_header(6) + head(syn, 19)) + zeros(8),
       SLUICE_REASON_DENY_TRUNCATED},
  });
}

TEST_CASE("IPv6 fragments: a later one is never passed by a port rule") {
  Gate gate;
  gate.publish(rules());
  const Bytes syn = tcp(40000, 443), query = udp(40000, 53);
  gate.check({
      {"the first, with its ports", to6(kPort6, 44, fragment_header(6, 0, true) + syn),
       SLUICE_REASON_ALLOW_RULE},
      {"the first, to another port", to6(kPort6, 44, fragment_header(6, 0, true) + tcp(1, 444)),
       SLUICE_REASON_DENY_MODE},
      {"one that is no fragment", to6(kPort6, 44, fragment_header(6, 0, false) + syn),
       SLUICE_REASON_ALLOW_RULE},
      {"a tiny first one", to6(kAny6, 44, fragment_header(6, 0, true) + head(syn, 8)),
       SLUICE_REASON_DENY_TRUNCATED},
      {"a first one that ends with its headers",
       to6(kAny6, 44, fragment_header(60, 0, true) + options_header(6)),
       SLUICE_REASON_DENY_TRUNCATED},
      {"TCP at offset 1", to6(kAny6, 44, fragment_header(6, 1, true) + zeros(24)),
       SLUICE_REASON_DENY_FRAGMENT},
      {"UDP at offset 1 by a rule for all",
       to6(kAny6, 44, fragment_header(17, 1, false) + zeros(24)), SLUICE_REASON_ALLOW_RULE},
      {"a later one by a rule for all", to6(kAny6, 44, fragment_header(6, 3, false) + zeros(24)),
       SLUICE_REASON_ALLOW_RULE},
      {"a later one by a port rule", to6(kPort6, 44, fragment_header(17, 3, true) + query),
       SLUICE_REASON_DENY_FRAGMENT},
      {"the last one by a port rule", to6(kPort6, 44, fragment_header(6, 3, false) + syn),
       SLUICE_REASON_DENY_FRAGMENT},
      {"behind hop-by-hop", to6(kPort6, 0, options_header(44) + fragment_header(6, 3, false) + syn),
       SLUICE_REASON_DENY_FRAGMENT},
      {"a later one against a deny with ports",
       to6("2001:db8:a::99", 44, fragment_header(6, 3, false) + zeros(24)),
       SLUICE_REASON_DENY_RULE},
      {"a later one that hides its protocol in the first",
       to6(kAny6, 44, fragment_header(60, 3, false) + zeros(24)), SLUICE_REASON_DENY_FRAGMENT},
      {"a later one inside a first one",
       to6(kPort6, 44, fragment_header(44, 0, true) + fragment_header(6, 3, false) + syn),
       SLUICE_REASON_DENY_FRAGMENT},
  });
}

TEST_CASE("NAT64 and 6to4 are judged by the IPv4 address inside as well") {
  Gate gate;
  gate.publish({allowing("64:ff9b::/96"), allowing("2002::/16"), allowing("64:ff9b:1::/48"),
                allowing("198.51.100.0/24"), denying("198.51.100.66/32"),
                allowing("203.0.113.10/32", {"tcp/443"})});
  const Bytes syn = tcp(40000, 443);
  gate.check({
      {"NAT64, allowed inside", to6("64:ff9b::198.51.100.7", 6, syn), SLUICE_REASON_ALLOW_RULE},
      {"NAT64, denied inside", to6("64:ff9b::198.51.100.66", 6, syn), SLUICE_REASON_DENY_EMBEDDED},
      {"NAT64, not on the allowlist inside", to6("64:ff9b::192.0.2.77", 6, syn),
       SLUICE_REASON_DENY_EMBEDDED},
      {"NAT64, the port inside", to6("64:ff9b::203.0.113.10", 6, syn), SLUICE_REASON_ALLOW_RULE},
      {"NAT64, another port", to6("64:ff9b::203.0.113.10", 6, tcp(1, 444)),
       SLUICE_REASON_DENY_EMBEDDED},
      {"local NAT64, allowed inside", to6("64:ff9b:1::198.51.100.7", 6, syn),
       SLUICE_REASON_ALLOW_RULE},
      {"local NAT64, denied inside", to6("64:ff9b:1::198.51.100.66", 6, syn),
       SLUICE_REASON_DENY_EMBEDDED},
      {"6to4, allowed inside", to6("2002:c633:6407::1", 6, syn), SLUICE_REASON_ALLOW_RULE},
      {"6to4, denied inside", to6("2002:c633:6442::1", 6, syn), SLUICE_REASON_DENY_EMBEDDED},
      {"6to4, not on the allowlist inside", to6("2002:c000:024d::1", 6, syn),
       SLUICE_REASON_DENY_EMBEDDED},
      {"the address inside alone opens nothing", to6("64:ff9b:2::198.51.100.7", 6, syn),
       SLUICE_REASON_DENY_MODE},
  });
  gate.publish({denying("198.51.100.66/32")}, Mode::denylist, plain(),
               Floor{{Prefix::parse("169.254.169.254/32").value()}});
  gate.check({
      {"denylist: the rest passes", to6("64:ff9b::198.51.100.7", 6, syn), SLUICE_REASON_ALLOW_MODE},
      {"denylist: what is denied inside does not", to6("64:ff9b::198.51.100.66", 6, syn),
       SLUICE_REASON_DENY_EMBEDDED},
      {"denylist: nor the floor", to6("64:ff9b::169.254.169.254", 6, syn),
       SLUICE_REASON_DENY_EMBEDDED},
      {"denylist: nor the floor in 6to4", to6("2002:a9fe:a9fe::1", 6, syn),
       SLUICE_REASON_DENY_EMBEDDED},
  });
}

TEST_CASE("a VLAN tag is looked through when the attachment allows its id, and only one") {
  Gate gate;
  AttachmentOptions options = plain();
  options.vlans = {5};
  // Tags are taken off before the filter sees them, so these go over the wire.
  const auto send = [&](const Bytes& frame) {
    const auto before = gate.plane().reason_counters();
    std::string text;
    for (const std::uint8_t byte : frame) text += fmt::format("{:02x}", byte);
    gate.lab().in_guest(fmt::format(
        "python3 -c \"import socket; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); "
        "s.bind((\\\"guest0\\\", 0)); s.send(bytes.fromhex(\\\"{}\\\"))\"",
        text));
    std::string counted = "nothing counted";
    for (int i = 0; i < 200 && counted == "nothing counted"; ++i) {
      usleep(10'000);
      counted = gate.reason_since(before);
    }
    return counted;
  };
  gate.publish(rules(), Mode::allowlist, options);
  const Bytes packet4 = ip4(kFrom4, kAny4, 17, udp(40000, 80)),
              denied4 = ip4(kFrom4, kNone4, 17, udp(40000, 80)),
              packet6 = ip6(kFrom6, kAny6, 17, udp(40000, 80)),
              denied6 = ip6(kFrom6, kNone6, 17, udp(40000, 80));
  const auto tagged = [](std::uint16_t type, std::uint16_t id, std::uint16_t inner,
                         const Bytes& payload) {
    return ethernet(type, be16(id) + be16(inner) + payload);
  };
  CHECK(send(ethernet(kIp4Type, packet4)) == "ALLOW_RULE");
  CHECK(send(tagged(kVlanType, 5, kIp4Type, packet4)) == "ALLOW_RULE");
  CHECK(send(tagged(kVlanType, 5, kIp4Type, denied4)) == "DENY_MODE");
  CHECK(send(tagged(kVlanType, 5, kIp6Type, packet6)) == "ALLOW_RULE");
  CHECK(send(tagged(kVlanType, 5, kIp6Type, denied6)) == "DENY_MODE");
  CHECK(send(tagged(kVlanType, 0x2005, kIp4Type, packet4)) == "ALLOW_RULE");  // with a priority
  CHECK(send(tagged(kVlanType, 6, kIp4Type, packet4)) == "DENY_VLAN");
  CHECK(send(tagged(kVlanType, 0, kIp4Type, packet4)) == "DENY_VLAN");
  CHECK(send(tagged(kQinQType, 5, kIp4Type, packet4)) == "DENY_VLAN");
  CHECK(send(tagged(kQinQType, 5, kVlanType, be16(5) + be16(kIp4Type) + packet4)) == "DENY_VLAN");
  CHECK(send(tagged(kVlanType, 5, kVlanType, be16(5) + be16(kIp4Type) + packet4)) == "DENY_VLAN");
  CHECK(send(tagged(kVlanType, 5, 0x88cc, zeros(46))) == "DENY_ETHERTYPE");
  CHECK(send(tagged(kVlanType, 5, kArpType, arp())) == "ALLOW_HOUSEKEEPING");
}

TEST_CASE("a device without an Ethernet header is read as such") {
  Gate gate;
  gate.lab().run("ip tuntap add dev tun0 mode tun; ip link set tun0 up");
  const std::uint32_t slot = gate.attach("tun0");
  gate.publish_at(slot, rules(), Mode::allowlist);
  // The test runs hand the program a frame with 14 bytes in front and take the EtherType from it;
  // this device's packets begin at once, so that the EtherType is bytes 12 and 13 of the packet.
  const std::string from4 = "8.0.0.2", from6 = "2001:db8:86dd::2";
  const auto from = [&](const Bytes& packet) {
    const auto before = gate.plane().reason_counters();
    const Run run = gate.from(packet, "tun0");
    return std::pair(gate.reason_since(before), run.verdict);
  };
  using Answer = std::pair<std::string, int>;
  const Bytes syn = tcp(40000, 443);
  CHECK(from(ip4(from4, kPort4, 6, syn)) == Answer("ALLOW_RULE", kPass));
  CHECK(from(ip4(from4, kPort4, 6, tcp(1, 444))) == Answer("DENY_MODE", kDrop));
  CHECK(from(ip4(from4, kNone4, 6, syn)) == Answer("DENY_MODE", kDrop));
  CHECK(from(head(ip4(from4, kAny4, 6, syn), 39)) == Answer("DENY_TRUNCATED", kDrop));
  CHECK(from(ip6(from6, kPort6, 6, syn)) == Answer("ALLOW_RULE", kPass));
  CHECK(from(ip6(from6, kPort6, 6, tcp(1, 444))) == Answer("DENY_MODE", kDrop));
  CHECK(from(ip6(from6, kNone6, 6, syn)) == Answer("DENY_MODE", kDrop));
  CHECK(from(ip6(from6, "fe80::1", 58, icmp(135) + zeros(16), {.hop_limit = 255})) ==
        Answer("ALLOW_HOUSEKEEPING", kPass));
  Bytes lying = ip4(from4, kAny4, 6, syn);
  lying[0] = 0x65;
  CHECK(from(lying) == Answer("DENY_MALFORMED", kDrop));
  lying = ip4("8.6.0.2", kAny4, 6, syn);  // ARP by its EtherType: there is none on this device
  CHECK(from(lying) == Answer("DENY_ETHERTYPE", kDrop));
}

TEST_CASE("an interface without an attachment, or whose attachment is gone, passes nothing") {
  Gate gate;
  gate.publish({allowing("0.0.0.0/0")});
  const Bytes frame = to4(kAny4, 6, tcp(40000, 80));
  CHECK(gate.from(frame).verdict == kPass);
  auto before = gate.plane().reason_counters();
  CHECK(gate.from(frame, "host1").verdict == kDrop);
  CHECK(gate.reason_since(before) == "DENY_NO_ATTACHMENT");
  REQUIRE(gate.plane().detach(gate.slot()));
  before = gate.plane().reason_counters();
  CHECK(gate.from(frame).verdict == kDrop);
  CHECK(gate.reason_since(before) == "DENY_NO_ATTACHMENT");
}

TEST_CASE(
    "where port 53 is redirected, a fragment that bears it is dropped, whatever policy allows") {
  Gate gate;
  AttachmentOptions names = plain();
  names.redirect_dns = true;
  const Bytes query = udp(40000, 53, zeros(16)), segment = tcp(40000, 53) + zeros(4);
  const auto check = [&](sluice_reason to_53) {
    gate.check({
        {"UDP", to4(kAny4, 17, query, fragment(0, true)), to_53},
        {"TCP", to4(kAny4, 6, segment, fragment(0, true)), to_53},
        {"IPv6, UDP", to6(kAny6, 44, fragment_header(17, 0, true) + query), to_53},
        {"IPv6, TCP", to6(kAny6, 44, fragment_header(6, 0, true) + segment), to_53},
        {"IPv6, behind options",
         to6(kAny6, 44, fragment_header(60, 0, true) + options_header(17) + query), to_53},
        {"another port", to4(kAny4, 17, udp(53, 54, zeros(16)), fragment(0, true)),
         SLUICE_REASON_ALLOW_RULE},
        {"another port, IPv6", to6(kAny6, 44, fragment_header(6, 0, true) + tcp(53, 443)),
         SLUICE_REASON_ALLOW_RULE},
        {"another protocol", to4(kAny4, 136, query, fragment(0, true)), SLUICE_REASON_ALLOW_RULE},
    });
  };
  gate.publish(rules());
  check(SLUICE_REASON_ALLOW_RULE);
  gate.publish(rules(), Mode::allowlist, names);
  check(SLUICE_REASON_DENY_FRAGMENT);
}
