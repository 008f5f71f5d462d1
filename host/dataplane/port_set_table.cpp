#include "dataplane/port_set_table.hpp"

#include <bpf/bpf.h>

#include <algorithm>
#include <cstring>
#include <mutex>

namespace sluice {
namespace {

// Any two lists that mean the same are equal in this form.
std::vector<PortRange> normal_form(std::span<const PortRange> ports) {
  std::vector<PortRange> sorted(ports.begin(), ports.end());
  for (PortRange& range : sorted)
    if (range.any_port) range.first = 0, range.last = 65535;
  std::ranges::sort(sorted);
  sorted.erase(std::ranges::unique(sorted).begin(), sorted.end());
  return sorted;
}

}  // namespace

bool PortSetTable::Less::operator()(std::span<const PortRange> one,
                                    std::span<const PortRange> other) const {
  return std::ranges::lexicographical_compare(one, other);
}

PortSetTable::PortSetTable(int map, std::uint32_t entries)
    : map_(map), entries_(entries), places_(std::make_unique<Place[]>(entries)) {
  places_[0].ports.emplace();
  // Sets of an earlier daemon are in use by the addresses it learned.
  for (std::uint32_t index = 1; index < entries_; ++index) {
    sluice_port_set set{};
    if (bpf_map_lookup_elem(map_, &index, &set) != 0 || set.spans == 0) continue;
    std::vector<PortRange> ports;
    for (std::uint32_t i = 0; i < std::min<std::uint32_t>(set.spans, SLUICE_PORT_SET_SPANS); ++i)
      ports.push_back({set.span[i].protocol, set.span[i].any_port != 0, set.span[i].ports.first,
                       set.span[i].ports.last});
    known_[ports] = index;
    places_[index].ports = std::move(ports);
    ++taken_;
  }
}

// With the lock held, shared or not: so it is not reclaimed at this moment.
PortSetTable::Use PortSetTable::give_out(std::uint32_t index) {
  if (index != 0) {
    places_[index].uses++;
    places_[index].holds++;
  }
  return {*this, index};
}

Result<PortSetTable::Use> PortSetTable::use(std::span<const PortRange> ports) {
  if (ports.empty()) return give_out(0);
  {
    // The usual caller asks for the list of a rule again and again, as it was before.
    const std::shared_lock lock(mutex_);
    if (const auto known = known_.find(ports); known != known_.end())
      return give_out(known->second);
  }
  return add(normal_form(ports));
}

Result<PortSetTable::Use> PortSetTable::add(std::vector<PortRange> sorted) {
  const std::lock_guard lock(mutex_);
  if (const auto known = known_.find(sorted); known != known_.end()) return give_out(known->second);
  if (sorted.size() > SLUICE_PORT_SET_SPANS)
    return fail_with(E2BIG,
                     "{} port ranges on one learned address; at most {} are possible, merge some",
                     sorted.size(), SLUICE_PORT_SET_SPANS);
  std::uint32_t index = 1;
  while (index < entries_ && (places_[index].ports || places_[index].holds != 0)) ++index;
  if (index >= entries_)
    return fail_with(ENOSPC,
                     "{} distinct port lists on domain rules are in use, the most there can be",
                     entries_ - 1);
  sluice_port_set set{};
  set.spans = static_cast<std::uint32_t>(sorted.size());
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    set.span[i].protocol = sorted[i].protocol;
    set.span[i].any_port = sorted[i].any_port ? 1 : 0;
    set.span[i].ports = {sorted[i].first, sorted[i].last};
  }
  if (bpf_map_update_elem(map_, &index, &set, BPF_ANY) != 0)
    return fail_with(errno, "cannot write a port list: {}", strerror(errno));
  known_[sorted] = index;
  places_[index].ports = std::move(sorted);
  ++taken_;
  return give_out(index);
}

void PortSetTable::hold(std::uint32_t index) {
  if (index != 0 && index < entries_) places_[index].holds++;
}

void PortSetTable::release(std::uint32_t index) {
  if (index != 0 && index < entries_) places_[index].holds--;
}

std::optional<std::vector<PortRange>> PortSetTable::ports_of(std::uint32_t index) {
  const std::shared_lock lock(mutex_);
  if (index >= entries_) return std::nullopt;
  return places_[index].ports;
}

std::vector<PortSetTable::Idle> PortSetTable::idle() {
  std::vector<Idle> found;
  const std::lock_guard lock(mutex_);  // nobody is given one between the two looks at a place
  if (taken_ <= entries_ / 2) return found;
  for (std::uint32_t index = 1; index < entries_; ++index) {
    const Place& place = places_[index];
    if (place.ports && place.holds == 0) found.push_back({index, place.uses});
  }
  return found;
}

void PortSetTable::reclaim(const std::vector<Idle>& sets) {
  const std::lock_guard lock(mutex_);
  for (const auto& [index, uses] : sets) {
    Place& place = places_[index];
    if (!place.ports || place.holds != 0 || place.uses != uses) continue;
    // Of no span, for the next daemon: it matches nothing.
    const sluice_port_set none{};
    if (bpf_map_update_elem(map_, &index, &none, BPF_ANY) != 0) continue;
    if (const auto known = known_.find(*place.ports);
        known != known_.end() && known->second == index)
      known_.erase(known);
    place.ports.reset();
    --taken_;
  }
}

}  // namespace sluice
