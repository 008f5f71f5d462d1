// What rtnetlink says of one interface, and what follows from it: on which side of the device the
// workload is, and whether frames have an Ethernet header.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.hpp"
#include "dataplane/data_plane.hpp"

namespace sluice {

struct LinkFacts {
  std::uint32_t ifindex = 0;
  std::string name;
  std::string kind;                // IFLA_INFO_KIND: "veth", "tun", "bridge"...; empty for hardware
  std::uint16_t type = 0;          // ARPHRD_*
  bool tun_with_ethernet = false;  // kind "tun": a tap
  std::uint32_t peer_ifindex =
      0;  // IFLA_LINK: a veth's other end; in `peer_netns` when that is set
  bool peer_in_other_netns = false;
};

// In the calling thread's network namespace. ENODEV when there is none.
[[nodiscard]] Result<LinkFacts> read_link(std::uint32_t ifindex);
[[nodiscard]] Result<LinkFacts> read_link(const std::string& name);

struct LinkPlacement {
  bool workload_is_egress = false;
  std::uint8_t link_layer = SLUICE_LINK_ETHERNET;
};

// Refuses what it cannot place: an ambiguous kind with Side::automatic, a link layer the programs
// cannot parse.
[[nodiscard]] Result<LinkPlacement> place(const LinkFacts& link, Side side);

// SO_NETNS_COOKIE of the calling thread's namespace (kernel 5.14), the value the programs see.
[[nodiscard]] Result<std::uint64_t> netns_cookie();

}  // namespace sluice
