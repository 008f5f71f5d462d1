// Layers and compiled policies, shared by content. A thousand attachments whose sources say the
// same thing hold the same layer, the same list of domain rules and the same image, and cost one
// compile.
//
// Nothing here is kept alive by the cache: what no attachment refers to is gone.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "attachments/name_judge.hpp"
#include "attachments/opening.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"
#include "policy/compiler.hpp"
#include "policy/model.hpp"

namespace sluice {

// One distinct layer. Immutable, so equal contents mean equal pointers (see PolicyCache::intern).
struct StoredLayer {
  Layer layer;
  std::uint64_t hash = 0;
  bool has_prefixes = false, has_domains = false;
};
using LayerPtr = std::shared_ptr<const StoredLayer>;

struct LayerUse {
  LayerPtr layer;
  bool overrules_floor = false;
  auto operator<=>(const LayerUse&) const = default;
};

// A compiled policy and what it was compiled from.
struct PolicyImage {
  std::vector<LayerUse> layers;  // those with prefixes, in order of address
  std::shared_ptr<const Floor> floor;
  CompiledPolicy compiled;
  BootTime compiled_at;

  [[nodiscard]] std::array<std::uint64_t, 2> digest() const {
    return {compiled.descriptor.digest[0], compiled.descriptor.digest[1]};
  }
};
using ImagePtr = std::shared_ptr<const PolicyImage>;

// The domain rules of an attachment, united over its layers. Resolvers refer to them by Rule::id: a
// resolver's threads judge by a list while the next one is on its way to it, and an index would
// then name another rule. Rules with the same opening have the same id; no id comes back for
// another.
struct DomainRules {
  std::vector<LayerPtr> layers;
  std::vector<Rule> rules;
  // Id to index; where several rules have one id, to the one that ends last.
  std::unordered_map<std::uint32_t, std::uint32_t> by_id;
  std::vector<OpeningPtr> openings;  // beside `rules`; null: a deny
  BootTime next_expiry;

  // [any] Of these rules; made by whoever needs it first.
  [[nodiscard]] const NameJudge& judge() const {
    std::call_once(judge_once_, [this] { judge_.emplace(rules, openings); });
    return *judge_;
  }

 private:
  mutable std::once_flag judge_once_;
  mutable std::optional<const NameJudge> judge_;
};
using DomainRulesPtr = std::shared_ptr<const DomainRules>;

class PolicyCache {
 public:
  [[nodiscard]] LayerPtr intern(Layer layer);

  // The image of these layers over the floor. A policy that was compiled before one of its rules
  // expired is compiled anew; the program checks expiry itself, so the older one was never wrong.
  // An error names the rule at fault by its index in `layers[item_index]`.
  [[nodiscard]] Result<ImagePtr> image(std::vector<LayerUse> layers,
                                       const std::shared_ptr<const Floor>& floor, BootTime now);

  [[nodiscard]] DomainRulesPtr domain_rules(std::vector<LayerPtr> layers, BootTime now);

  [[nodiscard]] std::uint64_t compiles() const { return compiles_; }

 private:
  struct ImageKey {
    std::vector<std::pair<const StoredLayer*, bool>> layers;
    const Floor* floor;
    auto operator<=>(const ImageKey&) const = default;
  };
  // Of an allow rule. Sets its id.
  [[nodiscard]] OpeningPtr opening(Rule& rule);
  void sweep();

  std::unordered_map<std::uint64_t, std::vector<std::weak_ptr<const StoredLayer>>> layers_;
  // Keys hold raw pointers: a live image keeps its layers alive, and a dead one is never returned.
  std::map<ImageKey, std::weak_ptr<const PolicyImage>> images_;
  std::map<std::vector<const StoredLayer*>, std::weak_ptr<const DomainRules>> domain_rules_;
  struct KnownOpening {
    std::weak_ptr<const Opening> opening;
    std::uint32_t id = 0;
  };
  std::map<Opening, KnownOpening> openings_;
  std::uint32_t next_rule_id_ = 0;
  std::size_t sweep_at_ = 64;
  std::uint64_t compiles_ = 0;
};

// True when a packet that `before` let pass may be dropped by `after`: an allow is gone or a deny
// is new. May say true too often (an allow that another rule covered anyway), never too seldom.
[[nodiscard]] bool narrows(const PolicyImage& before, const PolicyImage& after, BootTime now);

// True when the explicit rules deny `address` (16 bytes, network order, IPv4 mapped) on all of
// `ports` (empty: for a protocol that no rule names): a learned address would open nothing.
[[nodiscard]] bool denies(const PolicyImage& image, const std::array<std::uint8_t, 16>& address,
                          std::span<const PortRange> ports, BootTime now);

}  // namespace sluice
