// Packets by the byte, for tables "description, packet in, verdict out". Builders write what they
// are told, also where it is wrong: lengths and versions can be overridden, and payloads are plain
// bytes.
#pragma once

#include <arpa/inet.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

namespace sluice::test {

using Bytes = std::vector<std::uint8_t>;

inline Bytes operator+(Bytes left, const Bytes& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}
inline Bytes zeros(std::size_t count) {
  return Bytes(count, 0);
}
inline Bytes be16(std::uint32_t value) {
  return {static_cast<std::uint8_t>(value >> 8), static_cast<std::uint8_t>(value)};
}
inline Bytes be32(std::uint32_t value) {
  return be16(value >> 16) + be16(value & 0xffff);
}
inline std::uint16_t read16(const Bytes& bytes, std::size_t at) {
  return static_cast<std::uint16_t>(bytes.at(at) << 8 | bytes.at(at + 1));
}
inline std::uint32_t read32(const Bytes& bytes, std::size_t at) {
  return std::uint32_t{read16(bytes, at)} << 16 | read16(bytes, at + 2);
}
inline Bytes slice(const Bytes& bytes, std::size_t at, std::size_t count) {
  return {bytes.begin() + static_cast<std::ptrdiff_t>(at),
          bytes.begin() + static_cast<std::ptrdiff_t>(at + count)};
}
inline Bytes head(const Bytes& bytes, std::size_t count) {
  return slice(bytes, 0, count);
}

// 4 or 16 bytes, network order.
inline Bytes address(const std::string& text) {
  Bytes bytes(text.find(':') == std::string::npos ? 4 : 16);
  inet_pton(bytes.size() == 4 ? AF_INET : AF_INET6, text.c_str(), bytes.data());
  return bytes;
}
// 16 bytes, IPv4 mapped, as the maps have it.
inline std::array<std::uint8_t, 16> mapped(const std::string& text) {
  const Bytes bytes = address(text);
  std::array<std::uint8_t, 16> result{};
  if (bytes.size() == 4) result[10] = result[11] = 0xff;
  std::memcpy(result.data() + 16 - bytes.size(), bytes.data(), bytes.size());
  return result;
}

constexpr std::uint8_t kFin = 1, kSyn = 2, kRst = 4, kPush = 8, kAck = 16;

inline Bytes tcp(std::uint16_t from, std::uint16_t to, std::uint8_t flags = kSyn,
                 const Bytes& payload = {}, std::uint32_t sequence = 1000,
                 std::uint32_t acknowledgment = 0) {
  return be16(from) + be16(to) + be32(sequence) + be32(acknowledgment) + Bytes{0x50, flags} +
         be16(65535) + be16(0) + be16(0) + payload;
}
inline Bytes udp(std::uint16_t from, std::uint16_t to, const Bytes& payload = {}) {
  return be16(from) + be16(to) + be16(static_cast<std::uint32_t>(8 + payload.size())) + be16(0) +
         payload;
}
inline Bytes icmp(std::uint8_t type, std::uint8_t code = 0, std::uint16_t id = 7,
                  const Bytes& payload = {}) {
  return Bytes{type, code} + be16(0) + be16(id) + be16(1) + payload;
}

struct Ip4 {
  std::uint8_t version = 4, ttl = 64;
  std::uint16_t fragment = 0;  // flags and offset
  Bytes options = {};          // a multiple of 4 bytes
  std::optional<std::uint8_t> header_words = {};
  std::optional<std::uint16_t> total = {};
};
inline Bytes ip4(const std::string& from, const std::string& to, std::uint8_t protocol,
                 const Bytes& payload, const Ip4& with = {}) {
  const auto words =
      with.header_words.value_or(static_cast<std::uint8_t>(5 + with.options.size() / 4));
  const auto total =
      with.total.value_or(static_cast<std::uint16_t>(20 + with.options.size() + payload.size()));
  return Bytes{static_cast<std::uint8_t>(with.version << 4 | words), 0} + be16(total) + be16(1) +
         be16(with.fragment) + Bytes{with.ttl, protocol} + be16(0) + address(from) + address(to) +
         with.options + payload;
}

struct Ip6 {
  std::uint8_t version = 6, hop_limit = 64;
  std::optional<std::uint16_t> payload_length = {};
};
inline Bytes ip6(const std::string& from, const std::string& to, std::uint8_t next,
                 const Bytes& payload, const Ip6& with = {}) {
  return Bytes{static_cast<std::uint8_t>(with.version << 4), 0, 0, 0} +
         be16(with.payload_length.value_or(static_cast<std::uint16_t>(payload.size()))) +
         Bytes{next, with.hop_limit} + address(from) + address(to) + payload;
}

// IPv6 extension headers: `next` is what follows them.
inline Bytes options_header(std::uint8_t next, std::uint8_t units = 0) {
  return Bytes{next, units, 1, static_cast<std::uint8_t>(4 + units * 8)} + zeros(4u + units * 8u);
}
inline Bytes routing_header(std::uint8_t next, std::uint8_t segments_left, std::uint8_t type = 0) {
  return Bytes{next, 2, type, segments_left} + zeros(20);
}
inline Bytes fragment_header(std::uint8_t next, std::uint16_t offset_units, bool more,
                             std::uint8_t reserved = 0) {
  return Bytes{next, reserved} +
         be16(static_cast<std::uint32_t>(offset_units << 3 | (more ? 1 : 0))) + be32(9);
}
inline Bytes authentication_header(std::uint8_t next, std::uint8_t words = 4) {
  return Bytes{next, words} + zeros(words * 4u + 6);
}

constexpr std::uint16_t kIp4Type = 0x0800, kIp6Type = 0x86dd, kArpType = 0x0806, kVlanType = 0x8100,
                        kQinQType = 0x88a8;
constexpr std::array<std::uint8_t, 6> kGuestMac{2, 0, 0, 0, 0, 2}, kOtherMac{2, 0, 0, 0, 0, 9};

inline Bytes ethernet(std::uint16_t type, const Bytes& payload,
                      const std::array<std::uint8_t, 6>& to = kOtherMac,
                      const std::array<std::uint8_t, 6>& from = kGuestMac) {
  return Bytes(to.begin(), to.end()) + Bytes(from.begin(), from.end()) + be16(type) + payload;
}
// An IP packet in its frame; the EtherType follows the version nibble of a good packet.
inline Bytes framed(const Bytes& packet) {
  return ethernet(packet.at(0) >> 4 == 6 ? kIp6Type : kIp4Type, packet);
}

struct Arp {
  std::uint16_t hardware = 1, protocol = 0x0800;
  std::uint8_t hardware_length = 6, protocol_length = 4;
  std::uint16_t operation = 1;
};
inline Bytes arp(const Arp& with = {}) {
  return be16(with.hardware) + be16(with.protocol) +
         Bytes{with.hardware_length, with.protocol_length} + be16(with.operation) +
         Bytes(kGuestMac.begin(), kGuestMac.end()) + address("192.0.2.2") + zeros(6) +
         address("192.0.2.1");
}

// RFC 1071 over `bytes`: 0 when a checksum inside them is right.
inline std::uint16_t checksum(const Bytes& bytes) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i)
    sum += i % 2 == 0 ? std::uint32_t{bytes[i]} << 8 : bytes[i];
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(~sum);
}

}  // namespace sluice::test
