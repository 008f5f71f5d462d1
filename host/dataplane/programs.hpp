// The loaded programs and shared maps, pinned. Owns their file descriptors; knows nothing of
// attachments.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "config/config.hpp"

namespace sluice {

// What this kernel offers; see DESIGN section 5, "Kernels".
struct KernelFeatures {
  std::string release;
  bool tcx = false;       // 6.6: links on TC hooks
  bool kern_ctx = false;  // 6.2: bpf_cast_to_kern_ctx, the namespace of a packet's device
  bool task_events =
      false;  // BTF tracepoints and socket iterators: sockets brought into a cgroup are shut
  bool learn_program = false;  // 6.1: a program that may sleep can write maps that grow
};
// Asks the running kernel. Fails when it lacks what nothing works without, and names it.
[[nodiscard]] Result<KernelFeatures> probe_kernel();

enum class Program : std::uint8_t {
  tc_from,
  tc_to,
  cgroup_egress,
  cgroup_ingress,
  connect4,
  connect6,
  sendmsg4,
  sendmsg6,
  recvmsg4,
  recvmsg6,
  getpeername4,
  getpeername6,
  uplink_ethernet,
  uplink_raw_ip,
  guard_cgroup,
  task_attached,
  task_forked,
  list_sockets,
  stop_swept,
  learn,
  count
};

enum class Map : std::uint8_t {
  slots,
  interfaces,
  far_interfaces,
  cgroups,
  cgroup_slot,
  policies,
  heap,
  blobs,
  learned,
  port_sets,
  flows,
  own_flows,
  counters,
  reasons,
  events,
  settings,
  lost_moves,
  dns_sockets,
  dns_resolvers,
  dns_budgets,
  dns_streams,
  dns_owners,
  dns_asked,
  trusted_interfaces,
  guarded_cgroups,
  swept_sockets,
  count
};

class Programs {
 public:
  // Loads every program. Each map is taken from `directory` if it is pinned there in the shape this
  // release and configuration need, else from `previous` (may be empty) if it has that shape, else
  // made new; all are pinned in `directory` afterwards. A pinned map of another shape in
  // `directory` is EEXIST: begin a new one with it as `previous`. Those of `anew` are not taken
  // from `previous` whatever their shape.
  [[nodiscard]] static Result<Programs> load(const std::filesystem::path& directory,
                                             const std::filesystem::path& previous,
                                             const HostConfig& config,
                                             const KernelFeatures& features,
                                             std::span<const Map> anew = {});
  // Maps that exist in `previous`, but were made new: their contents are still there to be carried
  // over.
  struct Replaced {
    Map map;
    Fd previous;
  };
  [[nodiscard]] std::vector<Replaced>& replaced() { return replaced_; }

  [[nodiscard]] int program(Program which) const {
    return programs_[static_cast<std::size_t>(which)].get();
  }
  [[nodiscard]] int map(Map which) const { return maps_[static_cast<std::size_t>(which)].get(); }

 private:
  Programs() = default;
  std::array<Fd, static_cast<std::size_t>(Program::count)> programs_;
  std::array<Fd, static_cast<std::size_t>(Map::count)> maps_;
  std::vector<Replaced> replaced_;
};

}  // namespace sluice
