// Bytes as packets through the parser and the decision core, under an allowlist.
//
// - Nothing is read outside the packet (it lies in an exact allocation of its own, under ASan).
// - What passes by a rule is what an independent and much simpler reading of the packet finds: a
//   complete header, and a destination, protocol and port on the list.
// - No cut inside the headers of a packet that passes, passes, whatever its length field then says.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <span>

#include "unit/bpf/core.hpp"

using namespace sluice;
using namespace sluice::test;

namespace {

struct Listed {
  const char* prefix;
  std::uint8_t protocol;  // 0: all of them
  std::uint16_t port;
};
constexpr Listed kList[] = {{"198.51.100.0/24", 0, 0},      {"203.0.113.10/32", 6, 443},
                            {"203.0.113.10/32", 17, 53},    {"2001:db8:a::/48", 0, 0},
                            {"2001:db8:b::10/128", 6, 443}, {"2001:db8:b::10/128", 17, 53},
                            {"64:ff9b::/96", 0, 0},         {"2002::/16", 0, 0}};

struct Allowlist {
  CompiledPolicy policy;
  Core core;

  Allowlist() {
    Layer layer;
    for (const Listed& one : kList) {
      Rule rule;
      rule.action = Action::allow;
      rule.prefix = Prefix::parse(one.prefix).value();
      if (one.protocol != 0) rule.ports.push_back({one.protocol, false, one.port, one.port});
      layer.rules.push_back(rule);
    }
    const LayerInput input{&layer, false};
    policy = compile(std::span(&input, 1), Floor{}, BootTime{1}).value();
    core.tables.now = 1;
    core.use(policy, SLUICE_MODE_ALLOWLIST,
             SLUICE_FLAG_ARP | SLUICE_FLAG_ND | SLUICE_FLAG_DHCP | SLUICE_FLAG_REPLIES);
  }
};

void require(bool holds) {
  if (!holds) std::abort();
}

std::uint32_t be(std::span<const std::uint8_t> packet, std::size_t at, std::size_t size) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < size; ++i) value = value << 8 | packet[at + i];
  return value;
}

bool covers(const Prefix& prefix, const std::uint8_t* address) {
  for (int i = 0; i < prefix.length; ++i) {
    const auto byte = static_cast<std::size_t>(i / 8);
    if (((prefix.address[byte] ^ address[byte]) >> (7 - i % 8) & 1) != 0) return false;
  }
  return true;
}

// What the packet is, read the simple way. No value: it may not pass.
struct Plain {
  const std::uint8_t* destination;
  std::uint8_t family, protocol;
  std::optional<std::uint16_t> port;  // none: another fragment has it, or the protocol has none
  std::size_t headers;                // bytes that must be there
};

std::size_t least(std::uint8_t protocol) {
  switch (protocol) {
    case 6:
      return 20;
    case 33:
    case 132:
      return 12;
    case 1:
    case 17:
    case 58:
    case 136:
      return 8;
    default:
      return 0;
  }
}
bool ported(std::uint8_t protocol) {
  return protocol == 6 || protocol == 17 || protocol == 33 || protocol == 132 || protocol == 136;
}

std::optional<Plain> finish(std::span<const std::uint8_t> packet, Plain plain, std::size_t at,
                            bool later) {
  if (later) {
    plain.headers = at;
    return plain;
  }
  plain.headers = at + least(plain.protocol);
  if (plain.headers > packet.size()) return std::nullopt;
  if (ported(plain.protocol)) plain.port = static_cast<std::uint16_t>(be(packet, at + 2, 2));
  return plain;
}

std::optional<Plain> read4(std::span<const std::uint8_t> packet) {
  if (packet.size() < 20 || packet[0] >> 4 != 4) return std::nullopt;
  const std::size_t header = (packet[0] & 15u) * 4;
  const std::size_t total = be(packet, 2, 2);
  if (header < 20 || total < header || total > packet.size()) return std::nullopt;
  return finish(packet.first(total), {packet.data() + 16, 4, packet[9], {}, 0}, header,
                (be(packet, 6, 2) & 0x1fff) != 0);
}

std::optional<Plain> read6(std::span<const std::uint8_t> packet) {
  if (packet.size() < 40 || packet[0] >> 4 != 6) return std::nullopt;
  const std::size_t total = 40 + be(packet, 4, 2);
  if (total > packet.size()) return std::nullopt;
  const auto whole = packet.first(total);
  std::uint8_t next = packet[6];
  std::size_t at = 40;
  for (;;) {
    std::size_t length = 0;
    if (next == 0 || next == 60 || next == 43) {
      if (at + 8 > total || (next == 43 && whole[at + 3] != 0)) return std::nullopt;
      length = (whole[at + 1] + 1u) * 8;
    } else if (next == 51) {
      if (at + 8 > total) return std::nullopt;
      length = (whole[at + 1] + 2u) * 4;
    } else if (next == 44) {
      if (at + 8 > total) return std::nullopt;
      if ((be(whole, at + 2, 2) & 0xfff8) != 0)
        return finish(whole, {packet.data() + 24, 6, whole[at], {}, 0}, at + 8, true);
      length = 8;
    } else if (next == 135 || next == 139 || next == 140) {
      return std::nullopt;
    } else {
      return finish(whole, {packet.data() + 24, 6, next, {}, 0}, at, false);
    }
    if (at + length > total) return std::nullopt;
    next = whole[at];
    at += length;
  }
}

bool listed(const Plain& plain, const std::uint8_t* address, std::uint8_t family) {
  for (const Listed& one : kList) {
    const Prefix prefix = Prefix::parse(one.prefix).value();
    if (prefix.family != family || !covers(prefix, address)) continue;
    if (one.protocol == 0) return true;
    if (plain.protocol == one.protocol && plain.port == one.port) return true;
  }
  return false;
}

bool may_pass(const Plain& plain) {
  if (!listed(plain, plain.destination, plain.family)) return false;
  if (plain.family == 4) return true;
  const std::uint8_t* to = plain.destination;
  if (to[0] == 0x20 && to[1] == 0x02) return listed(plain, to + 2, 4);
  if (to[0] == 0 && to[1] == 0x64 && to[2] == 0xff && to[3] == 0x9b)
    return listed(plain, to + 12, 4);
  return true;
}

std::uint32_t judge(Core& core, std::uint16_t ethertype, std::span<const std::uint8_t> packet) {
  const auto exact = std::make_unique<std::uint8_t[]>(packet.size());
  std::ranges::copy(packet, exact.get());
  return core.judge(ethertype, {exact.get(), packet.size()});
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Allowlist allowlist;
  if (size < 2 || size > 4096) return 0;
  const std::uint16_t ethertype = data[0] & 1 ? SLUICE_ETH_IP6 : SLUICE_ETH_IP4;
  // Most bytes would go into finding an address on the list: the first byte chooses one.
  std::vector<std::uint8_t> packet(data + 1, data + size);
  const std::size_t choice = data[0] >> 1;
  if (choice < std::size(kList)) {
    const Prefix prefix = Prefix::parse(kList[choice].prefix).value();
    const std::size_t at = ethertype == SLUICE_ETH_IP4 ? 16 : 24;
    const auto whole = static_cast<std::size_t>(prefix.length / 8);
    if (prefix.family == (ethertype == SLUICE_ETH_IP4 ? 4 : 6) && packet.size() >= at + whole)
      std::copy_n(prefix.address.begin(), whole, packet.begin() + static_cast<std::ptrdiff_t>(at));
  }

  const std::uint32_t reason = judge(allowlist.core, ethertype, packet);
  require(reason < SLUICE_REASON_COUNT);
  if (!sluice_allows(reason)) return 0;
  const auto plain = ethertype == SLUICE_ETH_IP4 ? read4(packet) : read6(packet);
  require(plain.has_value());
  if (reason == SLUICE_REASON_ALLOW_HOUSEKEEPING) {
    // Discovery, listener reports or DHCP, to the link and no further.
    const std::uint8_t* to = plain->destination;
    if (plain->family == 4)
      require(plain->protocol == 17 && plain->port == 67 && to[0] == 255 && to[1] == 255 &&
              to[2] == 255 && to[3] == 255);
    else
      require((plain->protocol == 58 || (plain->protocol == 17 && plain->port == 547)) &&
              ((to[0] == 0xff && (to[1] & 15) == 2) || (to[0] == 0xfe && (to[1] & 0xc0) == 0x80)));
  } else {
    require(reason == SLUICE_REASON_ALLOW_RULE);
    require(may_pass(*plain));
  }

  // Every cut inside the headers; with the length as it was, and with one that fits.
  for (std::size_t cut = 0; cut < plain->headers; ++cut) {
    std::vector<std::uint8_t> less(packet.begin(),
                                   packet.begin() + static_cast<std::ptrdiff_t>(cut));
    require(!sluice_allows(judge(allowlist.core, ethertype, less)));
    const std::size_t field = ethertype == SLUICE_ETH_IP4 ? 2 : 4;
    const std::size_t fixed = ethertype == SLUICE_ETH_IP4 ? 20 : 40;
    if (cut < fixed) continue;
    const std::size_t length = ethertype == SLUICE_ETH_IP4 ? cut : cut - 40;
    less[field] = static_cast<std::uint8_t>(length >> 8);
    less[field + 1] = static_cast<std::uint8_t>(length);
    require(!sluice_allows(judge(allowlist.core, ethertype, less)));
  }
  return 0;
}
