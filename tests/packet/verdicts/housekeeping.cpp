// What a link needs, and no more: ARP, neighbour discovery, multicast listener reports and DHCP,
// each inside its bounds, each to be switched off.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "packet/verdicts/gate.hpp"

using namespace sluice;
using namespace sluice::test;

namespace {

const std::string kFrom4 = "192.0.2.2", kFrom6 = "2001:db8::2", kLinkLocal = "fe80::2";
const std::string kRouter = "fe80::1", kAllNodes = "ff02::1", kSolicited = "ff02::1:ff00:1";

Bytes icmp6(const std::string& from, const std::string& to, std::uint8_t type,
            std::uint8_t hop_limit) {
  return framed(ip6(from, to, 58, icmp(type) + zeros(16), {.hop_limit = hop_limit}));
}
Bytes dhcp4(const std::string& to, std::uint16_t from_port = 68, std::uint16_t to_port = 67) {
  return framed(ip4("0.0.0.0", to, 17, udp(from_port, to_port, zeros(240))));
}
Bytes dhcp6(const std::string& to, std::uint16_t from_port = 546, std::uint16_t to_port = 547) {
  return framed(ip6(kLinkLocal, to, 17, udp(from_port, to_port, zeros(60))));
}
Bytes arp_frame(const Arp& with = {}, std::size_t padding = 0) {
  return ethernet(kArpType, arp(with) + zeros(padding));
}

}  // namespace

TEST_CASE("ARP: Ethernet and IPv4, request and reply, no longer than a padded frame") {
  Gate gate;
  gate.publish({});
  Arp reply, reverse, nothing, wifi, ip6_protocol, long_hardware, long_protocol;
  reply.operation = 2;
  reverse.operation = 3;
  nothing.operation = 0;
  wifi.hardware = 6;
  ip6_protocol.protocol = 0x86dd;
  long_hardware.hardware_length = 8;
  long_protocol.protocol_length = 16;
  gate.check({
      {"request", arp_frame(), SLUICE_REASON_ALLOW_HOUSEKEEPING},
      {"reply", arp_frame(reply), SLUICE_REASON_ALLOW_HOUSEKEEPING},
      {"padded to the least frame", arp_frame({}, 18), SLUICE_REASON_ALLOW_HOUSEKEEPING},
      {"and a frame check sequence", arp_frame({}, 22), SLUICE_REASON_ALLOW_HOUSEKEEPING},
      {"a byte more is a message", arp_frame({}, 23), SLUICE_REASON_DENY_HOUSEKEEPING},
      {"1,400 bytes more are one too", arp_frame({}, 1400), SLUICE_REASON_DENY_HOUSEKEEPING},
      {"cut", head(arp_frame(), 41), SLUICE_REASON_DENY_TRUNCATED},
      {"reverse ARP", arp_frame(reverse), SLUICE_REASON_DENY_MALFORMED},
      {"operation 0", arp_frame(nothing), SLUICE_REASON_DENY_MALFORMED},
      {"another hardware", arp_frame(wifi), SLUICE_REASON_DENY_MALFORMED},
      {"another protocol", arp_frame(ip6_protocol), SLUICE_REASON_DENY_MALFORMED},
      {"longer hardware addresses", arp_frame(long_hardware), SLUICE_REASON_DENY_MALFORMED},
      {"longer protocol addresses", arp_frame(long_protocol), SLUICE_REASON_DENY_MALFORMED},
  });
  AttachmentOptions off = plain();
  off.arp = false;
  gate.publish({allowing("0.0.0.0/0")}, Mode::allowlist, off);
  gate.check({{"switched off", arp_frame(), SLUICE_REASON_DENY_HOUSEKEEPING}});
  gate.publish({}, Mode::denylist, off);
  gate.check({{"switched off, under a denylist", arp_frame(), SLUICE_REASON_DENY_HOUSEKEEPING}});
  gate.publish({}, Mode::block_all);
  gate.check({{"block-all", arp_frame(), SLUICE_REASON_DENY_BLOCK_ALL}});
}

TEST_CASE("neighbour discovery: hop limit 255, to link-local unicast and link-scope multicast") {
  Gate gate;
  gate.publish({});
  for (const std::uint8_t type : {133, 135, 136}) {
    CAPTURE(static_cast<int>(type));
    gate.check({
        {"to a link-local address", icmp6(kLinkLocal, kRouter, type, 255),
         SLUICE_REASON_ALLOW_HOUSEKEEPING},
        {"to all nodes", icmp6(kLinkLocal, kAllNodes, type, 255), SLUICE_REASON_ALLOW_HOUSEKEEPING},
        {"to a solicited-node address", icmp6("::", kSolicited, type, 255),
         SLUICE_REASON_ALLOW_HOUSEKEEPING},
        {"hop limit 254", icmp6(kLinkLocal, kRouter, type, 254), SLUICE_REASON_DENY_HOUSEKEEPING},
        {"hop limit 64, multicast", icmp6(kLinkLocal, kAllNodes, type, 64),
         SLUICE_REASON_DENY_HOUSEKEEPING},
        {"hop limit 1", icmp6(kLinkLocal, kRouter, type, 1), SLUICE_REASON_DENY_HOUSEKEEPING},
        {"to a global address", icmp6(kLinkLocal, "2001:db8:c::1", type, 255),
         SLUICE_REASON_DENY_HOUSEKEEPING},
        {"to a unique local address", icmp6(kLinkLocal, "fd00::1", type, 255),
         SLUICE_REASON_DENY_HOUSEKEEPING},
        {"to site-scope multicast", icmp6(kLinkLocal, "ff05::1", type, 255),
         SLUICE_REASON_DENY_HOUSEKEEPING},
        {"to global multicast", icmp6(kLinkLocal, "ff0e::1", type, 255),
         SLUICE_REASON_DENY_HOUSEKEEPING},
        {"to the range behind link-local", icmp6(kLinkLocal, "fec0::1", type, 255),
         SLUICE_REASON_DENY_HOUSEKEEPING},
        {"as a fragment",
         framed(ip6(kLinkLocal, kRouter, 44, fragment_header(58, 0, true) + icmp(type) + zeros(16),
                    {.hop_limit = 255})),
         SLUICE_REASON_DENY_HOUSEKEEPING},
    });
  }
  gate.check({
      {"an echo request to a link-local address is not discovery",
       icmp6(kLinkLocal, kRouter, 128, 255), SLUICE_REASON_DENY_MODE},
      {"a router advertisement is not a workload's business",
       icmp6(kLinkLocal, kAllNodes, 134, 255), SLUICE_REASON_DENY_HOUSEKEEPING},
      {"nor is a redirect", icmp6(kLinkLocal, kRouter, 137, 255), SLUICE_REASON_DENY_HOUSEKEEPING},
      {"nor is a certificate path message", icmp6(kLinkLocal, kRouter, 148, 255),
       SLUICE_REASON_DENY_MODE},
      {"nor is TCP", framed(ip6(kLinkLocal, kRouter, 6, tcp(1, 443), {.hop_limit = 255})),
       SLUICE_REASON_DENY_MODE},
      {"ICMPv6 inside IPv4",
       framed(ip4(kFrom4, "169.254.0.1", 58, icmp(135) + zeros(16), {.ttl = 255})),
       SLUICE_REASON_DENY_HOUSEKEEPING},
  });
  AttachmentOptions off = plain();
  off.nd = false;
  gate.publish({}, Mode::allowlist, off);
  gate.check(
      {{"switched off", icmp6(kLinkLocal, kRouter, 135, 255), SLUICE_REASON_DENY_HOUSEKEEPING},
       {"MLD with it", icmp6(kLinkLocal, "ff02::16", 143, 1), SLUICE_REASON_DENY_MODE}});
  gate.publish({allowing("2001:db8:c::/48")}, Mode::allowlist, plain());
  gate.check({{"a rule that names the address decides as for any packet",
               icmp6(kLinkLocal, "2001:db8:c::1", 136, 255), SLUICE_REASON_ALLOW_RULE}});
  gate.publish({}, Mode::block_all);
  gate.check({{"block-all", icmp6(kLinkLocal, kRouter, 135, 255), SLUICE_REASON_DENY_BLOCK_ALL}});
}

TEST_CASE("a neighbour that spoke discovery here may be answered at its global address") {
  Gate gate;
  gate.publish({});
  const std::string neighbour = "2001:db8::1", stranger = "2001:db8::5";
  const auto spoken = [&](std::uint8_t type, std::uint8_t hop_limit, const std::string& from,
                          std::uint32_t came_by = 0) {
    CHECK(gate.to(icmp6(from, kFrom6, type, hop_limit), came_by).verdict == kPass);
  };
  gate.check({{"not before it has spoken", icmp6(kFrom6, neighbour, 136, 255),
               SLUICE_REASON_DENY_HOUSEKEEPING}});
  spoken(135, 64, stranger);   // what came over a router proves nothing
  spoken(128, 255, stranger);  // nor does another message
  spoken(135, 255, neighbour);
  gate.check({
      {"advertisement", icmp6(kFrom6, neighbour, 136, 255), SLUICE_REASON_ALLOW_HOUSEKEEPING},
      {"probe", icmp6(kFrom6, neighbour, 135, 255), SLUICE_REASON_ALLOW_HOUSEKEEPING},
      {"hop limit 64 leaves the link", icmp6(kFrom6, neighbour, 136, 64),
       SLUICE_REASON_DENY_HOUSEKEEPING},
      {"a router advertisement is no answer", icmp6(kFrom6, neighbour, 134, 255),
       SLUICE_REASON_DENY_HOUSEKEEPING},
      {"nor is a redirect", icmp6(kFrom6, neighbour, 137, 255), SLUICE_REASON_DENY_HOUSEKEEPING},
      {"another address", icmp6(kFrom6, stranger, 136, 255), SLUICE_REASON_DENY_HOUSEKEEPING},
      {"an echo request is no discovery", icmp6(kFrom6, neighbour, 128, 255),
       SLUICE_REASON_DENY_MODE},
      {"an echo reply with neither address nor id is none either",
       framed(ip6("::", neighbour, 58, icmp(129, 0, 0))), SLUICE_REASON_DENY_MODE},
      {"TCP", framed(ip6(kFrom6, neighbour, 6, tcp(1, 443), {.hop_limit = 255})),
       SLUICE_REASON_DENY_MODE},
  });
}

TEST_CASE("a sibling that forges a neighbour's address opens nothing") {
  Gate gate;
  gate.publish({});
  const std::uint32_t sibling = gate.attach("host1");
  CHECK(sibling != 0);
  // Over a bridge, from another workload's port, with a source anywhere in the world.
  const std::string remote = "2001:db8:dead::1";
  CHECK(gate.to(icmp6(remote, kFrom6, 135, 255), Gate::ifindex("host1")).verdict == kPass);
  gate.check({{"a message with a payload of its choice to that address",
               icmp6(kFrom6, remote, 136, 255), SLUICE_REASON_DENY_HOUSEKEEPING}});
}

TEST_CASE("MLD: hop limit 1, to link-scope multicast and link-local unicast") {
  Gate gate;
  gate.publish({});
  const Bytes alert = Bytes{58, 0, 5, 2, 0, 0, 1, 0};
  for (const std::uint8_t type : {131, 132, 143}) {
    CAPTURE(static_cast<int>(type));
    gate.check({
        {"to all MLDv2 routers", icmp6(kLinkLocal, "ff02::16", type, 1),
         SLUICE_REASON_ALLOW_HOUSEKEEPING},
        {"with the router alert it must carry",
         framed(ip6(kLinkLocal, "ff02::16", 0, alert + icmp(type) + zeros(16), {.hop_limit = 1})),
         SLUICE_REASON_ALLOW_HOUSEKEEPING},
        {"hop limit 255", icmp6(kLinkLocal, "ff02::16", type, 255), SLUICE_REASON_DENY_MODE},
        {"hop limit 2", icmp6(kLinkLocal, "ff02::16", type, 2), SLUICE_REASON_DENY_MODE},
        {"to a global address", icmp6(kLinkLocal, "2001:db8:c::1", type, 1),
         SLUICE_REASON_DENY_MODE},
        {"to site-scope multicast", icmp6(kLinkLocal, "ff05::16", type, 1),
         SLUICE_REASON_DENY_MODE},
    });
  }
}

TEST_CASE("DHCP: from a client port, to broadcast, link scope or the configured server") {
  Gate gate;
  gate.publish({});
  Ip4 first;
  first.fragment = 0x2000;
  gate.check({
      {"DHCP to broadcast", dhcp4("255.255.255.255"), SLUICE_REASON_ALLOW_HOUSEKEEPING},
      {"to a server that is not configured", dhcp4("192.0.2.1"), SLUICE_REASON_DENY_MODE},
      {"to address 0", dhcp4("0.0.0.0"), SLUICE_REASON_DENY_MODE},
      {"to a directed broadcast", dhcp4("192.0.2.255"), SLUICE_REASON_DENY_MODE},
      {"from another port", dhcp4("255.255.255.255", 1068), SLUICE_REASON_DENY_MODE},
      {"a server's answer", dhcp4("255.255.255.255", 67, 68), SLUICE_REASON_DENY_MODE},
      {"to another port", dhcp4("255.255.255.255", 68, 69), SLUICE_REASON_DENY_MODE},
      {"TCP on those ports", framed(ip4("0.0.0.0", "255.255.255.255", 6, tcp(68, 67))),
       SLUICE_REASON_DENY_MODE},
      {"a first fragment",
       framed(ip4("0.0.0.0", "255.255.255.255", 17, udp(68, 67, zeros(240)), first)),
       SLUICE_REASON_DENY_MODE},
      {"a later fragment",
       framed(ip4("0.0.0.0", "255.255.255.255", 17, udp(68, 67, zeros(240)), {.fragment = 20})),
       SLUICE_REASON_DENY_FRAGMENT},
      {"DHCPv6 to all agents", dhcp6("ff02::1:2"), SLUICE_REASON_ALLOW_HOUSEKEEPING},
      {"to all servers of a site", dhcp6("ff05::1:3"), SLUICE_REASON_DENY_MODE},
      {"to a server that is not configured", dhcp6("2001:db8::1"), SLUICE_REASON_DENY_MODE},
      {"to the address ::", dhcp6("::"), SLUICE_REASON_DENY_MODE},
      {"from another port", dhcp6("ff02::1:2", 1546), SLUICE_REASON_DENY_MODE},
      {"a server's answer", dhcp6("ff02::1:2", 547, 546), SLUICE_REASON_DENY_MODE},
      {"DHCP's ports over IPv6", dhcp6("ff02::1:2", 68, 67), SLUICE_REASON_DENY_MODE},
      {"DHCPv6's ports over IPv4", dhcp4("255.255.255.255", 546, 547), SLUICE_REASON_DENY_MODE},
  });
  AttachmentOptions served = plain();
  served.dhcp4_server = {192, 0, 2, 1};
  served.dhcp6_server = mapped("2001:db8::1");
  gate.publish({denying("192.0.2.0/24")}, Mode::allowlist, served);
  gate.check({
      {"to the configured server", dhcp4("192.0.2.1"), SLUICE_REASON_ALLOW_HOUSEKEEPING},
      {"to its neighbour", dhcp4("192.0.2.3"), SLUICE_REASON_DENY_RULE},
      {"another service of the server", framed(ip4(kFrom4, "192.0.2.1", 17, udp(68, 53))),
       SLUICE_REASON_DENY_RULE},
      {"to the configured DHCPv6 server", dhcp6("2001:db8::1"), SLUICE_REASON_ALLOW_HOUSEKEEPING},
      {"to its neighbour", dhcp6("2001:db8::3"), SLUICE_REASON_DENY_MODE},
  });
  AttachmentOptions off = served;
  off.dhcp = false;
  gate.publish({}, Mode::allowlist, off);
  gate.check({{"DHCP switched off", dhcp4("255.255.255.255"), SLUICE_REASON_DENY_MODE},
              {"also to the server", dhcp4("192.0.2.1"), SLUICE_REASON_DENY_MODE},
              {"and DHCPv6", dhcp6("ff02::1:2"), SLUICE_REASON_DENY_MODE}});
  gate.publish({}, Mode::block_all, served);
  gate.check({{"block-all", dhcp4("255.255.255.255"), SLUICE_REASON_DENY_BLOCK_ALL}});
}
