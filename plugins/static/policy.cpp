#include "static/policy.hpp"

#include <fnmatch.h>
#include <sodium.h>

#include <algorithm>
#include <array>

namespace sluice::static_policy {
namespace {

sdk::Mode sdk_mode(Mode mode) {
  switch (mode) {
    case Mode::allowlist:
      return sdk::Mode::allowlist;
    case Mode::denylist:
      return sdk::Mode::denylist;
    case Mode::disabled:
      return sdk::Mode::disabled;
    case Mode::block_all:
      break;
  }
  return sdk::Mode::block_all;
}

void append(const Policy& policy, const RuleGroup& group, std::vector<sdk::Rule>& out) {
  sdk::Rule rule{.action = group.action == Action::allow ? sdk::Action::allow : sdk::Action::deny,
                 .name = group.name};
  // Before the boot there is no time: what ended then has ended, and must not read as "never".
  if (group.ttl)
    rule.expires =
        std::max(policy.counted_from + *group.ttl, sdk::Time(std::chrono::nanoseconds(1)));
  for (const auto& range : group.ports)
    rule.ports.push_back({range.protocol, range.any_port, range.first, range.last});
  for (const auto& prefix : group.prefixes) {
    rule.prefix = sdk::Prefix{.address = {.family = prefix.family, .bytes = prefix.address},
                              .length = prefix.length};
    out.push_back(rule);
  }
  rule.prefix.reset();
  for (const auto& range : group.addresses)
    rule.ranges.push_back(
        {.address = {.family = range.family, .bytes = range.address}, .length = range.length});
  rule.types = group.types;
  rule.public_suffix = group.public_suffix;
  for (const auto& domain : group.domains) {
    rule.domain = domain;
    out.push_back(rule);
  }
}

class Digest {
 public:
  Digest() { crypto_generichash_init(&state_, nullptr, 0, kBytes); }
  void add(std::string_view text) {
    add_number(text.size());
    add_bytes(text.data(), text.size());
  }
  void add_number(std::uint64_t number) { add_bytes(&number, sizeof number); }
  void add(const Prefix& prefix) {
    std::array<std::uint8_t, 18> bytes{};
    std::ranges::copy(prefix.address, bytes.begin());
    bytes[16] = prefix.family;
    bytes[17] = prefix.length;
    add_bytes(bytes.data(), bytes.size());
  }
  [[nodiscard]] std::string text() {
    std::array<unsigned char, kBytes> bytes{};
    crypto_generichash_final(&state_, bytes.data(), bytes.size());
    std::string out;
    for (const unsigned byte : bytes) out += fmt::format("{:02x}", byte);
    return out;
  }

 private:
  static constexpr std::size_t kBytes = 16;
  void add_bytes(const void* data, std::size_t size) {
    crypto_generichash_update(&state_, static_cast<const unsigned char*>(data), size);
  }
  crypto_generichash_state state_{};
};

}  // namespace

bool Policy::says_same(const Policy& other) const {
  return name == other.name && match == other.match && mode == other.mode && audit == other.audit &&
         replies == other.replies && groups == other.groups;
}

bool Policy::has_ttl() const {
  return std::ranges::any_of(groups, [](const RuleGroup& group) { return group.ttl.has_value(); });
}

std::size_t Policy::rule_count() const {
  std::size_t count = 0;
  for (const auto& group : groups) count += group.prefixes.size() + group.domains.size();
  return count;
}

std::string Policy::digest() const {
  constexpr std::uint64_t kUnset = 255;
  Digest digest;
  digest.add(name);
  digest.add_number(match.size());
  for (const auto& [label, glob] : match) {
    digest.add(label);
    digest.add(glob);
  }
  digest.add_number(mode ? static_cast<std::uint64_t>(*mode) : kUnset);
  digest.add_number(audit ? static_cast<std::uint64_t>(*audit) : kUnset);
  digest.add_number(replies ? static_cast<std::uint64_t>(*replies) : kUnset);
  digest.add_number(groups.size());
  for (const auto& group : groups) {
    digest.add(group.name);
    digest.add_number(static_cast<std::uint64_t>(group.action));
    digest.add_number(group.ttl ? static_cast<std::uint64_t>(group.ttl->count()) : 0);
    digest.add_number(group.ports.size());
    for (const auto& range : group.ports) digest.add(range.text());
    digest.add_number(group.domains.size());
    for (const auto& domain : group.domains) digest.add(domain);
    digest.add_number(group.prefixes.size());
    for (const auto& prefix : group.prefixes) digest.add(prefix);
    // Only where they are set: the digests of policies without them are on disk already.
    if (group.addresses.empty() && group.types.empty() && !group.public_suffix) continue;
    digest.add_number(group.addresses.size());
    for (const auto& range : group.addresses) digest.add(range);
    digest.add_number(group.types.size());
    for (const auto type : group.types) digest.add_number(type);
    digest.add_number(group.public_suffix ? 1 : 0);
  }
  return digest.text();
}

bool matches(const Policy& policy, const sdk::Labels& labels) {
  return std::ranges::all_of(policy.match, [&](const auto& wanted) {
    const auto label = labels.find(wanted.first);
    return label != labels.end() && ::fnmatch(wanted.second.c_str(), label->second.c_str(), 0) == 0;
  });
}

std::vector<PolicyPtr> select(const std::vector<PolicyPtr>& policies, const sdk::Labels& labels) {
  std::vector<PolicyPtr> out;
  for (const auto& policy : policies)
    if (matches(*policy, labels)) out.push_back(policy);
  return out;
}

sdk::Layer unite(const std::vector<PolicyPtr>& policies) {
  sdk::Layer layer;
  std::size_t count = 0;
  for (const auto& policy : policies) count += policy->rule_count();
  layer.rules.reserve(count);
  for (const auto& policy : policies) {
    if (const auto mode = policy->mode; mode && !layer.mode) layer.mode = sdk_mode(*mode);
    if (!layer.audit) layer.audit = policy->audit;
    if (!layer.replies) layer.replies = policy->replies;
    for (const auto& group : policy->groups) append(*policy, group, layer.rules);
  }
  return layer;
}

}  // namespace sluice::static_policy
