#include "policy/model.hpp"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>
#include <cstring>

namespace sluice {
namespace {

// What the operator wrote, fit for a log line: quoted, control characters escaped, never long.
std::string quoted(std::string_view text) {
  constexpr std::size_t kShown = 64;
  std::string out = "\"";
  for (char c : text.substr(0, kShown)) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  out += text.size() > kShown ? "\"..." : "\"";
  return out;
}

// Decimal without sign, blanks or leading zeros ("010" is 8 to some readers and 10 to others).
std::optional<unsigned> parse_number(std::string_view text, unsigned highest) {
  if (text.empty() || text.size() > 5 || (text.size() > 1 && text[0] == '0')) return std::nullopt;
  unsigned value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value > highest)
    return std::nullopt;
  return value;
}

// Zeroes everything behind the first `length` bits.
void clear_host_bits(std::array<std::uint8_t, 16>& address, unsigned length) {
  for (unsigned byte = length / 8; byte < address.size(); ++byte) {
    unsigned kept = byte == length / 8 ? length % 8 : 0;
    address[byte] = static_cast<std::uint8_t>(address[byte] & ~(0xffu >> kept));
  }
}

bool is_mapped(const Prefix& prefix) {
  static constexpr std::array<std::uint8_t, 12> kMapped{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  return prefix.family == 6 && prefix.length >= 96 &&
         std::equal(kMapped.begin(), kMapped.end(), prefix.address.begin());
}

struct ProtocolName {
  std::string_view name;
  std::uint8_t number;
  bool has_ports;
};
// IANA protocol numbers. Those with ports are the ones whose ports the kernel programs read.
constexpr std::array<ProtocolName, 9> kProtocols{{{"tcp", 6, true},
                                                  {"udp", 17, true},
                                                  {"icmp", 1, false},
                                                  {"icmpv6", 58, false},
                                                  {"sctp", 132, true},
                                                  {"dccp", 33, true},
                                                  {"udplite", 136, true},
                                                  {"gre", 47, false},
                                                  {"esp", 50, false}}};

}  // namespace

std::string_view to_string(Mode mode) {
  switch (mode) {
    case Mode::block_all:
      return "block-all";
    case Mode::allowlist:
      return "allowlist";
    case Mode::denylist:
      return "denylist";
    case Mode::disabled:
      return "disabled";
  }
  return "unknown";
}

Result<Mode> parse_mode(std::string_view text) {
  for (Mode mode : {Mode::block_all, Mode::allowlist, Mode::denylist, Mode::disabled})
    if (text == to_string(mode)) return mode;
  return fail("mode {} is unknown; write block-all, allowlist, denylist or disabled", quoted(text));
}

Result<Prefix> Prefix::parse(std::string_view text) {
  const std::size_t slash = text.find('/');
  const std::string_view host = text.substr(0, slash);
  if (text.empty()) return fail("an empty prefix; write one such as 10.0.0.0/8 or 2001:db8::/32");
  if (host.find('%') != std::string_view::npos)
    return fail("{} names a zone; policy is per attachment already, leave out the part from '%'",
                quoted(text));

  char buffer[INET6_ADDRSTRLEN] = {};
  Prefix prefix;
  // inet_pton reads up to a zero byte: one inside the text would hide what follows it.
  const bool fits = host.size() < sizeof buffer && host.find('\0') == std::string_view::npos;
  if (fits) host.copy(buffer, host.size());
  if (fits && inet_pton(AF_INET, buffer, prefix.address.data()) == 1) {
    prefix.family = 4;
  } else if (fits && inet_pton(AF_INET6, buffer, prefix.address.data()) == 1) {
    prefix.family = 6;
  } else {
    return fail("{} is not an IPv4 or IPv6 prefix; write one such as 10.0.0.0/8 or 2001:db8::/32",
                quoted(text));
  }

  const unsigned bits = prefix.family == 4 ? 32 : 128;
  std::optional<unsigned> length = bits;
  if (slash != std::string_view::npos) length = parse_number(text.substr(slash + 1), bits);
  if (!length)
    return fail("{}: the length behind '/' is not a number from 0 to {}; a single host is {}/{}",
                quoted(text), bits, buffer, bits);
  prefix.length = static_cast<std::uint8_t>(*length);

  Prefix clean = prefix;
  clear_host_bits(clean.address, clean.length);
  if (is_mapped(prefix)) {
    Prefix ip4{.address = {}, .family = 4, .length = static_cast<std::uint8_t>(prefix.length - 96)};
    std::copy_n(clean.address.begin() + 12, 4, ip4.address.begin());
    return fail("{} is an IPv4-mapped prefix; write {}", quoted(text), ip4.text());
  }
  if (clean != prefix) return fail("{} has host bits set; write {}", quoted(text), clean.text());
  return prefix;
}

std::string Prefix::text() const {
  char buffer[INET6_ADDRSTRLEN] = {};
  inet_ntop(family == 4 ? AF_INET : AF_INET6, address.data(), buffer, sizeof buffer);
  return fmt::format("{}/{}", buffer, length);
}

bool Prefix::covers(const Prefix& other) const {
  if (family != other.family || length > other.length) return false;
  const unsigned bytes = length / 8, rest = length % 8;
  if (std::memcmp(address.data(), other.address.data(), bytes) != 0) return false;
  return rest == 0 || ((address[bytes] ^ other.address[bytes]) >> (8 - rest)) == 0;
}

Status Prefix::check() const {
  if (family != 4 && family != 6)
    return fail("a prefix has address family {}; it must be 4 or 6", family);
  if (length > (family == 4 ? 32 : 128))
    return fail("an IPv{} prefix has length {}; it must be 0 to {}", family, length,
                family == 4 ? 32 : 128);
  Prefix clean = *this;
  clear_host_bits(clean.address, clean.length);
  if (clean != *this) return fail("{} has host bits set; write {}", text(), clean.text());
  if (is_mapped(*this))
    return fail("{} is an IPv4-mapped prefix; write it as an IPv4 prefix", text());
  return {};
}

bool has_ports(std::uint8_t protocol) {
  return std::ranges::any_of(kProtocols, [protocol](const ProtocolName& known) {
    return known.number == protocol && known.has_ports;
  });
}

Result<PortRange> PortRange::parse(std::string_view text) {
  const std::size_t slash = text.find('/');
  const std::string_view name = text.substr(0, slash);
  const std::optional<std::string_view> rest =
      slash == std::string_view::npos ? std::nullopt : std::optional(text.substr(slash + 1));

  if (name == "proto") {
    const auto number = rest ? parse_number(*rest, 255) : std::nullopt;
    if (!number)
      return fail("{}: write proto/N with an IP protocol number from 0 to 255, such as proto/47",
                  quoted(text));
    return PortRange{.protocol = static_cast<std::uint8_t>(*number)};
  }
  const auto known = std::ranges::find(kProtocols, name, &ProtocolName::name);
  if (known == kProtocols.end())
    return fail(
        "{} is not a protocol with ports; write one such as tcp/443, udp/8000-8100, tcp, icmp or "
        "proto/47",
        quoted(text));
  PortRange range{.protocol = known->number};
  if (!rest) return range;
  if (!known->has_ports) return fail("{}: {} has no ports; write {}", quoted(text), name, name);

  const std::size_t dash = rest->find('-');
  const auto first = parse_number(rest->substr(0, dash), 65535);
  const auto last =
      dash == std::string_view::npos ? first : parse_number(rest->substr(dash + 1), 65535);
  if (!first || !last)
    return fail(
        "{}: the ports are not a number from 0 to 65535 or a range of two; write {}/443 or "
        "{}/8000-8100, one range per entry",
        quoted(text), name, name);
  if (*first > *last)
    return fail("{}: the first port is above the last; write {}/{}-{}", quoted(text), name, *last,
                *first);
  range.any_port = false;
  range.first = static_cast<std::uint16_t>(*first);
  range.last = static_cast<std::uint16_t>(*last);
  return range;
}

std::string PortRange::text() const {
  const auto known = std::ranges::find(kProtocols, protocol, &ProtocolName::number);
  if (known == kProtocols.end()) return fmt::format("proto/{}", protocol);
  if (any_port) return std::string(known->name);
  if (first == last) return fmt::format("{}/{}", known->name, first);
  return fmt::format("{}/{}-{}", known->name, first, last);
}

Status PortRange::check() const {
  if (any_port) return {};
  if (!has_ports(protocol))
    return fail("IP protocol {} has no ports that the filter can read; leave out the port range",
                protocol);
  if (first > last)
    return fail("port range {}-{}: the first port is above the last; write {}-{}", first, last,
                last, first);
  return {};
}

}  // namespace sluice
