#include "dataplane/live_verdict.hpp"

#include <bpf/bpf.h>

#include <array>
#include <cstring>

#include "base/ids.hpp"
#include "dataplane/per_cpu.hpp"

namespace {

// The decision core is written against these; what they return stays valid for the next few
// look-ups.
thread_local const sluice::Programs* current = nullptr;

template <typename Value, std::size_t Count = 8>
Value* look_up(sluice::Map map, const void* key) {
  thread_local std::array<Value, Count> values;
  thread_local std::size_t next = 0;
  Value* value = &values[next++ % Count];
  return bpf_map_lookup_elem(current->map(map), key, value) == 0 ? value : nullptr;
}

const sluice_element* sluice_element_at(const sluice_policy* policy, __u32 index) {
  if (policy->blob == 0) {
    const __u32 element = policy->base + index;
    return look_up<sluice_element>(sluice::Map::heap, &element);
  }
  const __u32* id = look_up<__u32>(sluice::Map::blobs, &policy->blob);
  if (id == nullptr) return nullptr;
  const sluice::Fd inner(bpf_map_get_fd_by_id(*id));
  thread_local std::array<sluice_blob_page, 8> values;
  thread_local std::size_t next = 0;
  sluice_blob_page* value = &values[next++ % values.size()];
  const __u32 page = index / SLUICE_PAGE_ELEMENTS;
  return inner && bpf_map_lookup_elem(inner.get(), &page, value) == 0
             ? &value->element[index % SLUICE_PAGE_ELEMENTS]
             : nullptr;
}
const sluice_policy* sluice_policy_at(__u32 index) {
  return look_up<sluice_policy>(sluice::Map::policies, &index);
}
sluice_learned* sluice_learned_at(__u32 scope, const __u8* address) {
  sluice_learned_key key{};
  key.scope = scope;
  std::memcpy(key.address, address, 16);
  return look_up<sluice_learned>(sluice::Map::learned, &key);
}
const sluice_port_set* sluice_port_set_at(__u32 index) {
  return look_up<sluice_port_set>(sluice::Map::port_sets, &index);
}
sluice_flow* sluice_flow_at(const sluice_flow_key* key) {
  return look_up<sluice_flow>(sluice::Map::flows, key);
}
__u64 sluice_now() {
  return sluice::boot_now().nanoseconds;
}
__u64 sluice_learned_idle() {
  const __u32 zero = 0;
  const sluice_settings* settings = look_up<sluice_settings>(sluice::Map::settings, &zero);
  return settings != nullptr ? settings->learned_idle : 0;
}

#include "verdict.h"

}  // namespace

namespace sluice {

std::uint32_t judge_live(const Programs& programs, std::uint32_t slot, std::uint64_t incarnation,
                         const sluice_facts& facts) {
  current = &programs;
  const auto is_there = [&](sluice_slot& found) {
    return bpf_map_lookup_elem(programs.map(Map::slots), &slot, &found) == 0 &&
           found.state == SLUICE_SLOT_LIVE && found.incarnation == incarnation;
  };
  sluice_slot found{}, after{};
  if (!is_there(found)) return SLUICE_REASON_DENY_INTERNAL;
  const std::uint32_t reason = sluice_judge(&found, found.word, &facts);
  // What was read on the way was the attachment's if it is there still.
  if (!is_there(after)) return SLUICE_REASON_DENY_INTERNAL;
  return reason;
}

}  // namespace sluice
