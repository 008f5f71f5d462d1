// Reads one element of a per-CPU map.
#pragma once

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "base/result.hpp"

namespace sluice {

template <typename T>
[[nodiscard]] Result<std::vector<T>> read_per_cpu(int map, std::uint32_t key) {
  static_assert(sizeof(T) % 8 == 0, "the kernel pads per-CPU values to 8 bytes");
  const int cpus = libbpf_num_possible_cpus();
  if (cpus <= 0) return fail_with(EIO, "cannot tell how many CPUs there are");
  std::vector<T> values(static_cast<std::size_t>(cpus));
  if (bpf_map_lookup_elem(map, &key, values.data()) != 0)
    return fail_with(errno, "cannot read a counter: {}", strerror(errno));
  return values;
}

// Zero on every CPU: a slot's line is handed to the next attachment clean.
template <typename T>
void clear_per_cpu(int map, std::uint32_t key) {
  const int cpus = libbpf_num_possible_cpus();
  if (cpus <= 0) return;
  const std::vector<T> zero(static_cast<std::size_t>(cpus));
  bpf_map_update_elem(map, &key, zero.data(), BPF_ANY);
}

}  // namespace sluice
