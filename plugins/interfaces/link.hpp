// One network interface as rtnetlink tells of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

struct nlmsghdr;

namespace sluice::interfaces {

struct Link {
  std::uint32_t ifindex = 0;
  std::string name;
  // IFLA_INFO_KIND, with two refinements: a "tun" device that carries Ethernet frames is a "tap",
  // and a device without a kind is "hardware".
  std::string kind;
  std::uint32_t master = 0;  // ifindex of the bridge, bond or VRF it belongs to; 0: none
  bool is_loopback = false;
  bool operator==(const Link&) const = default;
};

// A message of RTNLGRP_LINK or of a link dump, reduced to what matters.
struct LinkMessage {
  enum class What : std::uint8_t {
    changed,      // `link` is how it is now
    removed,      // `link.ifindex` has left this namespace: deleted or moved to another
    left_bridge,  // `link.ifindex` is no longer a port of `link.master`
  };
  What what = What::changed;
  Link link;
};

// Absent for messages that tell nothing here. A bridge announces its ports under RTM_NEWLINK and
// RTM_DELLINK too (family AF_BRIDGE), and wireless events are RTM_NEWLINK without the link's
// attributes; taken for ordinary ones they would delete or disfigure a link that stands.
[[nodiscard]] std::optional<LinkMessage> read_link_message(const nlmsghdr& header);

}  // namespace sluice::interfaces
