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
import socket, sys, os
way, servers = sys.argv[1], sys.argv[2:]
server = servers[0]
family = socket.AF_INET6 if ":" in server else socket.AF_INET
SO_MARK = 36
try:
    s = socket.socket(family, socket.SOCK_STREAM if "tcp" in way else socket.SOCK_DGRAM)
    s.settimeout(1)
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
  [[nodiscard]] std::string itself() const { return fmt::format("{:08x}", workload.asker_mark); }
};

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
  const std::string script =
      "import socket,time; s=socket.socket(); s.settimeout(5); s.connect((\"8.8.8.8\",53)); "
      "time.sleep(2); s.send(b\"who\"); print(s.recv(500).decode().split()[0])";
  std::string text;
  std::jthread client([&] {
    text = output_of(fmt::format(
        "sh -c 'echo $$ > {}/cgroup.procs; exec python3 -c \"$0\"' '{}' 2>&1", place.path, script));
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(900));
  const auto policy = compiled(deny({"0.0.0.0/0"}));
  REQUIRE(place.plane->publish({.slot = place.workload.slot,
                                .mode = Mode::allowlist,
                                .options = redirected(),
                                .policy = &policy,
                                .tightening = true}));
  client.join();
  CHECK(text == place.itself());
}
