#include "dataplane/kernel_data_plane.hpp"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <malloc.h>
#include <spdlog/spdlog.h>
#include <sys/random.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "dataplane/carry_over.hpp"
#include "dataplane/cgroup_filter.hpp"
#include "dataplane/per_cpu.hpp"
#include "dataplane/tc_filter.hpp"

namespace sluice {
namespace fs = std::filesystem;
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;
constexpr std::uint32_t kPortSets = 1024, kBlobs = 1024;
static_assert(kPortSets <= 1u << 16);  // sluice_learned::port_set

std::array<std::uint64_t, 2> boot_id() {
  std::array<std::uint64_t, 2> id{};
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string text;
  file >> text;
  std::erase(text, '-');
  if (text.size() == 32)
    id = {std::stoull(text.substr(0, 16), nullptr, 16), std::stoull(text.substr(16), nullptr, 16)};
  return id;
}

sluice_settings read_settings(int map) {
  sluice_settings settings{};
  const std::uint32_t zero = 0;
  bpf_map_lookup_elem(map, &zero, &settings);
  return settings;
}

std::uint32_t flags_of(const AttachmentOptions& options) {
  return (options.audit ? SLUICE_FLAG_AUDIT : 0) | (options.replies ? SLUICE_FLAG_REPLIES : 0) |
         (options.arp ? SLUICE_FLAG_ARP : 0) | (options.nd ? SLUICE_FLAG_ND : 0) |
         (options.dhcp ? SLUICE_FLAG_DHCP : 0) |
         (options.redirect_dns ? SLUICE_FLAG_REDIRECT_DNS : 0) |
         (options.loopback ? SLUICE_FLAG_LOOPBACK : 0) | (options.tell ? SLUICE_FLAG_TELL : 0);
}

sluice_slot frame_options(const AttachmentOptions& options) {
  sluice_slot slot{};
  slot.resolver = options.resolver;
  if (options.dhcp4_server) std::memcpy(&slot.dhcp4_server_be, options.dhcp4_server->data(), 4);
  if (options.dhcp6_server) std::memcpy(slot.dhcp6_server, options.dhcp6_server->data(), 16);
  for (std::size_t i = 0; i < options.ethertypes.size() && i < SLUICE_MAX_EXTRA_ETHERTYPES; ++i)
    slot.ethertypes[i] = options.ethertypes[i];
  for (std::size_t i = 0; i < options.vlans.size() && i < SLUICE_MAX_VLANS; ++i)
    slot.vlans[i] = options.vlans[i];
  return slot;
}

}  // namespace

Result<std::unique_ptr<KernelDataPlane>> KernelDataPlane::open(const HostConfig& config) {
  auto features = probe_kernel();
  if (!features) return std::unexpected(features.error());
  if (config.tc_mechanism == "tcx" && !features->tcx)
    return fail_with(
        EOPNOTSUPP,
        "kernel {}: has no TCX links (6.6 has); set host.tc_mechanism = \"auto\" or \"clsact\"",
        features->release);
  auto tree = PinnedTree::open(config.bpffs);
  if (!tree) return std::unexpected(tree.error());

  auto directories = tree->map_directories();
  std::uint32_t layout = SLUICE_LAYOUT_VERSION;  // of the maps that are pinned
  // Pins do not survive a boot; a copied or stale tree must not be taken for this boot's.
  if (!directories.empty()) {
    const Fd settings(bpf_obj_get((directories.back() / "settings").c_str()));
    const sluice_settings found = settings ? read_settings(settings.get()) : sluice_settings{};
    if (found.layout_version < SLUICE_OLDEST_LAYOUT || found.layout_version > SLUICE_LAYOUT_VERSION)
      return fail_with(EOPNOTSUPP,
                       "{}: pinned by a release with map layout {}, this one speaks {} to {}; run "
                       "`sluiced --detach-all` with "
                       "that release first (this lifts every filter)",
                       directories.back().string(), found.layout_version, SLUICE_OLDEST_LAYOUT,
                       SLUICE_LAYOUT_VERSION);
    layout = found.layout_version;
    if (const auto boot = boot_id(); found.boot_id[0] != boot[0] || found.boot_id[1] != boot[1]) {
      for (const auto& stale : directories) PinnedTree::remove(stale);
      directories.clear();
    }
  }

  fs::path current = directories.empty() ? fs::path{} : directories.back();
  Result<Programs> programs = fail("no pinned maps");
  if (!current.empty() && layout == SLUICE_LAYOUT_VERSION) {
    programs = Programs::load(current, {}, config, *features);
    if (!programs && programs.error().code != EEXIST) return std::unexpected(programs.error());
  }
  if (!programs) {
    // No maps yet, or of another layout or size: a new set, filled before any link is switched to
    // it. Of another layout, the settings are made new as well: they say which layout it is, and
    // the old set must go on being what they say.
    auto fresh = tree->begin();
    if (!fresh) return std::unexpected(fresh.error());
    programs = Programs::load(*fresh, current, config, *features, changed_since(layout));
    if (programs) {
      if (auto carried = carry_over(*programs, layout); !carried)
        programs = std::unexpected(carried.error());
    }
    if (!programs) {
      PinnedTree::remove(*fresh);
      return std::unexpected(programs.error());
    }
    sluice_settings settings = read_settings(programs->map(Map::settings));
    const auto boot = boot_id();
    settings.layout_version = SLUICE_LAYOUT_VERSION;
    settings.boot_id[0] = boot[0];
    settings.boot_id[1] = boot[1];
    const std::uint32_t zero = 0;
    bpf_map_update_elem(programs->map(Map::settings), &zero, &settings, BPF_ANY);
    auto committed = tree->commit(*fresh);
    if (!committed) {
      PinnedTree::remove(*fresh);
      return std::unexpected(committed.error());
    }
    current = *committed;
  }

  auto slots = SlotTable::map(programs->map(Map::slots), config.max_attachments + 1);
  if (!slots) return std::unexpected(slots.error());
  const PolicyStore::Maps policy_maps{
      .policies = programs->map(Map::policies),
      .heap = programs->map(Map::heap),
      .blobs = programs->map(Map::blobs),
      .policy_entries = 2 * config.max_attachments + 2,
      .heap_entries = static_cast<std::uint32_t>(std::uint64_t{config.heap_kib} * 1024 /
                                                 sizeof(sluice_element)),
      .blob_entries = kBlobs,
  };
  std::unique_ptr<KernelDataPlane> plane(new KernelDataPlane(
      config, *features, tree->links(), std::move(*programs), std::move(*slots), policy_maps));
  if (auto started = plane->start(); !started) return std::unexpected(started.error());
  for (const auto& old : directories)
    if (old != current) PinnedTree::remove(old);
  malloc_trim(0);  // loading took megabytes for ELF and BTF
  return plane;
}

KernelDataPlane::KernelDataPlane(const HostConfig& config, KernelFeatures features, fs::path links,
                                 Programs programs, SlotTable slots,
                                 const PolicyStore::Maps& policy_maps)
    : config_(config),
      features_(std::move(features)),
      links_(std::move(links)),
      programs_(std::move(programs)),
      slots_(std::move(slots)),
      policies_(policy_maps),
      learned_(programs_.map(Map::learned), programs_.map(Map::port_sets), kPortSets,
               programs_.program(Program::learn)) {}

KernelDataPlane::~KernelDataPlane() {
  if (events_ != nullptr) ring_buffer__free(events_);
}

Status KernelDataPlane::start() {
  auto cookie = netns_cookie();
  if (!cookie) return std::unexpected(cookie.error());
  own_netns_ = *cookie;
  sluice_settings settings = read_settings(programs_.map(Map::settings));
  settings.netns_cookie = own_netns_;
  settings.events_per_second = config_.events_per_second;
  settings.events_burst = config_.events_burst;
  settings.learned_idle = KernelLearnedMap::kIdle;
  settings.dns_packets_per_second = config_.dns_packets_per_second;
  settings.dns_burst = std::max(config_.dns_packets_per_second / 4, 1u);
  // Looks judged to the uplink guard, and like nothing that another tool would set.
  if (settings.sever_mark == 0)
    settings.sever_mark = static_cast<std::uint32_t>(random_incarnation()) | SLUICE_JUDGED_MARK | 1;
  const std::uint32_t zero = 0;
  if (bpf_map_update_elem(programs_.map(Map::settings), &zero, &settings, BPF_ANY) != 0)
    return fail_with(errno, "cannot write the settings map: {}", strerror(errno));
  if (!features_.learn_program)
    spdlog::info(
        "kernel {}: cannot change many learned addresses in one call (6.1 can); an answer that "
        "prolongs sixteen takes some 10 us longer",
        features_.release);
  watch_links();
  if (auto adopted = adopt(); !adopted) return adopted;
  if (features_.tcx && config_.tc_mechanism == "auto")
    for (const auto& [index, live] : live_)
      if (live.clsact) to_convert_.push_back(index);
  last_attach_ = boot_now().nanoseconds;  // what was adopted is claimed now: not calm yet
  events_ = ring_buffer__new(
      programs_.map(Map::events),
      [](void* context, void* data, std::size_t size) {
        if (size < sizeof(sluice_event)) return 0;
        return static_cast<KernelDataPlane*>(context)->take_event(
            *static_cast<const sluice_event*>(data));
      },
      this, nullptr);
  if (events_ == nullptr) return fail_with(errno, "cannot map the event ring: {}", strerror(errno));
  if (features_.task_events) {
    task_attached_ =
        Fd(bpf_raw_tracepoint_open(nullptr, programs_.program(Program::task_attached)));
    task_forked_ = Fd(bpf_raw_tracepoint_open(nullptr, programs_.program(Program::task_forked)));
    if (!task_attached_ || !task_forked_)
      spdlog::warn(
          "cannot watch tasks entering cgroups: {}; sockets they bring along are judged by the "
          "cgroup they "
          "were made in; CAP_PERFMON is needed",
          strerror(errno));
  }
  return {};
}

std::string KernelDataPlane::pin(std::uint32_t index, const char* hook) const {
  return (links_ / fmt::format("{}-{}", index, hook)).string();
}

Result<std::uint32_t> KernelDataPlane::free_slot() {
  for (std::uint32_t index = 1; index < slots_.size(); ++index)
    if (slots_.at(index).state == SLUICE_SLOT_FREE && !live_.contains(index)) return index;
  return fail_with(ENOSPC, "all {} attachments are in use; raise host.max_attachments",
                   slots_.size() - 1);
}

KernelAttachment KernelDataPlane::describe(std::uint32_t index) const {
  const sluice_slot& slot = slots_.at(index);
  const Live& live = live_.at(index);
  const std::uint64_t word = slots_.word(index);
  KernelAttachment made;
  made.slot = index;
  made.scope = slot.scope;
  made.incarnation = slot.incarnation;
  made.generation = {slot.generation};
  made.mode = static_cast<Mode>(sluice_word_mode(word));
  made.policy_digest = policies_.digest_of(live.policy);
  made.asker_mark = slot.asker_mark;
  made.redirectable = redirectable(slot);
  if (slot.type == SLUICE_TYPE_INTERFACE) {
    made.interface = InterfaceTarget{
        live.name, slot.ifindex, slot.netns_cookie == own_netns_ ? 0 : slot.netns_cookie,
        live.netns_path,
        slot.workload_is_egress != 0 ? Side::workload_egress : Side::workload_ingress};
    made.mechanism = live.tcx ? "tcx" : "clsact";
  } else {
    made.cgroup = CgroupTarget{live.name, slot.cgroup_id};
    made.mechanism = "cgroup";
  }
  return made;
}

bool KernelDataPlane::redirectable(const sluice_slot& slot) const {
  return slot.type == SLUICE_TYPE_CGROUP ||
         (slot.workload_is_egress == 0 && slot.netns_cookie == own_netns_);
}

Result<Generation> KernelDataPlane::publish(const PublishRequest& request) {
  const auto it = live_.find(request.slot);
  if (it == live_.end())
    return fail_with(ENOENT, "attachment {}: no longer in the kernel", request.slot);
  Live& live = it->second;
  std::uint32_t policy = live.policy;
  if (request.policy != nullptr) {
    auto acquired = policies_.acquire(*request.policy);
    if (!acquired) return std::unexpected(acquired.error());
    policy = *acquired;
  }
  slots_.set_options(request.slot, frame_options(request.options));
  const std::uint64_t generation = slots_.at(request.slot).generation + 1;
  std::uint32_t flags = flags_of(request.options);
  if (!redirectable(slots_.at(request.slot))) flags &= ~SLUICE_FLAG_REDIRECT_DNS;
  const std::uint64_t word =
      sluice_word(policy, static_cast<std::uint32_t>(request.mode), flags, generation);
  slots_.publish(request.slot, generation, word);
  if (request.policy != nullptr) {
    // The reference moves from the old policy to the new one; the old space waits for a grace
    // period.
    policies_.release(live.policy);
    live.policy = policy;
  }
  if (slots_.word(request.slot) != word)
    return fail_with(
        EIO, "{}: the kernel does not show the policy that was written; another daemon on {}?",
        live.name, config_.bpffs.string());
  if (request.tightening) sever(request.slot);
  return Generation{generation};
}

Result<Counters> KernelDataPlane::counters(std::uint32_t slot) {
  if (slot >= slots_.size())
    return fail_with(ENOENT, "attachment {}: no longer in the kernel", slot);
  auto lines = read_per_cpu<sluice_counters>(programs_.map(Map::counters), slot);
  if (!lines) return std::unexpected(lines.error());
  Counters sum;
  for (const sluice_counters& line : *lines) {
    sum.allowed_packets += line.allowed_packets;
    sum.allowed_bytes += line.allowed_bytes;
    sum.denied_packets += line.denied_packets;
    sum.denied_bytes += line.denied_bytes;
    sum.audited_packets += line.audited_packets;
    sum.events_lost += line.events_lost;
  }
  return sum;
}

std::vector<std::uint64_t> KernelDataPlane::reason_counters() {
  std::vector<std::uint64_t> sums(SLUICE_REASON_COUNT, 0);
  for (std::uint32_t reason = 0; reason < SLUICE_REASON_COUNT; ++reason)
    if (auto values = read_per_cpu<std::uint64_t>(programs_.map(Map::reasons), reason))
      for (const std::uint64_t value : *values) sums[reason] += value;
  return sums;
}

std::uint64_t random_incarnation() {
  std::uint64_t value = 0;
  while (value == 0)
    if (getrandom(&value, sizeof(value), 0) != sizeof(value)) value = boot_now().nanoseconds;
  return value;
}

}  // namespace sluice
