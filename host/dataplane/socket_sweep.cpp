#include "dataplane/socket_sweep.hpp"

#include <bpf/bpf.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/xfrm.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <vector>

#include "dataplane/cgroup_filter.hpp"
#include "dataplane/live_verdict.hpp"
#include "dataplane/netns_scope.hpp"
#include "layout.h"

#ifndef INET_DIAG_CGROUP_ID
#define INET_DIAG_CGROUP_ID 21
#endif

namespace sluice {
namespace fs = std::filesystem;
namespace {

// As sluice_list_sockets writes it.
struct SocketRow {
  std::uint32_t fd;
  std::uint16_t family, type;
  std::uint64_t cgroup_id;
};

int pidfd_open(std::uint32_t pid) {
  return static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
}
int pidfd_getfd(int pidfd, std::uint32_t fd) {
  return static_cast<int>(syscall(SYS_pidfd_getfd, pidfd, fd, 0));
}

// The cgroup2 directories from `path` down, with their ids.
std::map<std::uint64_t, fs::path> subtree(const fs::path& path) {
  std::map<std::uint64_t, fs::path> found;
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return found;
  found[info.st_ino] = path;
  std::error_code error;
  for (fs::recursive_directory_iterator
           at(path, fs::directory_options::skip_permission_denied, error),
       end;
       at != end && !error; at.increment(error))
    if (at->is_directory(error) && stat(at->path().c_str(), &info) == 0)
      found[info.st_ino] = at->path();
  return found;
}

std::vector<std::uint32_t> tasks_of(const fs::path& cgroup) {
  std::vector<std::uint32_t> tasks;
  std::ifstream file(cgroup / "cgroup.procs");
  for (std::uint32_t task = 0; file >> task;) tasks.push_back(task);
  return tasks;
}

// The cgroup2 path of a task, "/a/b"; empty when it has ended.
std::string cgroup_of(std::uint32_t task) {
  std::ifstream file(fmt::format("/proc/{}/cgroup", task));
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("0::")) return line.substr(3);
  return {};
}

std::string command_of(std::uint32_t task) {
  std::ifstream file(fmt::format("/proc/{}/comm", task));
  std::string name;
  std::getline(file, name);
  return name;
}

// The iterator runs over one thread group (kernel 6.1); older kernels walk all, and rows of others
// are dropped by getfd.
std::vector<SocketRow> sockets_of(int program, std::uint32_t task) {
  std::vector<SocketRow> rows;
  const Fd pidfd(pidfd_open(task));
  if (!pidfd) return rows;
  union bpf_iter_link_info info {};
  // struct { __u32 tid, pid, pid_fd; } task; Debian 12's header has it
  info.task.pid_fd = static_cast<std::uint32_t>(pidfd.get());
  LIBBPF_OPTS(bpf_link_create_opts, options, .iter_info = &info, .iter_info_len = sizeof(info));
  const Fd link(bpf_link_create(program, 0, BPF_TRACE_ITER, &options));
  if (!link) return rows;
  const Fd iterator(bpf_iter_create(link.get()));
  if (!iterator) return rows;
  std::vector<char> bytes;
  char buffer[4096];
  for (ssize_t got = 0; (got = read(iterator.get(), buffer, sizeof(buffer))) > 0;)
    bytes.insert(bytes.end(), buffer, buffer + got);
  rows.resize(bytes.size() / sizeof(SocketRow));
  if (!rows.empty()) std::memcpy(rows.data(), bytes.data(), rows.size() * sizeof(SocketRow));
  return rows;
}

// shutdown() does not stop a raw socket from sending. A per-socket IPsec policy that blocks
// everything outward does: each later route look-up fails. The owner needs CAP_NET_ADMIN to take it
// away.
bool block_raw_socket(int socket, std::uint16_t family) {
  xfrm_userpolicy_info policy{};
  policy.sel.family = family;
  policy.lft.soft_byte_limit = policy.lft.hard_byte_limit = XFRM_INF;
  policy.lft.soft_packet_limit = policy.lft.hard_packet_limit = XFRM_INF;
  policy.dir = XFRM_POLICY_OUT;
  policy.action = XFRM_POLICY_BLOCK;
  if (family == AF_INET6)
    return setsockopt(socket, IPPROTO_IPV6, IPV6_XFRM_POLICY, &policy, sizeof(policy)) == 0;
  return setsockopt(socket, IPPROTO_IP, IP_XFRM_POLICY, &policy, sizeof(policy)) == 0;
}

void shut_sockets_of(const SocketSweep& sweep, std::uint32_t task, const std::string& path,
                     const std::set<std::uint64_t>& inside) {
  const Fd pidfd(pidfd_open(task));
  if (!pidfd) return;
  std::size_t shut = 0;
  for (const SocketRow& row : sockets_of(sweep.iterator_program, task)) {
    if (inside.contains(row.cgroup_id)) continue;
    const Fd socket(pidfd_getfd(pidfd.get(), row.fd));
    if (!socket) {
      if (errno == EPERM)
        spdlog::error(
            "{}: {} (pid {}) brought socket {} into the cgroup, and it cannot be reached to be "
            "shut: {}; "
            "CAP_SYS_PTRACE is needed",
            path, command_of(task), task, row.fd, strerror(errno));
      continue;
    }
    if (row.family == AF_PACKET) {
      // shutdown() refuses it, and nothing but closing it would stop it from sending: the uplink
      // guard drops its mark.
      const std::uint32_t doomed = SLUICE_DOOMED_MARK;
      if (setsockopt(socket.get(), SOL_SOCKET, SO_MARK, &doomed, sizeof(doomed)) != 0)
        spdlog::error("{}: cannot mark packet socket {} of {} (pid {}): {}", path, row.fd,
                      command_of(task), task, strerror(errno));
      spdlog::warn(
          "{}: {} (pid {}) brought packet socket {} into the cgroup; only the uplink guard stops "
          "it: set "
          "guard.uplinks, or give the workload a network namespace",
          path, command_of(task), task, row.fd);
      continue;
    }
    if (row.type == SOCK_RAW && !block_raw_socket(socket.get(), row.family))
      spdlog::error(
          "{}: {} (pid {}) brought raw socket {} into the cgroup, and it cannot be blocked: {}; "
          "end the "
          "process, or run a kernel with CONFIG_XFRM",
          path, command_of(task), task, row.fd, strerror(errno));
    // ENOTCONN is the answer for unconnected UDP, which is shut all the same.
    shutdown(socket.get(), SHUT_RDWR);
    ++shut;
  }
  if (shut != 0)
    spdlog::info("{}: shut {} socket(s) that {} (pid {}) brought into the cgroup", path, shut,
                 command_of(task), task);
}

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
  return judge_live(*request.programs, request.slot, facts) >= SLUICE_REASON_DENY_NO_ATTACHMENT;
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

void shut_foreign_sockets(const SocketSweep& sweep) {
  const auto root = find_cgroup2();
  if (!root) return;
  for (const auto& [id, path] : sweep.attached) {
    if (sweep.task == 0 && sweep.cgroup_id != 0 && sweep.cgroup_id != id) continue;
    if (sweep.task != 0) {
      const std::string where = cgroup_of(sweep.task);
      if (where != path && !where.starts_with(path + "/")) continue;
    }
    std::set<std::uint64_t> inside;
    const auto directories = subtree(*root / fs::path(path).relative_path());
    for (const auto& [directory_id, directory] : directories) inside.insert(directory_id);
    if (sweep.task != 0) {
      shut_sockets_of(sweep, sweep.task, path, inside);
      continue;
    }
    for (const auto& [directory_id, directory] : directories)
      for (const std::uint32_t task : tasks_of(directory))
        shut_sockets_of(sweep, task, path, inside);
  }
}

void destroy_denied_sockets(const SeverRequest& request) {
  const auto root = find_cgroup2();
  if (!root) return;
  std::set<std::uint64_t> inside;
  std::map<std::uint64_t, std::string> namespaces;  // inode -> a path to enter it
  struct stat own {};
  if (stat("/proc/self/ns/net", &own) != 0) return;
  namespaces[own.st_ino] = {};
  for (const auto& [id, directory] : subtree(*root / fs::path(request.path).relative_path())) {
    inside.insert(id);
    for (const std::uint32_t task : tasks_of(directory)) {
      const std::string path = fmt::format("/proc/{}/ns/net", task);
      struct stat info {};
      if (stat(path.c_str(), &info) == 0) namespaces.emplace(info.st_ino, path);
    }
  }
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
