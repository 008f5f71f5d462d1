// Finds the one id of a content that lives elsewhere: how decisions and shapes are stored once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

namespace sluice::image {

// Rules come from strangers: a seed of our own, so that they cannot be written to collide. It moves
// entries of a table only, never an image.
inline const std::uint64_t hash_seed =
    std::uint64_t{std::random_device{}()} << 32 | std::random_device{}();

inline std::uint64_t mix(std::uint64_t hash, std::uint64_t word) {
  hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
  return hash ^ hash >> 29;
}

// Open addressing over ids whose content lives elsewhere. Starts without an allocation: most
// policies need none.
class IdTable {
 public:
  // The id for which `equal(id)` holds, or the one that `make()` returns, then remembered.
  template <typename Equal, typename Make>
  std::uint32_t find_or_make(std::uint64_t hash, Equal equal, Make make) {
    if (used_ * 2 >= slots_.size()) grow();
    std::size_t at = hash & (slots_.size() - 1);
    const auto tag = static_cast<std::uint32_t>(hash >> 32);
    for (; slots_[at].id_plus_one != 0; at = (at + 1) & (slots_.size() - 1))
      if (slots_[at].tag == tag && equal(slots_[at].id_plus_one - 1))
        return slots_[at].id_plus_one - 1;
    const std::uint32_t id = make();
    slots_[at] = {tag, id + 1, hash};
    ++used_;
    return id;
  }

 private:
  struct Slot {
    std::uint32_t tag = 0, id_plus_one = 0;
    std::uint64_t hash = 0;
  };
  void grow() {
    std::vector<Slot> old =
        std::exchange(slots_, std::vector<Slot>(std::max<std::size_t>(16, slots_.size() * 2)));
    for (const Slot& slot : old) {
      if (slot.id_plus_one == 0) continue;
      std::size_t at = slot.hash & (slots_.size() - 1);
      while (slots_[at].id_plus_one != 0) at = (at + 1) & (slots_.size() - 1);
      slots_[at] = slot;
    }
  }
  std::vector<Slot> slots_;
  std::size_t used_ = 0;
};

}  // namespace sluice::image
