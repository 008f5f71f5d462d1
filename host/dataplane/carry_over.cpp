#include "dataplane/carry_over.hpp"

#include <bpf/bpf.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

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

// Arrays are copied as far as they are used; hashes whole.
Status copy_map(int from, int to) {
  const bpf_map_info old = info_of(from), fresh = info_of(to);
  if (old.key_size != fresh.key_size || old.value_size != fresh.value_size ||
      old.type != fresh.type)
    return fail_with(
        EOPNOTSUPP,
        "map {}: this release cannot read its pinned contents; run `sluiced --detach-all` first",
        fresh.name);
  const bool is_array = old.type == BPF_MAP_TYPE_ARRAY;
  std::vector<char> key(old.key_size), next(old.key_size), value((old.value_size + 7) / 8 * 8);
  const void* previous = nullptr;
  while (bpf_map_get_next_key(from, previous, next.data()) == 0) {
    key = next;
    previous = key.data();
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
    if (bpf_map_update_elem(to, key.data(), value.data(), BPF_ANY) != 0)
      return fail_with(errno, "map {}: pinned contents do not fit: {}; raise the setting again",
                       fresh.name, strerror(errno));
  }
  return {};
}

}  // namespace

Status carry_over(Programs& programs) {
  for (const auto& [map, previous] : programs.replaced()) {
    // Counters, buckets and the event ring begin anew; everything else is state.
    if (map == Map::counters || map == Map::reasons || map == Map::events ||
        map == Map::dns_budgets)
      continue;
    if (auto copied = copy_map(previous.get(), programs.map(map)); !copied) return copied;
  }
  programs.replaced().clear();
  return {};
}

}  // namespace sluice
