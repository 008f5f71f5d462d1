// The program that writes learned addresses, over a map of the test's own.
#pragma once

#include <bpf/libbpf.h>
#include <fcntl.h>

#include <string_view>

#include "sluice_bpf.skel.h"
#include "unit/dataplane/maps.hpp"

namespace sluice::test {

inline Fd learn_program(int learned) {
  sluice_bpf* skeleton = sluice_bpf__open();
  REQUIRE(skeleton != nullptr);
  bpf_program* program = nullptr;
  bpf_object__for_each_program(program, skeleton->obj)
      bpf_program__set_autoload(program, program == skeleton->progs.sluice_learn);
  bpf_map* map = nullptr;
  bpf_object__for_each_map(map, skeleton->obj)
      bpf_map__set_autocreate(map, map == skeleton->maps.learned || bpf_map__is_internal(map));
  REQUIRE(bpf_map__reuse_fd(skeleton->maps.learned, learned) == 0);
  REQUIRE(bpf_object__load_skeleton(skeleton->skeleton) == 0);
  Fd loaded(fcntl(bpf_program__fd(skeleton->progs.sluice_learn), F_DUPFD_CLOEXEC, 3));
  sluice_bpf__destroy(skeleton);
  REQUIRE(loaded);
  return loaded;
}

}  // namespace sluice::test
