#include "interfaces/link.hpp"

#include <linux/if.h>
#include <linux/if_arp.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <cstring>

namespace sluice::interfaces {
namespace {

// Calls `each(attribute)` for every whole attribute in [first, first + length).
template <typename Each>
void for_each_attribute(const rtattr* first, int length, Each each) {
  for (const rtattr* at = first; RTA_OK(at, length); at = RTA_NEXT(at, length)) each(*at);
}

std::string text_of(const rtattr& attribute) {
  const auto* data = static_cast<const char*>(RTA_DATA(&attribute));
  return {data, strnlen(data, RTA_PAYLOAD(&attribute))};
}

template <typename Number>
std::optional<Number> number_of(const rtattr& attribute) {
  if (RTA_PAYLOAD(&attribute) < sizeof(Number)) return std::nullopt;
  Number value;
  std::memcpy(&value, RTA_DATA(&attribute), sizeof(value));
  return value;
}

struct LinkInfo {
  std::string kind;
  std::optional<std::uint8_t> tun_type;
};

LinkInfo read_link_info(const rtattr& info) {
  LinkInfo result;
  for_each_attribute(static_cast<const rtattr*>(RTA_DATA(&info)),
                     static_cast<int>(RTA_PAYLOAD(&info)), [&](const rtattr& at) {
                       if (at.rta_type == IFLA_INFO_KIND) result.kind = text_of(at);
                       // The kind precedes its data; other kinds use the same numbers for other
                       // things.
                       if (at.rta_type != IFLA_INFO_DATA || result.kind != "tun") return;
                       for_each_attribute(static_cast<const rtattr*>(RTA_DATA(&at)),
                                          static_cast<int>(RTA_PAYLOAD(&at)),
                                          [&](const rtattr& data) {
                                            if (data.rta_type == IFLA_TUN_TYPE)
                                              result.tun_type = number_of<std::uint8_t>(data);
                                          });
                     });
  return result;
}

std::string kind_name(const LinkInfo& info, std::uint16_t hardware_type) {
  if (info.kind.empty()) return "hardware";
  if (info.kind != "tun") return info.kind;
  const bool is_tap = info.tun_type ? *info.tun_type == IFF_TAP : hardware_type == ARPHRD_ETHER;
  return is_tap ? "tap" : "tun";
}

}  // namespace

std::optional<LinkMessage> read_link_message(const nlmsghdr& header) {
  if (header.nlmsg_type != RTM_NEWLINK && header.nlmsg_type != RTM_DELLINK) return std::nullopt;
  if (header.nlmsg_len < NLMSG_LENGTH(sizeof(ifinfomsg))) return std::nullopt;
  const auto* info = static_cast<const ifinfomsg*>(NLMSG_DATA(&header));
  const bool is_removal = header.nlmsg_type == RTM_DELLINK;
  const bool is_of_bridge = info->ifi_family == AF_BRIDGE;
  if (info->ifi_index <= 0) return std::nullopt;
  if (is_of_bridge ? !is_removal : info->ifi_family != AF_UNSPEC) return std::nullopt;

  LinkMessage message;
  message.link.ifindex = static_cast<std::uint32_t>(info->ifi_index);
  message.link.is_loopback = (info->ifi_flags & IFF_LOOPBACK) != 0;
  LinkInfo link_info;
  bool is_wireless = false;
  for_each_attribute(IFLA_RTA(info), static_cast<int>(IFLA_PAYLOAD(&header)),
                     [&](const rtattr& at) {
                       switch (at.rta_type) {
                         case IFLA_IFNAME:
                           message.link.name = text_of(at);
                           break;
                         case IFLA_MASTER:
                           message.link.master = number_of<std::uint32_t>(at).value_or(0);
                           break;
                         case IFLA_LINKINFO:
                           link_info = read_link_info(at);
                           break;
                         case IFLA_WIRELESS:
                           is_wireless = true;
                           break;
                         default:
                           break;
                       }
                     });
  if (is_of_bridge) {
    message.what = LinkMessage::What::left_bridge;
    return message;
  }
  if (is_removal) {
    message.what = LinkMessage::What::removed;
    return message;
  }
  if (is_wireless || message.link.name.empty()) return std::nullopt;
  message.link.kind = kind_name(link_info, info->ifi_type);
  return message;
}

}  // namespace sluice::interfaces
