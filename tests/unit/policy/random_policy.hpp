// Random policies that nest, tie, expire and meet at their edges, and packets that ask there.
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "unit/policy/walk.hpp"

namespace sluice::test {

struct RandomPolicy {
  std::vector<Layer> layers;
  std::vector<bool> overrules;
  Floor floor;

  [[nodiscard]] std::vector<LayerInput> inputs() const {
    std::vector<LayerInput> inputs;
    for (std::size_t i = 0; i < layers.size(); ++i)
      inputs.push_back({.layer = &layers[i], .overrules_floor = overrules[i]});
    return inputs;
  }
};

struct RandomShape {
  std::size_t rules = 20;
  double with_ports = 0.4, with_expiry = 0.3, ip6 = 0.5, nested = 0.7, floors = 0.5;
};

class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  std::size_t below(std::size_t n) {
    return std::uniform_int_distribution<std::size_t>(0, n - 1)(engine_);
  }
  bool chance(double p) { return std::uniform_real_distribution<>(0, 1)(engine_) < p; }

  RandomPolicy policy(const RandomShape& shape) {
    RandomPolicy policy;
    pool_.clear();
    const std::size_t layers = 1 + below(3);
    for (std::size_t i = 0; i < layers; ++i) {
      policy.layers.emplace_back();
      policy.overrules.push_back(chance(0.4));
    }
    for (std::size_t i = 0; i < shape.rules; ++i) {
      Rule rule{.action = chance(0.5) ? Action::allow : Action::deny,
                .prefix = prefix(shape),
                .domain = {},
                .ports = {},
                .expires = {},
                .name = {}};
      if (chance(shape.with_ports))
        for (std::size_t n = 1 + below(3); n > 0; --n) rule.ports.push_back(ports());
      if (chance(shape.with_expiry)) rule.expires = BootTime{kTimes[below(kTimes.size())]};
      policy.layers[below(layers)].rules.push_back(std::move(rule));
    }
    if (chance(shape.floors))
      for (std::size_t n = 1 + below(1 + shape.rules / 8); n > 0; --n)
        policy.floor.deny.push_back(prefix(shape));
    return policy;
  }

  // Destinations on, in and just beside the policy's prefixes; ports on and beside its ranges.
  Packet packet() {
    Packet packet;
    if (!pool_.empty() && chance(0.95)) {
      const Prefix& near = pool_[below(pool_.size())];
      packet.family = near.family;
      packet.address = near.address;
      const unsigned bits = near.family == 4 ? 32 : 128;
      const std::size_t where = below(5);
      if (where == 1)
        for (unsigned i = near.length; i < bits; ++i)
          packet.address[i / 8] |= static_cast<std::uint8_t>(0x80 >> i % 8);
      if (where >= 2)
        for (unsigned i = near.length; i < bits; ++i)
          if (chance(0.5)) packet.address[i / 8] ^= static_cast<std::uint8_t>(0x80 >> i % 8);
      if (where == 3) step(packet.address, bits, -1);
      if (where == 4) step(packet.address, bits, +1);
      if (where == 0 && chance(0.3)) step(packet.address, bits, -1);
      if (where == 1 && chance(0.3)) step(packet.address, bits, +1);
    } else {
      packet.family = chance(0.5) ? 4 : 6;
      for (unsigned i = 0; i < (packet.family == 4 ? 4u : 16u); ++i)
        packet.address[i] = static_cast<std::uint8_t>(below(256));
    }
    packet.protocol = kProtocols[below(kProtocols.size())];
    if (has_ports(packet.protocol) && chance(0.9)) packet.port = port();
    return packet;
  }

  std::uint64_t time() {
    const std::uint64_t at = kTimes[below(kTimes.size())];
    return chance(0.33) ? at - 1 : chance(0.5) ? at : at + 1;
  }
  static constexpr std::uint64_t kStart = 50;

 private:
  static constexpr std::array<std::uint64_t, 5> kTimes{40, 100, 200, 300, 1u << 30};
  static constexpr std::array<std::uint8_t, 7> kProtocols{6, 6, 6, 17, 132, 1, 47};
  static constexpr std::array<std::uint16_t, 9> kPorts{0, 22, 79, 80, 81, 443, 8000, 8100, 65535};

  std::uint16_t port() {
    const std::uint16_t near = kPorts[below(kPorts.size())];
    if (chance(0.6)) return near;
    return static_cast<std::uint16_t>(near + (chance(0.5) ? 1 : -1));
  }
  PortRange ports() {
    PortRange range{.protocol = kProtocols[below(kProtocols.size())],
                    .any_port = true,
                    .first = 0,
                    .last = 65535};
    if (!has_ports(range.protocol) || chance(0.2)) return range;
    range.any_port = false;
    range.first = port();
    range.last = chance(0.5) ? range.first : port();
    if (range.first > range.last) std::swap(range.first, range.last);
    return range;
  }

  static void step(std::array<std::uint8_t, 16>& address, unsigned bits, int by) {
    for (unsigned i = bits / 8; i-- > 0;) {
      address[i] = static_cast<std::uint8_t>(address[i] + by);
      if (address[i] != (by > 0 ? 0 : 255)) return;
    }
  }

  Prefix prefix(const RandomShape& shape) {
    Prefix prefix;
    // Usually beside, above or below an earlier one, so that prefixes nest and tie.
    if (!pool_.empty() && chance(shape.nested)) {
      prefix = pool_[below(pool_.size())];
    } else {
      prefix.family = chance(shape.ip6) ? 6 : 4;
      for (unsigned i = 0; i < (prefix.family == 4 ? 4u : 16u); ++i)
        prefix.address[i] = static_cast<std::uint8_t>(below(256));
      prefix.length = static_cast<std::uint8_t>(below((prefix.family == 4 ? 32u : 128u) + 1));
    }
    const unsigned bits = prefix.family == 4 ? 32 : 128;
    switch (below(8)) {
      case 0:
        break;  // the same
      case 1:
        prefix.length = static_cast<std::uint8_t>(bits);
        break;
      case 2:
        prefix.length = static_cast<std::uint8_t>(below(4) == 0 ? 0 : below(bits + 1));
        break;
      case 3:  // a neighbour
        if (prefix.length > 0) {
          const unsigned last = prefix.length - 1u;
          prefix.address[last / 8] ^= static_cast<std::uint8_t>(0x80 >> last % 8);
        }
        break;
      default: {  // inside it
        const unsigned length =
            std::min<unsigned>(bits, prefix.length + static_cast<unsigned>(below(9)));
        for (unsigned i = prefix.length; i < length; ++i)
          if (chance(0.5)) prefix.address[i / 8] ^= static_cast<std::uint8_t>(0x80 >> i % 8);
        prefix.length = static_cast<std::uint8_t>(length);
        break;
      }
    }
    for (unsigned i = prefix.length; i < 128; ++i)
      prefix.address[i / 8] &= static_cast<std::uint8_t>(~(0x80 >> i % 8));
    if (!prefix.check()) return this->prefix(shape);  // an IPv4-mapped one by chance
    pool_.push_back(prefix);
    return prefix;
  }

  std::mt19937_64 engine_;
  std::vector<Prefix> pool_;
};

}  // namespace sluice::test
