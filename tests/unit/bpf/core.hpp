// The parser and the decision core of the programs (bpf/packet.h, bpf/verdict.h) in user space,
// over tables in memory.
//
//   Core core;
//   core.use(compiled, SLUICE_MODE_ALLOWLIST, flags);
//   std::uint32_t reason = core.judge(ethertype, bytes);   // a SLUICE_REASON_
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "policy/compiler.hpp"

namespace sluice::test {

struct CoreTables {
  std::span<const sluice_element> elements;
  sluice_policy policy{};
  std::map<std::string, sluice_learned> learned;  // by the bytes of the key
  std::vector<sluice_port_set> port_sets{1};
  std::map<std::string, sluice_flow> flows;
  std::uint64_t now = 0, idle = 120'000'000'000;
  std::function<void()> on_port_set;  // happens while a packet's ports are looked at
};
inline thread_local CoreTables* core_tables = nullptr;

template <typename Key>
std::string bytes_of(const Key& key) {
  return {reinterpret_cast<const char*>(&key), sizeof(key)};
}

}  // namespace sluice::test

// What the core asks for; see verdict.h.
static inline const union sluice_element* sluice_element_at(const struct sluice_policy*,
                                                            __u32 index) {
  const auto& elements = sluice::test::core_tables->elements;
  return index < elements.size() ? &elements[index] : nullptr;
}
static inline const struct sluice_policy* sluice_policy_at(__u32) {
  return &sluice::test::core_tables->policy;
}
static inline struct sluice_learned* sluice_learned_at(__u32 scope, const __u8* address) {
  sluice_learned_key key{};
  key.scope = scope;
  std::memcpy(key.address, address, 16);
  auto& table = sluice::test::core_tables->learned;
  const auto found = table.find(sluice::test::bytes_of(key));
  return found == table.end() ? nullptr : &found->second;
}
static inline const struct sluice_port_set* sluice_port_set_at(__u32 index) {
  if (const auto& happens = sluice::test::core_tables->on_port_set) happens();
  const auto& sets = sluice::test::core_tables->port_sets;
  return index < sets.size() ? &sets[index] : nullptr;
}
static inline struct sluice_flow* sluice_flow_at(const struct sluice_flow_key* key) {
  auto& table = sluice::test::core_tables->flows;
  const auto found = table.find(sluice::test::bytes_of(*key));
  return found == table.end() ? nullptr : &found->second;
}
static inline __u64 sluice_now(void) {
  return sluice::test::core_tables->now;
}
static inline __u64 sluice_learned_idle(void) {
  return sluice::test::core_tables->idle;
}

#include "verdict.h"

namespace sluice::test {

class Core {
 public:
  CoreTables tables;
  sluice_slot slot{};
  std::uint64_t word = 0;

  Core() {
    slot.type = SLUICE_TYPE_INTERFACE;
    slot.state = SLUICE_SLOT_LIVE;
    slot.scope = 1;
  }
  void use(const CompiledPolicy& policy, std::uint32_t mode, std::uint32_t flags) {
    tables.elements = policy.elements;
    tables.policy = policy.descriptor;
    word = sluice_word(1, mode, flags, 1);
  }
  // An IP packet, from its network header on. What the programs do in sluice_judge_frame().
  [[nodiscard]] std::uint32_t judge(std::uint16_t ethertype, std::span<const std::uint8_t> packet) {
    facts = {};
    core_tables = &tables;
    facts.ethertype = ethertype;
    if (ethertype != SLUICE_ETH_IP4 && ethertype != SLUICE_ETH_IP6)
      return SLUICE_REASON_DENY_ETHERTYPE;
    sluice_view view{};
    view.start = packet.data();
    view.end = packet.data() + packet.size();
    view.length = static_cast<__u32>(packet.size());
    const std::uint32_t read = ethertype == SLUICE_ETH_IP4 ? sluice_read_ip4(&view, &facts)
                                                           : sluice_read_ip6(&view, &facts);
    return read != SLUICE_OK ? read : sluice_judge(&slot, word, &facts);
  }
  void learn(const sluice_learned_key& key, const sluice_learned& value) {
    auto& entry = tables.learned[bytes_of(key)] = value;
    entry.check = sluice_learned_key_check(&key);
    std::uint64_t halves[2];
    std::memcpy(halves, key.address, sizeof(halves));
    const std::uint32_t bit = sluice_learned_bit(halves[0], halves[1]);
    slot.learned[bit / 64] |= std::uint64_t{1} << bit % 64;
  }
  // A flow that came in from outside.
  void inbound(std::uint8_t protocol, const std::array<std::uint8_t, 16>& workload,
               std::uint16_t port, const std::array<std::uint8_t, 16>& remote,
               std::uint16_t remote_port) {
    const sluice_flow_key key = flow_key(protocol, workload, port, remote, remote_port);
    tables.flows[bytes_of(key)] = {tables.now, SLUICE_FLOW_INBOUND, 0};
    const std::uint32_t bit = sluice_inbound_bit(key.protocol, key.workload_port_be);
    slot.inbound[bit / 64] |= std::uint64_t{1} << bit % 64;
  }
  [[nodiscard]] sluice_flow_key flow_key(std::uint8_t protocol,
                                         const std::array<std::uint8_t, 16>& workload,
                                         std::uint16_t port,
                                         const std::array<std::uint8_t, 16>& remote,
                                         std::uint16_t remote_port) const {
    sluice_flow_key key{};
    key.scope = slot.scope;
    key.protocol = protocol;
    std::memcpy(key.workload, workload.data(), 16);
    std::memcpy(key.remote, remote.data(), 16);
    key.workload_port_be = __builtin_bswap16(port);
    key.remote_port_be = __builtin_bswap16(remote_port);
    return key;
  }

  sluice_facts facts{};  // of the last packet
};

}  // namespace sluice::test
