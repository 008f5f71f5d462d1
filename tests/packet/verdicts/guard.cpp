// The uplink guard: what nobody judged does not leave; and senders that say one thing of a packet
// in their socket and another in its frame.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <linux/if_packet.h>
#include <sys/socket.h>

#include "packet/verdicts/gate.hpp"

using namespace sluice;
using namespace sluice::test;

namespace {

const Bytes kSyn4 = framed(ip4("192.0.2.2", "203.0.113.50", 6, tcp(40000, 443)));
const Bytes kSyn6 = framed(ip6("2001:db8::2", "2001:db8:f::50", 6, tcp(40000, 443)));

void add_uplink(Gate& gate) {
  gate.lab().run(
      "ip link add up0 mtu 9000 type veth peer name up1 mtu 9000; ip link set up0 up; ip link set "
      "up1 up; "
      "sysctl -qw net.ipv6.conf.up0.disable_ipv6=1 net.ipv6.conf.up1.disable_ipv6=1");
}

}  // namespace

TEST_CASE("the judged mark is set on what passes, beside other tools' bits, while a guard is on") {
  Gate gate;
  add_uplink(gate);
  gate.publish({allowing("203.0.113.0/24"), allowing("2001:db8:f::/48")});
  const int from = gate.program("from");
  const auto mark_of = [&](const Bytes& frame, std::uint32_t mark) {
    return Gate::run(from, frame, Gate::ifindex(), 0, mark).mark;
  };
  CHECK(mark_of(kSyn4, 0) == 0);
  REQUIRE(gate.plane().set_guards({.uplinks = {"up0"}, .trusted = {}, .parent_cgroups = {}}));
  CHECK(mark_of(kSyn4, 0) == SLUICE_JUDGED_MARK);
  CHECK(mark_of(kSyn6, 0x7) == (SLUICE_JUDGED_MARK | 0x7));
  CHECK(mark_of(ethernet(kArpType, arp()), 0) == SLUICE_JUDGED_MARK);
  gate.publish({});
  CHECK(mark_of(kSyn4, 0) == 0);
  CHECK(mark_of(kSyn6, 0x7) == 0x7);
  REQUIRE(gate.plane().set_guards({}));
  gate.publish({}, Mode::denylist);
  CHECK(mark_of(kSyn4, 0) == 0);
}

TEST_CASE("the uplink guard drops what came in by an interface that nobody judged") {
  Gate gate;
  add_uplink(gate);
  gate.lab().run("ip link add wg0 type veth peer name wg1; ip link set wg0 up");
  REQUIRE(gate.plane().set_guards({.uplinks = {"up0"}, .trusted = {"wg0"}, .parent_cgroups = {}}));
  const int guard = gate.program(fmt::format("uplink-{}", Gate::ifindex("up0")));
  for (const Bytes& frame : {kSyn4, kSyn6, ethernet(0x88cc, zeros(46))}) {
    const auto verdict = [&](const char* came_by, std::uint32_t mark) {
      return Gate::run(guard, frame, Gate::ifindex("up0"), came_by ? Gate::ifindex(came_by) : 0,
                       mark)
          .verdict;
    };
    const auto before = gate.plane().reason_counters();
    const Counters counted = gate.plane().counters(0).value();
    CHECK(verdict("host1", 0) == kDrop);
    CHECK(gate.reason_since(before) == "DENY_UNJUDGED");
    CHECK(gate.plane().counters(0).value().denied_packets - counted.denied_packets == 1);
    CHECK(gate.plane().counters(0).value().denied_bytes - counted.denied_bytes == frame.size());
    CHECK(verdict("host1", ~SLUICE_JUDGED_MARK) == kDrop);  // every other bit
    CHECK(verdict("host1", SLUICE_JUDGED_MARK) == kPass);
    CHECK(verdict("host1", SLUICE_JUDGED_MARK | 0xff) == kPass);
    CHECK(verdict("wg0", 0) == kPass);    // trusted
    CHECK(verdict("up0", 0) == kPass);    // another uplink, or back out of the same
    CHECK(verdict(nullptr, 0) == kPass);  // the host's own
    CHECK(verdict("host0", 0) == kDrop);  // attached, but the mark was lost: not judged
    // A packet socket that an earlier release found in a filtered cgroup.
    CHECK(verdict(nullptr, SLUICE_DOOMED_MARK) == kDrop);
  }
}

TEST_CASE("the uplink guard drops what a packet socket sends that was brought into a cgroup") {
  Gate gate;
  add_uplink(gate);
  REQUIRE(gate.plane().set_guards({.uplinks = {"up0"}, .trusted = {}, .parent_cgroups = {}}));
  const Fd tags = gate.map("swept_sockets");
  const std::uint32_t on = 1;
  for (const Bytes& frame : {kSyn4, kSyn6, ethernet(0x88cc, zeros(46))}) {
    const Fd socket(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
    REQUIRE(socket);
    sockaddr_ll to{};
    to.sll_family = AF_PACKET;
    to.sll_ifindex = static_cast<int>(Gate::ifindex("up0"));
    const auto send = [&] {
      const auto before = gate.plane().reason_counters();
      (void)::sendto(socket.get(), frame.data(), frame.size(), 0,
                     reinterpret_cast<const sockaddr*>(&to), sizeof(to));
      return gate.reason_since(before);
    };
    CHECK(send() == "nothing counted");
    const int fd = socket.get();
    REQUIRE(bpf_map_update_elem(tags.get(), &fd, &on, BPF_ANY) == 0);
    CHECK(send() == "DENY_UNATTACHED_CGROUP");
  }
}

TEST_CASE("a packet socket that calls its frame something else is not believed") {
  Gate gate;
  add_uplink(gate);
  const std::uint32_t slot = gate.attach("up0", Side::workload_egress);
  AttachmentOptions options = plain();
  options.ethertypes = {0x88cc};
  options.nd = false;
  gate.publish_at(slot, {allowing("198.51.100.0/24"), allowing("2001:db8:a::/48")}, Mode::allowlist,
                  options);
  // What the socket says, against what is in the frame.
  const auto send = [&](std::uint16_t claimed, const Bytes& frame) {
    const Fd socket(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
    REQUIRE(socket);
    sockaddr_ll to{};
    to.sll_family = AF_PACKET;
    to.sll_protocol = htons(claimed);
    to.sll_ifindex = static_cast<int>(Gate::ifindex("up0"));
    const auto before = gate.plane().reason_counters();
    // A drop at egress is an error to the sender, which is no matter here.
    (void)::sendto(socket.get(), frame.data(), frame.size(), 0,
                   reinterpret_cast<const sockaddr*>(&to), sizeof(to));
    return gate.reason_since(before);
  };
  const Bytes allowed4 = ip4("192.0.2.2", "198.51.100.7", 6, tcp(40000, 443)),
              denied4 = ip4("192.0.2.2", "203.0.113.50", 6, tcp(40000, 443)),
              allowed6 = ip6("2001:db8::2", "2001:db8:a::7", 6, tcp(40000, 443)),
              denied6 = ip6("2001:db8::2", "2001:db8:f::50", 6, tcp(40000, 443));
  CHECK(send(kIp4Type, ethernet(kIp4Type, allowed4)) == "ALLOW_RULE");
  CHECK(send(kIp6Type, ethernet(kIp6Type, allowed6)) == "ALLOW_RULE");
  CHECK(send(kIp4Type, ethernet(kIp4Type, denied4)) == "DENY_MODE");
  CHECK(send(kIp6Type, ethernet(kIp6Type, denied6)) == "DENY_MODE");
  CHECK(send(0x88cc, ethernet(0x88cc, zeros(46))) == "ALLOW_RULE");
  // IP under the name of what passes unread.
  CHECK(send(0x88cc, ethernet(kIp4Type, denied4)) == "DENY_ETHERTYPE");
  CHECK(send(0x88cc, ethernet(kIp6Type, denied6)) == "DENY_ETHERTYPE");
  CHECK(send(0x88cc, ethernet(kVlanType, be16(5) + be16(kIp4Type) + denied4)) == "DENY_ETHERTYPE");
  // A tag whose bytes are also the head of an IPv4 packet: VLAN 0x500, then EtherType 0x0800,
  // which is a total length of 2048.
  Bytes both = allowed4 + zeros(2048 - allowed4.size());
  both[2] = 0x08, both[3] = 0x00;
  CHECK(send(kIp4Type, ethernet(kVlanType, both)) == "DENY_ETHERTYPE");
  CHECK(send(kIp4Type, ethernet(0x88a8, both)) == "DENY_ETHERTYPE");
  CHECK(send(kIp6Type, ethernet(kIp4Type, allowed6)) == "DENY_ETHERTYPE");
}
