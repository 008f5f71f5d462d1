#include "dataplane/carry_over.hpp"

#include <bpf/bpf.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <optional>
#include <vector>

#include "dataplane/policy_store.hpp"

namespace sluice {
namespace {

bpf_map_info info_of(int map) {
  bpf_map_info info{};
  std::uint32_t length = sizeof(info);
  bpf_obj_get_info_by_fd(map, &info, &length);
  return info;
}

bool is_zero(const std::vector<char>& value) {
  return std::ranges::all_of(value, [](char byte) { return byte == 0; });
}

// How a value of an earlier layout, which lies in a buffer of today's size, becomes today's.
struct Conversion {
  std::uint32_t old_value_size;
  void (*convert)(const char* key, char* value);
};

// What layout 2 did not have: nothing is known of what was noted, so all of it may be there.
void complete_slot(const char*, char* value) {
  constexpr std::size_t known = offsetof(sluice_slot, inbound);
  std::memset(value + known, 0xff, sizeof(sluice_slot) - known);
}

void check_learned(const char* key_bytes, char* value) {
  sluice_learned_key key{};
  std::memcpy(&key, key_bytes, sizeof(key));
  sluice_learned_3 old{};
  std::memcpy(&old, value, sizeof(old));
  const sluice_learned now{.check = sluice_learned_key_check(&key),
                           .port_set = static_cast<std::uint16_t>(old.port_set),
                           .owner = old.owner,
                           .active_until = old.active_until,
                           .grace_until = old.grace_until,
                           .last_seen = old.last_seen};
  std::memcpy(value, &now, sizeof(now));
}

std::optional<Conversion> conversion_of(Map map, std::uint32_t layout) {
  if (map == Map::slots && layout <= 2)
    return Conversion{offsetof(sluice_slot, inbound), complete_slot};
  if (map == Map::learned && layout <= 3)
    return Conversion{sizeof(sluice_learned_3), check_learned};
  return std::nullopt;
}

// Arrays are copied as far as they are used; hashes whole.
Status copy_map(int from, int to, const std::optional<Conversion>& conversion) {
  const bpf_map_info old = info_of(from), fresh = info_of(to);
  if (old.key_size != fresh.key_size || old.type != fresh.type ||
      old.value_size != (conversion ? conversion->old_value_size : fresh.value_size))
    return fail_with(
        EOPNOTSUPP,
        "map {}: this release cannot read its pinned contents; run `sluiced --detach-all` first",
        fresh.name);
  const bool is_array = old.type == BPF_MAP_TYPE_ARRAY;
  std::vector<char> key(old.key_size), next(old.key_size), value((fresh.value_size + 7) / 8 * 8);
  const void* previous = nullptr;
  while (bpf_map_get_next_key(from, previous, next.data()) == 0) {
    key = next;
    previous = key.data();
    std::ranges::fill(value, 0);
    if (bpf_map_lookup_elem(from, key.data(), value.data()) != 0) continue;
    if (is_array) {
      std::uint32_t index = 0;
      std::memcpy(&index, key.data(), sizeof(index));
      if (is_zero(value)) continue;
      if (index >= fresh.max_entries)
        return fail_with(
            ENOSPC, "map {}: {} entries configured, entry {} is in use; raise the setting again",
            fresh.name, fresh.max_entries, index);
    }
    if (conversion) conversion->convert(key.data(), value.data());
    if (bpf_map_update_elem(to, key.data(), value.data(), BPF_ANY) != 0)
      return fail_with(errno, "map {}: pinned contents do not fit: {}; raise the setting again",
                       fresh.name, strerror(errno));
  }
  return {};
}

// Images of layout 2, whose elements follow one another, come to lie in pages.
Status copy_blobs(int from, int to) {
  for (std::uint32_t index = 0; index < info_of(from).max_entries; ++index) {
    std::uint32_t id = 0;
    if (bpf_map_lookup_elem(from, &index, &id) != 0) continue;
    const Fd old(bpf_map_get_fd_by_id(id));
    const auto cannot = [&] {
      return fail_with(errno,
                       "large policy {}: cannot be read where an earlier release pinned it: {}; "
                       "start this release once as root",
                       index, strerror(errno));
    };
    if (!old) return cannot();
    const bpf_map_info info = info_of(old.get());
    if (info.value_size != sizeof(sluice_element))
      return fail_with(EINVAL, "large policy {}: pinned by an earlier release in an unknown form",
                       index);
    const std::size_t bytes = std::size_t{info.max_entries} * sizeof(sluice_element);
    void* elements = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, old.get(), 0);
    if (elements == MAP_FAILED) return cannot();
    const auto fresh = make_blob({static_cast<const sluice_element*>(elements), info.max_entries});
    munmap(elements, bytes);
    if (!fresh) return std::unexpected(fresh.error());
    const int fd = fresh->get();
    if (bpf_map_update_elem(to, &index, &fd, BPF_ANY) != 0)
      return fail_with(errno, "large policy {}: cannot be carried over: {}", index,
                       strerror(errno));
  }
  return {};
}

// Up to layout 3 `flows` also held what workloads had opened themselves, for which no bit was set.
// With all of them set those are found too, and stay the workloads' own.
Status expect_any_flow(int slots) {
  for (std::uint32_t index = 1; index < info_of(slots).max_entries; ++index) {
    sluice_slot slot{};
    if (bpf_map_lookup_elem(slots, &index, &slot) != 0 || slot.state == SLUICE_SLOT_FREE) continue;
    std::memset(slot.inbound, 0xff, sizeof(slot.inbound));
    if (bpf_map_update_elem(slots, &index, &slot, BPF_EXIST) != 0)
      return fail_with(errno, "map slots: entry {} cannot be carried over: {}", index,
                       strerror(errno));
  }
  return {};
}

}  // namespace

std::span<const Map> changed_since(std::uint32_t layout) {
  static constexpr Map kSince2[] = {Map::settings, Map::learned, Map::blobs};
  static constexpr Map kSince3[] = {Map::settings, Map::learned};
  if (layout <= 2) return kSince2;
  if (layout == 3) return kSince3;
  return {};
}

Status carry_over(Programs& programs, std::uint32_t layout) {
  for (const auto& [map, previous] : programs.replaced()) {
    // Counters, buckets and the event ring begin anew; everything else is state.
    if (map == Map::counters || map == Map::reasons || map == Map::events ||
        map == Map::dns_budgets)
      continue;
    const int fresh = programs.map(map);
    auto copied = map == Map::blobs ? copy_blobs(previous.get(), fresh)
                                    : copy_map(previous.get(), fresh, conversion_of(map, layout));
    if (!copied) return copied;
  }
  programs.replaced().clear();
  if (layout <= 3) return expect_any_flow(programs.map(Map::slots));
  return {};
}

}  // namespace sluice
