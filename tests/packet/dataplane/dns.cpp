// Port 53 on the real kernel: whatever server a guest names, the resolver's socket gets the packet
// or nobody does. The resolver here answers with who asked, by its mark, and what server.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "packet/dataplane/dns.hpp"

#include <doctest/doctest.h>

#include "packet/dataplane/policies.hpp"

using namespace sluice;
using namespace sluice::test;

namespace {

struct Routed {
  DnsLab lab;
  std::unique_ptr<KernelDataPlane> plane = lab.open();
  KernelAttachment guest = lab.attach(*plane, "host0");

  Routed() { lab.publish(*plane, guest.slot, redirected()); }
};

}  // namespace

TEST_CASE("a guest that asks any server is answered from that server's address") {
  Routed routed;
  const Resolver resolver(*routed.plane);
  for (const char* server : kServers) {
    for (const char* protocol : {"udp", "tcp"}) {
      CAPTURE(server);
      CAPTURE(protocol);
      CHECK(routed.lab.ask(protocol, server) == answer_to(routed.guest, server));
    }
  }
  CHECK(routed.lab.sent_by_uplink() == 0);
}

TEST_CASE("without the flag, or disabled, the same questions go out") {
  Routed routed;
  const Resolver resolver(*routed.plane);
  DnsLab::publish(*routed.plane, routed.guest.slot, redirected(), Mode::disabled);
  for (const char* server : {"8.8.8.8", "2001:4860::8888"})
    [[maybe_unused]] const auto lost = routed.lab.ask("udp", server);
  CHECK(routed.lab.sent_by_uplink() == 2);
}

TEST_CASE("with no resolver, port 53 is dropped and counted") {
  Routed routed;
  for (const char* protocol : {"udp", "tcp"})
    for (const char* server : kServers) {
      CAPTURE(server);
      CHECK(routed.lab.ask(protocol, server).starts_with("TimeoutError"));
    }
  CHECK(routed.lab.sent_by_uplink() == 0);
  CHECK(routed.plane->reason_counters()[SLUICE_REASON_DENY_DNS_UNSERVED] >= std::size(kServers));
  {
    const Resolver resolver(*routed.plane);
    CHECK(routed.lab.ask("udp", "8.8.8.8") == answer_to(routed.guest, "8.8.8.8"));
  }
  // Its sockets are closed, as they are when a daemon is killed.
  CHECK(routed.lab.ask("udp", "8.8.8.8").starts_with("TimeoutError"));
  CHECK(routed.lab.sent_by_uplink() == 0);
}

TEST_CASE("without the host's rule a query is dropped, not forwarded; and the rule comes back") {
  Routed routed;
  const Resolver resolver(*routed.plane);
  Lab::run("ip rule del pref 54; ip -6 rule del pref 54");
  for (const char* server : {"8.8.8.8", "2001:4860::8888"}) {
    CAPTURE(server);
    CHECK(routed.lab.ask("udp", server).starts_with("TimeoutError"));
  }
  CHECK(routed.lab.sent_by_uplink() == 0);
  routed.plane->poll({});
  CHECK(routed.lab.ask("udp", "8.8.8.8") == answer_to(routed.guest, "8.8.8.8"));
  CHECK(routed.lab.ask("udp", "2001:4860::8888") == answer_to(routed.guest, "2001:4860::8888"));
}

TEST_CASE("reverse path checks of every kind, and marks on accepted connections, do not hurt") {
  Routed routed;
  const Resolver resolver(*routed.plane);
  Lab::run(
      "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.host0.rp_filter=1 "
      "net.ipv4.conf.all.src_valid_mark=1 net.ipv4.tcp_fwmark_accept=1 "
      "net.ipv4.fwmark_reflect=1 net.ipv6.fwmark_reflect=1");
  for (const char* protocol : {"udp", "tcp"})
    for (const char* server : kServers) {
      CAPTURE(server);
      CHECK(routed.lab.ask(protocol, server) == answer_to(routed.guest, server));
    }
}

TEST_CASE("routes are made once, adopted, and go with the last resolver") {
  Routed routed;
  const auto rules = [] {
    return output_of(
        "(ip rule; ip -6 rule) | grep -c -e 0x5d000000 -e nop; ip route show table "
        "5353; ip -6 route show table 5353; ip -6 route show table local | grep 53:6c");
  };
  CHECK(rules() == "0");
  {
    const Resolver resolver(*routed.plane);
    const std::string made = rules();
    CHECK(made.starts_with("6\nlocal default dev lo"));
    routed.plane.reset();
    routed.plane = routed.lab.open();
    const Resolver second(*routed.plane, 0, 2);
    CHECK(rules() == made);
  }
  REQUIRE(routed.plane->end_serving());
  CHECK(rules() == "0");
}
