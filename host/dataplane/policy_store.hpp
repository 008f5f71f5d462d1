// Where compiled policies live in the kernel: the heap for ordinary ones, exact-size blobs for
// large ones, and the table of descriptors that an attachment's word points into.
// Content-addressed: equal policies exist once.
//
// An image is written into space that no word refers to, so nothing is ever seen half written.
// Space is reused only after an RCU grace period, which the owner takes in the background.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"
#include "layout.h"
#include "policy/compiler.hpp"

namespace sluice {

// An inner map of `blobs` that holds the elements of an image.
[[nodiscard]] Result<Fd> make_blob(std::span<const sluice_element> elements);

using Digest = std::array<std::uint64_t, 2>;

class PolicyStore {
 public:
  struct Maps {  // borrowed; they outlive the store
    int policies, heap, blobs;
    std::uint32_t policy_entries, heap_entries, blob_entries;
  };
  explicit PolicyStore(const Maps& maps);

  // Takes over what is already in the kernel: `index` is in use by `references` words. Call before
  // any acquire().
  [[nodiscard]] Status adopt(std::uint32_t index, std::uint32_t references);

  // The index of an equal policy, written if there is none yet; takes one reference. ENOSPC names
  // what is full, and nothing is taken.
  [[nodiscard]] Result<std::uint32_t> acquire(const CompiledPolicy& policy);
  void reference(std::uint32_t index);
  // Drops one reference. An index nobody refers to waits in retired() until reclaim().
  void release(std::uint32_t index);

  [[nodiscard]] Digest digest_of(std::uint32_t index) const;

  // A release of the last reference. The serial tells it from a later one of the same index.
  struct Retired {
    std::uint32_t index;
    std::uint64_t serial;
  };
  // The owner takes a grace period, then gives the same list to reclaim(); what was acquired again
  // meanwhile is kept.
  [[nodiscard]] std::vector<Retired> take_retired();
  void reclaim(const std::vector<Retired>& retired);

 private:
  struct Entry {
    Digest digest{};
    std::uint32_t base = 0, elements = 0, blob = 0;
    std::uint32_t references = 0;
    std::uint64_t retired = 0;  // serial of the release that left no reference; 0: in use
  };
  [[nodiscard]] std::optional<std::uint32_t> allocate(std::uint32_t elements);
  void free_range(std::uint32_t base, std::uint32_t elements);
  [[nodiscard]] Status write_heap(std::uint32_t base, std::span<const sluice_element> elements);
  [[nodiscard]] Result<std::uint32_t> write_blob(std::span<const sluice_element> elements);

  Maps maps_;
  std::map<std::uint32_t, std::uint32_t> free_;  // base -> length
  std::map<std::uint32_t, Entry> entries_;       // by index
  std::map<Digest, std::uint32_t> by_digest_;
  std::vector<Retired> retired_;
  std::uint64_t last_serial_ = 0;
  std::vector<bool> blob_used_;
  std::uint32_t next_index_ = 1;  // 0 is the empty policy, always there
};

}  // namespace sluice
