// SPDX-License-Identifier: Apache-2.0
#include "dns/patch.hpp"

#include <algorithm>
#include <cstring>

namespace sluice::dns {
namespace {

constexpr std::uint8_t kAa = 0x04, kRd = 0x01;              // byte 2
constexpr std::uint8_t kRa = 0x80, kAd = 0x20, kCd = 0x10;  // byte 3

std::uint8_t lower(std::uint8_t byte) {
  return byte >= 'A' && byte <= 'Z' ? static_cast<std::uint8_t>(byte | 0x20) : byte;
}

void set_bit(std::uint8_t& byte, std::uint8_t bit, bool on) {
  byte = static_cast<std::uint8_t>(on ? byte | bit : byte & ~bit);
}

}  // namespace

void set_id(Room message, std::uint16_t id) {
  store16(message.data(), id);
}

bool set_question(Room message, Bytes wire) {
  if (wire.size() < 5 || message.size() < kHeaderSize + wire.size()) return false;
  std::uint8_t* const there = message.data() + kHeaderSize;
  const std::size_t name = wire.size() - 4;
  // Length bytes are below 'A', so folding leaves them alone. Type and class are compared as they
  // are.
  for (std::size_t i = 0; i < name; ++i)
    if (lower(there[i]) != lower(wire[i])) return false;
  if (std::memcmp(there + name, wire.data() + name, 4) != 0) return false;
  std::memcpy(there, wire.data(), name);
  return true;
}

void set_client_flags(Room message, const Header& client, bool authentic) {
  set_bit(message[2], kAa, false);
  set_bit(message[2], kRd, client.recursion_desired());
  set_bit(message[3], kRa, true);
  set_bit(message[3], kAd, authentic);
  set_bit(message[3], kCd, client.checking_disabled());
}

std::optional<std::size_t> find_ttls(const MessageView& message, std::span<std::uint16_t> offsets) {
  std::size_t count = 0;
  for (const Record& record : message.records()) {
    if (record.type == type::opt) continue;
    if (count == offsets.size() || record.ttl_offset > UINT16_MAX) return std::nullopt;
    offsets[count++] = static_cast<std::uint16_t>(record.ttl_offset);
  }
  return count;
}

void age_ttls(Room message, std::span<const std::uint16_t> offsets, std::uint32_t elapsed,
              std::uint32_t most) {
  for (const std::uint16_t offset : offsets) {
    const std::uint32_t ttl = sane_ttl(load32(message.data() + offset));
    store32(message.data() + offset, std::min(ttl > elapsed ? ttl - elapsed : 0, most));
  }
}

std::uint32_t least_ttl(Bytes message, std::span<const std::uint16_t> offsets, std::uint32_t none) {
  std::uint32_t least = UINT32_MAX;
  for (const std::uint16_t offset : offsets)
    least = std::min(least, sane_ttl(load32(message.data() + offset)));
  return offsets.empty() ? none : least;
}

std::size_t strip_additional(const MessageView& message, Room bytes) {
  store16(bytes.data() + 10, 0);
  return message.additional_offset();
}

std::size_t strip_to_answer(const MessageView& message, Room bytes) {
  store16(bytes.data() + 8, 0);
  store16(bytes.data() + 10, 0);
  return message.authority_offset();
}

std::size_t append_opt(Room room, std::size_t size, const Opt& opt) {
  const std::size_t text =
      opt.ede ? std::min(opt.ede->text.size(), kLongestEdeText) : std::size_t{0};
  const std::size_t options = opt.ede ? 4 + 2 + text : 0;
  if (size > room.size() || room.size() - size < kOptSize + options) return 0;
  const std::uint16_t additionals = load16(room.data() + 10);
  if (additionals == UINT16_MAX) return 0;
  store16(room.data() + 10, additionals + std::size_t{1});
  std::uint8_t* to = room.data() + size;
  *to++ = 0;  // the root
  store16(to, type::opt);
  store16(to + 2, kUdpPayload);
  to[4] = opt.extended_rcode;
  to[5] = 0;  // version
  store16(to + 6, opt.dnssec_ok ? 0x8000 : 0);
  store16(to + 8, options);
  to += 10;
  if (opt.ede) {
    store16(to, 15);  // Extended DNS Error
    store16(to + 2, 2 + text);
    store16(to + 4, opt.ede->code);
    if (text != 0) std::memcpy(to + 6, opt.ede->text.data(), text);
  }
  return size + kOptSize + options;
}

}  // namespace sluice::dns
