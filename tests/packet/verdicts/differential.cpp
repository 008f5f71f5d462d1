// One decision core, compiled twice: 240,000 random packets get the same verdict and the same
// reason from the program in the kernel as from the same headers in user space.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <bpf/libbpf.h>

#include "packet/verdicts/gate.hpp"
#include "unit/bpf/core.hpp"
#include "unit/bpf/packets.hpp"

using namespace sluice;
using namespace sluice::test;

namespace {

std::vector<Rule> rules() {
  return {allowing("198.51.100.0/24"),
          denying("198.51.100.66/32"),
          denying("198.51.100.99/32", {"tcp/25", "udp/53"}),
          allowing("203.0.113.10/32", {"tcp/443", "udp/8000-8100", "icmp", "sctp/5000"}),
          allowing("2001:db8:a::/48"),
          denying("2001:db8:a:66::/64"),
          denying("2001:db8:a::99/128", {"tcp/25", "udp/53"}),
          allowing("2001:db8:b::10/128", {"tcp/443", "udp/8000-8100", "icmpv6", "sctp/5000"}),
          allowing("64:ff9b::/96"),
          allowing("64:ff9b:1::/48"),
          allowing("2002::/16"),
          allowing("203.0.113.11/32", {}, from_now(-1)),
          allowing("2001:db8:b::11/128", {"tcp/443"}, from_now(100000))};
}

// The frames that BPF_PROG_TEST_RUN takes: it refuses IP packets shorter than their fixed header.
bool runs_in_kernel(std::uint16_t ethertype, const Bytes& packet) {
  return packet.size() >= (ethertype == kIp4Type ? 20u : 40u);
}

}  // namespace

TEST_CASE("the kernel's verdicts are user space's, packet by packet") {
  Gate gate;
  Core core;
  const Fd reasons = gate.map("reasons"), slots = gate.map("slots");
  const std::uint32_t index = gate.slot();
  REQUIRE(bpf_map_lookup_elem(slots.get(), &index, &core.slot) == 0);
  core.tables.now = boot_now().nanoseconds;

  // Addresses learned: open, open for a port, in grace and live, in grace and idle, ended.
  const auto put = [&](const char* text, std::int64_t active, std::int64_t grace,
                       std::int64_t seen) {
    sluice_learned_key key{};
    key.scope = core.slot.scope;
    std::memcpy(key.address, mapped(text).data(), 16);
    sluice_learned value{};
    value.active_until = from_now(active).nanoseconds;
    value.grace_until = from_now(grace).nanoseconds;
    value.last_seen = from_now(seen).nanoseconds;
    gate.put_learned(key, value);
    core.learn(key, value);
  };
  put("203.0.113.20", 100000, 100000, 0);
  put("203.0.113.30", -1, 100000, 0);
  put("192.0.2.77", -2, -1, 0);
  put("2001:db8:b::20", 100000, 100000, 0);
  put("2001:db8:b::30", -1, 100000, -1000);
  put("169.254.169.254", 100000, 100000, 0);
  // And what came in from outside.
  for (const auto& [workload, remote] :
       {std::pair{"192.0.2.2", "203.0.113.50"}, std::pair{"2001:db8::2", "2001:db8:f::50"}})
    for (const std::uint8_t protocol : {6, 17})
      for (const std::uint16_t port : {80, 443})
        for (const std::uint16_t far : {443, 5000, 8000}) {
          const auto key = core.flow_key(protocol, mapped(workload), port, mapped(remote), far);
          const sluice_flow flow{core.tables.now, SLUICE_FLOW_INBOUND, 0};
          gate.put_flow(key, flow);
          core.tables.flows[bytes_of(key)] = flow;
        }
  sluice_slot noted{};
  REQUIRE(bpf_map_lookup_elem(slots.get(), &index, &noted) == 0);
  std::memcpy(core.slot.inbound, noted.inbound, sizeof(noted.inbound));

  const Floor floor{
      {Prefix::parse("169.254.169.254/32").value(), Prefix::parse("fd00:ec2::254/128").value()}};
  const int program = gate.program("from");
  const int cpus = libbpf_num_possible_cpus();
  std::vector<std::uint64_t> per_cpu(static_cast<std::size_t>(cpus));
  const auto count_of = [&](std::uint32_t reason) {
    std::uint64_t sum = 0;
    if (bpf_map_lookup_elem(reasons.get(), &reason, per_cpu.data()) != 0) return sum;
    for (const std::uint64_t value : per_cpu) sum += value;
    return sum;
  };

  PacketMaker maker(20260101);
  std::vector<std::uint64_t> seen(SLUICE_REASON_COUNT), counted(SLUICE_REASON_COUNT);
  std::uint64_t compared = 0, differing = 0;
  for (const Mode mode : {Mode::allowlist, Mode::denylist, Mode::allowlist, Mode::block_all}) {
    AttachmentOptions options = plain();
    if (seen[SLUICE_REASON_ALLOW_MODE] != 0) {
      options.replies = false;
      options.nd = false;
      options.dhcp = false;
    }
    gate.publish(rules(), mode, options, floor);
    Layer layer;
    layer.rules = rules();
    const LayerInput input{&layer, false};
    const auto policy = compile(std::span(&input, 1), floor, boot_now()).value();
    core.use(policy, static_cast<std::uint32_t>(mode),
             SLUICE_FLAG_ARP |
                 (options.replies ? SLUICE_FLAG_REPLIES | SLUICE_FLAG_ND | SLUICE_FLAG_DHCP : 0));
    for (std::uint32_t i = 0; i < SLUICE_REASON_COUNT; ++i) counted[i] = count_of(i);
    for (int n = mode == Mode::block_all ? 15000 : 75000; n > 0;) {
      const auto [ethertype, packet] = maker.next();
      if (!runs_in_kernel(ethertype, packet)) continue;
      --n;
      ++compared;
      core.tables.now = boot_now().nanoseconds;
      const std::uint32_t reason = core.judge(ethertype, packet);
      const Run run = Gate::run(program, ethernet(ethertype, packet), Gate::ifindex(), 0, 0);
      const bool allowed = sluice_allows(reason) != 0;
      ++seen[reason];
      const std::uint64_t now_counted = count_of(reason);
      if (now_counted == counted[reason] + 1 && run.verdict == (allowed ? kPass : kDrop)) {
        counted[reason] = now_counted;
        continue;
      }
      ++differing;
      std::string other = "none", bytes;
      for (std::uint32_t i = 0; i < SLUICE_REASON_COUNT; ++i)
        if (const std::uint64_t value = count_of(i); value != counted[i]) {
          other = reason_name(i);
          counted[i] = value;
        }
      for (const std::uint8_t byte : packet) bytes += fmt::format("{:02x}", byte);
      if (differing <= 5)
        MESSAGE("EtherType ", ethertype, ": user space ", std::string(reason_name(reason)),
                ", kernel ", other, " verdict ", run.verdict, ": ", bytes);
    }
  }
  CHECK(differing == 0);
  CHECK(compared >= 200'000);
  // The comparison is worth something only where each verdict occurred.
  for (const std::uint32_t reason :
       {SLUICE_REASON_ALLOW_RULE, SLUICE_REASON_ALLOW_LEARNED, SLUICE_REASON_ALLOW_REPLY,
        SLUICE_REASON_ALLOW_MODE, SLUICE_REASON_ALLOW_HOUSEKEEPING, SLUICE_REASON_DENY_BLOCK_ALL,
        SLUICE_REASON_DENY_RULE, SLUICE_REASON_DENY_FLOOR, SLUICE_REASON_DENY_MODE,
        SLUICE_REASON_DENY_TRUNCATED, SLUICE_REASON_DENY_MALFORMED, SLUICE_REASON_DENY_SOURCE_ROUTE,
        SLUICE_REASON_DENY_EXTENSION, SLUICE_REASON_DENY_MAPPED, SLUICE_REASON_DENY_FRAGMENT,
        SLUICE_REASON_DENY_HOUSEKEEPING, SLUICE_REASON_DENY_EMBEDDED})
    CHECK_MESSAGE(seen[reason] > 20, std::string(reason_name(reason)));
  MESSAGE(compared, " packets compared");
}

TEST_CASE("a packet cut at any length passes nowhere") {
  Gate gate;
  Core core;
  gate.publish(rules());
  Layer layer;
  layer.rules = rules();
  const LayerInput input{&layer, false};
  const auto policy = compile(std::span(&input, 1), Floor{}, boot_now()).value();
  core.use(policy, SLUICE_MODE_ALLOWLIST, 0);
  core.tables.now = boot_now().nanoseconds;
  const std::string from4 = "192.0.2.2", from6 = "2001:db8::2";
  struct Whole {
    Bytes packet;
    std::size_t headers;  // up to here every byte is needed
  };
  const std::vector<Whole> packets{
      {ip4(from4, "203.0.113.10", 6, tcp(40000, 443, kSyn, zeros(9))), 40},
      {ip4(from4, "203.0.113.10", 17, udp(40000, 8000, zeros(9))), 28},
      {ip4(from4, "203.0.113.10", 1, icmp(8, 0, 7, zeros(9))), 28},
      {ip4(from4, "198.51.100.7", 6, tcp(40000, 443, kSyn, zeros(9))), 40},
      {ip4(from4, "198.51.100.7", 17, udp(40000, 8000, zeros(9))), 28},
      {ip4(from4, "203.0.113.10", 6, tcp(40000, 443), {.options = Bytes(8, 1)}), 48},
      {ip6(from6, "2001:db8:b::10", 6, tcp(40000, 443, kSyn, zeros(9))), 60},
      {ip6(from6, "2001:db8:b::10", 17, udp(40000, 8000, zeros(9))), 48},
      {ip6(from6, "2001:db8:b::10", 58, icmp(128, 0, 7, zeros(9))), 48},
      {ip6(from6, "2001:db8:a::7", 6, tcp(40000, 443, kSyn, zeros(9))), 60},
      {ip6(from6, "2001:db8:b::10", 60, options_header(6, 1) + tcp(40000, 443)), 76},
      {ip6(from6, "2001:db8:a::7", 0,
           options_header(44) + fragment_header(17, 0, true) + udp(40000, 8000)),
       64},
  };
  for (const auto& [packet, headers] : packets) {
    const bool six = packet[0] >> 4 == 6;
    const std::uint16_t ethertype = six ? kIp6Type : kIp4Type;
    CAPTURE(six);
    CAPTURE(headers);
    CHECK(gate.from(ethernet(ethertype, packet)).verdict == kPass);
    CHECK(core.judge(ethertype, packet) == SLUICE_REASON_ALLOW_RULE);
    for (std::size_t size = 0; size < packet.size(); ++size) {
      CAPTURE(size);
      // The length field still says how long it was.
      const Bytes cut = head(packet, size);
      CHECK(core.judge(ethertype, cut) == SLUICE_REASON_DENY_TRUNCATED);
      if (runs_in_kernel(ethertype, cut)) {
        CHECK(gate.from(ethernet(ethertype, cut)).verdict == kDrop);
        // The length field follows: what is missing is still missed, until the headers are whole.
        Bytes honest = cut;
        const std::size_t length = six ? size - 40 : size;
        honest[six ? 4 : 2] = static_cast<std::uint8_t>(length >> 8);
        honest[six ? 5 : 3] = static_cast<std::uint8_t>(length);
        const bool whole = size >= headers;
        CHECK((gate.from(ethernet(ethertype, honest)).verdict == kPass) == whole);
        CHECK((sluice_allows(core.judge(ethertype, honest)) != 0) == whole);
        // Padding in place of what is missing changes nothing.
        CHECK((gate.from(ethernet(ethertype, honest + zeros(64))).verdict == kPass) == whole);
      }
    }
  }
}

TEST_CASE("frames too short for a test run are dropped where they arrive") {
  Gate gate;
  gate.publish({allowing("0.0.0.0/0"), allowing("::/0")});
  const Counters before = gate.plane().counters(gate.slot()).value();
  // From one byte of IP to one byte less than its fixed header.
  gate.lab().in_guest(
      "python3 -c \"import socket; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); "
      "s.bind((\\\"guest0\\\", 0)); mac = bytes.fromhex(\\\"020000000009020000000002\\\"); "
      "[s.send(mac + b\\\"\\\\x08\\\\x00\\\" + b\\\"\\\\x45\\\" * n) for n in range(1, 20)]; "
      "[s.send(mac + b\\\"\\\\x86\\\\xdd\\\" + b\\\"\\\\x60\\\" * n) for n in range(1, 40)]\"");
  Counters after = before;
  for (int i = 0; i < 300 && after.denied_packets - before.denied_packets < 58; ++i) {
    usleep(10'000);
    after = gate.plane().counters(gate.slot()).value();
  }
  CHECK(after.denied_packets - before.denied_packets == 58);
  CHECK(after.allowed_packets == before.allowed_packets);
}
