#include "bench/dataplane/sets.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace sluice::bench {
namespace {

struct Share {
  std::uint8_t length;
  unsigned percent;
};
constexpr std::array<Share, 7> kShares4{
    {{20, 1}, {22, 6}, {23, 5}, {24, 45}, {28, 6}, {30, 4}, {32, 33}}};
constexpr std::array<Share, 4> kShares6{{{48, 50}, {56, 15}, {64, 15}, {128, 20}}};
constexpr unsigned kAllocations = 4000;

template <std::size_t N>
std::uint8_t pick_length(const std::array<Share, N>& shares, std::mt19937_64& random) {
  auto at = static_cast<unsigned>(random() % 100);
  for (const Share& share : shares) {
    if (at < share.percent) return share.length;
    at -= share.percent;
  }
  return shares.back().length;
}

void put(Address& address, unsigned at, std::uint64_t value, unsigned bytes) {
  for (unsigned i = 0; i < bytes; ++i)
    address[at + i] = static_cast<std::uint8_t>(value >> (8 * (bytes - 1 - i)));
}

// Unicast; for IPv6 below an allocation, which a number names.
Address random_address(std::uint8_t family, std::mt19937_64& random) {
  Address address{};
  if (family == 4) {
    put(address, 0, 0x01000000u + random() % 0xde000000u, 4);
  } else {
    put(address, 0, 0x20010000u + (random() % kAllocations) * 0x1003b, 4);
    put(address, 4, random() & 0xffffffff, 4);
    put(address, 8, random(), 8);
  }
  return address;
}

void clear_host_bits(Prefix& prefix) {
  for (unsigned i = prefix.length; i < 128; ++i)
    prefix.address[i / 8] &= static_cast<std::uint8_t>(~(0x80 >> i % 8));
}

}  // namespace

std::vector<Prefix> mixed_prefixes(std::size_t count, std::uint8_t family, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Prefix> set;
  while (set.size() < count) {
    while (set.size() < count + count / 50) {
      Prefix prefix;
      prefix.family = family;
      prefix.length = family == 4 ? pick_length(kShares4, random) : pick_length(kShares6, random);
      prefix.address = random_address(family, random);
      clear_host_bits(prefix);
      set.push_back(prefix);
    }
    std::ranges::sort(set, [](const Prefix& a, const Prefix& b) {
      return a.address != b.address ? a.address < b.address : a.length < b.length;
    });
    std::vector<Prefix> apart;
    for (const Prefix& prefix : set)
      if (apart.empty() || !apart.back().covers(prefix)) apart.push_back(prefix);
    set = std::move(apart);
  }
  // Thinned evenly, not cut off at the end.
  while (set.size() > count) {
    const std::size_t surplus = set.size() - count, step = set.size() / surplus;
    std::vector<Prefix> kept;
    std::size_t dropped = 0;
    for (std::size_t i = 0; i < set.size(); ++i)
      if (dropped < surplus && i % step == 0)
        dropped++;
      else
        kept.push_back(set[i]);
    set = std::move(kept);
  }
  return set;
}

bool covered(const std::vector<Prefix>& sorted, const Address& address) {
  auto after = std::ranges::upper_bound(sorted, address, {}, &Prefix::address);
  if (after == sorted.begin()) return false;
  const Prefix& prefix = *std::prev(after);
  const Prefix host{address, prefix.family,
                    static_cast<std::uint8_t>(prefix.family == 4 ? 32 : 128)};
  return prefix.covers(host);
}

std::vector<Address> inside(const std::vector<Prefix>& set, std::size_t count) {
  std::mt19937_64 random(7);
  std::vector<Address> out;
  for (std::size_t n = 0; n < count; ++n) {
    const Prefix& prefix = set[random() % set.size()];
    Address address = prefix.address;
    const unsigned bits = prefix.family == 4 ? 32 : 128;
    for (unsigned i = prefix.length; i < bits; ++i)
      if (random() & 1) address[i / 8] |= static_cast<std::uint8_t>(0x80 >> i % 8);
    out.push_back(address);
  }
  return out;
}

std::vector<Address> outside(const std::vector<Prefix>& set, std::size_t count) {
  std::mt19937_64 random(11);
  std::vector<Address> out;
  while (out.size() < count) {
    const Address address = random_address(set.front().family, random);
    if (!covered(set, address)) out.push_back(address);
  }
  return out;
}

Layer layer_of(const std::vector<Prefix>& set, Action action) {
  Layer layer;
  layer.mode = Mode::allowlist;
  layer.rules.reserve(set.size());
  for (const Prefix& prefix : set) {
    Rule rule;
    rule.action = action;
    rule.prefix = prefix;
    layer.rules.push_back(std::move(rule));
  }
  return layer;
}

CompiledPolicy must_compile(const Layer& layer) {
  static const Floor floor{
      .deny = {*Prefix::parse("169.254.169.254/32"), *Prefix::parse("fd00:ec2::254/128"),
               *Prefix::parse("100.100.100.200/32"), *Prefix::parse("168.63.129.16/32")}};
  const LayerInput input{.layer = &layer};
  auto compiled = compile({&input, 1}, floor, boot_now());
  if (!compiled) {
    std::fprintf(stderr, "%s\n", compiled.error().message.c_str());
    std::exit(1);
  }
  return std::move(*compiled);
}

Address mapped(const Address& address, std::uint8_t family) {
  if (family == 6) return address;
  Address out{};
  out[10] = out[11] = 0xff;
  std::copy_n(address.begin(), 4, out.begin() + 12);
  return out;
}

}  // namespace sluice::bench
