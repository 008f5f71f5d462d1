#include "dataplane/connection_reset.hpp"

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <vector>

#include "dataplane/cgroup_filter.hpp"
#include "dataplane/cgroup_walk.hpp"
#include "dataplane/live_verdict.hpp"
#include "dataplane/netns_scope.hpp"
#include "layout.h"

#ifndef INET_DIAG_CGROUP_ID
#define INET_DIAG_CGROUP_ID 21
#endif

namespace sluice {
namespace fs = std::filesystem;
namespace {

struct DiagRequest {
  nlmsghdr header;
  inet_diag_req_v2 request;
};

std::vector<inet_diag_req_v2> connections(int netlink, std::uint8_t family,
                                          const std::set<std::uint64_t>& inside) {
  std::vector<inet_diag_req_v2> found;
  DiagRequest ask{};
  ask.header.nlmsg_len = sizeof(ask);
  ask.header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
  ask.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  ask.request.sdiag_family = family;
  ask.request.sdiag_protocol = IPPROTO_TCP;
  ask.request.idiag_states = ~(1u << TCP_LISTEN | 1u << TCP_TIME_WAIT | 1u << TCP_CLOSE);
  if (send(netlink, &ask, sizeof(ask), 0) < 0) return found;
  alignas(nlmsghdr) char buffer[32768];
  while (true) {
    const ssize_t got = recv(netlink, buffer, sizeof(buffer), 0);
    if (got <= 0) return found;
    auto length = static_cast<unsigned>(got);
    for (const auto* header = reinterpret_cast<const nlmsghdr*>(buffer); NLMSG_OK(header, length);
         header = NLMSG_NEXT(header, length)) {
      if (header->nlmsg_type == NLMSG_DONE || header->nlmsg_type == NLMSG_ERROR) return found;
      const auto* message = static_cast<const inet_diag_msg*>(NLMSG_DATA(header));
      int rest = static_cast<int>(header->nlmsg_len - NLMSG_LENGTH(sizeof(*message)));
      for (const auto* at = reinterpret_cast<const rtattr*>(message + 1); RTA_OK(at, rest);
           at = RTA_NEXT(at, rest)) {
        if (at->rta_type != INET_DIAG_CGROUP_ID) continue;
        std::uint64_t id = 0;
        std::memcpy(&id, RTA_DATA(at), sizeof(id));
        if (!inside.contains(id)) continue;
        inet_diag_req_v2 destroy{};
        destroy.sdiag_family = family;
        destroy.sdiag_protocol = IPPROTO_TCP;
        destroy.idiag_states = ~0u;
        destroy.id = message->id;
        found.push_back(destroy);
      }
    }
  }
}

bool is_resolver(const std::uint8_t* address) {
  std::uint32_t net4 = 0;
  std::uint64_t net6 = 0;
  std::memcpy(&net4, address + 12, 4);
  std::memcpy(&net6, address, 8);
  return sluice_is_mapped(address) ? ntohl(net4) >> 8 == SLUICE_RESOLVER_NET4 >> 8
                                   : be64toh(net6) == SLUICE_RESOLVER_NET6;
}

bool is_denied(const SeverRequest& request, const inet_diag_req_v2& connection) {
  sluice_facts facts{};
  facts.protocol = IPPROTO_TCP;
  facts.flags = SLUICE_FACT_PORTS;
  facts.tcp_flags = SLUICE_TCP_ACK;
  facts.source_port = ntohs(connection.id.idiag_sport);
  facts.destination_port = ntohs(connection.id.idiag_dport);
  const auto* from = reinterpret_cast<const std::uint8_t*>(connection.id.idiag_src);
  const auto* to = reinterpret_cast<const std::uint8_t*>(connection.id.idiag_dst);
  if (connection.sdiag_family == AF_INET) {
    facts.family = 4;
    sluice_map_ip4(facts.source, from);
    sluice_map_ip4(facts.destination, to);
  } else {
    std::memcpy(facts.source, from, 16);
    std::memcpy(facts.destination, to, 16);
    facts.family = sluice_is_mapped(facts.destination) ? 4 : 6;
  }
  if (facts.destination_port == SLUICE_DNS_PORT && is_resolver(facts.destination))
    return false;  // led there by us
  const auto reason = judge_live(*request.programs, request.slot, request.incarnation, facts);
  // Where the policy cannot be read (a large one takes CAP_SYS_ADMIN), or is not the attachment's
  // any more, packets are judged alone.
  return reason >= SLUICE_REASON_DENY_NO_ATTACHMENT && reason != SLUICE_REASON_DENY_INTERNAL;
}

// In the namespace of the calling thread. Returns how many were destroyed.
std::size_t destroy_in_namespace(const SeverRequest& request,
                                 const std::set<std::uint64_t>& inside) {
  const Fd netlink(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG));
  if (!netlink) return 0;
  std::size_t destroyed = 0;
  for (const std::uint8_t family : {AF_INET, AF_INET6}) {
    for (const auto& connection : connections(netlink.get(), family, inside)) {
      const bool loopback = connection.id.idiag_if == 1;
      if (loopback || !is_denied(request, connection)) continue;
      DiagRequest destroy{};
      destroy.header.nlmsg_len = sizeof(destroy);
      destroy.header.nlmsg_type = SOCK_DESTROY;
      destroy.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
      destroy.request = connection;
      alignas(nlmsghdr) char answer[1024];
      if (send(netlink.get(), &destroy, sizeof(destroy), 0) < 0 ||
          recv(netlink.get(), answer, sizeof(answer), 0) <= 0)
        continue;
      const auto* header = reinterpret_cast<const nlmsghdr*>(answer);
      if (header->nlmsg_type == NLMSG_ERROR &&
          static_cast<const nlmsgerr*>(NLMSG_DATA(header))->error == 0)
        ++destroyed;
    }
  }
  return destroyed;
}

}  // namespace

void destroy_denied_sockets(const SeverRequest& request) {
  const auto root = find_cgroup2();
  if (!root) return;
  const fs::path top = *root / fs::path(request.path).relative_path();
  std::set<std::uint64_t> inside;
  std::map<std::uint64_t, std::string> namespaces;  // inode -> a path to enter it
  struct stat own {};
  if (stat("/proc/self/ns/net", &own) != 0) return;
  namespaces[own.st_ino] = {};
  for (const auto& [id, directory] : cgroups_below(top)) {
    inside.insert(id);
    for (const std::uint32_t task : tasks_of(directory)) {
      const std::string path = fmt::format("/proc/{}/ns/net", task);
      struct stat info {};
      if (stat(path.c_str(), &info) == 0) namespaces.emplace(info.st_ino, path);
    }
  }
  // The directory is the next cgroup's of that name if this one was removed meanwhile. Ids are
  // never used again, so that one look after the walk tells.
  struct stat now {};
  if (stat(top.c_str(), &now) != 0 || now.st_ino != request.cgroup_id) return;
  std::size_t destroyed = 0;
  for (const auto& [inode, path] : namespaces) {
    auto scope = NetnsScope::enter(path);
    if (scope) destroyed += destroy_in_namespace(request, inside);
  }
  if (destroyed != 0)
    spdlog::info("{}: reset {} connection(s) that its policy no longer allows", request.path,
                 destroyed);
}

}  // namespace sluice
