// SPDX-License-Identifier: Apache-2.0
// The question we ask upstream on a client's behalf, and whether what comes back answers it.
//
// From the client: name, type, class IN, CD and DO. Ours: id, spelling (0x20: random case, which a
// forger has to guess), RD, an OPT of 1232 bytes. Nothing else of the client's goes up: no options
// (client subnet, cookies, padding), no other bits, so that one guest's question is like another's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "dns/message.hpp"

namespace sluice::dns {

inline constexpr std::size_t kUpstreamQueryRoom = kHeaderSize + kLongestName + 4 + 11;

// One bit per byte of the name's wire form; a set bit makes a letter upper case. All zero: no 0x20.
using CaseBits = std::array<std::uint64_t, 4>;

struct UpstreamQuestion {
  const Name& name;
  std::uint16_t type = 0;
  bool checking_disabled = false;
  bool dnssec_ok = false;
};

// Writes the message; returns its size. `id` and `letters` must come from a source that nobody can
// guess.
std::size_t make_upstream_query(const UpstreamQuestion& question, std::uint16_t id,
                                const CaseBits& letters,
                                std::span<std::uint8_t, kUpstreamQueryRoom> out);

enum class Mismatch : std::uint8_t {
  none,       // it answers what was sent; parse it
  too_short,  // shorter than a header
  id,
  no_response,  // QR is 0
  opcode,
  questions,      // not exactly one question (see `refused_whole`)
  question,       // name in this very case, type, class
  refused_whole,  // id and opcode agree, no question, and an rcode that says it could not be read
                  // or served: nothing is learned from it but that another upstream may do better
};

[[nodiscard]] std::string_view describe(Mismatch mismatch);

// Compares a response with the query as it was sent. Who sent it is the socket's to check.
[[nodiscard]] Mismatch match_response(Bytes sent, Bytes response);

}  // namespace sluice::dns
