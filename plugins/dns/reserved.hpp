// Which addresses are never granted through DNS unless a rule names them in its `ranges`: a public
// name that resolves to 10.0.0.7 or 169.254.169.254 must open nothing (rebinding).
//
//   const auto ten = Prefix::parse("10.0.0.0/8");
//   vet(Address::parse("10.0.0.7"), {}, own)        // Reserved::private_network
//   vet(Address::parse("10.0.0.7"), {&ten, 1}, own)  // Reserved::ordinary
//
// A range opens only what it names:
//
// - The addresses of cloud metadata services and the host's own are opened by nothing shorter than
//   a /32 or /128 that is them. Whoever writes 10.0.0.0/8 or fd00::/8 thinks of servers, not these.
//
// - An address that carries an IPv4 address (NAT64, 6to4, Teredo, mapped, compatible) must be named
//   as it stands, and what it carries must be ordinary or named too: the range 64:ff9b::/96 makes
//   DNS64 work and does not open 64:ff9b::10.0.0.7.
//
// IPv6 is judged by what is given out: outside 2000::/3 nothing is ordinary. Documentation and
// benchmarking ranges (192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24, 198.18.0.0/15, 2001:db8::/32,
// 3fff::/20, 2001:2::/48) are ordinary addresses.
//
// A translator's own prefix (RFC 6052 section 2.2, "network-specific") looks like any other network
// and is not recognised; where one is in use, deny it by CIDR.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#ifndef SLUICE_SDK_QUALIFIED
#define SLUICE_SDK_QUALIFIED
#endif
#include <sluice/types.hpp>

namespace sluice::dns {

enum class Reserved : std::uint8_t {
  ordinary,
  this_network,
  private_network,
  shared,
  loopback,
  link_local,
  protocol,
  relay_anycast,
  multicast,
  future,
  broadcast,
  unspecified,
  unique_local,
  site_local,
  mapped,
  compatible,
  nat64,
  six_to_four,
  teredo,
  discard,
  not_given_out,
  metadata,
  own,
};

// "a private address", to be put behind "which is".
[[nodiscard]] std::string_view describe(Reserved reserved);

// Addresses, sorted; immutable.
class AddressSet {
 public:
  AddressSet() = default;
  explicit AddressSet(std::vector<sdk::Address> addresses);
  [[nodiscard]] bool contains(const sdk::Address& address) const;
  [[nodiscard]] const std::vector<sdk::Address>& all() const { return sorted_; }
  bool operator==(const AddressSet&) const = default;

 private:
  std::vector<sdk::Address> sorted_;
};

// What the address is by itself: neither ranges nor the host's own nor what it carries are looked
// at.
[[nodiscard]] Reserved reserved_as(const sdk::Address& address);

// `ordinary`: may be granted. Else what speaks against it. Allocates nothing.
[[nodiscard]] Reserved vet(const sdk::Address& address, std::span<const sdk::Prefix> ranges,
                           const AddressSet& own);

}  // namespace sluice::dns
