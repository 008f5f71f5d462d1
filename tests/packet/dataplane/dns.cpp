// Port 53 on the real kernel: whatever server a guest names, the resolver's socket gets the packet
// or nobody does. The resolver here answers with who asked, by its mark, and what server.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "packet/dataplane/dns.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>

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
      CAPTURE(std::string(server));
      CAPTURE(std::string(protocol));
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
    [[maybe_unused]] const auto lost = routed.lab.ask_in_vain("udp", server);
  CHECK(routed.lab.sent_by_uplink() == 2);
}

TEST_CASE("with no resolver, port 53 is dropped and counted") {
  Routed routed;
  for (const char* protocol : {"udp", "tcp"})
    for (const char* server : kServers) {
      CAPTURE(std::string(server));
      CHECK(routed.lab.ask_in_vain(protocol, server).starts_with("TimeoutError"));
    }
  CHECK(routed.lab.sent_by_uplink() == 0);
  CHECK(routed.plane->reason_counters()[SLUICE_REASON_DENY_DNS_UNSERVED] >= std::size(kServers));
  {
    const Resolver resolver(*routed.plane);
    CHECK(routed.lab.ask("udp", "8.8.8.8") == answer_to(routed.guest, "8.8.8.8"));
  }
  // Its sockets are closed, as they are when a daemon is killed.
  CHECK(routed.lab.ask_in_vain("udp", "8.8.8.8").starts_with("TimeoutError"));
  CHECK(routed.lab.sent_by_uplink() == 0);
}

TEST_CASE("without the host's rule a query is dropped, not forwarded; and the rule comes back") {
  Routed routed;
  const Resolver resolver(*routed.plane);
  Lab::run("ip rule del pref 54; ip -6 rule del pref 54");
  for (const char* server : {"8.8.8.8", "2001:4860::8888"}) {
    CAPTURE(std::string(server));
    CHECK(routed.lab.ask_in_vain("udp", server).starts_with("TimeoutError"));
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
      CAPTURE(std::string(server));
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
  {
    const Resolver resolver(*routed.plane);
    CHECK(rules() != "0");
  }
  routed.plane.reset();
  REQUIRE(KernelDataPlane::detach_all(routed.lab.config));
  CHECK(rules() == "0");
}

TEST_CASE("sockets that could not do their work are refused, and what served goes on") {
  Routed routed;
  const Resolver resolver(*routed.plane);
  const auto refused = [&](const Fd& fd) {
    const int sockets[] = {fd.get()};
    const auto served = routed.plane->serve(0, sockets);
    return served ? std::string("served") : served.error().message;
  };
  const auto contains = [](const std::string& text, const char* part) {
    CHECK_MESSAGE(text.find(part) != std::string::npos, text);
  };
  const int on = 1;
  Fd opaque(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_in at{.sin_family = AF_INET, .sin_port = htons(53), .sin_addr = {}, .sin_zero = {}};
  at.sin_addr.s_addr = htonl(SLUICE_RESOLVER_NET4 | 9);
  REQUIRE(bind(opaque.get(), reinterpret_cast<sockaddr*>(&at), sizeof(at)) == 0);
  contains(refused(opaque), "IP_TRANSPARENT");
  const Fd grouped = Resolver::open(AF_INET, SOCK_DGRAM, 10);
  setsockopt(grouped.get(), SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
  contains(refused(grouped), "SO_REUSEPORT");
  contains(refused(Fd(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0))), "port 0");
  Fd elsewhere(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  at.sin_addr.s_addr = htonl(0x7f000001);
  REQUIRE(bind(elsewhere.get(), reinterpret_cast<sockaddr*>(&at), sizeof(at)) == 0);
  contains(refused(elsewhere), "127.83.76.1");
  contains(refused(Fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0))), "no UDP or TCP");
  CHECK(routed.lab.ask("udp", "8.8.8.8") == answer_to(routed.guest, "8.8.8.8"));
}

TEST_CASE("each attachment asks the resolver of its wire, and more workers share the questions") {
  Routed routed;
  const Resolver first(*routed.plane, 0, 1), second(*routed.plane, 1, 20, 3);
  CHECK(routed.lab.ask("udp", "8.8.8.8") == answer_to(routed.guest, "8.8.8.8"));
  CHECK(first.answered() == 1);
  DnsLab::publish(*routed.plane, routed.guest.slot, redirected(1));
  for (int i = 0; i < 6; ++i) {
    CHECK(routed.lab.ask("udp", "8.8.8.8") == answer_to(routed.guest, "8.8.8.8"));
    CHECK(routed.lab.ask("tcp", "2001:4860::8888") == answer_to(routed.guest, "2001:4860::8888"));
  }
  CHECK(first.answered() == 1);
  CHECK(second.answered() == 12);
}

TEST_CASE("a question in fragments goes nowhere, though policy allows the server") {
  Routed routed;
  const Resolver resolver(*routed.plane);
  Lab::run("ip neigh replace 2620:fe::9 lladdr 02:00:00:00:00:01 dev up0");
  const auto ask_both = [&] {
    for (const char* server : {"9.9.9.9", "2620:fe::9"})
      CHECK(routed.lab.ask_in_vain("udp-large", server).starts_with("TimeoutError"));
  };
  // Without the redirection policy lets them by: so they would leave.
  DnsLab::publish(*routed.plane, routed.guest.slot, AttachmentOptions{}, Mode::denylist);
  ask_both();
  const auto before = routed.lab.sent_by_uplink();
  CHECK(before >= 2);
  DnsLab::publish(*routed.plane, routed.guest.slot, redirected(), Mode::denylist);
  ask_both();
  CHECK(resolver.answered() == 0);
  CHECK(routed.lab.sent_by_uplink() == before);
  CHECK(routed.plane->reason_counters()[SLUICE_REASON_DENY_FRAGMENT] >= 2);
}

TEST_CASE("a question to a multicast group or a broadcast address has no server") {
  Routed routed;
  const Resolver resolver(*routed.plane);
  for (const char* group : {"224.0.0.251", "ff02::fb%guest0"})
    CHECK(routed.lab.ask_in_vain("udp", group).starts_with("TimeoutError"));
  CHECK(resolver.answered() == 0);
}

TEST_CASE("a device without an Ethernet header is redirected too") {
  DnsLab lab;
  auto plane = lab.open();
  const Fd tun(open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
  ifreq request{};
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  std::strcpy(request.ifr_name, "tun0");
  REQUIRE(ioctl(tun.get(), TUNSETIFF, &request) == 0);
  Lab::run("ip addr add 10.9.0.1 peer 10.9.0.2 dev tun0; ip link set tun0 up");
  const auto guest = DnsLab::attach(*plane, "tun0");
  DnsLab::publish(*plane, guest.slot, redirected());
  const Resolver resolver(*plane);
  // IPv4 from 10.9.0.2 to 8.8.8.8, UDP from 4000 to 53 without a checksum, "who".
  const unsigned char packet[] = {0x45, 0,  0, 31, 0, 1, 0,   0,   64, 17, 0x60,
                                  0xb3, 10, 9, 0,  2, 8, 8,   8,   8,  15, 160,
                                  0,    53, 0, 11, 0, 0, 'w', 'h', 'o'};
  REQUIRE(write(tun.get(), packet, sizeof(packet)) == sizeof(packet));
  std::string answer;
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (answer.empty() && std::chrono::steady_clock::now() < end) {
    char data[1500];
    const ssize_t got = read(tun.get(), data, sizeof(data));
    if (got > 28 && data[9] == 17 && data[12] == 8) answer.assign(data + 28, data + got);
    if (got < 0) usleep(10000);
  }
  CHECK(answer == answer_to(guest, "8.8.8.8"));
}

// ---- ports of a bridge --------------------------------------------------------------------------

TEST_CASE("a guest on a bridge, whose gateway is beyond the uplink, is answered here") {
  DnsLab lab;
  lab.bridge();
  auto plane = lab.open();
  const auto guest = DnsLab::attach(*plane, "host0");
  DnsLab::publish(*plane, guest.slot, redirected());
  const Resolver resolver(*plane);
  for (const char* server : kServers)
    for (const char* protocol : {"udp", "tcp"}) {
      CAPTURE(std::string(server));
      CAPTURE(std::string(protocol));
      CHECK(lab.ask(protocol, server) == answer_to(guest, server));
    }
  CHECK(lab.sent_by_uplink() == 0);
  // The port moves to another bridge, which has no address and no way out but the uplink.
  Lab::run(
      "ip link add br1 type bridge; ip link set br1 up; ip link set up0 nomaster; ip link set "
      "up0 master br1; ip link set host0 nomaster; ip link set host0 master br1");
  for (const char* server : kServers) {
    CAPTURE(std::string(server));
    [[maybe_unused]] const auto lost = lab.ask_in_vain("udp", server);
  }
  CHECK(lab.sent_by_uplink() == 0);
}

// ---- one guest as another -----------------------------------------------------------------------

namespace {

struct Neighbours : Routed {
  KernelAttachment other;
  Neighbours() {
    lab.add_second_guest();
    other = DnsLab::attach(*plane, "host1");
    DnsLab::publish(*plane, other.slot, redirected());
  }
  std::uint64_t foreign() const { return plane->reason_counters()[SLUICE_REASON_DENY_DNS_FOREIGN]; }
};

}  // namespace

TEST_CASE(
    "a guest that writes its neighbour's address asks as itself, and gets the answer itself") {
  Neighbours both;
  const Resolver resolver(*both.plane);
  CHECK(both.lab.ask("udp", "8.8.8.8") == answer_to(both.guest, "8.8.8.8"));
  CHECK(both.lab.ask_from_second("udp", "8.8.8.8") == answer_to(both.other, "8.8.8.8"));
  CHECK(both.lab.ask_from_second("tcp", "8.8.8.8") == answer_to(both.other, "8.8.8.8"));
  Lab::run("ip netns exec " + both.lab.second() + " ip addr add 192.0.2.2/32 dev lo");
  CHECK(both.lab.ask_from_second("udp", "8.8.8.8", "192.0.2.2") ==
        answer_to(both.other, "8.8.8.8"));
  // A connection could not come about; its first segment is not even noted.
  CHECK(
      both.lab.ask_from_second_in_vain("tcp", "8.8.8.8", "192.0.2.2").starts_with("TimeoutError"));
  CHECK(both.foreign() > 0);
  CHECK(both.lab.ask("tcp", "8.8.8.8") == answer_to(both.guest, "8.8.8.8"));
}

TEST_CASE("a segment into a neighbour's connection is dropped, and the connection goes on") {
  Neighbours both;
  const Resolver resolver(*both.plane);
  Lab::run("ip netns exec " + both.lab.second() + " ip addr add 192.0.2.2/32 dev lo");
  // The guest connects from a known port and asks once the other has sent segments of every kind
  // with its addresses.
  const Signals signals;
  std::string text;
  std::jthread client([&] {
    text = output_of(fmt::format(
        "timeout 200 nsenter --net=/run/netns/{} python3 -c '{}' 8.8.8.8 192.0.2.2 5000 {} 2>&1",
        both.lab.name(), kAsksLater, signals.folder()));
  });
  CHECK(signals.comes("connected"));
  Lab::run(fmt::format("nsenter --net=/run/netns/{} python3 -c '{}'", both.lab.second(), kForger));
  signals.tell("ask");
  client.join();
  CHECK(text == answer_to(both.guest, "8.8.8.8"));
  CHECK(both.foreign() >= 4);
}

TEST_CASE("one guest's flood is dropped at its own bucket; its neighbour is answered") {
  Neighbours both;
  const Resolver resolver(*both.plane);
  Lab::run(
      fmt::format("nsenter --net=/run/netns/{} python3 -c 'import socket\ns=socket.socket("
                  "socket.AF_INET,socket.SOCK_DGRAM)\nfor i in range(20000): "
                  "s.sendto(b\"x\",(\"8.8.8.8\",53))'",
                  both.lab.second()));
  CHECK(both.plane->reason_counters()[SLUICE_REASON_DENY_DNS_BUDGET] > 0);
  CHECK(both.lab.ask("udp", "8.8.8.8") == answer_to(both.guest, "8.8.8.8"));
}

namespace {

// What waits in a socket, oldest first: the mark of each datagram and the number that it begins
// with.
struct Waiting {
  std::uint32_t mark, number;
};
std::vector<Waiting> drain(const Fd& socket) {
  std::vector<Waiting> all;
  for (;;) {
    Waiting one{};
    char control[256];
    iovec vector{&one.number, sizeof(one.number)};
    msghdr message{};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    if (recvmsg(socket.get(), &message, MSG_DONTWAIT) < 0) return all;
    for (cmsghdr* at = CMSG_FIRSTHDR(&message); at != nullptr; at = CMSG_NXTHDR(&message, at))
      if (at->cmsg_level == SOL_SOCKET && at->cmsg_type == SO_MARK)
        std::memcpy(&one.mark, CMSG_DATA(at), 4);
    one.number = ntohl(one.number);
    all.push_back(one);
  }
}

// Numbered datagrams to a server, from `ports` ports in turn.
std::string sender(const std::string& where, const char* server, int count, int ports) {
  return fmt::format(
      "nsenter --net=/run/netns/{0} python3 -c 'import socket\nf=socket.AF_INET6 if \":\" in "
      "\"{1}\" else socket.AF_INET\ns=[socket.socket(f,socket.SOCK_DGRAM) for i in "
      "range({3})]\nfor i in range({2}): s[i % {3}].sendto(i.to_bytes(4,\"big\"),(\"{1}\",53))'",
      where, server, count, ports);
}

}  // namespace

TEST_CASE("all of a guest's questions wait in one socket, its neighbour's in another") {
  Neighbours both;
  REQUIRE(both.guest.slot % 2 != both.other.slot % 2);
  std::vector<Fd> sockets;
  for (const int family : {AF_INET, AF_INET6})
    for (const int host : {1, 2}) sockets.push_back(Resolver::open(family, SOCK_DGRAM, host));
  const std::vector<int> fds{sockets[0].get(), sockets[1].get(), sockets[2].get(),
                             sockets[3].get()};
  REQUIRE(both.plane->serve(0, fds));
  Lab::run(sender(both.lab.name(), "8.8.8.8", 20, 20));
  Lab::run(sender(both.lab.name(), "2001:4860::8888", 20, 20));
  Lab::run(sender(both.lab.second(), "8.8.8.8", 20, 20));
  std::array<std::vector<Waiting>, 4> waiting;
  std::size_t arrived = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (arrived < 60 && std::chrono::steady_clock::now() < end) {
    for (std::size_t i = 0; i < sockets.size(); ++i)
      for (const auto& one : drain(sockets[i])) waiting[i].push_back(one), ++arrived;
    usleep(1000);
  }
  for (const std::uint32_t place : {0u, 1u}) {
    const bool is_guests = both.guest.slot % 2 == place;
    const auto &four = waiting[place], &six = waiting[2 + place];
    CHECK(four.size() == 20);
    CHECK(six.size() == (is_guests ? 20 : 0));
    for (const auto& one : four)
      CHECK(one.mark == (is_guests ? both.guest.asker_mark : both.other.asker_mark));
    for (const auto& one : six) CHECK(one.mark == both.guest.asker_mark);
  }
}

TEST_CASE("what a flood may still send comes one by one, not as a burst every tick") {
  Routed routed;
  const Fd socket = Resolver::open(AF_INET, SOCK_DGRAM, 1);
  const int room = 64 << 20;
  REQUIRE(setsockopt(socket.get(), SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)) == 0);
  REQUIRE(routed.plane->serve(0, std::array{socket.get()}));
  Lab::run(sender(routed.lab.name(), "8.8.8.8", 100000, 1));
  const auto passed = drain(socket);
  const auto burst = routed.lab.config.dns_packets_per_second / 4;
  // Beyond what it may send at once. A sender that does not run for a while has saved some up; a
  // flood is mostly one that runs.
  std::size_t alone = 0, runs = 0;
  for (std::size_t i = burst + 1; i < passed.size(); ++i) {
    const bool follows = passed[i].number == passed[i - 1].number + 1;
    runs += follows ? 0 : 1;
    alone += 1;
  }
  REQUIRE(runs > 1);
  CHECK(alone < 20 * runs);
}

TEST_CASE("answers are not taken for connections from outside") {
  Routed routed;
  AttachmentOptions with_replies = redirected();
  with_replies.replies = true;
  DnsLab::publish(*routed.plane, routed.guest.slot, with_replies);
  {
    const Resolver resolver(*routed.plane);
    CHECK(routed.lab.ask("udp", "9.9.9.9", "", 5353) == answer_to(routed.guest, "9.9.9.9"));
  }
  // Redirection ends: what the guest sends from that port to that server is no reply.
  DnsLab::publish(*routed.plane, routed.guest.slot, AttachmentOptions{});
  CHECK(routed.lab.ask_in_vain("udp", "9.9.9.9", "", 5353).starts_with("TimeoutError"));
  CHECK(routed.lab.sent_by_uplink() == 0);
}
