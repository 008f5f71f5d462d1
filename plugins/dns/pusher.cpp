#include "dns/pusher.hpp"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <iterator>

namespace sluice::dns {
namespace {

// A push names one denied address and is tried again without it. An answer with more of them is a
// guest's own doing, and each try looks at all that is left.
constexpr unsigned kMostTries = 16;

void sort_once_each(std::vector<sdk::Address>& addresses) {
  std::ranges::sort(addresses);
  const auto twice = std::ranges::unique(addresses);
  addresses.erase(twice.begin(), twice.end());
}

}  // namespace

void Pusher::begin() {
  granted_.clear();
  refused_.clear();
}

Reserved Pusher::offer(const Asked& asked, const Ruling& ruling, const sdk::Address& address) {
  const auto& own = *own_.get();
  Reserved verdict = Reserved::ordinary;
  if (ruling.kind == Ruling::decided) {
    verdict = vet(address, asked.decision->ranges, own);
  } else {
    for (const auto number : ruling.match.rules) {
      verdict = vet(address, asked.tenant.state.rules->rule(number).ranges, own);
      if (verdict == Reserved::ordinary) break;
    }
  }
  (verdict == Reserved::ordinary ? granted_ : refused_).push_back(address);
  return verdict;
}

int Pusher::push(Asked& asked, const Ruling& ruling, const CachedAnswer* answer,
                 std::chrono::nanoseconds ttl, std::chrono::nanoseconds live_flows) {
  const auto began = host_.boot_now();
  if (granted_.size() > 1) sort_once_each(granted_);
  collect_batches(asked, ruling, ttl, live_flows);
  collect_names(asked, answer);
  const auto result = learn_batches(asked.attachment());
  asked.push_ns = host_.boot_now() - began;
  if (result.error != 0) return result.error;
  keep_what_was_taken();
  return 0;
}

std::span<const sdk::Address> Pusher::sorted_refused() {
  std::ranges::sort(refused_);
  return refused_;
}

// Which of the granted addresses each rule that decided may open.
void Pusher::collect_batches(const Asked& asked, const Ruling& ruling, std::chrono::nanoseconds ttl,
                             std::chrono::nanoseconds live_flows) {
  batch_count_ = 0;
  const auto add = [&](std::uint32_t rule) -> Batch& {
    if (batches_.size() == batch_count_) batches_.emplace_back();
    auto& batch = batches_[batch_count_++];
    batch.grant = {.rule = rule, .ttl = ttl, .grace = live_flows};
    batch.addresses.clear();
    return batch;
  };
  if (ruling.kind == Ruling::decided) {
    auto& batch = add(SLUICE_NO_RULE);
    batch.grant.ports = asked.decision->ports;
    batch.addresses = granted_;
    return;
  }
  const auto& state = asked.tenant.state;
  for (const auto number : ruling.match.rules) {
    auto& batch = add((*state.ids)[number]);
    const auto& ranges = state.rules->rule(number).ranges;
    std::ranges::copy_if(granted_, std::back_inserter(batch.addresses), [&](const auto& address) {
      return vet(address, ranges, *own_.get()) == Reserved::ordinary;
    });
  }
}

void Pusher::collect_names(const Asked& asked, const CachedAnswer* answer) {
  name_texts_.clear();
  std::array<std::size_t, 1 + kMostLinks + kMostTargets> ends;
  std::size_t count = 0;
  const auto add = [&](const Name& name) {
    name_texts_ += name.text().view();
    ends[count++] = name_texts_.size();
    return count < ends.size();
  };
  if (answer == nullptr || answer->names.size() == 0)
    add(asked.question().name);
  else
    answer->names.for_each(add);
  names_.clear();
  for (std::size_t i = 0, begin = 0; i < count; begin = ends[i++])
    names_.push_back(std::string_view(name_texts_).substr(begin, ends[i] - begin));
}

// One push of all batches; again without what explicit denies forbid, until it is taken or refused
// whole.
LearnResult Pusher::learn_batches(std::uint64_t attachment) {
  looked_at_ = 0;
  for (unsigned tries = 0;; ++tries) {
    if (tries == kMostTries)
      for (auto& batch : batches()) batch.addresses.clear();
    pushed_.clear();
    std::size_t count = 0;
    for (auto& batch : batches()) {
      if (batch.addresses.empty()) continue;
      batch.grant.addresses = batch.addresses;
      pushed_.push_back(batch.grant);
      count += batch.addresses.size();
    }
    if (pushed_.empty()) return {};
    looked_at_ += count;
    const auto result = host_.learn(attachment, names_, pushed_);
    if (result.error != EACCES || result.address >= count) return result;
    std::size_t at = result.address;
    for (auto& batch : batches()) {
      if (at < batch.addresses.size()) {
        batch.addresses.erase(batch.addresses.begin() + static_cast<std::ptrdiff_t>(at));
        break;
      }
      at -= batch.addresses.size();
    }
  }
}

void Pusher::keep_what_was_taken() {
  if (batch_count_ == 1 && batches_[0].addresses.size() == granted_.size()) return;
  std::vector<sdk::Address> taken;
  for (const auto& batch : batches())
    taken.insert(taken.end(), batch.addresses.begin(), batch.addresses.end());
  sort_once_each(taken);
  std::ranges::set_difference(granted_, taken, std::back_inserter(refused_));
  granted_.swap(taken);
}

}  // namespace sluice::dns
