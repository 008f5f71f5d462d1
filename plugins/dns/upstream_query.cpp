// SPDX-License-Identifier: Apache-2.0
#include "dns/upstream_query.hpp"

#include <cstring>

#include "dns/patch.hpp"

namespace sluice::dns {

std::size_t make_upstream_query(const UpstreamQuestion& question, std::uint16_t id,
                                const CaseBits& letters,
                                std::span<std::uint8_t, kUpstreamQueryRoom> out) {
  std::memset(out.data(), 0, kHeaderSize);
  store16(out.data(), id);
  out[2] = 0x01;  // RD
  out[3] = question.checking_disabled ? 0x10 : 0;
  out[5] = 1;
  const Bytes name = question.name.wire();
  std::uint8_t* to = out.data() + kHeaderSize;
  for (std::size_t i = 0; i < name.size(); ++i) {
    const bool upper = (letters[i / 64] >> i % 64 & 1) != 0 && name[i] >= 'a' && name[i] <= 'z';
    *to++ = static_cast<std::uint8_t>(upper ? name[i] & ~0x20 : name[i]);
  }
  store16(to, question.type);
  store16(to + 2, kClassIn);
  return append_opt(out, kHeaderSize + name.size() + 4, {.dnssec_ok = question.dnssec_ok});
}

std::string_view describe(Mismatch mismatch) {
  switch (mismatch) {
    case Mismatch::none:
      return "it answers the question";
    case Mismatch::too_short:
      return "shorter than a header";
    case Mismatch::id:
      return "another id";
    case Mismatch::no_response:
      return "no response";
    case Mismatch::opcode:
      return "another opcode";
    case Mismatch::questions:
      return "not exactly one question";
    case Mismatch::question:
      return "another question, or its letters in another case";
    case Mismatch::refused_whole:
      return "the upstream could not read or would not serve the query";
  }
  return "?";
}

Mismatch match_response(Bytes sent, Bytes response) {
  if (response.size() < kHeaderSize) return Mismatch::too_short;
  const Header ours(sent), theirs(response);
  if (theirs.id() != ours.id()) return Mismatch::id;
  if (!theirs.response()) return Mismatch::no_response;
  if (theirs.opcode() != ours.opcode()) return Mismatch::opcode;
  if (theirs.questions() == 0 && theirs.answers() == 0 && theirs.rcode() != 0 &&
      theirs.rcode() != static_cast<std::uint8_t>(Rcode::nxdomain))
    return Mismatch::refused_whole;
  if (theirs.questions() != 1) return Mismatch::questions;
  // What we sent is header, question, OPT.
  const std::size_t question = sent.size() - kHeaderSize - kOptSize;
  if (response.size() < kHeaderSize + question ||
      std::memcmp(sent.data() + kHeaderSize, response.data() + kHeaderSize, question) != 0)
    return Mismatch::question;
  return Mismatch::none;
}

}  // namespace sluice::dns
