// SPDX-License-Identifier: Apache-2.0
// The inside of record data, for the types where this code has to know it: addresses, types whose
// names may be compressed (RFC 1035, and older ones: RFC 3597 section 4), SVCB and HTTPS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "names/bytes.hpp"
#include "names/name.hpp"

namespace sluice::dns {

// One character per part, first to last: 'n' a name that may be compressed, 'u' one that may not,
// '1' '2' '4' so many bytes, 's' a character string, 'i' an IPv6 address, '*' the rest, whatever it
// is, 'p' SVCB parameters. Empty: the type is opaque, and its data holds no compressed name.
[[nodiscard]] std::string_view rdata_layout(std::uint16_t type);

// Whether data of `size` bytes at `offset`, which lies inside the message, reads by its type's
// layout and is used up by it; its names as by skip_name(). Opaque types are sound.
[[nodiscard]] bool rdata_is_sound(Bytes message, std::uint16_t type, std::size_t offset,
                                  std::size_t size, NamePlaces& places);

// SVCB parameters (RFC 9460 section 2.2) read one after the other.
struct SvcParam {
  std::uint16_t key;
  Bytes value;
};
inline constexpr std::uint16_t kSvcMandatory = 0, kSvcIpv4Hint = 4, kSvcIpv6Hint = 6;

// Takes the first parameter off `params`, which parse() has found sound and is not empty.
[[nodiscard]] SvcParam take_svc_param(Bytes& params);

}  // namespace sluice::dns
