#include "dns/decisions.hpp"

#include <chrono>
#include <string>
#include <utility>

#include "dns/flat_map.hpp"
#include "dns/upstream.hpp"

namespace sluice::dns {
namespace {

using std::chrono::nanoseconds;

constexpr std::chrono::seconds kNoDecider{1};    // how long "this wire has none" is believed
constexpr std::uint64_t kOverdue = 500'000'000;  // ns past its deadline, a decision will not come
constexpr std::size_t kMostDecisions = 4096;     // kept of one attachment

}  // namespace

std::uint64_t Decisions::key_of(const Name& name, std::uint16_t type) const {
  return mix(name.hash(seed_) + type, seed_);
}

DecisionPtr Decisions::kept(const Tenant& tenant, const Question& question, sdk::Time now) const {
  const auto found = tenant.decisions.find(key_of(question.name, question.type));
  if (found == tenant.decisions.end()) return nullptr;
  const auto& kept = found->second;
  const bool stands = kept.until > now && kept.type == question.type && kept.name == question.name;
  return stands ? kept.decision : nullptr;
}

Decisions::Asking Decisions::ask(const Asked& asked, std::uint64_t deadline, const Moment& now) {
  const auto& question = asked.question();
  const auto attachment = asked.attachment();
  const std::uint64_t key = mix(key_of(question.name, question.type), attachment);
  if (const auto before = by_key_.find(key); before != by_key_.end()) {
    auto& open = open_.at(before->second);
    if (open.stamp == asked.tenant.state.pushes.stamp && open.attachment == attachment &&
        open.type == question.type && open.name == question.name)
      return {.result = AskResult::asked, .line = &open.line};
  }
  const std::uint64_t id =
      static_cast<std::uint64_t>(worker_) << 56 | (next_query_++ & ((1ULL << 56) - 1));
  const auto text = question.name.text();
  const auto until = now.boot + nanoseconds(deadline);
  const auto result = host_.ask({.id = id,
                                 .attachment = {attachment},
                                 .name = std::string(text.view()),
                                 .type = question.type},
                                static_cast<std::uint64_t>(until.time_since_epoch().count()));
  if (result == AskResult::no_decider) asked.tenant.no_decider_until = now.boot + kNoDecider;
  if (result != AskResult::asked) return {.result = result};
  auto& open = open_[id];
  open.attachment = attachment;
  open.key = key;
  open.name = question.name;
  open.type = question.type;
  open.stamp = asked.tenant.state.pushes.stamp;
  open.asked_at = now.monotonic;
  by_key_[key] = id;
  timers_.add({.due = now.monotonic + deadline + kOverdue,
               .kind = static_cast<std::uint32_t>(TimerKind::decision),
               .index = 0,
               .generation = id});
  return {.result = AskResult::asked, .line = &open.line};
}

std::optional<Decisions::Open> Decisions::close(std::uint64_t query_id) {
  const auto found = open_.find(query_id);
  if (found == open_.end()) return std::nullopt;
  std::optional<Open> open = std::move(found->second);
  open_.erase(found);
  if (const auto by_key = by_key_.find(open->key);
      by_key != by_key_.end() && by_key->second == query_id)
    by_key_.erase(by_key);
  return open;
}

void Decisions::keep(Tenant& tenant, const Open& open, const DecisionPtr& decision,
                     sdk::Time now) const {
  if (decision->ttl <= nanoseconds::zero()) return;
  if (tenant.decisions.size() >= kMostDecisions) tenant.decisions.clear();
  tenant.decisions.insert_or_assign(key_of(open.name, open.type),
                                    KeptDecision{.name = open.name,
                                                 .type = open.type,
                                                 .until = now + decision->ttl,
                                                 .decision = decision});
}

}  // namespace sluice::dns
