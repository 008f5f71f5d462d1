// The sockets that the kernel brings port 53 to, on addresses of their own that nobody routes to:
// two for TCP and kLanes pairs for UDP, shared out among the workers. They can be left with the
// service manager, so that questions which come while no daemon lives wait in them.
#pragma once

#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.hpp"
#include "dns/worker.hpp"

namespace sluice::dns {

// As many as the kernel has places for (SLUICE_RESOLVER_WORKERS): two workloads of a hundred share
// one in one case of sixteen.
inline constexpr unsigned kLanes = 16;
[[nodiscard]] constexpr unsigned lanes_of_each(unsigned workers) {
  return std::max(1u, kLanes / workers);
}

struct ListenerSet {
  struct Lane {
    Fd udp4, udp6;
  };
  std::vector<Lane> lanes;
  Fd tcp4, tcp6;
  [[nodiscard]] Listeners listeners() const;
};

// The places of a set, by the names under which they are kept: "udp4.0", "tcp6.0" of the first
// worker, "udp4.0.1" of its second lane.
struct KeptPlace {
  std::string name;
  Fd* place;
};
[[nodiscard]] std::vector<KeptPlace> kept_places(ListenerSet& set, unsigned worker);

// A kernel without IPv6 brings none to resolve over it, and its sets lack those sockets.
[[nodiscard]] bool has_ipv6();

// Opens the sockets of one worker, each lane on the first of 127.83.76.N and fd53:6c75:6963:65::N
// that is free, from `first` on; `first` is then the next to try. Throws sdk::Error: what failed
// and what it needs.
[[nodiscard]] ListenerSet open_listeners(unsigned& first, unsigned lanes = 1);

}  // namespace sluice::dns
