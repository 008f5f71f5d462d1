// A hash map for the hot path: integer keys, trivially copyable values, one array, linear probing,
// erase by shifting back. Grows by doubling and never allocates otherwise. One thread.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

namespace sluice::dns {

// Spreads keys that a guest may choose in part. `seed` keeps it from choosing collisions.
[[nodiscard]] constexpr std::uint64_t mix(std::uint64_t key, std::uint64_t seed) {
  key ^= seed;
  key = (key ^ (key >> 30)) * 0xbf58476d1ce4e5b9ULL;
  key = (key ^ (key >> 27)) * 0x94d049bb133111ebULL;
  return key ^ (key >> 31);
}

template <typename Value>
class FlatMap {
  static_assert(std::is_trivially_copyable_v<Value>, "entries are moved by plain copies");

 public:
  explicit FlatMap(std::uint64_t seed = 0x9e3779b97f4a7c15ULL) : seed_(seed) {}

  [[nodiscard]] Value* find(std::uint64_t key) {
    if (size_ == 0) return nullptr;
    for (std::size_t at = home(key);; at = next(at)) {
      if (!cells_[at].used) return nullptr;
      if (cells_[at].key == key) return &cells_[at].value;
    }
  }
  [[nodiscard]] bool contains(std::uint64_t key) { return find(key) != nullptr; }

  // Replaces what is there. The reference lives until the next change.
  Value& put(std::uint64_t key, const Value& value) {
    if ((size_ + 1) * 4 > cells_.size() * 3) grow();
    std::size_t at = home(key);
    while (cells_[at].used && cells_[at].key != key) at = next(at);
    if (!cells_[at].used) ++size_;
    cells_[at] = {key, value, true};
    return cells_[at].value;
  }

  bool erase(std::uint64_t key) {
    if (size_ == 0) return false;
    std::size_t at = home(key);
    for (; cells_[at].used && cells_[at].key != key; at = next(at)) {
    }
    if (!cells_[at].used) return false;
    // What follows in the same run moves into the hole unless that would put it before its home.
    for (std::size_t hole = at, probe = next(at);; probe = next(probe)) {
      if (!cells_[probe].used) {
        cells_[hole].used = false;
        break;
      }
      const std::size_t wanted = home(cells_[probe].key);
      const std::size_t mask = cells_.size() - 1;
      if (((probe - wanted) & mask) < ((probe - hole) & mask)) continue;
      cells_[hole] = cells_[probe];
      hole = probe;
    }
    --size_;
    return true;
  }

  void clear() {
    if (size_ == 0) return;
    for (auto& cell : cells_) cell.used = false;
    size_ = 0;
  }
  [[nodiscard]] std::size_t size() const { return size_; }

  template <typename Visit>
  void each(Visit visit) {
    for (auto& cell : cells_)
      if (cell.used) visit(cell.key, cell.value);
  }

 private:
  struct Cell {
    std::uint64_t key = 0;
    Value value{};
    bool used = false;
  };
  [[nodiscard]] std::size_t home(std::uint64_t key) const {
    return mix(key, seed_) & (cells_.size() - 1);
  }
  [[nodiscard]] std::size_t next(std::size_t at) const { return (at + 1) & (cells_.size() - 1); }
  void grow() {
    auto old = std::exchange(cells_, std::vector<Cell>(cells_.empty() ? 16 : cells_.size() * 2));
    size_ = 0;
    for (const auto& cell : old)
      if (cell.used) put(cell.key, cell.value);
  }

  std::uint64_t seed_;
  std::vector<Cell> cells_;  // a power of two, or empty
  std::size_t size_ = 0;
};

}  // namespace sluice::dns
