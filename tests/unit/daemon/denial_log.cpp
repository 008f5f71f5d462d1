#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "daemon/denial_log.hpp"

#include <doctest/doctest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <sstream>

using namespace sluice;

namespace {

Denial denial(std::uint8_t family, std::uint8_t protocol, std::uint16_t port) {
  Denial made;
  made.attachment = {1};
  made.reason = "not on the allowlist";
  auto& event = made.event;
  event.family = family;
  event.protocol = protocol;
  event.length = 60;
  event.source_port_be = __builtin_bswap16(4242);
  event.destination_port_be = __builtin_bswap16(port);
  if (family == 4) {
    for (auto* address : {event.source, event.destination}) address[10] = address[11] = 0xff;
    event.source[12] = 10;
    event.source[15] = 2;
    event.destination[12] = 192;
    event.destination[14] = 2;
    event.destination[15] = 7;
  } else {
    event.source[0] = event.destination[0] = 0xfd;
    event.source[15] = 2;
    event.destination[15] = 7;
  }
  return made;
}

}  // namespace

TEST_CASE("a denial in words") {
  CHECK(describe(denial(4, 6, 443), "tap1") ==
        "tap1: tcp 10.0.0.2:4242 -> 192.0.2.7:443 (60 bytes): not on the allowlist");
  CHECK(describe(denial(6, 17, 53), "tap1") ==
        "tap1: udp [fd00::2]:4242 -> [fd00::7]:53 (60 bytes): not on the allowlist");

  auto ping = denial(4, 1, 0);
  ping.event.icmp_type = 8;
  ping.rule = "deny 192.0.2.0/24";
  ping.reason = "explicit deny";
  CHECK(describe(ping, "/a") ==
        "/a: icmp 8/0 10.0.0.2 -> 192.0.2.7 (60 bytes): explicit deny: deny 192.0.2.0/24");

  auto frame = denial(4, 0, 0);
  frame.event.family = 0;
  frame.event.ethertype = 0x88cc;
  frame.attachment = {};
  frame.reason = "EtherType is not IPv4, IPv6 or ARP";
  CHECK(describe(frame, "") ==
        "guard: frame of EtherType 0x88cc (60 bytes): EtherType is not IPv4, IPv6 or ARP");
}

TEST_CASE("a flood is bounded, and what is left out is counted") {
  std::ostringstream text;
  auto before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(text)));
  BootTime now{1'000'000'000'000};
  DenialLog log([](AttachmentId) { return "tap1"; }, [&] { return now; });
  const std::vector<Denial> flood(1000, denial(4, 6, 443));
  log.write(flood);
  now.nanoseconds += 1'000'000'000;
  log.write(std::span(flood).first(1));
  spdlog::set_default_logger(before);

  std::size_t lines = 0;
  for (auto at = text.str().find("denied tap1"); at != std::string::npos;
       at = text.str().find("denied tap1", at + 1)) {
    ++lines;
  }
  CHECK(lines == DenialLog::kBurst + 1);
  CHECK(text.str().find(std::to_string(1000 - DenialLog::kBurst) + " denials were not logged") !=
        std::string::npos);
}
