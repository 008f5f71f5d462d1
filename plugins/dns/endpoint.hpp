// A socket address as one value: where a query came from, where an upstream is.
#pragma once

#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace sluice::dns {

struct Endpoint {
  union {
    sockaddr any;
    sockaddr_in v4;
    sockaddr_in6 v6;
  };
  socklen_t length = 0;

  Endpoint() { std::memset(&v6, 0, sizeof v6); }

  [[nodiscard]] int family() const { return any.sa_family; }
  // "192.0.2.1:53", "[2001:db8::1]:53".
  [[nodiscard]] std::string text() const;
  // "127.0.0.53", "192.0.2.1:5353", "::1", "[::1]:5353", "fe80::1%eth0". Port 53 where none is
  // written. Throws sdk::Error(EINVAL).
  [[nodiscard]] static Endpoint parse(std::string_view text);

  [[nodiscard]] bool operator==(const Endpoint& other) const {
    return length == other.length && std::memcmp(&v6, &other.v6, length) == 0;
  }
};

}  // namespace sluice::dns
