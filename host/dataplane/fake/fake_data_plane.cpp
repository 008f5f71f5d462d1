#include "dataplane/fake/fake_data_plane.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace sluice {
namespace {

// Read by the walk below, which names the policy only by its descriptor.
thread_local const std::vector<sluice_element>* walked_elements = nullptr;
thread_local std::uint64_t walked_now = 0;

inline const union sluice_element* sluice_element_at(const struct sluice_policy*, __u32 index) {
  return index < walked_elements->size() ? &(*walked_elements)[index] : nullptr;
}
inline __u64 sluice_now() {
  return walked_now;
}

#include "policy_walk.h"

std::uint32_t judge_rules(const CompiledPolicy& policy, const FakePacket& packet, BootTime now) {
  walked_elements = &policy.elements;
  walked_now = now.nanoseconds;
  const auto* address = packet.destination.data();
  const bool has_ports = packet.protocol == 6 || packet.protocol == 17;
  std::uint32_t leaf =
      packet.family == 4
          ? sluice_trie_lookup(&policy.descriptor, &policy.descriptor.ip4, address, 32)
          : sluice_trie_lookup(&policy.descriptor, &policy.descriptor.ip6, address, 128);
  if (leaf >= SLUICE_LEAF_DECISION) {
    leaf = sluice_judge_chain(&policy.descriptor, leaf, packet.protocol, packet.port,
                              has_ports ? SLUICE_PACKET_PORTS : 0);
  }
  return leaf;
}

std::array<std::uint8_t, 16> as_mapped(const FakePacket& packet) {
  if (packet.family == 6) return packet.destination;
  std::array<std::uint8_t, 16> mapped{};
  mapped[10] = mapped[11] = 0xff;
  std::copy_n(packet.destination.begin(), 4, mapped.begin() + 12);
  return mapped;
}

bool covers(std::span<const PortRange> ports, const FakePacket& packet) {
  if (ports.empty()) return true;
  return std::any_of(ports.begin(), ports.end(), [&](const PortRange& range) {
    return range.protocol == packet.protocol &&
           (range.any_port || (range.first <= packet.port && packet.port <= range.last));
  });
}

}  // namespace

FakeKernel::Slot* FakeKernel::find_interface(std::uint32_t ifindex, std::uint64_t netns_cookie) {
  for (auto& slot : slots) {
    if (slot.live && slot.target_exists && slot.attachment.interface &&
        slot.attachment.interface->ifindex == ifindex &&
        slot.attachment.interface->netns_cookie == netns_cookie) {
      return &slot;
    }
  }
  return nullptr;
}

FakeKernel::Slot* FakeKernel::find_cgroup(std::uint64_t cgroup_id, const std::string& path) {
  for (auto& slot : slots) {
    if (!slot.live || !slot.target_exists || !slot.attachment.cgroup) continue;
    const auto& cgroup = *slot.attachment.cgroup;
    if (cgroup_id != 0 ? cgroup.cgroup_id == cgroup_id : cgroup.path == path) return &slot;
  }
  return nullptr;
}

FakeDataPlane::FakeDataPlane(std::shared_ptr<FakeKernel> kernel)
    : kernel_(std::move(kernel)), learned_(kernel_, script_) {}

std::vector<KernelAttachment> FakeDataPlane::adopted() {
  std::vector<KernelAttachment> found;
  for (const auto& slot : kernel_->slots) {
    if (slot.live) found.push_back(slot.attachment);
  }
  return found;
}

Result<KernelAttachment> FakeDataPlane::attach(const InterfaceTarget& target,
                                               const PublishRequest* initial) {
  if (auto status = allowed_to("attach"); !status) return std::unexpected(status.error());
  KernelAttachment fresh;
  fresh.interface = target;
  fresh.mechanism = "tcx";
  return bring_up(kernel_->find_interface(target.ifindex, target.netns_cookie), fresh, initial);
}

Result<KernelAttachment> FakeDataPlane::attach(const CgroupTarget& target,
                                               const PublishRequest* initial) {
  if (auto status = allowed_to("attach"); !status) return std::unexpected(status.error());
  KernelAttachment fresh;
  fresh.cgroup = target;
  if (fresh.cgroup->cgroup_id == 0) fresh.cgroup->cgroup_id = std::hash<std::string>{}(target.path);
  fresh.mechanism = "cgroup";
  return bring_up(kernel_->find_cgroup(target.cgroup_id, target.path), fresh, initial);
}

Result<KernelAttachment> FakeDataPlane::bring_up(FakeKernel::Slot* existing, KernelAttachment fresh,
                                                 const PublishRequest* initial) {
  if (existing == nullptr) {
    auto free = std::find_if(kernel_->slots.begin() + 1, kernel_->slots.end(),
                             [](const auto& slot) { return !slot.live; });
    if (free == kernel_->slots.end()) free = kernel_->slots.insert(free, FakeKernel::Slot{});
    *free = FakeKernel::Slot{};
    fresh.slot = static_cast<std::uint32_t>(free - kernel_->slots.begin());
    kernel_->next_incarnation = kernel_->next_incarnation * 6364136223846793005ull + 1;
    fresh.incarnation = kernel_->next_incarnation;
    fresh.generation = {1};
    fresh.scope = kernel_->next_scope++;
    {
      const std::lock_guard lock(kernel_->learned_mutex);
      kernel_->learned[fresh.scope];
    }
    fresh.asker_mark = kernel_->next_asker_mark++;
    fresh.redirectable = !fresh.interface || (fresh.interface->side != Side::workload_egress &&
                                              fresh.interface->netns_path.empty());
    free->live = true;
    free->attachment = std::move(fresh);
    existing = &*free;
  }
  if (initial != nullptr) store(*existing, *initial);
  return existing->attachment;
}

Status FakeDataPlane::detach(std::uint32_t slot) {
  if (auto status = allowed_to("detach"); !status) return status;
  auto* found = live(slot);
  if (found == nullptr) return fail_with(ENOENT, "slot {}: nothing is attached there", slot);
  {
    const std::lock_guard lock(kernel_->learned_mutex);
    kernel_->learned.erase(found->attachment.scope);
  }
  *found = FakeKernel::Slot{};
  return {};
}

void FakeDataPlane::store(FakeKernel::Slot& slot, const PublishRequest& request) {
  if (request.policy != nullptr) {
    const std::array digest{static_cast<std::uint64_t>(request.policy->descriptor.digest[0]),
                            static_cast<std::uint64_t>(request.policy->descriptor.digest[1])};
    auto& shared = kernel_->policies[digest];
    slot.policy = shared.lock();
    if (!slot.policy) {
      slot.policy = std::make_shared<const CompiledPolicy>(*request.policy);
      shared = slot.policy;
    }
    slot.attachment.policy_digest = digest;
  }
  slot.attachment.mode = request.mode;
  slot.options = request.options;
  slot.attachment.generation.value += 1;
  slot.publishes += 1;
  if (request.tightening) slot.severings += 1;
}

Result<Generation> FakeDataPlane::publish(const PublishRequest& request) {
  auto* slot = live(request.slot);
  if (slot == nullptr) {
    return fail_with(ENOENT, "slot {}: nothing is attached there", request.slot);
  }
  if (auto status = allowed_to("publish"); !status) return std::unexpected(status.error());
  store(*slot, request);
  return slot->attachment.generation;
}

namespace {

std::unexpected<Error> no_scope(std::uint32_t scope) {
  return fail_with(ENOENT, "scope {}: its attachment is no longer in the kernel", scope);
}

}  // namespace

Status FakeLearnedMap::learn(std::uint32_t scope, std::span<const LearnedPart> parts) {
  const std::lock_guard lock(kernel_->learned_mutex);
  const auto found = kernel_->learned.find(scope);
  if (found == kernel_->learned.end()) return no_scope(scope);
  if (auto status = script_->allowed_to("learn"); !status) return status;
  for (const auto& [addresses, ports] : parts) {
    for (const auto& address : addresses) {
      found->second[address.address] = {.address = address, .ports = {ports.begin(), ports.end()}};
    }
  }
  return {};
}

Status FakeLearnedMap::revoke(std::uint32_t scope, std::span<const Address> addresses) {
  const std::lock_guard lock(kernel_->learned_mutex);
  const auto found = kernel_->learned.find(scope);
  if (found == kernel_->learned.end()) return no_scope(scope);
  if (auto status = script_->allowed_to("revoke"); !status) return status;
  for (const auto& address : addresses) found->second.erase(address);
  return {};
}

std::vector<Address> FakeLearnedMap::unused(std::uint32_t, std::span<const Address> addresses) {
  const std::lock_guard lock(kernel_->learned_mutex);
  std::vector<Address> unused;
  for (const auto& address : addresses)
    if (!kernel_->in_use.contains(address)) unused.push_back(address);
  return unused;
}

std::vector<KnownAddress> FakeLearnedMap::all(std::uint32_t scope) {
  const std::lock_guard lock(kernel_->learned_mutex);
  std::vector<KnownAddress> found;
  const auto there = kernel_->learned.find(scope);
  if (there == kernel_->learned.end()) return found;
  for (const auto& [address, entry] : there->second) {
    found.push_back({.address = entry.address, .ports = entry.ports});
  }
  return found;
}

Result<Counters> FakeDataPlane::counters(std::uint32_t slot) {
  auto* found = live(slot);
  if (found == nullptr) return fail_with(ENOENT, "slot {}: nothing is attached there", slot);
  return found->counters;
}

std::vector<std::uint64_t> FakeDataPlane::reason_counters() {
  return std::vector<std::uint64_t>(SLUICE_REASON_COUNT, 0);
}

Status FakeDataPlane::serve(std::uint32_t resolver, std::span<const int> sockets) {
  if (resolver >= SLUICE_RESOLVERS) return fail_with(ENOSPC, "serve: too many resolvers");
  if (auto status = allowed_to("serve"); !status) return status;
  kernel_->served[resolver].assign(sockets.begin(), sockets.end());
  return {};
}

Status FakeDataPlane::end_serving() {
  if (auto status = allowed_to("end_serving"); !status) return status;
  kernel_->served.clear();
  return {};
}

Result<DataPlane::Asker> FakeDataPlane::asker_of_stream(int accepted) const {
  const auto stream = kernel_->streams.find(accepted);
  if (stream == kernel_->streams.end()) return fail_with(ENOENT, "fd {}: nobody asked", accepted);
  return stream->second;
}

Status FakeDataPlane::set_guards(const GuardSettings& guards) {
  if (auto status = allowed_to("set_guards"); !status) return status;
  kernel_->guards = guards;
  return {};
}

void FakeDataPlane::poll(const DataPlaneEvents& events) {
  for (const auto& event : std::exchange(denials_, {})) events.on_denial(event);
  if (withheld_) return;
  for (auto& [slot, reason] : std::exchange(gone_, {})) events.on_target_gone(slot, reason);
}

void FakeDataPlane::remove_target(std::uint32_t slot, const std::string& reason) {
  if (auto* found = live(slot)) {
    found->target_exists = false;
    gone_.emplace_back(slot, reason);
  }
}

void FakeDataPlane::deny(std::uint32_t slot, const FakePacket& packet, sluice_reason reason) {
  sluice_event event{};
  event.type = SLUICE_EVENT_DENIAL;
  event.slot = slot;
  if (auto* found = live(slot)) {
    event.incarnation = found->attachment.incarnation;
    event.generation = static_cast<std::uint32_t>(found->attachment.generation.value & 0xffffff);
    found->counters.denied_packets += 1;
  }
  event.family = packet.family;
  event.protocol = packet.protocol;
  event.reason = static_cast<std::uint8_t>(reason);
  event.destination_port_be = __builtin_bswap16(packet.port);
  const auto destination = as_mapped(packet);
  std::copy(destination.begin(), destination.end(), event.destination);
  denials_.push_back(event);
}

bool FakeDataPlane::passes(std::uint32_t slot, const FakePacket& packet, BootTime now) const {
  if (slot >= kernel_->slots.size() || !kernel_->slots[slot].live) return false;
  const auto& in_force = kernel_->slots[slot];
  if (in_force.attachment.mode == Mode::disabled || in_force.options.audit) return true;
  if (in_force.attachment.mode == Mode::block_all) return false;
  const auto leaf = in_force.policy ? judge_rules(*in_force.policy, packet, now) : 0u;
  if (leaf == SLUICE_LEAF_ALLOW) return true;
  if (leaf != SLUICE_LEAF_NONE) return false;
  const std::lock_guard lock(kernel_->learned_mutex);
  const auto scope = kernel_->learned.find(in_force.attachment.scope);
  if (scope == kernel_->learned.end()) return in_force.attachment.mode == Mode::denylist;
  const auto learned = scope->second.find(as_mapped(packet));
  if (learned != scope->second.end() && now < learned->second.address.active_until &&
      covers(learned->second.ports, packet)) {
    return true;
  }
  return in_force.attachment.mode == Mode::denylist;
}

FakeKernel::Slot* FakeDataPlane::live(std::uint32_t slot) {
  if (slot >= kernel_->slots.size() || !kernel_->slots[slot].live) return nullptr;
  return &kernel_->slots[slot];
}

void FakeScript::refuse(const std::string& call, Error error, std::uint32_t after) {
  const std::lock_guard lock(mutex_);
  refusals_[call] = {std::move(error), after};
}

std::uint32_t FakeScript::calls(const std::string& call) const {
  const std::lock_guard lock(mutex_);
  const auto found = calls_.find(call);
  return found == calls_.end() ? 0 : found->second;
}

Status FakeScript::allowed_to(const std::string& call) {
  const std::lock_guard lock(mutex_);
  if (auto refusal = refusals_.find(call); refusal != refusals_.end()) {
    if (refusal->second.after == 0) {
      auto error = std::move(refusal->second.error);
      refusals_.erase(refusal);
      return std::unexpected(std::move(error));
    }
    refusal->second.after -= 1;
  }
  calls_[call] += 1;
  return {};
}

}  // namespace sluice
