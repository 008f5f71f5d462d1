// Whose mark is it: read by resolvers' threads for every query, written by the core loop when an
// attachment comes, goes or gets another resolver.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <unordered_map>

#include "base/ids.hpp"

namespace sluice {

class AskerTable {
 public:
  // `resolver`: the instance that its wire sends port 53 to. Nobody else learns who it is. Empty:
  // its wire is not known yet, and whoever was asked may hold the question until it is.
  void put(std::uint32_t mark, AttachmentId id, const std::string& resolver) {
    const std::unique_lock lock(mutex_);
    entries_[mark] = {id, resolver};
  }
  void erase(std::uint32_t mark) {
    const std::unique_lock lock(mutex_);
    entries_.erase(mark);
  }
  // [any]
  [[nodiscard]] std::optional<AttachmentId> find(std::uint32_t mark,
                                                 const std::string& resolver) const {
    const std::shared_lock lock(mutex_);
    const auto entry = entries_.find(mark);
    if (entry == entries_.end() ||
        !(entry->second.resolver.empty() || entry->second.resolver == resolver))
      return std::nullopt;
    return entry->second.id;
  }

 private:
  struct Entry {
    AttachmentId id;
    std::string resolver;
  };
  mutable std::shared_mutex mutex_;
  std::unordered_map<std::uint32_t, Entry> entries_;
};

}  // namespace sluice
