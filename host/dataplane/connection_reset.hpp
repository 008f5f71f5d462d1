// Connections that outlive their permission. In the background: it enters other network namespaces.
#pragma once

#include <cstdint>
#include <string>

#include "dataplane/programs.hpp"

namespace sluice {

// After a tightening: TCP connections of a cgroup's sockets to destinations that its policy now
// denies are reset (SOCK_DESTROY), so that applications notice at once.
struct SeverRequest {
  std::uint64_t cgroup_id = 0;
  std::string path;
  const Programs* programs = nullptr;
  std::uint32_t slot = 0;
  std::uint64_t incarnation = 0;  // a slot is another attachment's once this one has gone
};
void destroy_denied_sockets(const SeverRequest& request);

}  // namespace sluice
