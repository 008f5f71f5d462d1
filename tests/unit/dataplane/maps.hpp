// Small maps of the test's own, in the shapes that the policy store and the port set table write.
#pragma once

#include <bpf/bpf.h>
#include <doctest/doctest.h>
#include <linux/bpf.h>

#include <cerrno>
#include <cstring>

#include "base/fd.hpp"
#include "layout.h"

namespace sluice::test {

inline Fd array_map(const char* name, std::uint32_t value_size, std::uint32_t entries,
                    std::uint32_t flags = 0) {
  LIBBPF_OPTS(bpf_map_create_opts, options, .map_flags = flags);
  Fd map(bpf_map_create(BPF_MAP_TYPE_ARRAY, name, sizeof(std::uint32_t), value_size, entries,
                        &options));
  REQUIRE_MESSAGE(map, "bpf_map_create: errno ", errno);
  return map;
}

inline Fd blobs_map(std::uint32_t entries) {
  const Fd inner =
      array_map("test_inner", sizeof(sluice_blob_page), 1, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
  LIBBPF_OPTS(bpf_map_create_opts, options,
              .inner_map_fd = static_cast<std::uint32_t>(inner.get()));
  Fd map(bpf_map_create(BPF_MAP_TYPE_ARRAY_OF_MAPS, "test_blobs", sizeof(std::uint32_t),
                        sizeof(std::uint32_t), entries, &options));
  REQUIRE_MESSAGE(map, "bpf_map_create: errno ", errno);
  return map;
}

}  // namespace sluice::test
