// The `slots` map through a mapping: where a policy is published with one store.
#pragma once

#include <cstdint>

#include "base/result.hpp"
#include "layout.h"

namespace sluice {

class SlotTable {
 public:
  [[nodiscard]] static Result<SlotTable> map(int fd, std::uint32_t entries);
  SlotTable(SlotTable&& other) noexcept;
  SlotTable& operator=(SlotTable&&) = delete;
  ~SlotTable();

  [[nodiscard]] std::uint32_t size() const { return entries_; }
  [[nodiscard]] const sluice_slot& at(std::uint32_t index) const { return slots_[index]; }
  [[nodiscard]] std::uint64_t word(std::uint32_t index) const;

  // Everything but the word, which stays closed; then LIVE. The slot must be free.
  void fill(std::uint32_t index, const sluice_slot& slot);
  // The flip: one aligned 64-bit store, after everything it refers to.
  void publish(std::uint32_t index, std::uint64_t generation, std::uint64_t word);
  // Frame options change beside the word; each is read once per packet.
  void set_options(std::uint32_t index, const sluice_slot& options);
  void set_sever_until(std::uint32_t index, std::uint64_t until);
  void clear(std::uint32_t index);
  // For whoever writes learned addresses; words are stored whole.
  [[nodiscard]] __u64* learned_hints(std::uint32_t index) { return slots_[index].learned; }

 private:
  SlotTable(sluice_slot* slots, std::uint32_t entries, std::size_t bytes)
      : slots_(slots), entries_(entries), bytes_(bytes) {}
  sluice_slot* slots_;
  std::uint32_t entries_;
  std::size_t bytes_;
};

}  // namespace sluice
