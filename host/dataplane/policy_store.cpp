#include "dataplane/policy_store.hpp"

#include <bpf/bpf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

namespace sluice {
namespace {

// An image over a third of the heap becomes a blob, whose elements the programs reach by a call
// each (about 9 ns) instead of none. Of 100,000 mixed prefixes the image is a little over a
// quarter.
constexpr std::uint32_t kHeapShare = 3;

// Writes through a mapping of just the pages it needs: a mapping of the whole heap would count as
// resident memory.
Status write_elements(int map, std::uint32_t first, std::span<const sluice_element> elements,
                      const char* what) {
  if (elements.empty()) return {};
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t begin = std::size_t{first} * sizeof(sluice_element);
  const std::size_t bytes = elements.size() * sizeof(sluice_element);
  const std::size_t map_begin = begin / page * page;
  const std::size_t map_bytes = (begin + bytes - map_begin + page - 1) / page * page;
  void* memory = mmap(nullptr, map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, map,
                      static_cast<off_t>(map_begin));
  if (memory == MAP_FAILED)
    return fail_with(errno, "{}: cannot map {} bytes of it: {}", what, map_bytes, strerror(errno));
  std::memcpy(static_cast<char*>(memory) + (begin - map_begin), elements.data(), bytes);
  munmap(memory, map_bytes);
  return {};
}

}  // namespace

Result<Fd> make_blob(std::span<const sluice_element> elements) {
  LIBBPF_OPTS(bpf_map_create_opts, options, .map_flags = BPF_F_MMAPABLE | BPF_F_INNER_MAP);
  const std::size_t pages = (elements.size() + SLUICE_PAGE_ELEMENTS - 1) / SLUICE_PAGE_ELEMENTS;
  Fd map(bpf_map_create(BPF_MAP_TYPE_ARRAY, "sluice_blob", sizeof(std::uint32_t),
                        sizeof(sluice_blob_page), static_cast<std::uint32_t>(pages), &options));
  if (!map)
    return fail_with(errno, "cannot create a map of {} MiB for a large policy: {}",
                     elements.size_bytes() >> 20, strerror(errno));
  if (auto written = write_elements(map.get(), 0, elements, "large policy"); !written)
    return std::unexpected(written.error());
  return map;
}

PolicyStore::PolicyStore(const Maps& maps) : maps_(maps), blob_used_(maps.blob_entries, false) {
  free_[0] = maps.heap_entries;
  Entry empty;
  empty.references = 1;  // the store's own: index 0 is never reused
  entries_[0] = empty;
  sluice_policy none{};
  none.ip4.root = none.ip6.root = SLUICE_NO_TRIE;
  const std::uint32_t zero = 0;
  bpf_map_update_elem(maps_.policies, &zero, &none, BPF_ANY);
}

Status PolicyStore::adopt(std::uint32_t index, std::uint32_t references) {
  if (index == 0) return {};
  sluice_policy policy{};
  if (index >= maps_.policy_entries || bpf_map_lookup_elem(maps_.policies, &index, &policy) != 0)
    return fail("pinned policy {}: not in the policy table", index);
  Entry entry{{policy.digest[0], policy.digest[1]},
              policy.base,
              policy.elements,
              policy.blob,
              references,
              0};
  if (entry.blob != 0) {
    if (entry.blob >= blob_used_.size())
      return fail("pinned policy {}: blob {} is out of range", index, entry.blob);
    blob_used_[entry.blob] = true;
  } else if (entry.elements != 0) {
    auto range = free_.upper_bound(entry.base);
    if (range == free_.begin())
      return fail("pinned policy {}: its heap region overlaps another", index);
    --range;
    const auto [base, length] = *range;
    if (entry.base + std::uint64_t{entry.elements} > std::uint64_t{base} + length)
      return fail("pinned policy {}: its heap region overlaps another", index);
    free_.erase(range);
    if (entry.base > base) free_[base] = entry.base - base;
    if (entry.base + entry.elements < base + length)
      free_[entry.base + entry.elements] = base + length - entry.base - entry.elements;
  }
  by_digest_[entry.digest] = index;
  entries_[index] = entry;
  return {};
}

std::optional<std::uint32_t> PolicyStore::allocate(std::uint32_t elements) {
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    if (it->second < elements) continue;
    const std::uint32_t base = it->first, rest = it->second - elements;
    free_.erase(it);
    if (rest != 0) free_[base + elements] = rest;
    return base;
  }
  return std::nullopt;
}

void PolicyStore::free_range(std::uint32_t base, std::uint32_t elements) {
  if (elements == 0) return;
  auto [it, added] = free_.emplace(base, elements);
  if (auto next = std::next(it); next != free_.end() && it->first + it->second == next->first) {
    it->second += next->second;
    free_.erase(next);
  }
  if (it != free_.begin()) {
    auto before = std::prev(it);
    if (before->first + before->second == it->first) {
      before->second += it->second;
      free_.erase(it);
    }
  }
}

Status PolicyStore::write_heap(std::uint32_t base, std::span<const sluice_element> elements) {
  return write_elements(maps_.heap, base, elements, "policy heap");
}

Result<std::uint32_t> PolicyStore::write_blob(std::span<const sluice_element> elements) {
  std::uint32_t index = 0;
  for (std::uint32_t i = 1; i < blob_used_.size() && index == 0; ++i)
    if (!blob_used_[i]) index = i;
  if (index == 0)
    return fail_with(
        ENOSPC,
        "the table of large policies is full ({} entries); fewer distinct large policies, please",
        blob_used_.size() - 1);
  const auto map = make_blob(elements);
  if (!map) return std::unexpected(map.error());
  const int fd = map->get();
  if (bpf_map_update_elem(maps_.blobs, &index, &fd, BPF_ANY) != 0)
    return fail_with(errno, "cannot publish a large policy in slot {}: {}", index, strerror(errno));
  blob_used_[index] = true;
  return index;
}

Result<std::uint32_t> PolicyStore::acquire(const CompiledPolicy& policy) {
  const Digest digest{policy.descriptor.digest[0], policy.descriptor.digest[1]};
  if (auto known = by_digest_.find(digest); known != by_digest_.end()) {
    reference(known->second);
    return known->second;
  }
  const auto count = static_cast<std::uint32_t>(policy.elements.size());
  std::uint32_t index = next_index_;
  for (std::uint32_t tried = 0; entries_.contains(index) || index == 0; ++tried) {
    if (tried == maps_.policy_entries)
      return fail_with(
          ENOSPC,
          "the policy table is full: {} distinct policies in force; raise host.max_attachments",
          maps_.policy_entries - 1);
    index = (index + 1) % maps_.policy_entries;
  }
  Entry entry{digest, 0, count, 0, 1, 0};
  if (count != 0) {
    const auto place = count <= maps_.heap_entries / kHeapShare ? allocate(count) : std::nullopt;
    if (place) {
      entry.base = *place;
      if (auto written = write_heap(entry.base, policy.elements); !written) {
        free_range(entry.base, count);
        return std::unexpected(written.error());
      }
    } else {
      auto blob = write_blob(policy.elements);
      if (!blob) return std::unexpected(blob.error());
      entry.blob = *blob;
    }
  }
  sluice_policy descriptor = policy.descriptor;
  descriptor.blob = entry.blob;
  descriptor.base = entry.base;
  descriptor.elements = count;
  if (bpf_map_update_elem(maps_.policies, &index, &descriptor, BPF_ANY) != 0) {
    const int code = errno;
    if (entry.blob == 0) free_range(entry.base, count);
    return fail_with(code, "cannot write policy descriptor {}: {}", index, strerror(code));
  }
  next_index_ = (index + 1) % maps_.policy_entries;
  entries_[index] = entry;
  by_digest_[digest] = index;
  return index;
}

void PolicyStore::reference(std::uint32_t index) {
  Entry& entry = entries_.at(index);
  entry.references++;
  entry.retired = 0;
}

void PolicyStore::release(std::uint32_t index) {
  Entry& entry = entries_.at(index);
  if (index == 0 || --entry.references != 0) return;
  entry.retired = ++last_serial_;
  retired_.push_back({index, entry.retired});
}

Digest PolicyStore::digest_of(std::uint32_t index) const {
  const auto it = entries_.find(index);
  return it == entries_.end() ? Digest{} : it->second.digest;
}

std::vector<PolicyStore::Retired> PolicyStore::take_retired() {
  return std::exchange(retired_, {});
}

void PolicyStore::reclaim(const std::vector<Retired>& retired) {
  for (const auto& [index, serial] : retired) {
    const auto it = entries_.find(index);
    if (it == entries_.end() || it->second.retired != serial) continue;
    const Entry& entry = it->second;
    if (entry.blob != 0) {
      bpf_map_delete_elem(maps_.blobs, &entry.blob);
      blob_used_[entry.blob] = false;
    } else {
      free_range(entry.base, entry.elements);
    }
    by_digest_.erase(entry.digest);
    entries_.erase(it);
  }
}

}  // namespace sluice
