#include "dataplane/learned_map.hpp"

#include <bpf/bpf.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <optional>
#include <utility>

#include "learn_batch.h"

namespace sluice {
namespace {

// How many entries of one scope are looked at, or taken out, while its lock is held once.
constexpr std::size_t kChunk = 1024;

sluice_learned_key key_of(std::uint32_t scope, const Address& address) {
  sluice_learned_key key{};
  key.scope = scope;
  std::memcpy(key.address, address.data(), sizeof(key.address));
  return key;
}

// The table of port lists is smaller than that, see KernelDataPlane::open().
std::uint16_t narrow(std::uint32_t port_set) {
  return static_cast<std::uint16_t>(port_set);
}

// Tells the programs, before the address is in the kernel, that it is worth looking up.
void hint(__u64* hints, const std::uint8_t* address) {
  if (hints == nullptr) return;
  std::uint64_t halves[2];
  std::memcpy(halves, address, sizeof(halves));
  const std::uint32_t bit = sluice_learned_bit(halves[0], halves[1]);
  std::atomic_ref(hints[bit / 64]).fetch_or(__u64{1} << bit % 64);
}

std::unexpected<Error> no_scope(std::uint32_t scope) {
  return fail_with(ENOENT, "scope {}: its attachment is no longer in the kernel", scope);
}

}  // namespace

// What one call is about to write. What is kept in memory is changed as it is put together, also
// twice where an address is given twice; back() undoes that.
struct KernelLearnedMap::Writes {
  explicit Writes(PortSetTable& sets) : port_sets(sets) {}

  PortSetTable& port_sets;
  std::vector<sluice_learned_key> keys;
  std::vector<sluice_learned> values;
  struct Before {
    Known* known;
    Known was;
    std::optional<sluice_learned> in_kernel;  // looked up, where there is no program
    bool kept = false;                        // the program says that it was there
  };
  std::vector<Before> before;

  void reserve(std::size_t count) {
    keys.reserve(count);
    values.reserve(count);
    before.reserve(count);
  }
  void add(const sluice_learned_key& key, const sluice_learned& value, Known& known,
           const std::optional<sluice_learned>& in_kernel) {
    keys.push_back(key);
    values.push_back(value);
    before.push_back({&known, known, in_kernel});
    port_sets.hold(value.port_set);
    known = {value.active_until, value.grace_until, value.port_set, value.owner};
  }
  void commit() {
    for (const auto& was : before) port_sets.release(was.was.port_set);
  }
  // `done`: how many are in the kernel. An errno, or 0.
  [[nodiscard]] int write_by_map(int map, std::size_t& done) const {
    if (keys.size() == 1)
      return bpf_map_update_elem(map, keys.data(), values.data(), BPF_ANY) == 0 ? 0 : errno;
    auto count = static_cast<std::uint32_t>(keys.size());
    LIBBPF_OPTS(bpf_map_batch_opts, options, .elem_flags = BPF_ANY);
    if (bpf_map_update_batch(map, keys.data(), values.data(), &count, &options) == 0) return 0;
    const int error = errno;
    done = count == keys.size() ? 0 : count;  // refused before the first, it leaves the count
    return error;
  }
  [[nodiscard]] int write_by_program(int program, std::size_t& done) {
    for (std::size_t at = 0; at < keys.size(); at = done) {
      sluice_learn_batch batch{};
      batch.count =
          static_cast<std::uint32_t>(std::min<std::size_t>(keys.size() - at, SLUICE_LEARN_ENTRIES));
      for (std::uint32_t i = 0; i < batch.count; ++i)
        batch.entries[i] = entry_of(keys[at + i], values[at + i]);
      if (const int error = run(program, batch); error != 0) return error;
      for (std::uint32_t i = 0; i < batch.count; ++i, ++done) {
        if (batch.entries[i].outcome == SLUICE_LEARN_UNTOUCHED) return -batch.error;
        before[at + i].kept = batch.entries[i].outcome == SLUICE_LEARN_KEPT;
      }
    }
    return 0;
  }
  // `written` of them are in the kernel. Backwards: an address given twice ends as it began.
  void back(int map, int program, std::size_t written) {
    for (auto i = keys.size(); i-- > 0;) {
      const auto& [known, was, in_kernel, kept] = before[i];
      *known = was;
      const PortSetTable::Use last(port_sets, values[i].port_set);
      if (i >= written) continue;
      if (kept) {
        sluice_learn_batch batch{};
        batch.count = 1;
        batch.entries[0] = entry_of(keys[i], {.check = sluice_learned_key_check(&keys[i]),
                                              .port_set = narrow(was.port_set),
                                              .owner = was.owner,
                                              .active_until = was.active_until,
                                              .grace_until = was.grace_until,
                                              .last_seen = 0});
        [[maybe_unused]] const int done = run(program, batch);
      } else if (in_kernel) {
        bpf_map_update_elem(map, &keys[i], &*in_kernel, BPF_ANY);
      } else {
        bpf_map_delete_elem(map, &keys[i]);
      }
    }
  }

 private:
  static sluice_learn_entry entry_of(const sluice_learned_key& key, const sluice_learned& value) {
    return {.key = key,
            .outcome = SLUICE_LEARN_UNTOUCHED,
            .active_until = value.active_until,
            .grace_until = value.grace_until,
            .check = value.check,
            .port_set = value.port_set,
            .owner = value.owner};
  }
  static int run(int program, sluice_learn_batch& batch) {
    LIBBPF_OPTS(bpf_test_run_opts, options, .ctx_in = &batch, .ctx_size_in = sizeof(batch));
    return bpf_prog_test_run_opts(program, &options) == 0 ? 0 : errno;
  }
};

KernelLearnedMap::KernelLearnedMap(int map, int port_sets, std::uint32_t port_set_entries,
                                   int program)
    : map_(map), program_(program), port_sets_(port_sets, port_set_entries) {}

std::shared_ptr<KernelLearnedMap::Scope> KernelLearnedMap::find(std::uint32_t number) const {
  const std::shared_lock lock(mutex_);
  const auto found = scopes_.find(number);
  return found == scopes_.end() ? nullptr : found->second;
}

Status KernelLearnedMap::learn(std::uint32_t number, std::span<const LearnedPart> parts) {
  const auto scope = find(number);
  if (!scope) return no_scope(number);

  const std::lock_guard lock(scope->mutex);
  if (scope->closed) return no_scope(number);
  Writes writes(port_sets_);
  std::size_t count = 0;
  for (const auto& part : parts) count += part.addresses.size();
  writes.reserve(count);
  for (const auto& part : parts) {
    if (auto status = prepare(number, *scope, part, writes); !status) {
      writes.back(map_, program_, 0);
      return status;
    }
  }
  return write(*scope, writes);
}

// With the scope's lock held. What is known of the part's addresses becomes what will be written.
Status KernelLearnedMap::prepare(std::uint32_t number, Scope& scope, const LearnedPart& part,
                                 Writes& writes) {
  const auto port_set = port_sets_.use(part.ports);
  if (!port_set) return std::unexpected(port_set.error());
  const auto now = boot_now().nanoseconds;
  for (const auto& learned : part.addresses) {
    // Known before it is written, so that whatever happens, close() finds it.
    auto& known = scope.known.try_emplace(learned.address).first->second;
    const auto key = key_of(number, learned.address);
    sluice_learned value{.check = sluice_learned_key_check(&key),
                         .port_set = narrow(port_set->index()),
                         .owner = learned.owner,
                         .active_until = learned.active_until.nanoseconds,
                         .grace_until = learned.grace_until.nanoseconds,
                         .last_seen = 0};
    if (known == Known{value.active_until, value.grace_until, value.port_set, value.owner})
      continue;
    std::optional<sluice_learned> in_kernel;
    // When the last packet for it was seen, which only the kernel knows.
    if (sluice_learned found{};
        known.lives(now) && program_ < 0 && bpf_map_lookup_elem(map_, &key, &found) == 0) {
      in_kernel = found;
      value.last_seen = found.last_seen;
    }
    writes.add(key, value, known, in_kernel);
  }
  return {};
}

// With the scope's lock held. All or nothing.
Status KernelLearnedMap::write(Scope& scope, Writes& writes) {
  if (writes.keys.empty()) return {};
  for (const auto& key : writes.keys) hint(scope.hints, key.address);
  // For a single one that is new the program is a detour.
  const bool by_map = program_ < 0 || (writes.keys.size() == 1 && writes.before[0].was == Known{});
  std::size_t done = 0;
  const int error =
      by_map ? writes.write_by_map(map_, done) : writes.write_by_program(program_, done);
  if (error == 0) {
    writes.commit();
    return {};
  }
  writes.back(map_, program_, done);
  return fail_with(error, "{}: cannot write a learned address: {}{}", scope.name, strerror(error),
                   error == E2BIG ? "; raise host.max_learned" : "");
}

void KernelLearnedMap::remove(std::uint32_t number, std::span<const Address> addresses) {
  std::vector<sluice_learned_key> keys;
  keys.reserve(addresses.size());
  for (const auto& address : addresses) keys.push_back(key_of(number, address));
  LIBBPF_OPTS(bpf_map_batch_opts, options);
  for (std::size_t at = 0; at < keys.size();) {
    auto count = static_cast<std::uint32_t>(keys.size() - at);
    if (count > 1 && bpf_map_delete_batch(map_, &keys[at], &count, &options) == 0) return;
    // It stops at one that is not there; a kernel without batches has done none.
    if (count < keys.size() - at) at += count;
    bpf_map_delete_elem(map_, &keys[at++]);
  }
}

// With the scope's lock held, once it is out of the kernel.
void KernelLearnedMap::forget(Scope& scope, const Address& address) {
  const auto found = scope.known.find(address);
  if (found == scope.known.end()) return;
  port_sets_.release(found->second.port_set);
  scope.known.erase(found);
}

Status KernelLearnedMap::revoke(std::uint32_t number, std::span<const Address> addresses) {
  const auto scope = find(number);
  if (!scope) return no_scope(number);
  const std::lock_guard lock(scope->mutex);
  if (scope->closed) return no_scope(number);
  std::vector<Address> known;
  known.reserve(addresses.size());
  for (const auto& address : addresses) {
    if (scope->known.contains(address)) known.push_back(address);
  }
  remove(number, known);
  for (const auto& address : known) forget(*scope, address);
  return {};
}

std::vector<Address> KernelLearnedMap::unused(std::uint32_t number,
                                              std::span<const Address> addresses) {
  std::vector<Address> unused;
  const auto now = boot_now().nanoseconds;
  for (const auto& address : addresses) {
    const auto key = key_of(number, address);
    sluice_learned value{};
    if (bpf_map_lookup_elem(map_, &key, &value) != 0) continue;
    if (value.active_until <= now && now > value.last_seen && now - value.last_seen > kIdle)
      unused.push_back(address);
  }
  return unused;
}

std::vector<KnownAddress> KernelLearnedMap::all(std::uint32_t number) {
  std::vector<KnownAddress> found;
  const auto scope = find(number);
  if (!scope) return found;
  const auto now = boot_now().nanoseconds;
  const std::lock_guard lock(scope->mutex);
  found.reserve(scope->known.size());
  for (const auto& [address, known] : scope->known) {
    if (!known.lives(now)) continue;
    found.push_back({.address = {.address = address,
                                 .active_until = {known.active_until},
                                 .grace_until = {known.grace_until},
                                 .owner = known.owner},
                     .ports = port_sets_.ports_of(known.port_set)});
  }
  return found;
}

void KernelLearnedMap::open(std::uint32_t number, std::string name, __u64* hints) {
  auto scope = std::make_shared<Scope>();
  scope->name = std::move(name);
  scope->hints = hints;
  const std::lock_guard lock(mutex_);
  scopes_.insert_or_assign(number, std::move(scope));
}

void KernelLearnedMap::close(std::uint32_t number) {
  std::shared_ptr<Scope> scope;
  {
    const std::lock_guard lock(mutex_);
    const auto found = scopes_.find(number);
    if (found == scopes_.end()) return;
    scope = std::move(found->second);
    scopes_.erase(found);
  }
  const std::lock_guard lock(scope->mutex);  // who learns at this moment ends first
  scope->closed = true;
  std::vector<Address> all;
  all.reserve(scope->known.size());
  for (const auto& [address, known] : scope->known) all.push_back(address);
  remove(number, all);
  for (const auto& address : all) forget(*scope, address);
}

void KernelLearnedMap::adopt() {
  std::vector<sluice_learned_key> orphans;
  sluice_learned_key key{}, next{};
  for (const void* at = nullptr; bpf_map_get_next_key(map_, at, &next) == 0; at = &key) {
    key = next;
    const auto scope = find(key.scope);
    sluice_learned value{};
    if (!scope) {
      orphans.push_back(key);
    } else if (bpf_map_lookup_elem(map_, &key, &value) == 0) {
      Address address{};
      std::memcpy(address.data(), key.address, sizeof(key.address));
      const std::lock_guard lock(scope->mutex);
      scope->known[address] = {value.active_until, value.grace_until, value.port_set, value.owner};
      port_sets_.hold(value.port_set);
      hint(scope->hints, key.address);
    }
  }
  for (const auto& orphan : orphans) bpf_map_delete_elem(map_, &orphan);
}

void KernelLearnedMap::sweep(BootTime now) {
  std::vector<std::pair<std::uint32_t, std::shared_ptr<Scope>>> scopes;
  {
    const std::shared_lock lock(mutex_);
    scopes.assign(scopes_.begin(), scopes_.end());
  }
  for (const auto& [number, scope] : scopes) {
    bool any_ended = false;
    // By bucket, so that the lock can be let go; what moves meanwhile is found the next time.
    for (std::size_t bucket = 0, looked = 0, end = 1; bucket < end; looked = 0) {
      std::vector<Address> ended;
      const std::lock_guard lock(scope->mutex);
      end = scope->known.empty() ? 0 : scope->known.bucket_count();
      for (; bucket < end && looked < kChunk; ++bucket, ++looked) {
        for (auto it = scope->known.begin(bucket); it != scope->known.end(bucket); ++it) {
          if (!it->second.lives(now.nanoseconds)) ended.push_back(it->first);
        }
      }
      remove(number, ended);
      for (const auto& address : ended) forget(*scope, address);
      any_ended = any_ended || !ended.empty();
    }
    const std::lock_guard lock(scope->mutex);
    if (any_ended && !scope->closed) forget_hints(*scope);
  }
}

// With the scope's lock held: the hints become those of what is known, which is all that may be in
// the kernel. With very many addresses each bit is set by one of them anyway.
void KernelLearnedMap::forget_hints(Scope& scope) {
  if (scope.hints == nullptr || scope.known.size() > kChunk) return;
  std::array<__u64, SLUICE_LEARNED_BITS / 64> fresh{};
  for (const auto& [address, known] : scope.known) hint(fresh.data(), address.data());
  for (std::size_t i = 0; i < fresh.size(); ++i) std::atomic_ref(scope.hints[i]).store(fresh[i]);
}

}  // namespace sluice
