// How a packet that was given a resolver's socket gets to it: its destination is somebody else's
// address, so a rule on its mark leads it to a table in which every address is this host's. IPv4
// and IPv6 alike, in the calling thread's network namespace:
//
//   53: iif lo fwmark 0x5d000000/0xff000000 goto 55     what the host itself sends, and the reverse
//                                                       path check where src_valid_mark is on
//   54: fwmark 0x5d000000/0xff000000 lookup 5353        local default dev lo
//   55: nop
//   table local: local fd53:6c75:6963:65::/64 dev lo    the resolvers' own IPv6 addresses
//
// No sysctl is touched. They outlive the daemon as the filters do.
#pragma once

#include "base/result.hpp"

namespace sluice {

inline constexpr std::uint32_t kDnsRulePriority = 53;  // and the next two
inline constexpr std::uint32_t kDnsTable = 5353;

// Makes what is missing; what is there is left alone. The number of things that had to be made.
// A host without IPv6 has the IPv4 half.
[[nodiscard]] Result<int> ensure_dns_routes();
// Whatever of it is there. Rules and routes of the same form that somebody else made go too.
[[nodiscard]] Status remove_dns_routes();

}  // namespace sluice
