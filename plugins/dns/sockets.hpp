// The sockets that the kernel brings port 53 to. Each worker has four, on an address of its own
// that nobody routes to; they can be left with the service manager, so that questions which come
// while no daemon lives wait in them.
#pragma once

#include <array>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.hpp"
#include "dns/worker.hpp"

namespace sluice::dns {

struct ListenerSet {
  Fd udp4, udp6, tcp4, tcp6;
  [[nodiscard]] Listeners listeners() const {
    return {udp4.get(), udp6.get(), tcp4.get(), tcp6.get()};
  }
};

// Names under which a worker's sockets are kept: "udp4.0"...
inline constexpr std::array<std::string_view, 4> kListenerNames{"udp4", "udp6", "tcp4", "tcp6"};
[[nodiscard]] std::string kept_name(std::string_view kind, unsigned worker);

// A kernel without IPv6 brings none to resolve over it, and its sets lack those sockets.
[[nodiscard]] bool has_ipv6();

// Opens the sockets of one worker on the first of 127.83.76.N and fd53:6c75:6963:65::N that is
// free, from `first` on; `first` is then the next to try. Throws sdk::Error: what failed and what
// it needs.
[[nodiscard]] ListenerSet open_listeners(unsigned& first);

}  // namespace sluice::dns
