// Any bytes as rules, a floor and packets: compile() refuses a faulty rule by name, or its image
// gives the verdicts that the rules give when they are read one by one.
#include <fuzzer/FuzzedDataProvider.h>

#include <cstdint>
#include <cstdlib>

#include "policy/explain.hpp"
#include "unit/policy/oracle.hpp"

namespace {

using namespace sluice;

void require(bool holds) {
  if (!holds) std::abort();
}

// Few distinct bits, so that prefixes nest and tie often.
Prefix any_prefix(FuzzedDataProvider& data, const std::vector<Prefix>& earlier) {
  Prefix prefix;
  const std::uint8_t kind = data.ConsumeIntegral<std::uint8_t>();
  if (!earlier.empty() && (kind & 3) != 0) {
    prefix = earlier[data.ConsumeIntegralInRange<std::size_t>(0, earlier.size() - 1)];
    const unsigned flipped = data.ConsumeIntegral<std::uint8_t>() % (prefix.family == 4 ? 32 : 128);
    if ((kind & 4) != 0)
      prefix.address[flipped / 8] ^= static_cast<std::uint8_t>(0x80 >> flipped % 8);
  } else {
    prefix.family = (kind & 4) != 0 ? 6 : 4;
    data.ConsumeData(prefix.address.data(), prefix.family == 4 ? 4 : 16);
  }
  prefix.length = static_cast<std::uint8_t>(
      data.ConsumeIntegralInRange<unsigned>(0, prefix.family == 4 ? 32 : 128));
  // Now and then left as it is: host bits must be refused.
  if (kind < 250)
    for (unsigned i = prefix.length; i < 128; ++i)
      prefix.address[i / 8] &= static_cast<std::uint8_t>(~(0x80 >> i % 8));
  return prefix;
}

PortRange any_ports(FuzzedDataProvider& data) {
  static constexpr std::array<std::uint8_t, 6> kProtocols{6, 17, 132, 1, 47, 58};
  PortRange range{.protocol = data.PickValueInArray(kProtocols)};
  range.any_port = data.ConsumeBool();
  if (!range.any_port) {
    range.first = data.ConsumeIntegral<std::uint16_t>();
    range.last = data.ConsumeIntegral<std::uint16_t>();
  }
  return range;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  constexpr std::uint64_t kNow = 8;
  FuzzedDataProvider data(bytes, size);
  std::array<Layer, 3> layers;
  std::vector<Prefix> prefixes;
  Floor floor;
  bool faulty = false;
  for (std::size_t n = data.ConsumeIntegralInRange<std::size_t>(0, 150);
       n > 0 && data.remaining_bytes() > 4; --n) {
    const std::uint8_t what = data.ConsumeIntegral<std::uint8_t>();
    const Prefix prefix = any_prefix(data, prefixes);
    prefixes.push_back(prefix);
    faulty = faulty || !prefix.check();
    if ((what & 0xf0) == 0) {
      floor.deny.push_back(prefix);
      continue;
    }
    Rule rule{.action = (what & 1) != 0 ? Action::allow : Action::deny,
              .prefix = prefix,
              .domain = {},
              .ports = {},
              .expires = {},
              .name = {}};
    for (unsigned i = 0; i < (what >> 1 & 3u); ++i) {
      rule.ports.push_back(any_ports(data));
      faulty = faulty || !rule.ports.back().check();
    }
    if ((what & 8) != 0) rule.expires = BootTime{data.ConsumeIntegralInRange<std::uint64_t>(0, 31)};
    layers[data.ConsumeIntegral<std::uint8_t>() % layers.size()].rules.push_back(std::move(rule));
  }
  const std::array<LayerInput, 3> inputs{{{.layer = &layers[0], .overrules_floor = true},
                                          {.layer = &layers[1]},
                                          {.layer = &layers[2]}}};
  const auto compiled = compile(inputs, floor, BootTime{kNow});
  if (!compiled) {
    require(faulty || compiled.error().code == E2BIG);
    require(!compiled.error().message.empty());
    return 0;
  }
  require(!faulty);

  // Each prefix's ends and what is just beside them, and what the input asks for besides.
  std::vector<test::Packet> packets;
  for (const Prefix& prefix : prefixes) {
    for (int where = 0; where < 3; ++where) {
      test::Packet packet;
      packet.address = prefix.address;
      packet.family = prefix.family;
      const unsigned bits = prefix.family == 4 ? 32 : 128;
      if (where > 0)
        for (unsigned i = prefix.length; i < bits; ++i)
          packet.address[i / 8] |= static_cast<std::uint8_t>(0x80 >> i % 8);
      if (where == 2)  // the first address behind it
        for (unsigned i = bits / 8; i-- > 0;)
          if (++packet.address[i] != 0) break;
      packets.push_back(packet);
    }
  }
  static constexpr std::array<std::uint8_t, 7> kProtocols{6, 17, 132, 1, 47, 58, 250};
  for (test::Packet& packet : packets) {
    packet.protocol = data.PickValueInArray(kProtocols);
    if (has_ports(packet.protocol) && data.ConsumeIntegral<std::uint8_t>() > 30)
      packet.port = data.ConsumeIntegral<std::uint16_t>();
    const std::uint64_t now = kNow + data.ConsumeIntegralInRange<std::uint64_t>(0, 25);
    const std::uint32_t expected = test::oracle(inputs, floor, packet, now);
    require(test::verdict(*compiled, packet, now) == expected);
    const auto explained = explain(inputs, floor,
                                   {.address = packet.address,
                                    .family = packet.family,
                                    .protocol = packet.protocol,
                                    .port = packet.port},
                                   BootTime{now});
    require(static_cast<std::uint32_t>(explained.verdict) == expected);
  }
  return 0;
}
