// SPDX-License-Identifier: Apache-2.0
// Messages of our own, written into the caller's buffer. All echo id, opcode, RD, CD and the
// question byte for byte, and carry an OPT exactly when the client's query had one (RFC 6891
// section 6.1.1).
//
//   std::array<std::uint8_t, kReplyRoom> out;
//   const ReplyOptions options{.ede = {{ede::blocked, "no rule allows it"}}};
//   const auto size = make_reply(query, Rcode::nxdomain, options, out);
//
// A denied name is make_reply() with nxdomain, refused, or noerror (NODATA): without an SOA, so
// that nobody stores it (RFC 2308 section 5).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "dns/address.hpp"
#include "dns/message.hpp"

namespace sluice::dns {

inline constexpr std::uint16_t kUdpPayload =
    1232;                                       // what we say we take by UDP (DNS flag day 2020)
inline constexpr std::size_t kReplyRoom = 512;  // every reply without addresses fits
inline constexpr std::size_t kLongestEdeText = 96;  // bytes; longer texts are cut

// Extended DNS Errors (RFC 8914).
namespace ede {
inline constexpr std::uint16_t other = 0, stale_answer = 3, blocked = 15, censored = 16,
                               filtered = 17, prohibited = 18, not_ready = 14, not_supported = 21,
                               no_reachable_authority = 22, network_error = 23, invalid_data = 24;
}

struct ExtendedError {
  std::uint16_t code = ede::other;
  std::string_view text;  // UTF-8, for people; none is fine
};

inline constexpr std::size_t kOptSize = 11;  // without options

// An OPT of ours.
struct Opt {
  bool dnssec_ok = false;           // copied from the client (RFC 3225)
  std::uint8_t extended_rcode = 0;  // the high eight bits
  std::optional<ExtendedError> ede{};
};

struct ReplyOptions {
  bool authoritative = false;
  bool recursion_available = true;
  bool truncated = false;
  std::optional<ExtendedError> ede{};  // dropped where the client has no EDNS
};

// A reply without records. Returns its size, or 0 where `out` is too small (never with kReplyRoom).
[[nodiscard]] std::size_t make_reply(const MessageView& query, Rcode rcode,
                                     const ReplyOptions& options, Room out);

// A truncated reply: come by TCP.
[[nodiscard]] std::size_t make_truncated_reply(const MessageView& query, Room out);

// The reply that read_query() asks for, to bytes that may not read further than the header: the
// question is echoed where there is one and it reads, else QDCOUNT is 0; OPT likewise. 0 where
// nothing is to be sent.
[[nodiscard]] std::size_t make_fault_reply(Bytes query, QueryFault fault, Room out);

// An answer of ours: those of `addresses` that fit the question's type (A: IPv4, AAAA: IPv6), owned
// by the name asked; none that fits is NODATA. `ttl` in seconds. out.size() is the limit: an answer
// that does not fit comes out truncated and without addresses. 0 where not even that fits.
[[nodiscard]] std::size_t make_address_reply(const MessageView& query,
                                             std::span<const Address> addresses, std::uint32_t ttl,
                                             Room out);

}  // namespace sluice::dns
