// The host's side of DNS redirection: which sockets take port 53, and the routes that lead there.

#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <netinet/in.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <cstring>

#include "dataplane/dns_route.hpp"
#include "dataplane/kernel_data_plane.hpp"

namespace sluice {
namespace {

struct Listener {
  int fd;
  sluice_socket_kind kind;
  std::uint8_t host;  // N of its address
};

int option(int fd, int level, int name) {
  int value = 0;
  socklen_t length = sizeof(value);
  return getsockopt(fd, level, name, &value, &length) == 0 ? value : -1;
}

Result<Listener> read_listener(int fd) {
  const int family = option(fd, SOL_SOCKET, SO_DOMAIN),
            protocol = option(fd, SOL_SOCKET, SO_PROTOCOL);
  const bool is6 = family == AF_INET6, stream = protocol == IPPROTO_TCP;
  if ((family != AF_INET && !is6) || (!stream && protocol != IPPROTO_UDP))
    return fail_with(EINVAL, "serve: fd {} is no UDP or TCP socket", fd);
  sockaddr_in6 bound{};
  socklen_t length = sizeof(bound);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &length) != 0)
    return fail_with(errno, "serve: fd {}: {}", fd, strerror(errno));
  if (ntohs(bound.sin6_port) != SLUICE_DNS_PORT)
    return fail_with(EINVAL, "serve: fd {} is bound to port {}, not to 53", fd,
                     ntohs(bound.sin6_port));
  Listener listener{.fd = fd, .kind = SLUICE_SOCKET_UDP4, .host = 0};
  if (is6) {
    std::uint64_t upper = 0, lower = 0;
    std::memcpy(&upper, &bound.sin6_addr, 8);
    std::memcpy(&lower, bound.sin6_addr.s6_addr + 8, 8);
    upper = be64toh(upper);
    lower = be64toh(lower);
    if (upper != SLUICE_RESOLVER_NET6 || lower == 0 || lower > 254)
      return fail_with(EINVAL, "serve: fd {} must be bound to fd53:6c75:6963:65::1 to ::fe", fd);
    listener.host = static_cast<std::uint8_t>(lower);
    listener.kind = stream ? SLUICE_SOCKET_TCP6 : SLUICE_SOCKET_UDP6;
  } else {
    const auto address = ntohl(reinterpret_cast<const sockaddr_in*>(&bound)->sin_addr.s_addr);
    if ((address & 0xffffff00) != SLUICE_RESOLVER_NET4 || (address & 0xff) % 255 == 0)
      return fail_with(EINVAL, "serve: fd {} must be bound to 127.83.76.1 to .254", fd);
    listener.host = static_cast<std::uint8_t>(address);
    listener.kind = stream ? SLUICE_SOCKET_TCP4 : SLUICE_SOCKET_UDP4;
  }
  if (option(fd, is6 ? SOL_IPV6 : SOL_IP, is6 ? IPV6_TRANSPARENT : IP_TRANSPARENT) != 1)
    return fail_with(EINVAL, "serve: fd {} lacks IP_TRANSPARENT; it could not answer", fd);
  if (option(fd, SOL_SOCKET, SO_REUSEPORT) == 1)
    return fail_with(EINVAL, "serve: fd {} has SO_REUSEPORT; its group would choose again", fd);
  if (stream && option(fd, SOL_SOCKET, SO_ACCEPTCONN) != 1)
    return fail_with(EINVAL, "serve: fd {} does not listen", fd);
  return listener;
}

void map_address(const sockaddr_storage& from, std::uint8_t* address, std::uint16_t& port_be) {
  if (from.ss_family == AF_INET) {
    const auto& ip4 = reinterpret_cast<const sockaddr_in&>(from);
    address[10] = address[11] = 0xff;
    std::memcpy(address + 12, &ip4.sin_addr, 4);
    port_be = ip4.sin_port;
  } else {
    const auto& ip6 = reinterpret_cast<const sockaddr_in6&>(from);
    std::memcpy(address, &ip6.sin6_addr, 16);
    port_be = ip6.sin6_port;
  }
}

Result<sluice_stream_key> stream_ends(int fd) {
  sluice_stream_key key{};
  sockaddr_storage peer{}, own{};
  socklen_t peer_length = sizeof(peer), own_length = sizeof(own);
  if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &peer_length) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&own), &own_length) != 0)
    return fail_with(errno == ENOTCONN ? ENOENT : errno, "fd {}: {}", fd, strerror(errno));
  std::uint16_t ignored = 0;
  map_address(peer, key.peer, key.peer_port_be);
  map_address(own, key.asked, ignored);
  return key;
}

}  // namespace

Status KernelDataPlane::serve(std::uint32_t resolver, std::span<const int> sockets) {
  if (resolver >= SLUICE_RESOLVERS)
    return fail_with(ENOSPC, "serve: more than {} resolvers", SLUICE_RESOLVERS);
  sluice_resolver served{};
  std::vector<Listener> listeners;
  for (const int fd : sockets) {
    auto listener = read_listener(fd);
    if (!listener) return std::unexpected(listener.error());
    std::uint32_t& count = served.workers[listener->kind];
    if (count == SLUICE_RESOLVER_WORKERS)
      return fail_with(ENOSPC, "serve: more than {} sockets of one kind", SLUICE_RESOLVER_WORKERS);
    served.hosts[listener->kind][count++] = listener->host;
    listeners.push_back(*listener);
  }
  if (!sockets.empty())
    if (auto routed = keep_dns_routes(); !routed) return routed;

  std::uint32_t next[SLUICE_SOCKET_KINDS] = {};
  for (const Listener& listener : listeners) {
    const std::uint32_t at = sluice_socket_at(resolver, listener.kind, next[listener.kind]++);
    if (listener.kind == SLUICE_SOCKET_TCP4 || listener.kind == SLUICE_SOCKET_TCP6) {
      // Before anything can reach it: connections inherit this when they are made.
      const sluice_stream_owner owner{.resolver = resolver + 1, .asker_mark = 0};
      if (bpf_map_update_elem(programs_.map(Map::dns_owners), &listener.fd, &owner, BPF_ANY) != 0)
        return fail_with(errno, "serve: cannot mark fd {} as the resolver's: {}", listener.fd,
                         strerror(errno));
    }
    const auto value = static_cast<std::uint64_t>(listener.fd);
    if (bpf_map_update_elem(programs_.map(Map::dns_sockets), &at, &value, BPF_ANY) != 0)
      return fail_with(errno, "serve: the kernel does not take fd {}: {}", listener.fd,
                       strerror(errno));
  }
  if (bpf_map_update_elem(programs_.map(Map::dns_resolvers), &resolver, &served, BPF_ANY) != 0)
    return fail_with(errno, "serve: cannot publish the sockets: {}", strerror(errno));
  for (std::uint32_t kind = 0; kind < SLUICE_SOCKET_KINDS; ++kind)
    for (std::uint32_t worker = next[kind]; worker < SLUICE_RESOLVER_WORKERS; ++worker) {
      const std::uint32_t at = sluice_socket_at(resolver, kind, worker);
      bpf_map_delete_elem(programs_.map(Map::dns_sockets), &at);
    }
  return {};
}

Status KernelDataPlane::keep_dns_routes() {
  auto made = ensure_dns_routes();
  if (!made) return std::unexpected(made.error());
  if (*made > 0 && dns_routes_)
    spdlog::warn("routing rules for DNS were removed by someone else; {} put back", *made);
  dns_routes_ = true;
  return {};
}

Result<DataPlane::Asker> KernelDataPlane::asker_of_stream(int accepted) const {
  const auto ends = stream_ends(accepted);
  if (!ends) return std::unexpected(ends.error());
  sluice_stream noted{};
  const bool is_noted = bpf_map_lookup_elem(programs_.map(Map::dns_streams), &*ends, &noted) == 0;
  // The connection's own word first: a note may have been pushed out, or be a later one's.
  sluice_stream_owner owner{};
  if (bpf_map_lookup_elem(programs_.map(Map::dns_owners), &accepted, &owner) != 0)
    return fail_with(ENOENT, "fd {}: not a connection to a resolver of ours", accepted);
  Asker asker{.mark = owner.asker_mark, .asked = {}};
  if (asker.mark == 0 && is_noted) asker.mark = noted.asker_mark;
  if (asker.mark == 0) return fail_with(ENOENT, "fd {}: nobody asked for it", accepted);
  std::memcpy(asker.asked.data(),
              is_noted && noted.asker_mark == asker.mark ? noted.asked : ends->asked, 16);
  return asker;
}

Status KernelDataPlane::end_serving() {
  for (std::uint32_t resolver = 0; resolver < SLUICE_RESOLVERS; ++resolver)
    if (auto ended = serve(resolver, {}); !ended) return ended;
  dns_routes_ = false;
  return remove_dns_routes();
}

}  // namespace sluice
