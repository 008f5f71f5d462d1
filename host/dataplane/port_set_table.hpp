// The `port_sets` map: what ports a learned address is good for. Content-addressed; index 0 is
// "every protocol and port". Entries are small and few (one per distinct `ports` list of a domain
// rule), and are never rewritten while in use. [any]
//
// Who writes an index into the kernel holds it as long as it is there. One that nobody holds stays,
// since its list mostly comes again, until half of the table is taken; then it is idle(), and free
// once the owner has waited for a grace period: a program that has read the index of an address may
// not have read the list yet.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <shared_mutex>
#include <span>
#include <utility>
#include <vector>

#include "base/result.hpp"
#include "layout.h"
#include "policy/model.hpp"

namespace sluice {

class PortSetTable {
 public:
  PortSetTable(int map, std::uint32_t entries);

  // An index, held.
  class Use {
   public:
    Use(PortSetTable& table, std::uint32_t index) : table_(&table), index_(index) {}  // takes over
    Use(Use&& other) noexcept
        : table_(std::exchange(other.table_, nullptr)), index_(other.index_) {}
    Use& operator=(Use&&) = delete;
    ~Use() {
      if (table_ != nullptr) table_->release(index_);
    }
    [[nodiscard]] std::uint32_t index() const { return index_; }

   private:
    PortSetTable* table_;
    std::uint32_t index_;
  };
  // The set. ENOSPC when the table is full, E2BIG when the set has too many spans.
  [[nodiscard]] Result<Use> use(std::span<const PortRange> ports);
  // Once more: by somebody who has it held, or before anybody has (adoption).
  void hold(std::uint32_t index);
  void release(std::uint32_t index);
  // Null: there is no such set.
  [[nodiscard]] std::optional<std::vector<PortRange>> ports_of(std::uint32_t index);

  // Sets that nobody holds, when it is time to make room. The owner takes a grace period, then
  // gives the same list to reclaim(); what was in use meanwhile is kept.
  struct Idle {
    std::uint32_t index;
    std::uint64_t uses;
  };
  [[nodiscard]] std::vector<Idle> idle();
  void reclaim(const std::vector<Idle>& sets);

 private:
  // Lists compare as spans, so that one is found without a copy of it.
  struct Less {
    using is_transparent = void;
    bool operator()(std::span<const PortRange> one, std::span<const PortRange> other) const;
  };
  struct Place {
    std::atomic<std::uint32_t> holds = 0;
    std::atomic<std::uint64_t> uses = 0;          // times that it was given out
    std::optional<std::vector<PortRange>> ports;  // null: free
  };
  [[nodiscard]] Result<Use> add(std::vector<PortRange> sorted);
  Use give_out(std::uint32_t index);

  const int map_;
  const std::uint32_t entries_;
  std::unique_ptr<Place[]> places_;
  std::shared_mutex mutex_;  // of what follows, and of the places' lists
  std::map<std::vector<PortRange>, std::uint32_t, Less> known_;
  std::uint32_t taken_ = 0;
};

}  // namespace sluice
