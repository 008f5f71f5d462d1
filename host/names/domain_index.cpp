#include "names/domain_index.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <tuple>

namespace sluice::dns {
namespace {

// 64x64 -> 128 bits, folded: one multiplication mixes every bit with every other.
std::uint64_t fold(std::uint64_t a, std::uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

template <typename T>
std::uint64_t load(const std::uint8_t* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

constexpr std::uint64_t kFirst = 0xa0761d6478bd642fULL;  // odd, random
constexpr std::uint64_t kSecond = 0xe7037ed1a0b428dbULL;

// Continues the hash of a name by the next label towards the leaf, so that one pass over a name
// gives the hashes of all its suffixes. `label`: its length byte. No secret is in it: a guest that
// finds names with equal hashes gains a comparison of bytes, since what is in the table is not its
// to choose.
std::uint64_t extend(std::uint64_t hash, const std::uint8_t* label) {
  std::size_t size = *label;
  const std::uint8_t* at = label + 1;
  hash ^= size;
  for (; size > 16; size -= 16, at += 16)
    hash = fold(load<std::uint64_t>(at) ^ kFirst, load<std::uint64_t>(at + 8) ^ hash);
  std::uint64_t low, high;  // the rest, overlapping where it is no power of two
  if (size >= 8) {
    low = load<std::uint64_t>(at);
    high = load<std::uint64_t>(at + size - 8);
  } else if (size >= 4) {
    low = load<std::uint32_t>(at);
    high = load<std::uint32_t>(at + size - 4);
  } else {
    low = std::uint64_t{at[0]} << 16 | std::uint64_t{at[size / 2]} << 8 | at[size - 1];
    high = 0;
  }
  return fold(low ^ kSecond, high ^ hash ^ kFirst);
}

std::uint64_t hash_of(Bytes wire) {
  std::array<std::uint8_t, kMostLabels> starts;
  std::size_t labels = 0;
  for (std::size_t at = 0; wire[at] != 0; at += 1 + wire[at])
    starts[labels++] = static_cast<std::uint8_t>(at);
  std::uint64_t hash = kFirst;
  while (labels != 0) hash = extend(hash, &wire[starts[--labels]]);
  return hash;
}

unsigned labels_of(Bytes wire) {
  unsigned labels = 0;
  for (std::size_t at = 0; wire[at] != 0; at += 1 + wire[at]) ++labels;
  return labels;
}

constexpr std::uint64_t kTag = 0xffffffff00000000ULL;

// Position and tag come from different bits, so that neighbours in the table differ in their tags.
std::uint64_t tag_of(std::uint64_t hash) {
  return hash << 32;
}

constexpr std::size_t words(std::size_t bytes) {
  return (bytes + 3) / 4;
}

constexpr std::uint32_t kExpiring = 1u << 31;  // in a list's count of denies

}  // namespace

void DomainIndex::Builder::add(const DomainPattern& pattern, std::uint32_t rule, sdk::Action action,
                               sdk::Time expires) {
  const Bytes wire = pattern.base.wire();
  entries_.push_back({.name = static_cast<std::uint32_t>(names_.size()),
                      .name_size = static_cast<std::uint8_t>(wire.size()),
                      .reach = pattern.reach,
                      .deny = action == sdk::Action::deny,
                      .rule = rule,
                      .expires = expires});
  names_.insert(names_.end(), wire.begin(), wire.end());
}

DomainIndex DomainIndex::Builder::build() {
  DomainIndex index;
  const auto by_name = [this](const Entry& a, const Entry& b) {
    const Bytes left = name_of(a), right = name_of(b);
    if (left.size() != right.size()) return left.size() < right.size();
    const int order = std::memcmp(left.data(), right.data(), left.size());
    return order != 0 ? order < 0 : a.rule < b.rule;
  };
  std::ranges::sort(entries_, by_name);
  std::uint32_t rules = 0;
  for (const Entry& entry : entries_) rules = std::max(rules, entry.rule + 1);
  if (std::ranges::any_of(entries_, [](const Entry& entry) { return entry.expires != kNever; })) {
    index.expires_.assign(rules, kNever);
    for (const Entry& entry : entries_) index.expires_[entry.rule] = entry.expires;
  }
  std::vector<const Entry*> chosen;
  std::vector<std::uint32_t> records;
  for (std::size_t first = 0, last = 0; first < entries_.size(); first = last) {
    const Bytes name = name_of(entries_[first]);
    while (last < entries_.size() && std::ranges::equal(name_of(entries_[last]), name)) ++last;
    const auto record = static_cast<std::uint32_t>(index.records_.size());
    records.push_back(record);
    index.records_.push_back(static_cast<std::uint32_t>(name.size()));
    index.records_.resize(index.records_.size() + words(name.size()));
    std::memcpy(&index.records_[record + 1], name.data(), name.size());
    const auto add = [&](List list, auto belongs) {
      chosen.clear();
      for (std::size_t i = first; i < last; ++i)
        if (belongs(entries_[i].reach)) chosen.push_back(&entries_[i]);
      if (!chosen.empty()) index.add_list(record, list, chosen);
    };
    add(List::exact, [](Reach reach) { return reach == Reach::exact; });
    add(List::apex, [](Reach reach) { return reach == Reach::with_below; });
    add(List::under, [](Reach reach) { return reach != Reach::exact; });
    const unsigned depth = labels_of(name);
    index.depths_.set(depth);
    index.deepest_ = std::max(index.deepest_, depth);
  }
  index.build_table(records);
  index.records_.shrink_to_fit();
  *this = {};
  return index;
}

void DomainIndex::add_list(std::uint32_t record, List list,
                           std::vector<const Builder::Entry*>& entries) {
  std::ranges::stable_sort(entries, [](const Builder::Entry* a, const Builder::Entry* b) {
    return std::tuple(!a->deny, b->expires) < std::tuple(!b->deny, a->expires);
  });
  const auto denies = static_cast<std::uint32_t>(
      std::ranges::count_if(entries, [](const auto* entry) { return entry->deny; }));
  const bool expiring =
      std::ranges::any_of(entries, [](const auto* entry) { return entry->expires != kNever; });
  records_[record] |= std::uint32_t{list} << 8;
  records_.push_back(denies | (expiring ? kExpiring : 0));
  records_.push_back(static_cast<std::uint32_t>(entries.size()) - denies);
  for (const auto* entry : entries) records_.push_back(entry->rule);
}

void DomainIndex::build_table(std::span<const std::uint32_t> records) {
  if (records.empty()) return;
  const std::size_t size = std::bit_ceil(records.size() * 2);
  shift_ = 64 - static_cast<unsigned>(std::countr_zero(size));
  table_.assign(size, 0);
  for (const std::uint32_t record : records) {
    const std::uint64_t hash = hash_of(base_name(record));
    std::size_t at = hash >> shift_;
    while (table_[at] != 0) at = (at + 1) & (size - 1);
    table_[at] = tag_of(hash) | (record + 1);
  }
}

const std::uint32_t* DomainIndex::find(std::uint64_t hash, Bytes name) const noexcept {
  for (std::size_t at = hash >> shift_;; at = (at + 1) & (table_.size() - 1)) {
    const std::uint64_t slot = table_[at];
    if (slot == 0) return nullptr;
    if ((slot & kTag) != tag_of(hash)) continue;
    const std::uint32_t* record = &records_[static_cast<std::uint32_t>(slot) - 1];
    if ((record[0] & 0xff) == name.size() && std::memcmp(record + 1, name.data(), name.size()) == 0)
      return record;
  }
}

std::span<const std::uint32_t> DomainIndex::live(std::span<const std::uint32_t> rules,
                                                 sdk::Time now) const noexcept {
  const auto end =
      std::ranges::partition_point(rules, [&](std::uint32_t rule) { return expires_[rule] > now; });
  return rules.first(static_cast<std::size_t>(end - rules.begin()));
}

Match DomainIndex::read(const std::uint32_t* record, List list, sdk::Time now) const noexcept {
  const std::uint32_t present = record[0] >> 8;
  if ((present & list) == 0) return {};
  const std::uint32_t* at = record + 1 + words(record[0] & 0xff);
  for (unsigned before = 1; before < list; before <<= 1)
    if ((present & before) != 0) at += 2 + (at[0] & ~kExpiring) + at[1];
  const bool expiring = (at[0] & kExpiring) != 0;
  std::span<const std::uint32_t> denies(at + 2, at[0] & ~kExpiring);
  std::span<const std::uint32_t> allows(denies.data() + denies.size(), at[1]);
  if (expiring) {
    denies = live(denies, now);
    allows = live(allows, now);
  }
  if (denies.empty() && allows.empty()) return {};
  return {.verdict = denies.empty() ? Verdict::allow : Verdict::deny,
          .wildcard = list != List::exact,
          .base = static_cast<std::uint32_t>(record - records_.data()),
          .rules = denies.empty() ? allows : denies};
}

Match DomainIndex::match(const Name& name, sdk::Time now) const noexcept {
  if (table_.empty()) return {};
  std::array<std::uint8_t, kMostLabels> starts;
  const auto labels = static_cast<unsigned>(name.label_starts(starts));
  const Bytes wire = name.wire();
  const unsigned reach = std::min(labels, deepest_);
  std::array<std::uint64_t, kMostLabels + 1> hashes;
  hashes[0] = kFirst;
  for (unsigned depth = 1; depth <= reach; ++depth) {
    hashes[depth] = extend(hashes[depth - 1], &wire[starts[labels - depth]]);
    if (depths_[depth]) __builtin_prefetch(&table_[hashes[depth] >> shift_]);
  }
  for (unsigned depth = reach; depth != 0; --depth) {
    if (!depths_[depth]) continue;
    const std::uint32_t* record = find(hashes[depth], wire.subspan(starts[labels - depth]));
    if (record == nullptr) continue;
    if (depth != labels) {
      if (const Match found = read(record, List::under, now); found.verdict != Verdict::none)
        return found;
      continue;
    }
    for (const List list : {List::exact, List::apex})
      if (const Match found = read(record, list, now); found.verdict != Verdict::none) return found;
  }
  return {};
}

std::uint64_t DomainIndex::base_key(std::uint32_t base) const {
  return hash_of(base_name(base));
}

Bytes DomainIndex::base_name(std::uint32_t base) const {
  return {reinterpret_cast<const std::uint8_t*>(&records_[base + 1]), records_[base] & 0xff};
}

std::size_t DomainIndex::bytes() const {
  return records_.capacity() * sizeof(records_[0]) + table_.capacity() * sizeof(table_[0]) +
         expires_.capacity() * sizeof(expires_[0]);
}

}  // namespace sluice::dns
