// The answer to a denied packet: a reset or an ICMP error, byte for byte, and who gets none.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "packet/verdicts/gate.hpp"

using namespace sluice;
using namespace sluice::test;

namespace {

const std::string kFrom4 = "192.0.2.2", kTo4 = "203.0.113.50";
const std::string kFrom6 = "2001:db8::2", kTo6 = "2001:db8:f::50";

Bytes out(bool six, std::uint8_t protocol, const Bytes& payload) {
  return framed(six ? ip6(kFrom6, kTo6, protocol, payload) : ip4(kFrom4, kTo4, protocol, payload));
}

// RFC 768, 793, 8200: the checksum over the pseudo header and everything behind the IP header.
std::uint16_t transport_checksum(const Bytes& packet) {
  const bool six = packet.at(0) >> 4 == 6;
  const std::size_t header = six ? 40 : 20;
  const Bytes transport = slice(packet, header, packet.size() - header);
  const std::uint8_t protocol = packet.at(six ? 6 : 9);
  const auto length = static_cast<std::uint32_t>(transport.size());
  if (!six && protocol == 1) return checksum(transport);
  const Bytes addresses = six ? slice(packet, 8, 32) : slice(packet, 12, 8);
  return checksum(addresses + be32(length) + be32(protocol) + transport);
}

// Checks what every answer has: turned round, and with right sums. Returns the IP packet.
Bytes answer_to(Gate& gate, const Bytes& frame, bool six) {
  const Counters before = gate.plane().counters(gate.slot()).value();
  const Run run = gate.from(frame);
  REQUIRE(run.verdict == kRedirect);
  CHECK(gate.plane().counters(gate.slot()).value().denied_packets - before.denied_packets == 1);
  CHECK(slice(run.frame, 0, 6) == slice(frame, 6, 6));
  CHECK(slice(run.frame, 6, 6) == slice(frame, 0, 6));
  CHECK(read16(run.frame, 12) == (six ? kIp6Type : kIp4Type));
  const Bytes packet = slice(run.frame, 14, run.frame.size() - 14);
  if (six) {
    CHECK(read32(packet, 0) == 0x60000000);
    CHECK(read16(packet, 4) == packet.size() - 40);
    CHECK(packet.at(7) == 64);
    CHECK(slice(packet, 8, 16) == address(kTo6));
    CHECK(slice(packet, 24, 16) == address(kFrom6));
  } else {
    CHECK(packet.at(0) == 0x45);
    CHECK(read16(packet, 2) == packet.size());
    CHECK(read16(packet, 6) == 0);
    CHECK(packet.at(8) == 64);
    CHECK(checksum(head(packet, 20)) == 0);
    CHECK(slice(packet, 12, 4) == address(kTo4));
    CHECK(slice(packet, 16, 4) == address(kFrom4));
  }
  CHECK(transport_checksum(packet) == 0);
  return packet;
}

struct Reset {
  std::uint16_t from, to;
  std::uint32_t sequence, acknowledgment;
  std::uint8_t flags;
  bool operator==(const Reset&) const = default;
};
Reset reset_in(const Bytes& packet, bool six) {
  const std::size_t at = six ? 40 : 20;
  CHECK(packet.at(six ? 6 : 9) == 6);
  REQUIRE(packet.size() == at + 20);
  CHECK(packet.at(at + 12) == 0x50);
  CHECK(read16(packet, at + 14) == 0);
  return {read16(packet, at), read16(packet, at + 2), read32(packet, at + 4),
          read32(packet, at + 8), packet.at(at + 13)};
}

void publish_telling(Gate& gate, const std::vector<Rule>& rules = {}, Mode mode = Mode::allowlist) {
  gate.publish(rules, mode, AttachmentOptions{});
}

}  // namespace

TEST_CASE("TCP is reset, so that the workload's stack takes it for the other end's") {
  Gate gate;
  publish_telling(gate);
  for (const bool six : {false, true}) {
    CAPTURE(six);
    const auto reset_for = [&](const Bytes& segment) {
      return reset_in(answer_to(gate, out(six, 6, segment), six), six);
    };
    CHECK(reset_for(tcp(40000, 443, kSyn, {}, 0x01020304)) ==
          Reset{443, 40000, 0, 0x01020305, kRst | kAck});
    CHECK(reset_for(tcp(40000, 443, kSyn, {}, 0xffffffff)) == Reset{443, 40000, 0, 0, kRst | kAck});
    CHECK(reset_for(tcp(40000, 443, kAck, {}, 5, 0xa0b0c0d0)) ==
          Reset{443, 40000, 0xa0b0c0d0, 0, kRst});
    CHECK(reset_for(tcp(40000, 443, kAck | kPush, zeros(1000), 5, 6)) ==
          Reset{443, 40000, 6, 0, kRst});
    CHECK(reset_for(tcp(40000, 443, kFin | kAck, {}, 5, 6)) == Reset{443, 40000, 6, 0, kRst});
  }
}

TEST_CASE("the TCP header is found behind options and extension headers") {
  Gate gate;
  publish_telling(gate);
  const Bytes syn = tcp(40000, 443, kSyn, {}, 9);
  Ip4 with;
  with.options = Bytes(40, 1);
  CHECK(reset_in(answer_to(gate, framed(ip4(kFrom4, kTo4, 6, syn, with)), false), false) ==
        Reset{443, 40000, 0, 10, kRst | kAck});
  CHECK(reset_in(answer_to(gate, out(true, 60, options_header(6, 3) + syn), true), true) ==
        Reset{443, 40000, 0, 10, kRst | kAck});
}

TEST_CASE("everything else gets 'administratively prohibited', with the packet's head in it") {
  Gate gate;
  publish_telling(gate);
  for (const bool six : {false, true}) {
    CAPTURE(six);
    for (const auto& [protocol, payload] :
         {std::pair<std::uint8_t, Bytes>{17, udp(40000, 53)},
          std::pair<std::uint8_t, Bytes>{17, udp(40000, 53, zeros(1200))},
          std::pair<std::uint8_t, Bytes>{47, zeros(12)},
          std::pair<std::uint8_t, Bytes>{132, be16(1) + be16(2) + zeros(8)},
          std::pair<std::uint8_t, Bytes>{six ? 58 : 1, six ? icmp(128) : icmp(8)}}) {
      CAPTURE(static_cast<int>(protocol));
      CAPTURE(payload.size());
      const Bytes frame = out(six, protocol, payload);
      const Bytes packet = answer_to(gate, frame, six);
      const std::size_t header = six ? 40 : 20;
      REQUIRE(packet.size() == header + 8 + header + 8);
      CHECK(packet.at(six ? 6 : 9) == (six ? 58 : 1));
      CHECK(packet.at(header) == (six ? 1 : 3));
      CHECK(packet.at(header + 1) == (six ? 1 : 13));
      CHECK(read32(packet, header + 4) == 0);
      CHECK(slice(packet, header + 8, header + 8) == slice(frame, 14, header + 8));
    }
  }
}

TEST_CASE("who gets an answer, and who is dropped without one") {
  Gate gate;
  const Bytes syn = tcp(40000, 443);
  const Floor floor{{Prefix::parse("169.254.169.254/32").value()}};
  gate.publish({denying("203.0.113.99/32"), allowing("64:ff9b::/96")}, Mode::allowlist,
               AttachmentOptions{}, floor);
  const auto verdict = [&](const Bytes& packet) { return gate.from(framed(packet)).verdict; };
  CHECK(verdict(ip4(kFrom4, kTo4, 6, syn)) == kRedirect);
  CHECK(verdict(ip4(kFrom4, "203.0.113.99", 6, syn)) == kRedirect);     // an explicit deny
  CHECK(verdict(ip4(kFrom4, "169.254.169.254", 6, syn)) == kRedirect);  // the floor
  CHECK(verdict(ip6(kFrom6, "64:ff9b::1", 6, syn)) == kRedirect);       // the address inside
  // A reset is not answered, nor an ICMP error, nor a later fragment (RFC 1122 section 3.2.2).
  CHECK(verdict(ip4(kFrom4, kTo4, 6, tcp(1, 2, kRst))) == kDrop);
  CHECK(verdict(ip6(kFrom6, kTo6, 6, tcp(1, 2, kRst | kAck))) == kDrop);
  CHECK(verdict(ip4(kFrom4, kTo4, 1, icmp(3, 3))) == kDrop);
  CHECK(verdict(ip4(kFrom4, kTo4, 1, icmp(0))) == kDrop);
  CHECK(verdict(ip6(kFrom6, kTo6, 58, icmp(1, 4))) == kDrop);
  CHECK(verdict(ip6(kFrom6, kTo6, 58, icmp(136))) == kDrop);
  CHECK(verdict(ip4(kFrom4, kTo4, 17, zeros(16), {.fragment = 8})) == kDrop);
  CHECK(verdict(ip4(kFrom4, "203.0.113.99", 17, zeros(16), {.fragment = 8})) == kDrop);
  CHECK(verdict(ip6(kFrom6, kTo6, 44, fragment_header(17, 8, false) + zeros(16))) == kDrop);
  // Nor what went to many, or says it came from none or from many.
  CHECK(verdict(ip4(kFrom4, "239.1.1.1", 17, udp(1, 2))) == kDrop);
  CHECK(verdict(ip4(kFrom4, "255.255.255.255", 17, udp(1, 2))) == kDrop);
  CHECK(verdict(ip6(kFrom6, "ff0e::1", 17, udp(1, 2))) == kDrop);
  CHECK(verdict(ip4("0.0.0.0", kTo4, 6, syn)) == kDrop);
  CHECK(verdict(ip4("127.0.0.1", kTo4, 6, syn)) == kDrop);
  CHECK(verdict(ip4("224.0.0.1", kTo4, 6, syn)) == kDrop);
  CHECK(verdict(ip6("::", kTo6, 6, syn)) == kDrop);
  CHECK(verdict(ip6("ff02::1", kTo6, 6, syn)) == kDrop);
  // Nor what could not be read.
  CHECK(verdict(head(ip4(kFrom4, kTo4, 6, syn), 39)) == kDrop);
  CHECK(verdict(ip6(kFrom6, kTo6, 43, routing_header(6, 1) + syn)) == kDrop);
  CHECK(verdict(ip4(kFrom4, kTo4, 47, zeros(4))) == kDrop);  // too short to be quoted
  AttachmentOptions audit;
  audit.audit = true;
  gate.publish({}, Mode::allowlist, audit);
  CHECK(verdict(ip4(kFrom4, kTo4, 6, syn)) == kPass);
  gate.publish({}, Mode::allowlist, plain());
  CHECK(verdict(ip4(kFrom4, kTo4, 6, syn)) == kDrop);
}

TEST_CASE("answers are bounded, so that a flood costs what drops cost") {
  Gate gate;
  publish_telling(gate);
  const Bytes frame = out(false, 6, tcp(40000, 443));
  // A thousand a second and CPU. The clock may turn while this runs, so two thousand are not
  // enough to be sure; what is certain is that a batch within one turn is cut off.
  std::uint64_t told = 0, sent = 0;
  const std::uint64_t begun = boot_now().nanoseconds;
  while (sent < 20000) {
    told += gate.from(frame).verdict == kRedirect ? 1 : 0;
    ++sent;
  }
  const std::uint64_t turns = ((boot_now().nanoseconds) >> 30) - (begun >> 30) + 1;
  const auto cpus = static_cast<std::uint64_t>(sysconf(_SC_NPROCESSORS_ONLN));
  CHECK(told >= 1000);
  CHECK(told <= 1000 * cpus * (turns + 1));
}

TEST_CASE("a device without an Ethernet header is answered without one") {
  Gate gate;
  gate.lab().run("ip tuntap add dev tun0 mode tun; ip link set tun0 up");
  const std::uint32_t slot = gate.attach("tun0");
  gate.publish_at(slot, {}, Mode::allowlist, AttachmentOptions{});
  // See headers.cpp: the EtherType is bytes 12 and 13 of the packet in a test run.
  const Run run = gate.from(ip4("8.0.0.2", kTo4, 17, udp(40000, 53, zeros(40))), "tun0");
  REQUIRE(run.verdict == kRedirect);
  REQUIRE(run.frame.size() == 56);
  CHECK(slice(run.frame, 12, 4) == address(kTo4));
  CHECK(slice(run.frame, 16, 4) == address("8.0.0.2"));
  CHECK(checksum(head(run.frame, 20)) == 0);
  CHECK(transport_checksum(run.frame) == 0);
}

TEST_CASE("a tightening turns the other end's next segment into a reset for it") {
  Gate gate;
  for (const bool six : {false, true}) {
    CAPTURE(six);
    const auto in = [&](const Bytes& segment) {
      return ethernet(six ? kIp6Type : kIp4Type,
                      six ? ip6(kTo6, kFrom6, 6, segment) : ip4(kTo4, kFrom4, 6, segment),
                      kGuestMac, kOtherMac);
    };
    const Bytes segment = in(tcp(443, 40000, kAck | kPush, zeros(9), 5, 0x01020304));
    gate.publish_at(gate.slot(), {allowing(six ? "2001:db8:f::/48" : "203.0.113.0/24")},
                    Mode::allowlist, AttachmentOptions{}, {}, false, true);
    CHECK(gate.to(segment).verdict == kPass);
    gate.publish_at(gate.slot(), {}, Mode::allowlist, AttachmentOptions{}, {}, false, true);
    const Run run = gate.to(segment);
    REQUIRE(run.verdict == kRedirect);
    const Bytes packet = slice(run.frame, 14, run.frame.size() - 14);
    CHECK(slice(run.frame, 0, 6) == Bytes(kOtherMac.begin(), kOtherMac.end()));
    CHECK(transport_checksum(packet) == 0);
    CHECK(reset_in(packet, six) == Reset{40000, 443, 0x01020304, 0, kRst});
    // It passes the filter on its way out by its mark, and nothing else does.
    const int from = gate.program("from");
    CHECK(Gate::run(from, run.frame, Gate::ifindex(), 0, run.mark).verdict == kPass);
    CHECK(Gate::run(from, run.frame, Gate::ifindex(), 0, 0).verdict == kDrop);
    CHECK(Gate::run(from, run.frame, Gate::ifindex(), 0, run.mark ^ 2).verdict == kDrop);
    // What is no segment of an old connection goes its way.
    CHECK(gate.to(in(tcp(443, 40000, kSyn))).verdict == kPass);
    CHECK(gate.to(in(tcp(443, 40001, kRst))).verdict == kPass);
    // That SYN came from outside; its connection is not cut.
    CHECK(gate.to(in(tcp(443, 40000, kAck, {}, 6, 7))).verdict == kPass);
  }
}
