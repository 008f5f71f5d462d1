// The kernel's walk (bpf/policy_walk.h) over a compiled image in user space.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "policy/compiler.hpp"

namespace sluice::test {

// What the walk reads; thread-local, as its accessors take no context.
inline thread_local const CompiledPolicy* walked = nullptr;
inline thread_local std::uint64_t walked_at = 0;

}  // namespace sluice::test

// An index beyond the image is null, so an image that points outside itself shows as _BROKEN.
static inline const union sluice_element* sluice_element_at(const struct sluice_policy*,
                                                            __u32 index) {
  const auto& elements = sluice::test::walked->elements;
  return index < elements.size() ? &elements[index] : nullptr;
}
static inline __u64 sluice_now(void) {
  return sluice::test::walked_at;
}

#include "policy_walk.h"

namespace sluice::test {

// A packet as the walk takes it. `port` without a value: a later fragment, or no ports.
struct Packet {
  std::array<std::uint8_t, 16> address{};  // as in Prefix
  std::uint8_t family = 4;
  std::uint8_t protocol = 6;
  std::optional<std::uint16_t> port;
};

inline std::uint32_t trie_leaf(const CompiledPolicy& policy, const Packet& packet) {
  walked = &policy;
  const sluice_policy& descriptor = policy.descriptor;
  return packet.family == 4
             ? sluice_trie_lookup(&descriptor, &descriptor.ip4, packet.address.data(), 32)
             : sluice_trie_lookup(&descriptor, &descriptor.ip6, packet.address.data(), 128);
}

// A SLUICE_LEAF_ value below SLUICE_LEAF_DECISION.
inline std::uint32_t verdict(const CompiledPolicy& policy, const Packet& packet,
                             std::uint64_t now) {
  std::uint32_t leaf = trie_leaf(policy, packet);
  walked_at = now;
  if (leaf >= SLUICE_LEAF_DECISION)
    leaf = sluice_judge_chain(&policy.descriptor, leaf, packet.protocol, packet.port.value_or(0),
                              packet.port ? SLUICE_PACKET_PORTS : SLUICE_PACKET_LATER_FRAGMENT);
  return leaf;
}

}  // namespace sluice::test
