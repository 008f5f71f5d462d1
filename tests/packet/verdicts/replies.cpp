// Replies to connections that came in from outside: consulted only after the policy said no, and
// never a way for the workload to open anything.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "packet/verdicts/gate.hpp"

using namespace sluice;
using namespace sluice::test;

namespace {

// One remote and one workload of a family; frames of both directions.
struct Family {
  std::string workload, remote, stranger, denied;
  bool six = false;

  [[nodiscard]] Bytes packet(const std::string& from, const std::string& to, std::uint8_t protocol,
                             const Bytes& payload, const std::array<std::uint8_t, 6>& mac) const {
    return ethernet(six ? kIp6Type : kIp4Type,
                    six ? ip6(from, to, protocol, payload) : ip4(from, to, protocol, payload), mac);
  }
  // Towards the workload, bridged: the frame is for the workload's own address.
  [[nodiscard]] Bytes in(std::uint8_t protocol, const Bytes& payload) const {
    return packet(remote, workload, protocol, payload, kGuestMac);
  }
  [[nodiscard]] Bytes out(std::uint8_t protocol, const Bytes& payload) const {
    return packet(workload, remote, protocol, payload, kOtherMac);
  }
  [[nodiscard]] Bytes out_to(const std::string& to, std::uint8_t protocol,
                             const Bytes& payload) const {
    return packet(workload, to, protocol, payload, kOtherMac);
  }
  [[nodiscard]] std::uint8_t icmp_protocol() const { return six ? 58 : 1; }
  [[nodiscard]] Bytes echo(bool request, std::uint16_t id) const {
    return six ? icmp(request ? 128 : 129, 0, id) : icmp(request ? 8 : 0, 0, id);
  }
};

const Family kFamilies[] = {
    {"192.0.2.2", "203.0.113.50", "203.0.113.51", "203.0.113.99", false},
    {"2001:db8::2", "2001:db8:f::50", "2001:db8:f::51", "2001:db8:f::99", true},
};

std::array<std::uint8_t, 6> mac_of(const char* name) {
  std::array<std::uint8_t, 6> mac{};
  char line[64] = {};
  std::FILE* pipe = popen(
      fmt::format("ip -o link show {} | sed 's/.*ether \\([0-9a-f:]*\\).*/\\1/'", name).c_str(),
      "r");
  REQUIRE(pipe != nullptr);
  REQUIRE(std::fgets(line, sizeof(line), pipe) != nullptr);
  pclose(pipe);
  unsigned part[6] = {};
  REQUIRE(std::sscanf(line, "%x:%x:%x:%x:%x:%x", part, part + 1, part + 2, part + 3, part + 4,
                      part + 5) == 6);
  for (int i = 0; i < 6; ++i) mac[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(part[i]);
  return mac;
}

}  // namespace

TEST_CASE("replies pass to what came in: TCP, UDP and echo, nothing else") {
  for (const Family& f : kFamilies) {
    Gate gate;
    gate.publish({denying(f.six ? "2001:db8:f::99/128" : "203.0.113.99/32")});
    const std::uint8_t icmp_protocol = f.icmp_protocol();
    CAPTURE(f.workload);
    gate.check({{"before: a segment", f.out(6, tcp(80, 5000, kAck)), SLUICE_REASON_DENY_MODE},
                {"before: a datagram", f.out(17, udp(53, 5000)), SLUICE_REASON_DENY_MODE}});
    CHECK(gate.to(f.in(6, tcp(5000, 80, kSyn))).verdict == kPass);
    CHECK(gate.to(f.in(17, udp(5000, 53))).verdict == kPass);
    CHECK(gate.to(f.in(icmp_protocol, f.echo(true, 77))).verdict == kPass);
    gate.check({
        {"SYN-ACK", f.out(6, tcp(80, 5000, kSyn | kAck)), SLUICE_REASON_ALLOW_REPLY},
        {"a segment", f.out(6, tcp(80, 5000, kAck | kPush)), SLUICE_REASON_ALLOW_REPLY},
        {"a reset", f.out(6, tcp(80, 5000, kRst)), SLUICE_REASON_ALLOW_REPLY},
        {"a SYN is no reply", f.out(6, tcp(80, 5000, kSyn)), SLUICE_REASON_DENY_MODE},
        {"nor with FIN", f.out(6, tcp(80, 5000, kSyn | kFin)), SLUICE_REASON_DENY_MODE},
        {"another port there", f.out(6, tcp(80, 5001, kAck)), SLUICE_REASON_DENY_MODE},
        {"another port here", f.out(6, tcp(81, 5000, kAck)), SLUICE_REASON_DENY_MODE},
        {"another address", f.out_to(f.stranger, 6, tcp(80, 5000, kAck)), SLUICE_REASON_DENY_MODE},
        {"an answer", f.out(17, udp(53, 5000)), SLUICE_REASON_ALLOW_REPLY},
        {"an answer to another port", f.out(17, udp(53, 5001)), SLUICE_REASON_DENY_MODE},
        {"TCP's ports are not UDP's", f.out(17, udp(80, 5000)), SLUICE_REASON_DENY_MODE},
        {"echo reply", f.out(icmp_protocol, f.echo(false, 77)), SLUICE_REASON_ALLOW_REPLY},
        {"of another id", f.out(icmp_protocol, f.echo(false, 78)), SLUICE_REASON_DENY_MODE},
        {"an echo request is none", f.out(icmp_protocol, f.echo(true, 77)),
         SLUICE_REASON_DENY_MODE},
        {"an ICMP error is none", f.out(icmp_protocol, f.six ? icmp(1, 4, 77) : icmp(3, 3, 77)),
         SLUICE_REASON_DENY_MODE},
        {"SCTP on those ports", f.out(132, be16(80) + be16(5000) + zeros(8)),
         SLUICE_REASON_DENY_MODE},
    });
    // Policy wins on every packet.
    Family denied = f;
    denied.remote = f.denied;
    CHECK(gate.to(denied.in(6, tcp(5000, 80, kSyn))).verdict == kPass);
    gate.check({{"an explicit deny overrules replies", denied.out(6, tcp(80, 5000, kSyn | kAck)),
                 SLUICE_REASON_DENY_RULE}});
    AttachmentOptions off = plain();
    off.replies = false;
    gate.publish({}, Mode::allowlist, off);
    gate.check({{"replies = false", f.out(6, tcp(80, 5000, kAck)), SLUICE_REASON_DENY_MODE}});
    CHECK(gate.to(f.in(6, tcp(5002, 80, kSyn))).verdict == kPass);
    gate.publish({}, Mode::block_all);
    gate.check({{"block-all", f.out(6, tcp(80, 5000, kAck)), SLUICE_REASON_DENY_BLOCK_ALL}});
    gate.publish({});
    gate.check({{"nothing was noted while they were off", f.out(6, tcp(80, 5002, kAck)),
                 SLUICE_REASON_DENY_MODE},
                {"and what was noted before still is", f.out(6, tcp(80, 5000, kAck)),
                 SLUICE_REASON_ALLOW_REPLY}});
  }
}

TEST_CASE("only a SYN opens a flow of TCP, and later fragments belong to none") {
  for (const Family& f : kFamilies) {
    Gate gate;
    gate.publish({});
    CAPTURE(f.workload);
    CHECK(gate.to(f.in(6, tcp(5000, 80, kAck))).verdict == kPass);
    CHECK(gate.to(f.in(6, tcp(5000, 80, kSyn | kAck))).verdict == kPass);
    CHECK(gate.to(f.in(6, tcp(5000, 80, 0))).verdict == kPass);
    CHECK(gate.to(head(f.in(6, tcp(5001, 80, kSyn)), f.six ? 73 : 53)).verdict == kPass);
    gate.check({
        {"after segments only", f.out(6, tcp(80, 5000, kAck)), SLUICE_REASON_DENY_MODE},
        {"after a cut SYN", f.out(6, tcp(80, 5001, kAck)), SLUICE_REASON_DENY_MODE},
    });
    CHECK(gate.to(f.in(17, udp(5000, 53))).verdict == kPass);
    const Bytes later =
        f.six ? framed(ip6(f.workload, f.remote, 44, fragment_header(17, 9, false) + zeros(16)))
              : framed(ip4(f.workload, f.remote, 17, udp(53, 5000, zeros(8)), {.fragment = 9}));
    gate.check({{"a later fragment of an answer", later, SLUICE_REASON_DENY_FRAGMENT}});
  }
}

TEST_CASE("a workload's own flows are no replies after a tightening") {
  for (const Family& f : kFamilies) {
    CAPTURE(f.workload);
    const char* network = f.six ? "2001:db8:f::/48" : "203.0.113.0/24";
    Gate gate;
    const auto exchange = [&](sluice_reason reason, std::uint16_t port) {
      gate.check({{"the workload asks", f.out(17, udp(port, 443)), reason},
                  {"and connects", f.out(6, tcp(port, 443, kSyn)), reason}});
      CHECK(gate.to(f.in(17, udp(443, port))).verdict == kPass);
      CHECK(gate.to(f.in(6, tcp(443, port, kSyn | kAck))).verdict == kPass);
    };
    const auto tightened = [&](std::uint16_t port) {
      gate.publish({});
      CHECK(gate.to(f.in(17, udp(443, port))).verdict == kPass);
      CHECK(gate.to(f.in(6, tcp(443, port, kAck))).verdict == kPass);
      gate.check({{"its datagrams", f.out(17, udp(port, 443)), SLUICE_REASON_DENY_MODE},
                  {"its segments", f.out(6, tcp(port, 443, kAck)), SLUICE_REASON_DENY_MODE}});
    };
    gate.publish({allowing(network)});
    exchange(SLUICE_REASON_ALLOW_RULE, 4001);
    tightened(4001);
    gate.publish({}, Mode::denylist);
    exchange(SLUICE_REASON_ALLOW_MODE, 4002);
    tightened(4002);
    gate.publish({}, Mode::disabled);
    exchange(SLUICE_REASON_ALLOW_DISABLED, 4003);
    tightened(4003);
  }
}

TEST_CASE("of flows that differ in one thing only, each is noted as the workload's own") {
  for (const Family& f : kFamilies) {
    CAPTURE(f.workload);
    Gate gate;
    gate.publish({}, Mode::denylist);
    struct {
      Bytes asks, answer;
    } const flows[] = {
        {f.out(17, udp(4001, 443)), f.in(17, udp(443, 4001))},
        {f.out(17, udp(4002, 443)), f.in(17, udp(443, 4002))},
        {f.out(17, udp(4001, 444)), f.in(17, udp(444, 4001))},
        {f.out(136, udp(4001, 443)), f.in(136, udp(443, 4001))},
        {f.out_to(f.stranger, 17, udp(4001, 443)),
         f.packet(f.stranger, f.workload, 17, udp(443, 4001), kGuestMac)},
    };
    // In turns and without a pause: each meets what the one before has left on this CPU.
    for (int turn = 0; turn < 3; ++turn)
      for (const auto& flow : flows) CHECK(gate.from(flow.asks).verdict == kPass);
    gate.publish({});
    for (const auto& flow : flows) {
      CHECK(gate.to(flow.answer).verdict == kPass);
      gate.check({{"asks again", flow.asks, SLUICE_REASON_DENY_MODE}});
    }
  }
}

TEST_CASE("flows of two attachments that are alike in all else are noted for both") {
  for (const Family& f : kFamilies) {
    CAPTURE(f.workload);
    Gate gate;
    const std::uint32_t other = gate.attach("host1");
    const Bytes asks = f.out(17, udp(4001, 443)), answer = f.in(17, udp(443, 4001));
    gate.publish({}, Mode::denylist);
    gate.publish_at(other, {}, Mode::denylist);
    for (int turn = 0; turn < 3; ++turn)
      for (const char* at : {"host0", "host1"}) CHECK(gate.from(asks, at).verdict == kPass);
    gate.publish({});
    gate.publish_at(other, {}, Mode::allowlist);
    for (const char* at : {"host0", "host1"}) {
      CAPTURE(at);
      CHECK(gate.to(answer, 0, at).verdict == kPass);
      CHECK(gate.from(asks, at).verdict == kDrop);
    }
  }
}

TEST_CASE("a flow that came in from outside ends when nothing moves any more") {
  Gate gate;
  gate.publish({});
  const Fd slots = gate.map("slots");
  sluice_slot slot{};
  const std::uint32_t index = gate.slot();
  REQUIRE(bpf_map_lookup_elem(slots.get(), &index, &slot) == 0);
  for (const Family& f : kFamilies) {
    CAPTURE(f.workload);
    const auto put = [&](std::uint8_t protocol, std::uint16_t port, std::int64_t idle,
                         std::uint32_t origin = SLUICE_FLOW_INBOUND) {
      sluice_flow_key key{};
      key.scope = slot.scope;
      key.protocol = protocol;
      std::memcpy(key.workload, mapped(f.workload).data(), 16);
      std::memcpy(key.remote, mapped(f.remote).data(), 16);
      key.workload_port_be = htons(80);
      key.remote_port_be = htons(port);
      sluice_flow flow{};
      flow.last_seen = from_now(-idle).nanoseconds;
      flow.origin = origin;
      gate.put_flow(key, flow);
    };
    // Idle times that fit in the machine's uptime; TCP's two hours may not.
    put(17, 6000, 100);
    put(17, 6001, 200);
    put(6, 6002, 200);
    put(17, 6003, 1, SLUICE_FLOW_OUTBOUND);
    gate.check({
        {"UDP after 100 s", f.out(17, udp(80, 6000)), SLUICE_REASON_ALLOW_REPLY},
        {"UDP after 200 s", f.out(17, udp(80, 6001)), SLUICE_REASON_DENY_MODE},
        {"TCP after 200 s", f.out(6, tcp(80, 6002, kAck)), SLUICE_REASON_ALLOW_REPLY},
        {"a flow of the workload's own", f.out(17, udp(80, 6003)), SLUICE_REASON_DENY_MODE},
    });
  }
}

TEST_CASE("what one workload sends does not push out what came in to another") {
  Gate gate;
  gate.lab().config.max_flows = 1024;
  gate.publish({});
  gate.reopen([](const auto&) {});  // with the smaller maps
  const std::uint32_t neighbour = gate.attach("host1");
  gate.publish_at(neighbour, {}, Mode::denylist);
  for (const Family& f : kFamilies) {
    CHECK(gate.to(f.in(6, tcp(5000, 80, kSyn))).verdict == kPass);
    CHECK(gate.to(f.in(17, udp(5000, 53))).verdict == kPass);
  }
  for (std::uint16_t port = 1; port <= 4096; ++port)
    for (const Family& f : kFamilies)
      REQUIRE(gate.from(f.out(17, udp(port, 443)), "host1").verdict == kPass);
  for (const Family& f : kFamilies) {
    CAPTURE(f.workload);
    gate.check({{"a segment", f.out(6, tcp(80, 5000, kAck)), SLUICE_REASON_ALLOW_REPLY},
                {"an answer", f.out(17, udp(53, 5000)), SLUICE_REASON_ALLOW_REPLY}});
    // What it has sent last is still its own.
    CHECK(gate.to(f.in(17, udp(443, 4096)), 0, "host1").verdict == kPass);
  }
  gate.publish_at(neighbour, {}, Mode::allowlist);
  for (const Family& f : kFamilies)
    CHECK(gate.from(f.out(17, udp(4096, 443)), "host1").verdict == kDrop);
}

TEST_CASE("a flow from outside that fell idle is the workload's own once it sends by a rule") {
  for (const Family& f : kFamilies) {
    CAPTURE(f.workload);
    Gate gate;
    gate.publish({}, Mode::denylist);
    sluice_flow_key key{};
    key.scope = gate.scope();
    key.protocol = 17;
    std::memcpy(key.workload, mapped(f.workload).data(), 16);
    std::memcpy(key.remote, mapped(f.remote).data(), 16);
    key.workload_port_be = htons(4001);
    key.remote_port_be = htons(443);
    sluice_flow flow{};
    flow.last_seen = from_now(-200).nanoseconds;
    flow.origin = SLUICE_FLOW_INBOUND;
    gate.put_flow(key, flow);
    CHECK(gate.from(f.out(17, udp(4001, 443))).verdict == kPass);
    gate.publish({});
    CHECK(gate.to(f.in(17, udp(443, 4001))).verdict == kPass);
    gate.check({{"no reply", f.out(17, udp(4001, 443)), SLUICE_REASON_DENY_MODE}});
  }
}

TEST_CASE("a sibling cannot open replies under another's name") {
  Gate gate;
  gate.lab().run(
      "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; "
      "ip addr add 198.51.100.1/24 dev host1; ip addr add 2001:db8:5::1/64 dev host1 nodad; "
      "ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up; "
      "ip addr add 203.0.113.1/24 dev up0; ip addr add 2001:db8:f::1/64 dev up0 nodad");
  gate.publish({});
  gate.attach("host1");
  const std::uint32_t sibling = Gate::ifindex("host1"), uplink = Gate::ifindex("up0");
  const auto router = mac_of("host0");
  std::uint16_t port = 7000;
  for (const Family& f : kFamilies) {
    CAPTURE(f.workload);
    Family own = f;
    own.remote = f.six ? "2001:db8:5::7" : "198.51.100.7";
    const auto opens = [&](const Family& who, std::uint32_t came_by, bool routed) {
      ++port;
      const Bytes frame =
          who.packet(who.remote, who.workload, 17, udp(port, 53), routed ? router : kGuestMac);
      CHECK(gate.to(frame, came_by).verdict == kPass);
      return gate.reason_of(who.out(17, udp(53, port))) == "ALLOW_REPLY";
    };
    // Routed: what arrives must have come by the way that leads back to its sender.
    CHECK(opens(f, uplink, true));
    CHECK_FALSE(opens(f, sibling, true));
    CHECK(opens(own, sibling, true));
    CHECK_FALSE(opens(own, uplink, true));
    // Bridged: not from another attachment's port at all.
    CHECK(opens(f, uplink, false));
    CHECK_FALSE(opens(f, sibling, false));
    CHECK_FALSE(opens(own, sibling, false));
    CHECK(opens(f, 0, false));
  }
  // An attachment whose ifindex lies beyond the direct table is a sibling all the same.
  gate.lab().run("ip link add name far0 index 70000 type veth peer name far1; ip link set far0 up");
  gate.attach("far0");
  const Family& f = kFamilies[0];
  CHECK(gate.to(f.in(17, udp(9000, 53)), 70000).verdict == kPass);
  CHECK(gate.reason_of(f.out(17, udp(53, 9000))) == "DENY_MODE");
}

TEST_CASE("no reply to an address whose inner IPv4 address is denied") {
  Gate gate;
  gate.publish({denying("198.51.100.66/32")}, Mode::allowlist, plain(),
               Floor{{Prefix::parse("169.254.169.254/32").value()}});
  const auto reply = [&](const std::string& remote) {
    CHECK(gate.to(ethernet(kIp6Type, ip6(remote, "2001:db8::2", 17, udp(5000, 53)), kGuestMac))
              .verdict == kPass);
    return gate.reason_of(framed(ip6("2001:db8::2", remote, 17, udp(53, 5000))));
  };
  CHECK(reply("64:ff9b::198.51.100.7") == "ALLOW_REPLY");
  CHECK(reply("64:ff9b::198.51.100.66") == "DENY_EMBEDDED");
  CHECK(reply("64:ff9b::169.254.169.254") == "DENY_EMBEDDED");
  CHECK(reply("2002:c633:6442::1") == "DENY_EMBEDDED");
}
