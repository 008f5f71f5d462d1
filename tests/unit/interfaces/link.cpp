// What a message says, for messages made by hand: the kernel shows some of them rarely.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "interfaces/link.hpp"

#include <doctest/doctest.h>
#include <linux/if.h>
#include <linux/if_arp.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <cstring>
#include <vector>

using namespace sluice::interfaces;

namespace {

// An RTM_NEWLINK or RTM_DELLINK, attribute by attribute.
class Message {
 public:
  Message(std::uint16_t type, std::uint8_t family, int ifindex,
          std::uint16_t hardware = ARPHRD_ETHER, std::uint32_t flags = 0)
      : bytes_(NLMSG_LENGTH(sizeof(ifinfomsg))) {
    auto* info = reinterpret_cast<ifinfomsg*>(bytes_.data() + NLMSG_HDRLEN);
    info->ifi_family = family;
    info->ifi_index = ifindex;
    info->ifi_type = hardware;
    info->ifi_flags = flags;
    reinterpret_cast<nlmsghdr*>(bytes_.data())->nlmsg_type = type;
  }
  Message& text(std::uint16_t type, const char* value) {
    return raw(type, value, std::strlen(value) + 1);
  }
  template <typename Number>
  Message& number(std::uint16_t type, Number value) {
    return raw(type, &value, sizeof(value));
  }
  Message& open(std::uint16_t type) {
    opened_.push_back(bytes_.size());
    const rtattr header{RTA_LENGTH(0), type};
    append(&header, sizeof(header));
    return *this;
  }
  Message& close() {
    auto* header = reinterpret_cast<rtattr*>(bytes_.data() + opened_.back());
    header->rta_len = static_cast<std::uint16_t>(bytes_.size() - opened_.back());
    opened_.pop_back();
    return *this;
  }
  Message& raw(std::uint16_t type, const void* data, std::size_t size) {
    const rtattr header{static_cast<std::uint16_t>(RTA_LENGTH(size)), type};
    append(&header, sizeof(header));
    append(data, size);
    bytes_.resize(RTA_ALIGN(bytes_.size()));
    return *this;
  }
  std::optional<LinkMessage> read(std::size_t cut = 0) {
    // A copy of exactly its size, so that a read beyond the end is seen by the address sanitizer.
    std::vector<char> exact(bytes_.begin(), bytes_.end() - static_cast<std::ptrdiff_t>(cut));
    auto* header = reinterpret_cast<nlmsghdr*>(exact.data());
    header->nlmsg_len = static_cast<std::uint32_t>(exact.size());
    return read_link_message(*header);
  }
  [[nodiscard]] std::size_t size() const { return bytes_.size(); }

 private:
  void append(const void* data, std::size_t size) {
    const auto* first = static_cast<const char*>(data);
    bytes_.insert(bytes_.end(), first, first + size);
  }
  std::vector<char> bytes_;
  std::vector<std::size_t> opened_;
};

Message tun(std::uint8_t type, std::uint16_t hardware) {
  Message message(RTM_NEWLINK, AF_UNSPEC, 5, hardware);
  message.text(IFLA_IFNAME, "t0").open(IFLA_LINKINFO).text(IFLA_INFO_KIND, "tun");
  if (type != 0) message.open(IFLA_INFO_DATA).number(IFLA_TUN_TYPE, type).close();
  message.close();
  return message;
}

}  // namespace

TEST_CASE("a link: number, name, kind, master") {
  Message message(RTM_NEWLINK, AF_UNSPEC, 5);
  message.text(IFLA_IFNAME, "veth0").number(IFLA_MASTER, std::uint32_t{9});
  message.open(IFLA_LINKINFO).text(IFLA_INFO_KIND, "veth").close();
  const auto got = message.read();
  REQUIRE(got.has_value());
  CHECK(got->what == LinkMessage::What::changed);
  CHECK(got->link == Link{.ifindex = 5, .name = "veth0", .kind = "veth", .master = 9});
}

TEST_CASE("a port of a bond or bridge tells its own kind, not that of its master") {
  Message message(RTM_NEWLINK, AF_UNSPEC, 5);
  message.text(IFLA_IFNAME, "eth0")
      .open(IFLA_LINKINFO)
      .text(IFLA_INFO_SLAVE_KIND, "bridge")
      .close();
  CHECK(message.read()->link.kind == "hardware");
}

TEST_CASE("tun or tap: by the tun type, else by the link layer") {
  CHECK(tun(IFF_TUN, ARPHRD_NONE).read()->link.kind == "tun");
  CHECK(tun(IFF_TAP, ARPHRD_ETHER).read()->link.kind == "tap");
  CHECK(tun(0, ARPHRD_NONE).read()->link.kind == "tun");
  CHECK(tun(0, ARPHRD_ETHER).read()->link.kind == "tap");
}

TEST_CASE("the loopback device is known by its flag") {
  Message message(RTM_NEWLINK, AF_UNSPEC, 1, ARPHRD_LOOPBACK, IFF_LOOPBACK);
  message.text(IFLA_IFNAME, "anything");
  CHECK(message.read()->link.is_loopback);
}

TEST_CASE("a removal needs no more than the number") {
  const auto got = Message(RTM_DELLINK, AF_UNSPEC, 5).read();
  REQUIRE(got.has_value());
  CHECK(got->what == LinkMessage::What::removed);
  CHECK(got->link.ifindex == 5);
}

TEST_CASE("a bridge that lets a port go does not delete the port") {
  Message message(RTM_DELLINK, AF_BRIDGE, 5);
  message.text(IFLA_IFNAME, "veth0").number(IFLA_MASTER, std::uint32_t{9});
  const auto got = message.read();
  REQUIRE(got.has_value());
  CHECK(got->what == LinkMessage::What::left_bridge);
  CHECK(got->link.ifindex == 5);
  CHECK(got->link.master == 9);
}

TEST_CASE("messages that tell nothing of a link are passed over") {
  Message of_bridge(RTM_NEWLINK, AF_BRIDGE, 5);  // has no kind
  CHECK_FALSE(of_bridge.text(IFLA_IFNAME, "veth0").read().has_value());
  Message wireless(RTM_NEWLINK, AF_UNSPEC, 5);
  CHECK_FALSE(wireless.text(IFLA_IFNAME, "wlan0").number(IFLA_WIRELESS, 0u).read().has_value());
  CHECK_FALSE(Message(RTM_NEWLINK, AF_UNSPEC, 5).read().has_value());  // no name
  CHECK_FALSE(Message(RTM_NEWLINK, AF_INET6, 5).text(IFLA_IFNAME, "x").read().has_value());
  CHECK_FALSE(Message(RTM_NEWADDR, AF_UNSPEC, 5).text(IFLA_IFNAME, "x").read().has_value());
  CHECK_FALSE(Message(RTM_NEWLINK, AF_UNSPEC, 0).text(IFLA_IFNAME, "x").read().has_value());
}

TEST_CASE("a message cut anywhere is read no further than it goes") {
  Message whole = tun(IFF_TAP, ARPHRD_ETHER);
  whole.number(IFLA_MASTER, std::uint32_t{9});
  for (std::size_t cut = 0; cut + NLMSG_HDRLEN <= whole.size(); ++cut) {
    CAPTURE(cut);
    const auto got = whole.read(cut);
    if (got) CHECK(got->link.ifindex == 5);
  }
}
