#include "attachments/policy_cache.hpp"

#include <algorithm>
#include <string_view>
#include <unordered_set>

namespace sluice {
namespace {

thread_local const std::vector<sluice_element>* walked_elements = nullptr;
thread_local std::uint64_t walked_now = 0;
inline const union sluice_element* sluice_element_at(const struct sluice_policy*, __u32 index) {
  return index < walked_elements->size() ? &(*walked_elements)[index] : nullptr;
}
inline __u64 sluice_now() {
  return walked_now;
}
#include "policy_walk.h"

class Hasher {
 public:
  void add(std::uint64_t value) {
    state_ = (state_ ^ value) * 0x9e3779b97f4a7c15ull;
    state_ ^= state_ >> 29;
  }
  void add(std::string_view text) { add(std::hash<std::string_view>{}(text)); }
  [[nodiscard]] std::uint64_t value() const { return state_; }

 private:
  std::uint64_t state_ = 0x243f6a8885a308d3ull;
};

// What a packet can tell apart: neither the name nor the moment it ends.
std::uint64_t effect_of(const Rule& rule) {
  Hasher hasher;
  hasher.add(static_cast<std::uint64_t>(rule.action));
  hasher.add(rule.prefix->family * 256u + rule.prefix->length);
  hasher.add(std::string_view(reinterpret_cast<const char*>(rule.prefix->address.data()), 16));
  for (const auto& range : rule.ports) {
    hasher.add(static_cast<std::uint64_t>(range.protocol) << 40 |
               static_cast<std::uint64_t>(range.any_port) << 32 |
               static_cast<std::uint64_t>(range.first) << 16 | range.last);
  }
  return hasher.value();
}

std::uint64_t hash_of(const Layer& layer) {
  Hasher hasher;
  hasher.add(layer.mode ? static_cast<std::uint64_t>(*layer.mode) : 99);
  hasher.add(layer.audit ? *layer.audit : 2u);
  hasher.add(layer.replies ? *layer.replies : 2u);
  for (const auto& rule : layer.rules) {
    if (rule.prefix) hasher.add(effect_of(rule));
    hasher.add(rule.domain);
    hasher.add(rule.expires.nanoseconds);
    hasher.add(rule.name);
  }
  return hasher.value();
}

bool expired(const Rule& rule, BootTime now) {
  return !rule.expires.never() && rule.expires <= now;
}

bool ends_before(const Rule& rule, const Rule& other) {
  return !rule.expires.never() && (other.expires.never() || rule.expires < other.expires);
}

}  // namespace

LayerPtr PolicyCache::intern(Layer layer) {
  const auto hash = hash_of(layer);
  auto& bucket = layers_[hash];
  std::erase_if(bucket, [](const auto& entry) { return entry.expired(); });
  for (const auto& entry : bucket) {
    if (auto found = entry.lock(); found && found->layer == layer) return found;
  }
  auto stored = std::make_shared<StoredLayer>();
  stored->hash = hash;
  for (const auto& rule : layer.rules) {
    (rule.prefix ? stored->has_prefixes : stored->has_domains) = true;
  }
  layer.rules.shrink_to_fit();
  stored->layer = std::move(layer);
  bucket.push_back(stored);
  if (layers_.size() + images_.size() + domain_rules_.size() + openings_.size() > sweep_at_)
    sweep();
  return stored;
}

Result<ImagePtr> PolicyCache::image(std::vector<LayerUse> layers,
                                    const std::shared_ptr<const Floor>& floor, BootTime now) {
  std::vector<LayerInput> inputs;  // in the caller's order, which errors refer to
  inputs.reserve(layers.size());
  for (const auto& use : layers) inputs.push_back({&use.layer->layer, use.overrules_floor});

  auto used = layers;
  std::erase_if(used, [](const LayerUse& use) { return !use.layer->has_prefixes; });
  std::ranges::sort(used);
  ImageKey key{.layers = {}, .floor = floor.get()};
  key.layers.reserve(used.size());
  for (const auto& use : used) key.layers.emplace_back(use.layer.get(), use.overrules_floor);

  auto& entry = images_[key];
  if (auto found = entry.lock();
      found && (found->compiled.next_expiry.never() || now < found->compiled.next_expiry)) {
    return found;
  }
  auto compiled = compile(inputs, *floor, now);
  if (!compiled) {
    if (entry.expired()) images_.erase(key);
    return std::unexpected(compiled.error());
  }
  compiles_ += 1;
  auto image = std::make_shared<PolicyImage>();
  image->layers = std::move(used);
  image->floor = floor;
  image->compiled = std::move(*compiled);
  image->compiled.elements.shrink_to_fit();
  image->compiled_at = now;
  entry = image;
  return image;
}

DomainRulesPtr PolicyCache::domain_rules(std::vector<LayerPtr> layers, BootTime now) {
  static const auto none = std::make_shared<const DomainRules>();
  std::erase_if(layers, [](const LayerPtr& layer) { return !layer->has_domains; });
  if (layers.empty()) return none;
  std::vector<const StoredLayer*> key;
  for (const auto& layer : layers) key.push_back(layer.get());
  auto& entry = domain_rules_[key];
  if (auto found = entry.lock();
      found && (found->next_expiry.never() || now < found->next_expiry)) {
    return found;
  }
  auto united = std::make_shared<DomainRules>();
  std::unordered_map<std::string_view, std::vector<std::size_t>> known;
  for (const auto& layer : layers) {
    for (const auto& rule : layer->layer.rules) {
      if (rule.prefix || expired(rule, now)) continue;
      auto& same_name = known[rule.domain];
      if (std::ranges::any_of(same_name, [&](auto i) { return united->rules[i] == rule; }))
        continue;
      same_name.push_back(united->rules.size());
      const auto index = static_cast<std::uint32_t>(united->rules.size());
      auto& named = united->rules.emplace_back(rule);
      united->openings.push_back(opening(named));
      const auto [at, is_new] = united->by_id.emplace(named.id.value, index);
      if (!is_new && ends_before(united->rules[at->second], rule)) at->second = index;
      if (!rule.expires.never() &&
          (united->next_expiry.never() || rule.expires < united->next_expiry)) {
        united->next_expiry = rule.expires;
      }
    }
  }
  united->layers = std::move(layers);
  entry = united;
  return united;
}

OpeningPtr PolicyCache::opening(Rule& rule) {
  if (rule.action != Action::allow) {
    rule.id = {next_rule_id_++};
    return nullptr;
  }
  auto wanted = Opening::of(rule);
  auto& known = openings_[wanted];
  auto opening = known.opening.lock();
  if (!opening) {
    opening = std::make_shared<const Opening>(std::move(wanted));
    known = {opening, next_rule_id_++};
  }
  rule.id = {known.id};
  return opening;
}

void PolicyCache::sweep() {
  for (auto& [hash, bucket] : layers_) {
    std::erase_if(bucket, [](const auto& entry) { return entry.expired(); });
  }
  std::erase_if(layers_, [](const auto& bucket) { return bucket.second.empty(); });
  std::erase_if(images_, [](const auto& entry) { return entry.second.expired(); });
  std::erase_if(domain_rules_, [](const auto& entry) { return entry.second.expired(); });
  std::erase_if(openings_, [](const auto& entry) { return entry.second.opening.expired(); });
  sweep_at_ = 64 + 2 * (layers_.size() + images_.size() + domain_rules_.size() + openings_.size());
}

bool narrows(const PolicyImage& before, const PolicyImage& after, BootTime now) {
  if (&before == &after) return false;
  if (before.floor != after.floor) return true;
  std::vector<LayerUse> gone, fresh;
  std::ranges::set_difference(before.layers, after.layers, std::back_inserter(gone));
  std::ranges::set_difference(after.layers, before.layers, std::back_inserter(fresh));

  // Rules of layers that stayed are in force before and after; an allow may have moved to one.
  // `overrules_floor` is part of what an allow can do, so it is part of its identity.
  const auto collect = [&](const std::vector<LayerUse>& uses, Action action, BootTime at) {
    std::unordered_set<std::uint64_t> effects;
    for (const auto& use : uses) {
      for (const auto& rule : use.layer->layer.rules) {
        if (rule.prefix && rule.action == action && !expired(rule, at)) {
          effects.insert(effect_of(rule) + (use.overrules_floor ? 1 : 0));
        }
      }
    }
    return effects;
  };
  const auto within = [](const auto& inner, const auto& outer) {
    return std::ranges::all_of(inner, [&](auto effect) { return outer.contains(effect); });
  };
  const auto lost = collect(gone, Action::allow, before.compiled_at);
  if (!lost.empty() && !within(lost, collect(after.layers, Action::allow, now))) return true;
  const auto denied = collect(fresh, Action::deny, now);
  if (!denied.empty() && !within(denied, collect(before.layers, Action::deny, now))) return true;
  // The same layers compiled later: an allow that ended since then.
  if (gone.empty() && fresh.empty()) {
    return !within(collect(before.layers, Action::allow, before.compiled_at),
                   collect(after.layers, Action::allow, now));
  }
  return false;
}

bool denies(const PolicyImage& image, const std::array<std::uint8_t, 16>& address,
            std::span<const PortRange> ports, BootTime now) {
  static constexpr std::array<std::uint8_t, 12> kMapped{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  walked_elements = &image.compiled.elements;
  walked_now = now.nanoseconds;
  const auto& policy = image.compiled.descriptor;
  const bool is_ip4 = std::equal(kMapped.begin(), kMapped.end(), address.begin());
  const auto leaf = is_ip4 ? sluice_trie_lookup(&policy, &policy.ip4, address.data() + 12, 32)
                           : sluice_trie_lookup(&policy, &policy.ip6, address.data(), 128);
  const auto denied = [](std::uint32_t verdict) {
    return verdict != SLUICE_LEAF_NONE && verdict != SLUICE_LEAF_ALLOW;
  };
  if (leaf < SLUICE_LEAF_DECISION) return denied(leaf);
  static constexpr std::uint8_t kUnnamedProtocol = 255;  // reserved by IANA, so no rule is about it
  if (ports.empty()) return denied(sluice_judge_chain(&policy, leaf, kUnnamedProtocol, 0, 0));
  return std::ranges::all_of(ports, [&](const PortRange& range) {
    return denied(sluice_judge_chain(&policy, leaf, range.protocol,
                                     range.any_port ? 0 : range.first, SLUICE_PACKET_PORTS));
  });
}

}  // namespace sluice
