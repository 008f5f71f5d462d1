// One IP address as the learned addresses carry it, and a hash of it for tables in memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace sluice {

using Address = std::array<std::uint8_t, 16>;  // network order, IPv4 mapped

// "192.0.2.7", "2001:db8::7".
[[nodiscard]] std::string text_of(const Address& address);

// Keyed by a secret of the process: addresses come out of DNS answers, and whoever runs a name
// server could choose them so that they all fell into one bucket.
struct AddressHash {
  std::size_t operator()(const Address& address) const noexcept;
};

}  // namespace sluice
