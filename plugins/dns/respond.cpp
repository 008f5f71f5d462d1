// SPDX-License-Identifier: Apache-2.0
#include "dns/respond.hpp"

#include <cstring>

#include "dns/patch.hpp"

namespace sluice::dns {
namespace {

constexpr std::size_t kAddressRecordFixed = 2 + 10;  // owner by pointer; type, class, TTL, length

// Header and question; all counts but the question's are 0. 0 where `out` is too small.
std::size_t start(Bytes query, Bytes question, Rcode rcode, const ReplyOptions& options, Room out) {
  if (out.size() < kHeaderSize + question.size()) return 0;
  const std::uint8_t second = query[2], third = query[3];
  std::memset(out.data(), 0, kHeaderSize);
  std::memcpy(out.data(), query.data(), 2);
  // QR, the opcode and RD of the query.
  out[2] = static_cast<std::uint8_t>(0x80 | (second & 0x79) | (options.authoritative ? 0x04 : 0) |
                                     (options.truncated ? 0x02 : 0));
  out[3] = static_cast<std::uint8_t>((options.recursion_available ? 0x80 : 0) | (third & 0x10) |
                                     (static_cast<unsigned>(rcode) & 0xf));
  if (!question.empty()) {
    out[5] = 1;
    std::memcpy(out.data() + kHeaderSize, question.data(), question.size());
  }
  return kHeaderSize + question.size();
}

std::size_t finish(std::size_t size, const Edns& edns, Rcode rcode, const ReplyOptions& options,
                   Room out) {
  if (size == 0 || !edns.present) return size;
  return append_opt(out, size,
                    {.dnssec_ok = edns.dnssec_ok,
                     .extended_rcode = static_cast<std::uint8_t>(static_cast<unsigned>(rcode) >> 4),
                     .ede = options.ede});
}

}  // namespace

std::size_t make_reply(const MessageView& query, Rcode rcode, const ReplyOptions& options,
                       Room out) {
  const std::size_t size = start(query.bytes(), query.question().wire, rcode, options, out);
  return finish(size, query.edns(), rcode, options, out);
}

std::size_t make_truncated_reply(const MessageView& query, Room out) {
  return make_reply(query, Rcode::noerror, {.truncated = true}, out);
}

std::size_t make_fault_reply(Bytes query, QueryFault fault, Room out) {
  if (!fault.answer || query.size() < kHeaderSize) return 0;
  if (const auto view = MessageView::parse(query)) return make_reply(*view, fault.rcode, {}, out);
  // What stands behind the question may be anything: no OPT is echoed.
  Bytes question;
  Name name;
  if (Header(query).questions() == 1) {
    const auto end = read_name(query, kHeaderSize, name);
    if (end && query.size() - *end >= 4)
      question = query.subspan(kHeaderSize, *end + 4 - kHeaderSize);
  }
  return start(query, question, fault.rcode, {}, out);
}

std::size_t make_address_reply(const MessageView& query, std::span<const Address> addresses,
                               std::uint32_t ttl, Room out) {
  const Question& question = query.question();
  const std::uint8_t family = question.type == type::a ? 4 : question.type == type::aaaa ? 6 : 0;
  const std::size_t length = family == 4 ? 4 : 16;
  std::size_t size = start(query.bytes(), question.wire, Rcode::noerror, {}, out);
  if (size == 0) return 0;
  std::size_t count = 0;
  for (const Address& address : addresses) {
    if (address.family != family) continue;
    if (count == UINT16_MAX || out.size() - size < kAddressRecordFixed + length)
      return make_truncated_reply(query, out);
    std::uint8_t* const to = out.data() + size;
    store16(to, 0xc000 | kHeaderSize);
    store16(to + 2, question.type);
    store16(to + 4, question.klass);
    store32(to + 6, ttl);
    store16(to + 10, length);
    std::memcpy(to + kAddressRecordFixed, address.bytes.data(), length);
    size += kAddressRecordFixed + length;
    ++count;
  }
  store16(out.data() + 6, count);
  if (const std::size_t all = finish(size, query.edns(), Rcode::noerror, {}, out)) return all;
  return make_truncated_reply(query, out);
}

}  // namespace sluice::dns
