#include "dns/sockets.hpp"

#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "dns/endpoint.hpp"

namespace sluice::dns {
namespace {

constexpr std::uint16_t kPort = 53;
constexpr unsigned kMostAddresses = 250;
constexpr int kBacklog = 1024;

Endpoint address_of(bool v6, unsigned number) {
  Endpoint endpoint;
  if (v6) {
    constexpr std::array<std::uint8_t, 8> kPrefix{0xfd, 0x53, 0x6c, 0x75, 0x69, 0x63, 0x00, 0x65};
    endpoint.v6.sin6_family = AF_INET6;
    endpoint.v6.sin6_port = htons(kPort);
    std::memcpy(endpoint.v6.sin6_addr.s6_addr, kPrefix.data(), kPrefix.size());
    endpoint.v6.sin6_addr.s6_addr[15] = static_cast<std::uint8_t>(number);
    endpoint.length = sizeof endpoint.v6;
  } else {
    endpoint.v4.sin_family = AF_INET;
    endpoint.v4.sin_port = htons(kPort);
    endpoint.v4.sin_addr.s_addr = htonl(0x7f534c00u | number);  // 127.83.76.N
    endpoint.length = sizeof endpoint.v4;
  }
  return endpoint;
}

[[noreturn]] void refuse(const Endpoint& endpoint, const char* what, int error) {
  throw sdk::Error(error,
                   endpoint.text() + ": " + what + ": " + std::generic_category().message(error) +
                       (error == EPERM || error == EACCES
                            ? "; the resolver's sockets need CAP_NET_ADMIN (transparent) and "
                              "CAP_NET_BIND_SERVICE (port 53)"
                            : ""));
}

// None: the address is in use.
std::optional<Fd> open(bool v6, bool stream, unsigned number) {
  const auto endpoint = address_of(v6, number);
  Fd fd(::socket(v6 ? AF_INET6 : AF_INET,
                 (stream ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) refuse(endpoint, "socket", errno);
  const int on = 1;
  const auto set = [&](int level, int option, const char* what) {
    if (::setsockopt(fd.get(), level, option, &on, sizeof on) < 0) refuse(endpoint, what, errno);
  };
  if (v6) {
    set(IPPROTO_IPV6, IPV6_V6ONLY, "IPV6_V6ONLY");
    set(IPPROTO_IPV6, IPV6_TRANSPARENT, "IPV6_TRANSPARENT");
  } else {
    set(IPPROTO_IP, IP_TRANSPARENT, "IP_TRANSPARENT");
  }
  // Connections of an earlier daemon in TIME_WAIT must not keep the address.
  if (stream) set(SOL_SOCKET, SO_REUSEADDR, "SO_REUSEADDR");
  if (::bind(fd.get(), &endpoint.any, endpoint.length) < 0) {
    if (errno == EADDRINUSE) return std::nullopt;
    refuse(endpoint, "bind", errno);
  }
  if (stream && ::listen(fd.get(), kBacklog) < 0) {
    if (errno == EADDRINUSE) return std::nullopt;
    refuse(endpoint, "listen", errno);
  }
  return fd;
}

}  // namespace

Listeners ListenerSet::listeners() const {
  Listeners listeners{.udp4 = {}, .udp6 = {}, .tcp4 = tcp4.get(), .tcp6 = tcp6.get()};
  for (const auto& lane : lanes) {
    if (lane.udp4) listeners.udp4.push_back(lane.udp4.get());
    if (lane.udp6) listeners.udp6.push_back(lane.udp6.get());
  }
  return listeners;
}

std::vector<KeptPlace> kept_places(ListenerSet& set, unsigned worker) {
  const bool v6 = has_ipv6();
  const std::string of_worker = "." + std::to_string(worker);
  std::vector<KeptPlace> places{{"tcp4" + of_worker, &set.tcp4}};
  if (v6) places.push_back({"tcp6" + of_worker, &set.tcp6});
  for (std::size_t i = 0; i < set.lanes.size(); ++i) {
    const std::string of_lane = i == 0 ? of_worker : of_worker + "." + std::to_string(i);
    places.push_back({"udp4" + of_lane, &set.lanes[i].udp4});
    if (v6) places.push_back({"udp6" + of_lane, &set.lanes[i].udp6});
  }
  return places;
}

bool has_ipv6() {
  const Fd probe(::socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  return static_cast<bool>(probe) || errno != EAFNOSUPPORT;
}

ListenerSet open_listeners(unsigned& first, unsigned lanes) {
  const bool v6 = has_ipv6();
  ListenerSet set;
  for (; first <= kMostAddresses; ++first) {
    auto udp4 = open(false, false, first);
    if (!udp4) continue;
    auto udp6 = v6 ? open(true, false, first) : Fd();
    if (!udp6) continue;
    if (set.lanes.empty()) {
      auto tcp4 = open(false, true, first);
      if (!tcp4) continue;
      auto tcp6 = v6 ? open(true, true, first) : Fd();
      if (!tcp6) continue;
      set.tcp4 = std::move(*tcp4);
      set.tcp6 = std::move(*tcp6);
    }
    set.lanes.push_back({std::move(*udp4), std::move(*udp6)});
    if (set.lanes.size() < lanes) continue;
    ++first;
    return set;
  }
  throw sdk::Error(EADDRINUSE,
                   "127.83.76.1 to .250: port 53 of each is taken, so the resolver has "
                   "nowhere to listen; see who has them with ss -lnp");
}

}  // namespace sluice::dns
