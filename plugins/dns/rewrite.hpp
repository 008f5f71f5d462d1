// SPDX-License-Identifier: Apache-2.0
// An answer without what vetting refused: written anew into a second buffer, since taking records
// out in place would break the compression pointers behind them.
//
// Kept: the question, the links of the chain, data at its end, RRSIGs over them; the authority
// section only where there was no data to begin with (it says why, with an SOA). Left out: address
// records that are refused, refused addresses in SVCB and HTTPS hints (with the parameter where
// none is left, and its key in "mandatory"), everything foreign, the additional section with the
// OPT (append_opt() next). Where a record was changed or left out, AD is cleared and RRSIGs over
// its type are left out: they would not verify.
#pragma once

#include <cstddef>

#include "dns/answer.hpp"
#include "dns/message.hpp"

namespace sluice::dns {

// `answer` has read `response`, and its grants carry the verdicts. Returns the size, or 0 where
// `out` is too small or a name does not read. Data records that are left may be 0: then the caller
// had better send a reply of its own.
struct Rewritten {
  std::size_t size = 0;
  std::size_t data_records = 0;  // that are left
};
[[nodiscard]] Rewritten rewrite(const MessageView& response, const Answer& answer, Room out);

}  // namespace sluice::dns
