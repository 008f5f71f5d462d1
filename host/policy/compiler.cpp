#include "policy/compiler.hpp"

#include <algorithm>

#include "policy/decisions.hpp"
#include "policy/digest.hpp"
#include "policy/entries.hpp"
#include "policy/image.hpp"

namespace sluice {
namespace {

using namespace image;

std::unexpected<Error> at_rule(std::size_t layer, std::size_t index, const Rule& rule,
                               std::string_view what) {
  Error error;
  error.message = fmt::format("layer {}, rule {}{}: {}", layer, index,
                              rule.name.empty() ? "" : " (" + rule.name + ")", what);
  error.rule_index = static_cast<std::uint32_t>(index);
  error.item_index = static_cast<std::uint32_t>(layer);
  return std::unexpected(std::move(error));
}

// The last rule with that prefix: the one that was one too many.
std::unexpected<Error> chain_too_long(std::span<const LayerInput> layers, const Prefix& prefix,
                                      BootTime now, std::size_t max_chain) {
  for (std::size_t l = layers.size(); l-- > 0;) {
    const std::vector<Rule>& rules = layers[l].layer->rules;
    for (std::size_t r = rules.size(); r-- > 0;) {
      if (rules[r].prefix != prefix || (!rules[r].expires.never() && rules[r].expires <= now))
        continue;
      auto failure = at_rule(
          l, r, rules[r],
          fmt::format("more than {} port or expiry decisions would apply to {}, counting the "
                      "prefixes around it; join its port ranges, give its rules one expiry, or "
                      "leave out ports",
                      max_chain, prefix.text()));
      failure.error().code = E2BIG;
      return failure;
    }
  }
  return fail_with(E2BIG, "more than {} port or expiry decisions would apply to {}", max_chain,
                   prefix.text());
}

}  // namespace

Result<CompiledPolicy> compile(std::span<const LayerInput> layers, const Floor& floor, BootTime now,
                               const CompileLimits& limits) {
  CompiledPolicy policy;
  std::vector<Entry4> entries4;
  std::vector<Entry6> entries6;
  ShapeIds shapes;

  std::size_t count4 = 0, count6 = 0;
  for (const LayerInput& input : layers)
    for (const Rule& rule : input.layer->rules)
      if (rule.prefix) ++(rule.prefix->family == 4 ? count4 : count6);
  entries4.reserve(count4 + floor.deny.size());
  entries6.reserve(count6 + floor.deny.size());

  const auto add = [&](const Prefix& prefix, std::uint32_t shape) {
    if (prefix.family == 4)
      entries4.push_back(Entry4::make(prefix, shape));
    else
      entries6.push_back(Entry6::make(prefix, shape));
  };
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const std::vector<Rule>& rules = layers[l].layer->rules;
    for (std::size_t r = 0; r < rules.size(); ++r) {
      const Rule& rule = rules[r];
      if (!rule.prefix) continue;
      if (auto valid = rule.prefix->check(); !valid)
        return at_rule(l, r, rule, valid.error().message);
      for (const PortRange& range : rule.ports)
        if (auto valid = range.check(); !valid) return at_rule(l, r, rule, valid.error().message);
      if (!rule.expires.never()) {
        if (rule.expires <= now) continue;
        if (policy.next_expiry.never() || rule.expires < policy.next_expiry)
          policy.next_expiry = rule.expires;
      }
      const std::uint32_t shape = shapes.of(rule, layers[l].overrules_floor);
      if (shape >= kMaxShapes)
        return at_rule(l, r, rule,
                       "too many different port sets and expiries in one policy; give rules that "
                       "were made together one expiry");
      add(*rule.prefix, shape);
    }
  }
  for (const Prefix& prefix : floor.deny) {
    if (auto valid = prefix.check(); !valid) return fail("floor: {}", valid.error().message);
    add(prefix, kShapeFloor);
  }
  sort_entries(entries4);
  sort_entries(entries6);

  try {
    CompileLimits bounded = limits;
    bounded.max_chain = std::min<std::size_t>(bounded.max_chain, SLUICE_MAX_CHAIN);
    Image image(shapes.take(), bounded, policy.elements);
    policy.descriptor.ip4 = image.build_trie(entries4);
    policy.descriptor.ip6 = image.build_trie(entries6);
  } catch (const ChainTooLong& fault) {
    return chain_too_long(layers, fault.prefix, now,
                          std::min<std::size_t>(limits.max_chain, SLUICE_MAX_CHAIN));
  } catch (const ImageTooLarge&) {
    return fail_with(
        ENOSPC,
        "a policy of {} prefixes needs more than {} elements of {} bytes; split it over "
        "attachments or join prefixes",
        entries4.size() + entries6.size(), limits.max_elements, sizeof(sluice_element));
  }
  policy.descriptor.elements = static_cast<std::uint32_t>(policy.elements.size());
  const auto digest = policy_digest(policy);
  policy.descriptor.digest[0] = digest[0];
  policy.descriptor.digest[1] = digest[1];
  return policy;
}

}  // namespace sluice
