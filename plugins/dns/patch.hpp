// SPDX-License-Identifier: Apache-2.0
// Changing a message in place, as little as a forwarder must: id, the client's spelling of the
// question, TTLs, the records in front of the OPT. A stored answer is prepared once and then costs
// a copy and a few stores per client:
//
//   once:    size = strip_additional(message, bytes);  count = find_ttls(message, offsets);
//   a hit:   copy;  set_id();  set_question();  set_client_flags();  age_ttls();  append_opt();
//
// None of these moves a byte in front of the place it writes to, so compression pointers stay right
// (they go backward only, see read_name()).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "dns/message.hpp"
#include "dns/respond.hpp"

namespace sluice::dns {

void set_id(Room message, std::uint16_t id);

// Puts the client's spelling over the question: `wire` is Question::wire of the client's query.
// False, and nothing changed, where the questions differ in more than case.
[[nodiscard]] bool set_question(Room message, Bytes wire);

// Header bits that follow the client, not the upstream: RD and CD as the client had them, RA set,
// AA clear, AD as the caller finds (the upstream set it, and the client asked by AD or DO: RFC 6840
// section 5.7).
void set_client_flags(Room message, const Header& client, bool authentic);

// Offsets of the TTLs of all records but OPT, in order. Returns their number, or nothing where
// `offsets` has too little room.
[[nodiscard]] std::optional<std::size_t> find_ttls(const MessageView& message,
                                                   std::span<std::uint16_t> offsets);

// Lowers each TTL by `elapsed` seconds, not below 0, and to `most` where it is larger. TTLs with
// the high bit set count as 0 (RFC 2181 section 8).
void age_ttls(Room message, std::span<const std::uint16_t> offsets, std::uint32_t elapsed,
              std::uint32_t most);

// The smallest TTL of the records at `offsets`; `none` where there is no record.
[[nodiscard]] std::uint32_t least_ttl(Bytes message, std::span<const std::uint16_t> offsets,
                                      std::uint32_t none);

// Cuts the additional section off, the OPT with it. `bytes` is the storage that `message` views
// (the view is of no use afterwards); returns the new size.
[[nodiscard]] std::size_t strip_additional(const MessageView& message, Room bytes);

// The same, and the authority section too: it is of no use to a stub beside a positive answer.
[[nodiscard]] std::size_t strip_to_answer(const MessageView& message, Room bytes);

// Appends our OPT to a message of `size` bytes without one, in `room`. Returns the new size, or 0
// where it does not fit (nothing changed then).
[[nodiscard]] std::size_t append_opt(Room room, std::size_t size, const Opt& opt);

}  // namespace sluice::dns
