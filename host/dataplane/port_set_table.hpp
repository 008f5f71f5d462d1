// The `port_sets` map: what ports a learned address is good for. Content-addressed; index 0 is
// "every protocol and port". Entries are small and few (one per distinct `ports` list of a domain
// rule), and are never rewritten while in use. [any]
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <shared_mutex>
#include <span>
#include <vector>

#include "base/result.hpp"
#include "layout.h"
#include "policy/model.hpp"

namespace sluice {

class PortSetTable {
 public:
  PortSetTable(int map, std::uint32_t entries);
  // The index of the set. ENOSPC when the table is full, E2BIG when the set has too many spans.
  [[nodiscard]] Result<std::uint32_t> index_of(std::span<const PortRange> ports);
  // The index of the union of an existing set and `ports`: an address that two rules resolve keeps
  // the ports of both.
  [[nodiscard]] Result<std::uint32_t> united(std::uint32_t index, std::span<const PortRange> ports);
  // Null: there is no such set.
  [[nodiscard]] std::optional<std::vector<PortRange>> ports_of(std::uint32_t index);

 private:
  // Lists compare as spans, so that one is found without a copy of it.
  struct Less {
    using is_transparent = void;
    bool operator()(std::span<const PortRange> one, std::span<const PortRange> other) const;
  };
  [[nodiscard]] Result<std::uint32_t> add(std::vector<PortRange> sorted);

  const int map_;
  const std::uint32_t entries_;
  std::shared_mutex mutex_;  // of what follows
  std::map<std::vector<PortRange>, std::uint32_t, Less> known_;
  std::vector<std::vector<PortRange>> sets_;
};

}  // namespace sluice
