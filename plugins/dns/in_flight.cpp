#include "dns/in_flight.hpp"

#include <utility>

namespace sluice::dns {

std::uint64_t InFlight::key_of(const UpstreamQuestion& question) const {
  const auto rest = static_cast<std::uint64_t>(question.type) << 2 |
                    (question.dnssec_ok ? 2u : 0u) | (question.checking_disabled ? 1u : 0u);
  return mix(question.name.hash(seed_) + rest, seed_);
}

InFlight::Out* InFlight::find(std::uint64_t key, const UpstreamQuestion& question) {
  const auto* const index = by_key_.find(key);
  if (index == nullptr) return nullptr;
  auto& out = out_[*index];
  const bool same = out.name == question.name && out.type == question.type &&
                    out.dnssec_ok == question.dnssec_ok &&
                    out.checking_disabled == question.checking_disabled;
  return same ? &out : nullptr;
}

std::uint32_t InFlight::take() {
  std::uint32_t index;
  if (free_.empty()) {
    index = static_cast<std::uint32_t>(out_.size());
    out_.emplace_back();
  } else {
    index = free_.back();
    free_.pop_back();
  }
  out_[index].line = {};
  return index;
}

void InFlight::announce(std::uint32_t index, std::uint64_t key, const UpstreamQuestion& question,
                        const AnswerCache::Origin& origin, std::uint64_t now) {
  auto& out = out_[index];
  out.name = question.name;
  out.type = question.type;
  out.dnssec_ok = question.dnssec_ok;
  out.checking_disabled = question.checking_disabled;
  out.key = key;
  out.asked_at = now;
  out.origin = origin;
  by_key_.put(key, index);
}

InFlight::Ended InFlight::end(std::uint32_t index) {
  auto& out = out_[index];
  by_key_.erase(out.key);
  free_.push_back(index);
  return {.line = std::exchange(out.line, {}), .asked_at = out.asked_at};
}

}  // namespace sluice::dns
