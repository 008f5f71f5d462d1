// DNS messages for tests, written by hand or by parts; uncompressed unless a test says otherwise.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "dns/message.hpp"
#include "dns/name.hpp"

namespace dns_test {

using Packet = std::vector<std::uint8_t>;

inline Packet bytes(std::string_view text) {
  return Packet(text.begin(), text.end());
}

inline sluice::dns::Name name(std::string_view text) {
  const auto read = sluice::dns::Name::from_text(text);
  if (!read) throw std::invalid_argument(std::string(text));
  return *read;
}

}  // namespace dns_test
