#include "dataplane/link_facts.hpp"

#include <linux/if_arp.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "base/fd.hpp"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

namespace sluice {
namespace {

struct Request {
  nlmsghdr header;
  ifinfomsg info;
  alignas(4) std::array<char, 64> attributes;
};

std::string text_of(const rtattr* attribute) {
  const auto* data = static_cast<const char*>(RTA_DATA(attribute));
  return {data, strnlen(data, RTA_PAYLOAD(attribute))};
}

void read_link_info(const rtattr* info, LinkFacts& facts) {
  int length = static_cast<int>(RTA_PAYLOAD(info));
  for (const auto* at = static_cast<const rtattr*>(RTA_DATA(info)); RTA_OK(at, length);
       at = RTA_NEXT(at, length)) {
    if (at->rta_type == IFLA_INFO_KIND) facts.kind = text_of(at);
    if (at->rta_type != IFLA_INFO_DATA || facts.kind != "tun") continue;
    int inner = static_cast<int>(RTA_PAYLOAD(at));
    for (const auto* data = static_cast<const rtattr*>(RTA_DATA(at)); RTA_OK(data, inner);
         data = RTA_NEXT(data, inner))
      if (data->rta_type == IFLA_TUN_TYPE)
        facts.tun_with_ethernet = *static_cast<const std::uint8_t*>(RTA_DATA(data)) == IFF_TAP;
  }
}

Result<LinkFacts> ask(std::uint32_t ifindex, const std::string& name) {
  const std::string subject = name.empty() ? fmt::format("interface {}", ifindex) : name;
  const Fd socket(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!socket)
    return fail_with(errno, "{}: cannot open an rtnetlink socket: {}", subject, strerror(errno));
  Request request{};
  request.header.nlmsg_type = RTM_GETLINK;
  request.header.nlmsg_flags = NLM_F_REQUEST;
  request.header.nlmsg_len = NLMSG_LENGTH(sizeof(ifinfomsg));
  request.info.ifi_index = static_cast<int>(ifindex);
  if (!name.empty()) {
    if (name.size() >= IFNAMSIZ)
      return fail_with(ENAMETOOLONG, "{}: an interface name has at most 15 bytes", name);
    auto* attribute = reinterpret_cast<rtattr*>(request.attributes.data());
    attribute->rta_type = IFLA_IFNAME;
    attribute->rta_len = static_cast<unsigned short>(RTA_LENGTH(name.size() + 1));
    std::memcpy(RTA_DATA(attribute), name.c_str(), name.size() + 1);
    request.header.nlmsg_len += RTA_ALIGN(attribute->rta_len);
  }
  if (send(socket.get(), &request, request.header.nlmsg_len, 0) < 0)
    return fail_with(errno, "{}: rtnetlink request failed: {}", subject, strerror(errno));
  alignas(nlmsghdr) std::array<char, 16384> buffer;
  const ssize_t got = recv(socket.get(), buffer.data(), buffer.size(), 0);
  if (got < 0)
    return fail_with(errno, "{}: no answer from rtnetlink: {}", subject, strerror(errno));
  const auto* header = reinterpret_cast<const nlmsghdr*>(buffer.data());
  if (!NLMSG_OK(header, static_cast<unsigned>(got)))
    return fail_with(EPROTO, "{}: rtnetlink sent a short answer", subject);
  if (header->nlmsg_type == NLMSG_ERROR) {
    const int code = -static_cast<const nlmsgerr*>(NLMSG_DATA(header))->error;
    return fail_with(code, "{}: no such interface in this network namespace ({})", subject,
                     strerror(code));
  }
  const auto* info = static_cast<const ifinfomsg*>(NLMSG_DATA(header));
  LinkFacts facts;
  facts.ifindex = static_cast<std::uint32_t>(info->ifi_index);
  facts.type = info->ifi_type;
  int length = static_cast<int>(IFLA_PAYLOAD(header));
  for (const rtattr* at = IFLA_RTA(info); RTA_OK(at, length); at = RTA_NEXT(at, length)) {
    switch (at->rta_type) {
      case IFLA_IFNAME:
        facts.name = text_of(at);
        break;
      case IFLA_LINKINFO:
        read_link_info(at, facts);
        break;
      case IFLA_LINK:
        facts.peer_ifindex = *static_cast<const std::uint32_t*>(RTA_DATA(at));
        break;
      case IFLA_LINK_NETNSID:
        facts.peer_in_other_netns = true;
        break;
      default:
        break;
    }
  }
  return facts;
}

}  // namespace

Result<LinkFacts> read_link(std::uint32_t ifindex) {
  if (ifindex == 0) return fail_with(EINVAL, "interface 0: not an interface");
  return ask(ifindex, {});
}

Result<LinkFacts> read_link(const std::string& name) {
  return ask(0, name);
}

Result<LinkPlacement> place(const LinkFacts& link, Side side) {
  LinkPlacement placement;
  switch (link.type) {
    case ARPHRD_ETHER:
      placement.link_layer = SLUICE_LINK_ETHERNET;
      break;
    case ARPHRD_NONE:
    case ARPHRD_PPP:
    case ARPHRD_RAWIP:
    case ARPHRD_TUNNEL:
    case ARPHRD_TUNNEL6:
    case ARPHRD_SIT:
      placement.link_layer = SLUICE_LINK_RAW_IP;
      break;
    case ARPHRD_LOOPBACK:
      return fail_with(
          EINVAL,
          "{}: the loopback device carries the host's own traffic; attach the workload's device",
          link.name);
    default:
      return fail_with(
          EOPNOTSUPP,
          "{}: link layer type {} is not Ethernet or bare IP, its frames cannot be judged; "
          "attach an Ethernet, tun or wireguard device",
          link.name, link.type);
  }
  if (side != Side::automatic) {
    placement.workload_is_egress = side == Side::workload_egress;
    return placement;
  }
  // The host-side end of a pair receives what the workload sends.
  if (link.kind == "veth" || link.kind == "tun" || link.kind == "netkit") return placement;
  // The guest writes to the character device; what it sends leaves the macvtap downwards, as
  // egress.
  if (link.kind == "macvtap" || link.kind == "ipvtap") {
    placement.workload_is_egress = true;
    return placement;
  }
  return fail_with(EINVAL,
                   "{}: cannot tell on which side of a {} device the workload is; set side = "
                   "\"ingress\" (the workload "
                   "sends into this host through it) or \"egress\" (this host sends the workload's "
                   "packets out of it)",
                   link.name, link.kind.empty() ? "hardware" : link.kind);
}

Result<std::uint64_t> netns_cookie() {
  const Fd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  std::uint64_t cookie = 0;
  socklen_t length = sizeof(cookie);
  if (!socket || getsockopt(socket.get(), SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length) != 0)
    return fail_with(
        errno, "cannot read the network namespace's cookie: {}; kernel 5.14 or later is needed",
        strerror(errno));
  return cookie;
}

}  // namespace sluice
