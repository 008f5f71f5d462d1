#include "dns/reserved.hpp"

#include <algorithm>
#include <array>
#include <cstring>

namespace sluice::dns {
namespace {

using sdk::Address;
using sdk::Prefix;

struct Block4 {
  std::uint32_t network;  // host order
  std::uint8_t length;
  Reserved kind;
};

constexpr std::uint32_t v4(unsigned a, unsigned b, unsigned c, unsigned d) {
  return a << 24 | b << 16 | c << 8 | d;
}

// IANA IPv4 special-purpose registry (RFC 6890); the first that matches counts.
constexpr std::array kBlocks4 = std::to_array<Block4>({
    // Metadata services. Most lie in link-local or shared space too, which a range may open.
    {v4(169, 254, 169, 254), 32,
     Reserved::metadata},                             // AWS, Azure, GCP, OpenStack, DigitalOcean...
    {v4(169, 254, 170, 2), 32, Reserved::metadata},   // AWS ECS: credentials of a task
    {v4(169, 254, 170, 23), 32, Reserved::metadata},  // AWS EKS: credentials of a pod
    {v4(169, 254, 0, 23), 32, Reserved::metadata},    // Tencent Cloud
    {v4(169, 254, 42, 42), 32, Reserved::metadata},   // Scaleway
    {v4(100, 100, 100, 200), 32, Reserved::metadata},    // Alibaba Cloud
    {v4(168, 63, 129, 16), 32, Reserved::metadata},      // Azure: the platform itself, public space
    {v4(192, 0, 0, 192), 32, Reserved::metadata},        // Oracle Cloud, classic
    {v4(0, 0, 0, 0), 32, Reserved::unspecified},         // RFC 1122 section 3.2.1.3
    {v4(0, 0, 0, 0), 8, Reserved::this_network},         // RFC 791 section 3.2
    {v4(10, 0, 0, 0), 8, Reserved::private_network},     // RFC 1918
    {v4(100, 64, 0, 0), 10, Reserved::shared},           // RFC 6598
    {v4(127, 0, 0, 0), 8, Reserved::loopback},           // RFC 1122 section 3.2.1.3
    {v4(169, 254, 0, 0), 16, Reserved::link_local},      // RFC 3927
    {v4(172, 16, 0, 0), 12, Reserved::private_network},  // RFC 1918
    {v4(192, 0, 0, 0), 24, Reserved::protocol},          // RFC 6890 section 2.1
    {v4(192, 88, 99, 0), 24, Reserved::relay_anycast},   // RFC 7526: 6to4 relays
    {v4(192, 168, 0, 0), 16, Reserved::private_network},  // RFC 1918
    {v4(224, 0, 0, 0), 4, Reserved::multicast},           // RFC 5771
    {v4(255, 255, 255, 255), 32, Reserved::broadcast},    // RFC 919
    {v4(240, 0, 0, 0), 4, Reserved::future},              // RFC 1112 section 4
});

// Both halves of an IPv6 address, host order.
struct Halves {
  std::uint64_t high = 0, low = 0;
};

constexpr std::uint64_t half(const std::array<std::uint16_t, 8>& groups, std::size_t first) {
  return std::uint64_t{groups[first]} << 48 | std::uint64_t{groups[first + 1]} << 32 |
         std::uint64_t{groups[first + 2]} << 16 | groups[first + 3];
}

struct Block6 {
  Halves network, mask;
  Reserved kind;

  constexpr Block6(const std::array<std::uint16_t, 8>& groups, unsigned length, Reserved of)
      : network{half(groups, 0), half(groups, 4)},
        mask{length == 0 ? 0 : ~std::uint64_t{0} << (length < 64 ? 64 - length : 0),
             length <= 64 ? 0 : ~std::uint64_t{0} << (128 - length)},
        kind(of) {}
};

// IANA IPv6 special-purpose registry (RFC 6890); the first that matches counts.
constexpr std::array kBlocks6 = std::to_array<Block6>({
    {{0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254}, 128, Reserved::metadata},  // AWS
    {{0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23}, 128, Reserved::metadata},   // AWS EKS
    {{0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254}, 128, Reserved::metadata},   // GCP
    {{0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42}, 128, Reserved::metadata},    // Scaleway
    {{0, 0, 0, 0, 0, 0, 0, 0}, 128, Reserved::unspecified},            // RFC 4291 section 2.5.2
    {{0, 0, 0, 0, 0, 0, 0, 1}, 128, Reserved::loopback},               // RFC 4291 section 2.5.3
    {{0, 0, 0, 0, 0, 0xffff, 0, 0}, 96, Reserved::mapped},             // RFC 4291 section 2.5.5.2
    {{0, 0, 0, 0, 0, 0, 0, 0}, 96, Reserved::compatible},              // RFC 4291 section 2.5.5.1
    {{0x64, 0xff9b, 0, 0, 0, 0, 0, 0}, 96, Reserved::nat64},           // RFC 6052
    {{0x64, 0xff9b, 1, 0, 0, 0, 0, 0}, 48, Reserved::nat64},           // RFC 8215
    {{0x100, 0, 0, 0, 0, 0, 0, 0}, 64, Reserved::discard},             // RFC 6666
    {{0x2002, 0, 0, 0, 0, 0, 0, 0}, 16, Reserved::six_to_four},        // RFC 3056
    {{0x2001, 0, 0, 0, 0, 0, 0, 0}, 32, Reserved::teredo},             // RFC 4380
    {{0x2001, 1, 0, 0, 0, 0, 0, 1}, 128, Reserved::protocol},  // RFC 7723: port control anycast
    {{0x2001, 1, 0, 0, 0, 0, 0, 2}, 128, Reserved::protocol},  // RFC 8155: TURN anycast
    {{0x2001, 0x10, 0, 0, 0, 0, 0, 0}, 28, Reserved::not_given_out},  // RFC 4843: ORCHID, ended
    {{0x2001, 0x20, 0, 0, 0, 0, 0, 0}, 28, Reserved::not_given_out},  // RFC 7343: ORCHIDv2
    {{0xfc00, 0, 0, 0, 0, 0, 0, 0}, 7, Reserved::unique_local},       // RFC 4193
    {{0xfe80, 0, 0, 0, 0, 0, 0, 0}, 10, Reserved::link_local},        // RFC 4291 section 2.5.6
    {{0xfec0, 0, 0, 0, 0, 0, 0, 0}, 10, Reserved::site_local},  // RFC 3879: ended, still routed
    {{0xff00, 0, 0, 0, 0, 0, 0, 0}, 8, Reserved::multicast},    // RFC 4291 section 2.7
    {{0x2000, 0, 0, 0, 0, 0, 0, 0}, 3, Reserved::ordinary},     // RFC 4291 section 2.4
    {{0, 0, 0, 0, 0, 0, 0, 0}, 0, Reserved::not_given_out},
});

std::uint32_t value4(const std::uint8_t* bytes) {
  return v4(bytes[0], bytes[1], bytes[2], bytes[3]);
}

Address address4(const std::uint8_t* bytes) {
  Address address{.family = 4};
  std::memcpy(address.bytes.data(), bytes, 4);
  return address;
}

bool same_bits(const std::uint8_t* a, const std::uint8_t* b, unsigned length) {
  if (std::memcmp(a, b, length / 8) != 0) return false;
  return length % 8 == 0 || (a[length / 8] ^ b[length / 8]) >> (8 - length % 8) == 0;
}

Halves halves_of(const Address& address) {
  Halves halves;
  for (std::size_t i = 0; i < 8; ++i) {
    halves.high = halves.high << 8 | address.bytes[i];
    halves.low = halves.low << 8 | address.bytes[i + 8];
  }
  return halves;
}

bool lies_in(const Halves& address, const Block6& block) {
  return ((address.high ^ block.network.high) & block.mask.high) == 0 &&
         ((address.low ^ block.network.low) & block.mask.low) == 0;
}

bool covers(const Prefix& range, const Address& address) {
  return range.address.family == address.family &&
         range.length <= (address.family == 4 ? 32 : 128) &&
         same_bits(range.address.bytes.data(), address.bytes.data(), range.length);
}

bool is_exactly(const Prefix& range, const Address& address) {
  return range.length == (address.family == 4 ? 32 : 128) && covers(range, address);
}

// The IPv4 addresses that an IPv6 address of this kind carries or may carry.
struct Carried {
  std::array<Address, 4> addresses;
  std::size_t count = 0;

  void add(const std::uint8_t* bytes) { addresses[count++] = address4(bytes); }
};

Carried carried_by(const Address& address, Reserved kind) {
  const auto& b = address.bytes;
  Carried carried;
  switch (kind) {
    case Reserved::mapped:
    case Reserved::compatible:
      carried.add(&b[12]);
      break;
    case Reserved::six_to_four:
      carried.add(&b[2]);
      break;
    case Reserved::teredo: {
      carried.add(&b[4]);  // the server
      const std::uint8_t client[4] = {
          static_cast<std::uint8_t>(~b[12]), static_cast<std::uint8_t>(~b[13]),
          static_cast<std::uint8_t>(~b[14]), static_cast<std::uint8_t>(~b[15])};
      carried.add(client);
      break;
    }
    case Reserved::nat64: {
      if (b[5] == 0) {  // the well-known /96
        carried.add(&b[12]);
        break;
      }
      // RFC 8215 leaves the translator's prefix length open: every place of RFC 6052 section 2.2. A
      // place that holds 0.x.y.z is not where the address is: those zeros are the prefix's or the
      // suffix's.
      const std::uint8_t in48[4] = {b[6], b[7], b[9], b[10]};
      const std::uint8_t in56[4] = {b[7], b[9], b[10], b[11]};
      for (const std::uint8_t* place : {in48, in56, &b[9], &b[12]})
        if (place[0] != 0) carried.add(place);
      break;
    }
    default:
      break;
  }
  return carried;
}

}  // namespace

std::string_view describe(Reserved reserved) {
  switch (reserved) {
    case Reserved::ordinary:
      return "an ordinary address";
    case Reserved::this_network:
      return "an address of \"this network\"";
    case Reserved::private_network:
      return "a private address";
    case Reserved::shared:
      return "an address of a carrier's shared space";
    case Reserved::loopback:
      return "a loopback address";
    case Reserved::link_local:
      return "a link-local address";
    case Reserved::protocol:
      return "an address set aside for protocols";
    case Reserved::relay_anycast:
      return "an address of 6to4 relays";
    case Reserved::multicast:
      return "a multicast address";
    case Reserved::future:
      return "an address reserved for future use";
    case Reserved::broadcast:
      return "the broadcast address";
    case Reserved::unspecified:
      return "the unspecified address";
    case Reserved::unique_local:
      return "a unique local address";
    case Reserved::site_local:
      return "a site-local address";
    case Reserved::mapped:
      return "an IPv4-mapped address";
    case Reserved::compatible:
      return "an IPv4-compatible address";
    case Reserved::nat64:
      return "a NAT64 address";
    case Reserved::six_to_four:
      return "a 6to4 address";
    case Reserved::teredo:
      return "a Teredo address";
    case Reserved::discard:
      return "a discard-only address";
    case Reserved::not_given_out:
      return "an address that is not given out to hosts";
    case Reserved::metadata:
      return "the address of a metadata service";
    case Reserved::own:
      return "an address of this host";
  }
  return "a reserved address";
}

AddressSet::AddressSet(std::vector<sdk::Address> addresses) : sorted_(std::move(addresses)) {
  std::ranges::sort(sorted_);
  const auto twice = std::ranges::unique(sorted_);
  sorted_.erase(twice.begin(), twice.end());
}

bool AddressSet::contains(const Address& address) const {
  return std::ranges::binary_search(sorted_, address);
}

Reserved reserved_as(const Address& address) {
  if (address.family == 4) {
    const std::uint32_t value = value4(address.bytes.data());
    for (const Block4& block : kBlocks4)
      if ((value ^ block.network) >> (32 - block.length) == 0) return block.kind;
    return Reserved::ordinary;
  }
  // Anything else has no place in an answer; no range opens it, because covers() compares families.
  if (address.family != 6) return Reserved::not_given_out;
  const Halves halves = halves_of(address);
  for (const Block6& block : kBlocks6)
    if (lies_in(halves, block)) return block.kind;
  return Reserved::not_given_out;
}

Reserved vet(const Address& address, std::span<const Prefix> ranges, const AddressSet& own) {
  Reserved kind = reserved_as(address);
  if (kind != Reserved::metadata && own.contains(address)) kind = Reserved::own;
  if (kind == Reserved::ordinary) return kind;
  const bool exactly = kind == Reserved::metadata || kind == Reserved::own;
  const auto named = [&](const Prefix& range) {
    return exactly ? is_exactly(range, address) : covers(range, address);
  };
  if (std::ranges::none_of(ranges, named)) return kind;
  const Reserved form = reserved_as(address);
  const Carried carried = carried_by(address, form);
  if (form == Reserved::nat64 && carried.count == 0) return form;
  for (std::size_t i = 0; i < carried.count; ++i)
    if (const Reserved inside = vet(carried.addresses[i], ranges, own);
        inside != Reserved::ordinary)
      return inside;
  return Reserved::ordinary;
}

}  // namespace sluice::dns
