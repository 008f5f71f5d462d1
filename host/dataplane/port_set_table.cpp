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

PortSetTable::PortSetTable(int map, std::uint32_t entries) : map_(map), entries_(entries) {
  sets_.emplace_back();  // index 0
  // Sets of an earlier daemon are in use by the addresses it learned.
  for (std::uint32_t index = 1; index < entries_; ++index) {
    sluice_port_set set{};
    if (bpf_map_lookup_elem(map_, &index, &set) != 0 || set.spans == 0) break;
    std::vector<PortRange> ports;
    for (std::uint32_t i = 0; i < std::min<std::uint32_t>(set.spans, SLUICE_PORT_SET_SPANS); ++i)
      ports.push_back({set.span[i].protocol, set.span[i].any_port != 0, set.span[i].ports.first,
                       set.span[i].ports.last});
    known_[ports] = index;
    sets_.push_back(std::move(ports));
  }
}

Result<std::uint32_t> PortSetTable::index_of(std::span<const PortRange> ports) {
  if (ports.empty()) return 0u;
  {
    // The usual caller asks for the list of a rule again and again, as it was before.
    const std::shared_lock lock(mutex_);
    if (const auto known = known_.find(ports); known != known_.end()) return known->second;
  }
  return add(normal_form(ports));
}

Result<std::uint32_t> PortSetTable::add(std::vector<PortRange> sorted) {
  const std::lock_guard lock(mutex_);
  if (const auto known = known_.find(sorted); known != known_.end()) return known->second;
  if (sorted.size() > SLUICE_PORT_SET_SPANS)
    return fail_with(E2BIG,
                     "{} port ranges on one learned address; at most {} are possible, merge some",
                     sorted.size(), SLUICE_PORT_SET_SPANS);
  const auto index = static_cast<std::uint32_t>(sets_.size());
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
  sets_.push_back(std::move(sorted));
  return index;
}

Result<std::uint32_t> PortSetTable::united(std::uint32_t index, std::span<const PortRange> ports) {
  if (index == 0 || ports.empty()) return 0u;
  std::vector<PortRange> all;
  {
    const std::shared_lock lock(mutex_);
    if (index < sets_.size()) all = sets_[index];
  }
  all.insert(all.end(), ports.begin(), ports.end());
  return index_of(all);
}

std::optional<std::vector<PortRange>> PortSetTable::ports_of(std::uint32_t index) {
  const std::shared_lock lock(mutex_);
  if (index >= sets_.size()) return std::nullopt;
  return sets_[index];
}

}  // namespace sluice
