#include "dataplane/programs.hpp"

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <malloc.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "layout.h"
#include "sluice_bpf.skel.h"

namespace sluice {
namespace {

struct SkeletonDeleter {
  void operator()(sluice_bpf* skeleton) const { sluice_bpf__destroy(skeleton); }
};
using Skeleton = std::unique_ptr<sluice_bpf, SkeletonDeleter>;

// libbpf's own words go to the debug log, except the verifier's, which are worth seeing when a load
// fails.
int log_libbpf(libbpf_print_level level, const char* format, va_list arguments) {
  if (level == LIBBPF_DEBUG) return 0;
  char line[2048];
  const int length = vsnprintf(line, sizeof(line), format, arguments);
  if (length > 0) {
    std::string_view text(
        line, std::min<std::size_t>(static_cast<std::size_t>(length), sizeof(line) - 1));
    for (std::size_t end = 0; !text.empty(); text.remove_prefix(std::min(end + 1, text.size()))) {
      end = std::min(text.find('\n'), text.size());
      spdlog::debug("libbpf: {}", text.substr(0, end));
    }
  }
  return 0;
}

bool same_shape(int fd, bpf_map* map) {
  bpf_map_info info{};
  std::uint32_t length = sizeof(info);
  if (bpf_obj_get_info_by_fd(fd, &info, &length) != 0) return false;
  const std::uint32_t ignored = BPF_F_RDONLY | BPF_F_WRONLY | BPF_F_RDONLY_PROG;
  return info.type == bpf_map__type(map) && info.key_size == bpf_map__key_size(map) &&
         info.value_size == bpf_map__value_size(map) &&
         info.max_entries == bpf_map__max_entries(map) &&
         (info.map_flags & ~ignored) == (bpf_map__map_flags(map) & ~ignored);
}

struct MapEntry {
  Map id;
  bpf_map* map;
};

std::array<MapEntry, static_cast<std::size_t>(Map::count)> maps_of(sluice_bpf* skeleton) {
  const auto& maps = skeleton->maps;
  return {{{Map::slots, maps.slots},
           {Map::interfaces, maps.interfaces},
           {Map::far_interfaces, maps.far_interfaces},
           {Map::cgroups, maps.cgroups},
           {Map::cgroup_slot, maps.cgroup_slot},
           {Map::policies, maps.policies},
           {Map::heap, maps.heap},
           {Map::blobs, maps.blobs},
           {Map::learned, maps.learned},
           {Map::port_sets, maps.port_sets},
           {Map::flows, maps.flows},
           {Map::own_flows, maps.own_flows},
           {Map::counters, maps.counters},
           {Map::reasons, maps.reasons},
           {Map::events, maps.events},
           {Map::settings, maps.settings},
           {Map::lost_moves, maps.lost_moves},
           {Map::dns_sockets, maps.dns_sockets},
           {Map::dns_resolvers, maps.dns_resolvers},
           {Map::dns_budgets, maps.dns_budgets},
           {Map::dns_streams, maps.dns_streams},
           {Map::dns_owners, maps.dns_owners},
           {Map::dns_asked, maps.dns_asked},
           {Map::trusted_interfaces, maps.trusted_interfaces},
           {Map::guarded_cgroups, maps.guarded_cgroups},
           {Map::swept_sockets, maps.swept_sockets}}};
}

struct ProgramEntry {
  Program id;
  bpf_program* program;
};

std::array<ProgramEntry, static_cast<std::size_t>(Program::count)> programs_of(
    sluice_bpf* skeleton) {
  const auto& programs = skeleton->progs;
  return {{{Program::tc_from, programs.sluice_tc_from},
           {Program::tc_to, programs.sluice_tc_to},
           {Program::cgroup_egress, programs.sluice_cgroup_egress},
           {Program::cgroup_ingress, programs.sluice_cgroup_ingress},
           {Program::connect4, programs.sluice_connect4},
           {Program::connect6, programs.sluice_connect6},
           {Program::sendmsg4, programs.sluice_sendmsg4},
           {Program::sendmsg6, programs.sluice_sendmsg6},
           {Program::recvmsg4, programs.sluice_recvmsg4},
           {Program::recvmsg6, programs.sluice_recvmsg6},
           {Program::getpeername4, programs.sluice_getpeername4},
           {Program::getpeername6, programs.sluice_getpeername6},
           {Program::uplink_ethernet, programs.sluice_uplink_ethernet},
           {Program::uplink_raw_ip, programs.sluice_uplink_raw_ip},
           {Program::guard_cgroup, programs.sluice_guard_cgroup},
           {Program::task_attached, programs.sluice_task_attached},
           {Program::task_forked, programs.sluice_task_forked},
           {Program::list_sockets, programs.sluice_list_sockets},
           {Program::stop_swept, programs.sluice_stop_swept},
           {Program::learn, programs.sluice_learn}}};
}

void set_sizes(sluice_bpf* skeleton, const HostConfig& config) {
  bpf_map__set_max_entries(skeleton->maps.slots, config.max_attachments + 1);
  bpf_map__set_max_entries(skeleton->maps.counters, config.max_attachments + 1);
  bpf_map__set_max_entries(skeleton->maps.dns_budgets, config.max_attachments + 1);
  // Two per attachment: a policy is replaced by writing the new one beside it.
  bpf_map__set_max_entries(skeleton->maps.policies, 2 * config.max_attachments + 2);
  bpf_map__set_max_entries(
      skeleton->maps.heap,
      static_cast<std::uint32_t>(std::uint64_t{config.heap_kib} * 1024 / sizeof(sluice_element)));
  bpf_map__set_max_entries(skeleton->maps.learned, config.max_learned);
  bpf_map__set_max_entries(skeleton->maps.flows, config.max_flows);
  bpf_map__set_max_entries(skeleton->maps.own_flows, config.max_flows);
}

bool has_btf_function(const btf* kernel, const char* name) {
  return btf__find_by_name_kind(kernel, name, BTF_KIND_FUNC) > 0;
}

}  // namespace

Result<KernelFeatures> probe_kernel() {
  KernelFeatures features;
  utsname name{};
  uname(&name);
  features.release = name.release;
  int major = 0, minor = 0;
  sscanf(name.release, "%d.%d", &major, &minor);
  if (major < 5 || (major == 5 && minor < 15))
    return fail_with(EOPNOTSUPP, "kernel {}: too old; Sluice needs 5.15 or later",
                     features.release);
  libbpf_set_print(log_libbpf);
  btf* kernel = btf__load_vmlinux_btf();
  if (libbpf_get_error(kernel) != 0)
    return fail_with(EOPNOTSUPP,
                     "kernel {}: no BTF at /sys/kernel/btf/vmlinux; use a kernel built with "
                     "CONFIG_DEBUG_INFO_BTF",
                     features.release);
  features.tcx = major > 6 || (major == 6 && minor >= 6);
  features.learn_program = major > 6 || (major == 6 && minor >= 1);
  features.kern_ctx = has_btf_function(kernel, "bpf_cast_to_kern_ctx");
  features.task_events =
      btf__find_by_name_kind(kernel, "btf_trace_cgroup_attach_task", BTF_KIND_TYPEDEF) > 0;
  btf__free(kernel);
  malloc_trim(0);  // the kernel's BTF is megabytes, and gone
  return features;
}

Result<Programs> Programs::load(const std::filesystem::path& directory,
                                const std::filesystem::path& previous, const HostConfig& config,
                                const KernelFeatures& features, std::span<const Map> anew) {
  const Skeleton skeleton(sluice_bpf__open());
  if (!skeleton) return fail_with(errno, "cannot open the embedded programs: {}", strerror(errno));
  set_sizes(skeleton.get(), config);
  skeleton->rodata->sluice_has_kern_ctx = features.kern_ctx ? 1 : 0;
  for (bpf_program* optional :
       {skeleton->progs.sluice_task_attached, skeleton->progs.sluice_task_forked,
        skeleton->progs.sluice_list_sockets})
    bpf_program__set_autoload(optional, features.task_events);
  bpf_program__set_autoload(skeleton->progs.sluice_learn, features.learn_program);

  Programs loaded;
  const auto maps = maps_of(skeleton.get());
  std::array<bool, static_cast<std::size_t>(Map::count)> pinned_here{};
  for (const auto& [id, map] : maps) {
    for (const auto& place : {directory, previous}) {
      if (place.empty()) continue;
      const auto path = place / bpf_map__name(map);
      Fd pinned(bpf_obj_get(path.c_str()));
      if (!pinned) continue;
      const bool unwanted = place == previous && std::ranges::find(anew, id) != anew.end();
      if (unwanted || !same_shape(pinned.get(), map)) {
        if (place == directory)
          return fail_with(EEXIST, "{}: pinned by a release or a configuration with another layout",
                           path.string());
        loaded.replaced_.push_back({id, std::move(pinned)});
        break;
      }
      if (bpf_map__reuse_fd(map, pinned.get()) != 0)
        return fail_with(errno, "{}: cannot be reused: {}", path.string(), strerror(errno));
      pinned_here[static_cast<std::size_t>(id)] = place == directory;
      break;
    }
  }
  if (const int error = sluice_bpf__load(skeleton.get()); error != 0)
    return fail_with(-error,
                     "the kernel refused the programs: {}; CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON "
                     "are needed, and "
                     "log_level = \"debug\" shows the kernel's reason",
                     strerror(-error));
  for (const auto& [id, map] : maps) {
    const auto path = directory / bpf_map__name(map);
    if (!pinned_here[static_cast<std::size_t>(id)] &&
        bpf_obj_pin(bpf_map__fd(map), path.c_str()) != 0)
      return fail_with(errno, "{}: cannot pin: {}; is bpffs mounted there, and writable?",
                       path.string(), strerror(errno));
    loaded.maps_[static_cast<std::size_t>(id)] = Fd(fcntl(bpf_map__fd(map), F_DUPFD_CLOEXEC, 3));
  }
  for (const auto& [id, program] : programs_of(skeleton.get()))
    if (bpf_program__fd(program) >= 0)
      loaded.programs_[static_cast<std::size_t>(id)] =
          Fd(fcntl(bpf_program__fd(program), F_DUPFD_CLOEXEC, 3));
  return loaded;
}

}  // namespace sluice
