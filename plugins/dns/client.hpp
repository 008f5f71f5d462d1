// Where a question came from and how its answer gets back.
#pragma once

#include <cstdint>

#include "dns/endpoint.hpp"
#include "dns/stream.hpp"
#include "names/bytes.hpp"

namespace sluice::dns {

struct Client {
  bool by_stream = false;
  StreamRef stream;  // by_stream
  // Else by UDP: the asker, the server it asked (the answer's source; IPv4 in the first four
  // bytes), and the link it came by, which the answer takes back whatever source address was
  // written on it.
  Endpoint peer;
  std::uint8_t asked[16] = {};
  std::uint32_t ifindex = 0;
};

// Takes answers away.
class Outlet {
 public:
  virtual ~Outlet() = default;
  // Where the next answer is written: kUdpPayload bytes for UDP, 64 KiB less one for TCP. Valid
  // until the next call of any of these.
  [[nodiscard]] virtual Room room(const Client& client) = 0;
  // What room() gave last holds an answer of that size.
  virtual void send(const Client& client, std::size_t size) = 0;
  // There will be no answer.
  virtual void drop(const Client& client) = 0;
};

}  // namespace sluice::dns
