// For tests of the DNS redirection: a host with an uplink, guests, and a resolver in this process.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.hpp"
#include "packet/dataplane/lab.hpp"
#include "packet/dataplane/policies.hpp"

namespace sluice::test {

// The gateway, a server that exists for nobody, the metadata service, and the same in IPv6.
inline constexpr const char* kServers[] = {"192.0.2.1", "8.8.8.8", "169.254.169.254", "2001:db8::1",
                                           "2001:4860::8888"};

inline std::string output_of(const std::string& command) {
  std::string text;
  FILE* pipe = popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::array<char, 256> buffer{};
  while (fgets(buffer.data(), buffer.size(), pipe) != nullptr) text += buffer.data();
  pclose(pipe);
  while (text.ends_with('\n')) text.pop_back();
  return text;
}

// Asks as a client would and says what came back, or the error.
inline constexpr const char* kClient = R"PY(
import socket, struct, sys
protocol, server, source, port, patience = sys.argv[1], sys.argv[2], sys.argv[3].strip("-"), int(sys.argv[4]), int(sys.argv[5])
family = socket.AF_INET6 if ":" in server else socket.AF_INET
try:
    s = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    s.settimeout(patience)
    if source or port: s.bind((source, port))
    if protocol != "tcp":
        s.sendto(b"who am I" * (500 if protocol == "udp-large" else 1), (server, 53))
        answer, peer = s.recvfrom(500)
        assert peer[:2] == (server, 53), peer
    else:
        s.connect((server, 53))
        assert struct.unpack_from("I", s.getsockopt(6, 11, 104), 100)[0] == 0, "the first segment was lost"  # TCP_INFO
        s.sendall(b"who am I"); answer = s.recv(500)
    print(answer.decode())
except Exception as e: print(type(e).__name__, e)
)PY";

// A client that connects, and asks when it is told to; by files in a folder.
inline constexpr const char* kAsksLater = R"PY(
import os, socket, sys, time
server, source, port, folder = sys.argv[1], sys.argv[2].strip("-"), int(sys.argv[3]), sys.argv[4]
s = socket.socket()
s.settimeout(30)
if port: s.bind((source, port))
s.connect((server, 53)); open(folder + "/connected", "w").close()
for _ in range(1200):
    if os.path.exists(folder + "/ask"): break
    time.sleep(0.05)
s.sendall(b"who"); print(s.recv(500).decode())
)PY";

// Where processes of a test tell each other how far they are.
class Signals {
 public:
  Signals() { std::filesystem::create_directory(folder_); }
  ~Signals() { std::filesystem::remove_all(folder_); }
  Signals(const Signals&) = delete;
  Signals& operator=(const Signals&) = delete;

  [[nodiscard]] std::string folder() const { return folder_.string(); }
  void tell(const char* what) const { std::ofstream(folder_ / what).close(); }
  [[nodiscard]] bool comes(const char* what) const {
    for (int i = 0; i < 1200; ++i) {
      if (std::filesystem::exists(folder_ / what)) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    return false;
  }

 private:
  std::filesystem::path folder_ = fmt::format("/tmp/sluice-signals-{}", getpid());
};

inline AttachmentOptions redirected(std::uint32_t resolver = 0) {
  AttachmentOptions options;
  options.redirect_dns = true;
  options.resolver = resolver;
  return options;
}

// Segments with the neighbour's addresses: each flag that might matter, in both directions of
// doubt.
inline constexpr const char* kForger = R"PY(
import socket, struct
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
def total(data):
    value = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while value >> 16: value = (value & 0xffff) + (value >> 16)
    return ~value & 0xffff
ends = socket.inet_aton("192.0.2.2") + socket.inet_aton("8.8.8.8")
for flags in (2, 4, 16, 17, 24, 18):
    tcp = struct.pack("!HHIIBBHHH", 5000, 53, 1, 1, 80, flags, 1000, 0, 0)
    check = total(ends + struct.pack("!HH", 6, 20) + tcp)
    tcp = tcp[:16] + struct.pack("!H", check) + tcp[18:]
    raw.sendto(struct.pack("!BBHHHBBH", 69, 0, 40, 1, 0, 64, 6, 0) + ends + tcp, ("8.8.8.8", 0))
)PY";

class DnsLab : public Lab {
 public:
  DnsLab() {
    run("ip link add up0 type veth peer name up1; ip link set up1 up; ip link set up0 up; ip addr "
        "add 198.51.100.1/24 dev up0; "
        "ip addr add 2001:db8:1::1/64 dev up0 nodad; ip route add default dev up0; "
        "ip -6 route add default dev up0; sysctl -qw net.ipv4.ip_forward=1 "
        "net.ipv6.conf.all.forwarding=1");
    // Without neighbours nothing would be sent there.
    for (const char* server : kServers)
      run(fmt::format("ip neigh replace {} lladdr 02:00:00:00:00:01 dev up0", server));
    run("ip route replace default via 198.51.100.2 dev up0; ip neigh replace 198.51.100.2 lladdr "
        "02:00:00:00:00:01 dev up0; nft add table netdev sluice; nft add chain netdev sluice out "
        "'{ type filter hook egress device up0 priority 0; }'; nft add rule netdev sluice out meta "
        "l4proto '{ tcp, udp }' th dport 53 counter");
    in_guest("ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8::1");
  }

  static KernelAttachment attach(KernelDataPlane& plane, const char* device) {
    auto attached =
        plane.attach(InterfaceTarget{.name = device, .ifindex = ifindex(device)}, nullptr);
    REQUIRE_MESSAGE(attached, attached.error().message);
    return *attached;
  }
  static void publish(KernelDataPlane& plane, std::uint32_t slot, const AttachmentOptions& options,
                      Mode mode = Mode::allowlist) {
    const auto policy = compiled(deny({"8.8.8.0/24", "2001:4860::/32"}));
    REQUIRE(plane.publish({.slot = slot, .mode = mode, .options = options, .policy = &policy}));
  }

  [[nodiscard]] std::string ask(const std::string& protocol, const std::string& server,
                                const std::string& source = "", int port = 0) const {
    return ask_in(name(), protocol, server, source, port, kPatience);
  }
  // For a question that nobody answers.
  [[nodiscard]] std::string ask_in_vain(const std::string& protocol, const std::string& server,
                                        const std::string& source = "", int port = 0) const {
    return ask_in(name(), protocol, server, source, port, 1);
  }
  // host0 becomes a port of a bridge beside the uplink, and the guest's gateway is beyond that.
  void bridge() const {
    run("ip addr flush dev host0; ip addr flush dev up0; ip link add br0 type bridge; ip link set "
        "host0 master br0; ip link set up0 master br0; ip addr add 192.0.2.1/24 dev br0; ip addr "
        "add 2001:db8::1/64 dev br0 nodad; ip link set br0 up");
    in_guest(
        "ip neigh replace 192.0.2.254 lladdr 02:00:00:00:00:01 dev guest0; ip neigh replace "
        "2001:db8::fe lladdr 02:00:00:00:00:01 dev guest0; ip route replace default via "
        "192.0.2.254; ip -6 route replace default via 2001:db8::fe");
  }
  // A guest behind host1, at 192.0.3.2.
  void add_second_guest() {
    second_ = name() + "-2";
    run(fmt::format(
        "ip netns del {0} 2>/dev/null; ip netns add {0}; ip link add host1 type veth peer name "
        "guest1 netns {0}; ip addr add 192.0.3.1/24 dev host1; ip link set host1 up; ip -n {0} "
        "link set lo up; ip -n {0} link set guest1 up; ip -n {0} addr add 192.0.3.2/24 dev guest1; "
        "ip -n {0} route add default via 192.0.3.1",
        second_));
  }
  ~DnsLab() {
    if (!second_.empty()) run("ip netns del " + second_);
  }
  DnsLab(const DnsLab&) = delete;
  DnsLab& operator=(const DnsLab&) = delete;
  [[nodiscard]] const std::string& second() const { return second_; }
  [[nodiscard]] std::string ask_from_second(const std::string& protocol, const std::string& server,
                                            const std::string& source = "") const {
    return ask_in(second_, protocol, server, source, 0, kPatience);
  }
  [[nodiscard]] std::string ask_from_second_in_vain(const std::string& protocol,
                                                    const std::string& server,
                                                    const std::string& source) const {
    return ask_in(second_, protocol, server, source, 0, 1);
  }
  // Packets to port 53 that left by the way out.
  [[nodiscard]] std::uint64_t sent_by_uplink() const {
    return std::stoull(
        output_of("nft list table netdev sluice | sed -n \"s/.*packets \\([0-9]*\\).*/\\1/p\""));
  }

 private:
  static constexpr int kPatience = 30;  // seconds
  static std::string ask_in(const std::string& where, const std::string& protocol,
                            const std::string& server, const std::string& source, int port,
                            int patience) {
    return output_of(fmt::format("nsenter --net=/run/netns/{} python3 -c '{}' {} {} {} {} {}",
                                 where, kClient, protocol, server, source.empty() ? "-" : source,
                                 port, patience));
  }
  std::string second_;
};

inline std::string answer_to(const KernelAttachment& asker, const std::string& server) {
  return fmt::format("{:08x} asked {}", asker.asker_mark, server);
}

// The sockets of one worker, and a thread that answers.
class Resolver {
 public:
  explicit Resolver(KernelDataPlane& plane, std::uint32_t index = 0, int host = 1, int workers = 1)
      : plane_(plane) {
    for (int worker = 0; worker < workers; ++worker)
      for (const int family : {AF_INET, AF_INET6})
        for (const int type : {SOCK_DGRAM, SOCK_STREAM})
          sockets_.push_back(open(family, type, host + worker));
    std::vector<int> fds;
    for (const Fd& socket : sockets_) fds.push_back(socket.get());
    const auto served = plane.serve(index, fds);
    REQUIRE_MESSAGE(served, served.error().message);
    thread_ = std::jthread([this](const std::stop_token& stop) { work(stop); });
  }
  ~Resolver() {
    thread_.request_stop();
    thread_.join();
  }
  Resolver(const Resolver&) = delete;
  Resolver& operator=(const Resolver&) = delete;

  [[nodiscard]] int answered() const { return answered_; }

  static Fd open(int family, int type, int host) {
    const int on = 1;
    Fd fd(socket(family, type | SOCK_CLOEXEC, 0));
    const int level = family == AF_INET ? SOL_IP : SOL_IPV6;
    REQUIRE(setsockopt(fd.get(), level, family == AF_INET ? IP_TRANSPARENT : IPV6_TRANSPARENT, &on,
                       sizeof(on)) == 0);
    if (family == AF_INET6) setsockopt(fd.get(), SOL_IPV6, IPV6_V6ONLY, &on, sizeof(on));
    if (type == SOCK_STREAM) {
      setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    } else {
      setsockopt(fd.get(), SOL_SOCKET, 75 /* SO_RCVMARK */, &on, sizeof(on));
      setsockopt(fd.get(), level,
                 family == AF_INET ? IP_RECVORIGDSTADDR : 74 /* IPV6_RECVORIGDSTADDR */, &on,
                 sizeof(on));
      setsockopt(fd.get(), level, family == AF_INET ? IP_PKTINFO : IPV6_RECVPKTINFO, &on,
                 sizeof(on));
    }
    sockaddr_in6 at{};
    if (family == AF_INET) {
      auto& at4 = reinterpret_cast<sockaddr_in&>(at);
      at4.sin_family = AF_INET;
      at4.sin_port = htons(53);
      at4.sin_addr.s_addr = htonl(SLUICE_RESOLVER_NET4 | static_cast<std::uint32_t>(host));
    } else {
      at.sin6_family = AF_INET6;
      at.sin6_port = htons(53);
      inet_pton(AF_INET6, fmt::format("fd53:6c75:6963:65::{:x}", host).c_str(), &at.sin6_addr);
    }
    REQUIRE_MESSAGE(bind(fd.get(), reinterpret_cast<sockaddr*>(&at),
                         family == AF_INET ? sizeof(sockaddr_in) : sizeof(at)) == 0,
                    strerror(errno));
    if (type == SOCK_STREAM) REQUIRE(listen(fd.get(), 16) == 0);
    return fd;
  }

 private:
  void work(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      std::vector<pollfd> ready;
      for (const Fd& socket : sockets_) ready.push_back({socket.get(), POLLIN, 0});
      if (poll(ready.data(), ready.size(), 20) <= 0) continue;
      for (std::size_t i = 0; i < ready.size(); ++i)
        if (ready[i].revents & POLLIN) i % 2 == 0 ? datagram(ready[i].fd) : stream(ready[i].fd);
    }
  }

  static std::string text(int family, const void* address) {
    char buffer[INET6_ADDRSTRLEN];
    inet_ntop(family, address, buffer, sizeof(buffer));
    return buffer;
  }

  void datagram(int fd) {
    char data[512], control[256];
    sockaddr_storage peer{};
    iovec vector{data, sizeof(data)};
    msghdr message{};
    message.msg_name = &peer;
    message.msg_namelen = sizeof(peer);
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    if (recvmsg(fd, &message, 0) < 0) return;
    std::uint32_t mark = 0;
    std::string asked;
    in_pktinfo info4{};
    in6_pktinfo info6{};
    for (cmsghdr* at = CMSG_FIRSTHDR(&message); at != nullptr; at = CMSG_NXTHDR(&message, at)) {
      if (at->cmsg_level == SOL_SOCKET && at->cmsg_type == SO_MARK)
        std::memcpy(&mark, CMSG_DATA(at), 4);
      if (at->cmsg_level == SOL_IP && at->cmsg_type == IP_PKTINFO)
        std::memcpy(&info4, CMSG_DATA(at), sizeof(info4));
      if (at->cmsg_level == SOL_IPV6 && at->cmsg_type == IPV6_PKTINFO)
        std::memcpy(&info6, CMSG_DATA(at), sizeof(info6));
      if (at->cmsg_level == SOL_IP && at->cmsg_type == IP_ORIGDSTADDR) {
        std::memcpy(&info4.ipi_spec_dst, CMSG_DATA(at) + 4, 4);
        asked = text(AF_INET, &info4.ipi_spec_dst);
      }
      if (at->cmsg_level == SOL_IPV6 && at->cmsg_type == 74) {
        std::memcpy(&info6.ipi6_addr, CMSG_DATA(at) + 8, 16);
        asked = text(AF_INET6, &info6.ipi6_addr);
      }
    }
    const std::string answer = fmt::format("{:08x} asked {}", mark, asked);
    vector = {const_cast<char*>(answer.data()), answer.size()};
    message.msg_controllen =
        peer.ss_family == AF_INET ? CMSG_SPACE(sizeof(info4)) : CMSG_SPACE(sizeof(info6));
    cmsghdr* at = CMSG_FIRSTHDR(&message);
    if (peer.ss_family == AF_INET) {
      if (info4.ipi_ifindex == 1) info4.ipi_ifindex = 0;
      *at = {CMSG_LEN(sizeof(info4)), SOL_IP, IP_PKTINFO};
      std::memcpy(CMSG_DATA(at), &info4, sizeof(info4));
    } else {
      if (info6.ipi6_ifindex == 1) info6.ipi6_ifindex = 0;
      *at = {CMSG_LEN(sizeof(info6)), SOL_IPV6, IPV6_PKTINFO};
      std::memcpy(CMSG_DATA(at), &info6, sizeof(info6));
    }
    answered_ += 1;
    if (sendmsg(fd, &message, 0) < 0) perror("answer");
  }

  void stream(int listener) {
    const Fd fd(accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    if (!fd) return;
    const auto asker = plane_.asker_of_stream(fd.get());
    std::string answer = asker ? "" : asker.error().message;
    if (asker) {
      const bool mapped = asker->asked[10] == 0xff && asker->asked[0] == 0;
      answer = fmt::format(
          "{:08x} asked {}", asker->mark,
          mapped ? text(AF_INET, &asker->asked[12]) : text(AF_INET6, asker->asked.data()));
    }
    char data[64];
    pollfd ready{fd.get(), POLLIN, 0};
    if (poll(&ready, 1, 60'000) != 1 || recv(fd.get(), data, sizeof(data), 0) <= 0) return;
    answered_ += 1;  // before the client knows
    (void)!send(fd.get(), answer.data(), answer.size(), MSG_NOSIGNAL);
  }

  KernelDataPlane& plane_;
  std::vector<Fd> sockets_;
  std::atomic<int> answered_{0};
  std::jthread thread_;
};

}  // namespace sluice::test
