// Port 53 of a workload in a cgroup, in the daemon's own network namespace.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <fstream>

#include "dataplane/asker_mark.hpp"
#include "dataplane/cgroup_filter.hpp"
#include "packet/dataplane/dns.hpp"

using namespace sluice;
using namespace sluice::test;

namespace {

// As libraries ask: connected and not, IPv4 in an IPv6 socket, with a mark that is another's, and
// musl, which asks all servers of resolv.conf from one socket and takes answers only from those.
constexpr const char* kWorkload = R"PY(
import os, socket, struct, sys
way, servers = sys.argv[1], sys.argv[2:]
server = servers[0]
family = socket.AF_INET6 if ":" in server else socket.AF_INET
SO_MARK = 36
try:
    s = socket.socket(family, socket.SOCK_STREAM if "tcp" in way else socket.SOCK_DGRAM)
    s.settimeout(30)
    if "marked" in way: s.setsockopt(socket.SOL_SOCKET, SO_MARK, int(os.environ["MARK"], 16))
    if "parallel" in way:
        for name in servers: s.sendto(name.encode(), (name, 53))
        for _ in servers:
            answer, peer = s.recvfrom(500)
            print(peer[0], answer.decode().split()[0])
        sys.exit()
    if "sendto" in way:
        s.sendto(b"who", (server, 53))
        answer, peer = s.recvfrom(500)
    else:
        s.connect((server, 53))
        if "tcp" in way:  # TCP_INFO
            assert struct.unpack_from("I", s.getsockopt(6, 11, 104), 100)[0] == 0, "the first segment was lost"
        peer = s.getpeername()
        s.send(b"who")
        answer = s.recv(500)
        if "udp" in way:
            s.send(b"who")
            peer = s.recvfrom(500)[1]
    assert peer[:2] == (server, 53), peer
    print(answer.decode().split()[0])
except Exception as e: print(type(e).__name__, e)
)PY";

struct Place {
  DnsLab lab;
  std::string name = fmt::format("/sluice-dns-{}", getpid());
  std::string path = find_cgroup2()->string() + name;
  std::unique_ptr<KernelDataPlane> plane;
  KernelAttachment workload;

  Place() {
    std::filesystem::create_directory(path);
    plane = lab.open();
    auto attached = plane->attach(CgroupTarget{.path = name}, nullptr);
    REQUIRE_MESSAGE(attached, attached.error().message);
    workload = *attached;
    DnsLab::publish(*plane, workload.slot, redirected());
  }
  ~Place() {
    plane.reset();
    std::filesystem::remove_all(lab.config.bpffs);
    rmdir(path.c_str());
  }
  [[nodiscard]] std::string ask(const std::string& way, const std::string& servers) const {
    return output_of(fmt::format(
        "sh -c 'echo $$ > {}/cgroup.procs; exec env MARK={:08x} python3 -c \"$0\" $@' '{}' {} {}",
        path, asker_mark(9999), kWorkload, way, servers));
  }
  [[nodiscard]] std::string run(const char* script, const std::string& words) const {
    return output_of(
        fmt::format("sh -c 'echo $$ > {}/cgroup.procs; exec python3 -c \"$0\" $@' '{}' {} 2>&1",
                    path, script, words));
  }
  [[nodiscard]] std::string itself() const { return fmt::format("{:08x}", workload.asker_mark); }
};

// Asks by a socket that was connected before the redirection: until that is refused, then by a
// fresh one.
constexpr const char* kConnectedBefore = R"PY(
import socket, sys, time
server = sys.argv[1]
family = socket.AF_INET6 if ":" in server else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
s.connect((server, 53))
for _ in range(1000):
    try: s.send(b"who")
    except PermissionError: break
    except OSError: pass
    time.sleep(0.02)
else: sys.exit("never refused")
for _ in range(20):
    try: s.send(b"who"); sys.exit("sent after all")
    except PermissionError: pass
s = socket.socket(family, socket.SOCK_DGRAM)
s.settimeout(30)
s.connect((server, 53))
s.send(b"who")
print(s.recv(500).decode().split()[0])
)PY";

// A question, and the first part of one, under a header that the workload writes itself.
constexpr const char* kOwnHeader = R"PY(
import socket, struct, sys
server, protocol = sys.argv[1], int(sys.argv[2])
body = struct.pack("!HHHH", 4000, 53, 24, 0) if protocol == 17 else struct.pack("!HHIIBBHHH", 4000, 53, 1, 0, 80, 2, 1000, 0, 0)
body += bytes(32 - len(body))
six = ":" in server
s = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
if six: s.setsockopt(socket.IPPROTO_IPV6, 36, 1)
for part in (0, 1):
    if six:
        payload = (struct.pack("!BBHI", protocol, 0, 1, 7) if part else b"") + body
        ends = socket.inet_pton(socket.AF_INET6, "2001:db8:1::1") + socket.inet_pton(socket.AF_INET6, server)
        packet = struct.pack("!IHBB", 6 << 28, len(payload), 44 if part else protocol, 64) + ends + payload
    else:
        ends = socket.inet_aton("198.51.100.1") + socket.inet_aton(server)
        packet = struct.pack("!BBHHHBBH", 69, 0, 20 + len(body), 1, 0x2000 * part, 64, protocol, 0) + ends + body
    try: s.sendto(packet, (server, 0)); print("sent")
    except PermissionError: print("refused")
)PY";

constexpr const char* kAll[] = {"8.8.8.8",   "192.0.2.1",       "127.0.0.53",
                                "127.0.0.1", "169.254.169.254", "2001:4860::8888",
                                "::1",       "::ffff:8.8.8.8",  "::ffff:127.0.0.53"};

}  // namespace

TEST_CASE("whatever server and however it is asked, the answer seems to come from it") {
  Place place;
  const Resolver resolver(*place.plane);
  for (const char* way : {"udp-sendto", "udp-connect", "tcp-connect"})
    for (const char* server : kAll) {
      CAPTURE(std::string(way));
      CAPTURE(std::string(server));
      CHECK(place.ask(way, server) == place.itself());
    }
  CHECK(place.lab.sent_by_uplink() == 0);
}

TEST_CASE("a mark that a workload gives its socket is not believed") {
  Place place;
  const Resolver resolver(*place.plane);
  for (const char* way : {"udp-sendto-marked", "udp-connect-marked", "tcp-connect-marked"})
    CHECK(place.ask(way, "8.8.8.8") == place.itself());
}

TEST_CASE("servers asked at once from one socket answer each for itself") {
  Place place;
  const std::string me = place.itself();
  {
    const Resolver resolver(*place.plane, 0, 1, 4);
    const std::string each = place.ask("parallel", "8.8.8.8 9.9.9.9 1.1.1.1 192.0.2.1");
    for (const char* server : {"8.8.8.8", "9.9.9.9", "1.1.1.1", "192.0.2.1"})
      CHECK_MESSAGE(each.find(fmt::format("{} {}", server, me)) != std::string::npos, each);
    const std::string six = place.ask("parallel", "2001:db8::9 2001:db8::8 2001:db8::7");
    for (const char* server : {"2001:db8::9", "2001:db8::8", "2001:db8::7"})
      CHECK_MESSAGE(six.find(fmt::format("{} {}", server, me)) != std::string::npos, six);
  }
  // With one address for all of them, from one that was asked.
  const Resolver resolver(*place.plane);
  CHECK(place.ask("parallel", "8.8.8.8 9.9.9.9 1.1.1.1") ==
        fmt::format("1.1.1.1 {0}\n1.1.1.1 {0}\n1.1.1.1 {0}", me));
}

TEST_CASE("with no resolver a question fails at once and goes nowhere") {
  Place place;
  for (const char* way : {"udp-sendto", "udp-connect", "tcp-connect"})
    for (const char* server : kAll) {
      CAPTURE(std::string(way));
      CAPTURE(std::string(server));
      CHECK(place.ask(way, server).starts_with("PermissionError"));
    }
  CHECK(place.lab.sent_by_uplink() == 0);
}

TEST_CASE("what is not redirected has no way to the resolver in another's name") {
  Place place;
  const Resolver resolver(*place.plane);
  // Nobody's: answered here, dropped by a resolver that asks who it is.
  CHECK(output_of(fmt::format("python3 -c '{}' udp-sendto 127.83.76.1", kWorkload)) == "00000000");
  DnsLab::publish(*place.plane, place.workload.slot, AttachmentOptions{});
  CHECK(place.ask("udp-sendto", "127.83.76.1").starts_with("PermissionError"));
  CHECK(place.ask("udp-sendto", "8.8.8.8").starts_with("PermissionError"));
}

TEST_CASE("a tightening does not cut a connection to the resolver") {
  Place place;
  const Resolver resolver(*place.plane);
  const Signals signals;
  std::string text;
  std::jthread client([&] { text = place.run(kAsksLater, "8.8.8.8 - 0 " + signals.folder()); });
  CHECK(signals.comes("connected"));
  const auto policy = compiled(deny({"0.0.0.0/0"}));
  REQUIRE(place.plane->publish({.slot = place.workload.slot,
                                .mode = Mode::allowlist,
                                .options = redirected(),
                                .policy = &policy,
                                .tightening = true}));
  signals.tell("ask");
  client.join();
  CHECK(text == answer_to(place.workload, "8.8.8.8"));
}

TEST_CASE("a socket connected before the redirection is refused, and its program asks again") {
  for (const char* server : {"9.9.9.9", "2620:fe::9"}) {
    CAPTURE(std::string(server));
    Place place;
    const Resolver resolver(*place.plane);
    Lab::run("ip neigh replace 2620:fe::9 lladdr 02:00:00:00:00:01 dev up0");
    DnsLab::publish(*place.plane, place.workload.slot, AttachmentOptions{}, Mode::denylist);
    std::string text;
    std::jthread client([&] { text = place.run(kConnectedBefore, server); });
    for (int i = 0; i < 1000 && place.lab.sent_by_uplink() == 0; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK(place.lab.sent_by_uplink() > 0);
    DnsLab::publish(*place.plane, place.workload.slot, redirected(), Mode::denylist);
    const auto before = place.lab.sent_by_uplink();
    client.join();
    CHECK(text == place.itself());
    CHECK(place.lab.sent_by_uplink() == before);
  }
}

TEST_CASE("a question under a header of the workload's own goes nowhere, though policy allows it") {
  Place place;
  const Resolver resolver(*place.plane);
  Lab::run("ip neigh replace 2620:fe::9 lladdr 02:00:00:00:00:01 dev up0");
  for (const char* words : {"9.9.9.9 17", "9.9.9.9 6", "2620:fe::9 17", "2620:fe::9 6"}) {
    CAPTURE(std::string(words));
    DnsLab::publish(*place.plane, place.workload.slot, AttachmentOptions{}, Mode::denylist);
    auto before = place.lab.sent_by_uplink();
    CHECK(place.run(kOwnHeader, words) == "sent\nsent");
    CHECK(place.lab.sent_by_uplink() > before);
    before = place.lab.sent_by_uplink();
    DnsLab::publish(*place.plane, place.workload.slot, redirected(), Mode::denylist);
    CHECK(place.run(kOwnHeader, words) == "refused\nrefused");
    CHECK(place.lab.sent_by_uplink() == before);
  }
}
