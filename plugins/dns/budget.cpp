#include "dns/budget.hpp"

#include <algorithm>
#include <bit>
#include <vector>

#include "dns/seed.hpp"

namespace sluice::dns {
namespace {

using sdk::Time;

constexpr std::uint32_t kMostNames = 65000;  // places are numbered in 16 bits

}  // namespace

std::string_view describe(Cap cap) {
  switch (cap) {
    case Cap::none:
      return "within its budget";
    case Cap::in_flight:
      return "too many queries at once";
    case Cap::rate:
      return "too many queries per second";
    case Cap::connections:
      return "too many TCP connections";
    case Cap::upstream_rate:
      return "too many questions to upstream servers per second";
    case Cap::wildcard_names:
      return "too many different names under one wildcard";
    case Cap::names:
      return "too many different names under wildcards";
  }
  return "over a budget";
}

std::string_view name_of(Cap cap) {
  switch (cap) {
    case Cap::none:
      return "none";
    case Cap::in_flight:
      return "in_flight";
    case Cap::rate:
      return "rate";
    case Cap::connections:
      return "connections";
    case Cap::upstream_rate:
      return "upstream_rate";
    case Cap::wildcard_names:
      return "wildcard_names";
    case Cap::names:
      return "names";
  }
  return "unknown";
}

// A rate of 0 is one that never refills: after the burst nothing passes.
RateLimit::RateLimit(std::uint32_t per_second, std::uint32_t burst)
    : interval_(per_second == 0 ? 0 : 1'000'000'000 / std::int64_t{per_second}),
      tolerance_(interval_ * (std::int64_t{std::max(burst, 1u)} - 1)) {}

bool RateLimit::take(Time now) {
  if (interval_ == 0) return false;
  const std::int64_t at = now.time_since_epoch().count();
  std::int64_t full_at = full_at_.load(std::memory_order_relaxed);
  for (;;) {
    const std::int64_t from = std::max(full_at, at);
    if (from - at > tolerance_) return false;
    if (full_at_.compare_exchange_weak(full_at, from + interval_, std::memory_order_relaxed))
      return true;
  }
}

void RateLimit::spend(std::uint64_t count, Time now) {
  const std::int64_t at = now.time_since_epoch().count(), most = at + 2 * tolerance_;
  const auto cost =
      static_cast<std::int64_t>(std::min<std::uint64_t>(count, 1'000'000)) * interval_;
  std::int64_t full_at = full_at_.load(std::memory_order_relaxed);
  for (;;) {
    const std::int64_t from = std::max(full_at, at);
    const std::int64_t then = std::max(from, std::min(from + cost, most));
    if (full_at_.compare_exchange_weak(full_at, then, std::memory_order_relaxed)) return;
  }
}

// The names counted, each once, oldest first in a ring; a table of places in the ring finds them by
// hash. 64 bits of a hash whose seed the guest does not know stand for {wildcard, name}: to be
// counted as one, two names must collide, and nobody can look for such a pair.
class AttachmentBudget::Names {
 public:
  Cap ask(std::uint64_t base, std::uint64_t name, Time now, const BudgetOptions& options) {
    drop(now - options.window);
    if (find(name) != kNone) return Cap::none;
    const auto counted = counts_.find(base);
    if (options.names_per_wildcard == 0 ||
        (counted != counts_.end() && counted->second >= options.names_per_wildcard))
      return Cap::wildcard_names;
    if (size_ >= std::min(options.names, kMostNames)) return Cap::names;
    if (size_ == ring_.size()) grow();
    const std::size_t place = (first_ + size_++) & (ring_.size() - 1);
    ring_[place] = {name, base, now};
    enter(static_cast<std::uint32_t>(place));
    ++counts_[base];
    return Cap::none;
  }

  // Forgets those first asked for at `until` or before.
  void drop(Time until) {
    while (size_ != 0 && ring_[first_].since <= until) {
      leave(ring_[first_].name);
      const auto counted = counts_.find(ring_[first_].base);
      if (--counted->second == 0) counts_.erase(counted);
      first_ = (first_ + 1) & (ring_.size() - 1);
      --size_;
    }
  }

  [[nodiscard]] bool empty() const { return size_ == 0; }
  [[nodiscard]] std::size_t bytes() const {
    constexpr std::size_t kNode = 48;  // of an unordered_map, and its bucket
    return sizeof(*this) + ring_.capacity() * sizeof(Counted) +
           table_.capacity() * sizeof(table_[0]) + counts_.size() * kNode;
  }

 private:
  struct Counted {
    std::uint64_t name = 0, base = 0;
    Time since{};
  };
  static constexpr std::uint32_t kNone = UINT32_MAX;
  static constexpr std::uint32_t kFree = UINT32_MAX;  // no place: a ring may have 65,536

  [[nodiscard]] std::size_t home(std::uint64_t name) const { return name & (table_.size() - 1); }

  // Position in the table.
  [[nodiscard]] std::uint32_t find(std::uint64_t name) const {
    if (table_.empty()) return kNone;
    for (std::size_t at = home(name); table_[at] != kFree; at = (at + 1) & (table_.size() - 1))
      if (ring_[table_[at]].name == name) return static_cast<std::uint32_t>(at);
    return kNone;
  }

  void enter(std::uint32_t place) {
    std::size_t at = home(ring_[place].name);
    while (table_[at] != kFree) at = (at + 1) & (table_.size() - 1);
    table_[at] = place;
  }

  // Linear probing without tombstones: what follows moves into the gap if it may stand there.
  void leave(std::uint64_t name) {
    const std::size_t mask = table_.size() - 1;
    std::size_t gap = find(name);
    for (std::size_t at = (gap + 1) & mask; table_[at] != kFree; at = (at + 1) & mask) {
      if (((at - home(ring_[table_[at]].name)) & mask) < ((at - gap) & mask)) continue;
      table_[gap] = table_[at];
      gap = at;
    }
    table_[gap] = kFree;
  }

  void grow() {
    std::vector<Counted> wider(std::max<std::size_t>(16, ring_.size() * 2));
    for (std::size_t i = 0; i < size_; ++i) wider[i] = ring_[(first_ + i) & (ring_.size() - 1)];
    ring_.swap(wider);
    first_ = 0;
    table_.assign(ring_.size() * 2, kFree);
    for (std::size_t i = 0; i < size_; ++i) enter(static_cast<std::uint32_t>(i));
  }

  std::vector<Counted> ring_;  // a power of two, like the table
  std::size_t first_ = 0, size_ = 0;
  std::vector<std::uint32_t> table_;
  std::unordered_map<std::uint64_t, std::uint32_t> counts_;  // by wildcard; none is 0
};

AttachmentBudget::AttachmentBudget(std::shared_ptr<const BudgetOptions> options, std::uint64_t seed)
    : options_(std::move(options)),
      seed_(seed),
      queries_(options_->rate, options_->burst),
      questions_(options_->upstream_rate, options_->upstream_burst) {}

AttachmentBudget::~AttachmentBudget() = default;

Cap AttachmentBudget::refuse(Cap cap) {
  refused_[static_cast<std::size_t>(cap)].fetch_add(1, std::memory_order_relaxed);
  return cap;
}

AttachmentBudget::Place AttachmentBudget::enter(std::atomic<std::uint32_t>& count,
                                                std::uint32_t most, Cap cap) {
  if (count.fetch_add(1, std::memory_order_relaxed) >= most) {
    count.fetch_sub(1, std::memory_order_relaxed);
    return Place(refuse(cap));
  }
  return Place(std::shared_ptr<std::atomic<std::uint32_t>>(shared_from_this(), &count));
}

AttachmentBudget::Place AttachmentBudget::admit(Time now) {
  // The rate first: what is refused for its number is read, answered and reported, so a guest whose
  // queries all wait would otherwise have the worker do that as fast as it can ask.
  if (!queries_.take(now)) return Place(refuse(Cap::rate));
  return enter(in_flight_, options_->in_flight, Cap::in_flight);
}

AttachmentBudget::Place AttachmentBudget::connect() {
  return enter(connections_, options_->connections, Cap::connections);
}

Cap AttachmentBudget::ask_upstream(Time now) {
  return questions_.take(now) ? Cap::none : refuse(Cap::upstream_rate);
}

Cap AttachmentBudget::ask_name(std::uint64_t base, const Name& name, Time now) {
  const std::uint64_t hash = name.hash(seed_ ^ base);
  const std::lock_guard lock(names_mutex_);
  if (!names_) names_ = std::make_unique<Names>();
  const Cap cap = names_->ask(base, hash, now, *options_);
  return cap == Cap::none ? cap : refuse(cap);
}

void AttachmentBudget::sweep(Time now) {
  const std::lock_guard lock(names_mutex_);
  if (!names_) return;
  names_->drop(now - options_->window);
  if (names_->empty()) names_.reset();
}

std::size_t AttachmentBudget::bytes() const {
  const std::lock_guard lock(names_mutex_);
  return sizeof(*this) + (names_ ? names_->bytes() : 0);
}

Budgets::Budgets(const BudgetOptions& options)
    : options_(std::make_shared<const BudgetOptions>(options)), seed_(random_seed()) {}

std::shared_ptr<AttachmentBudget> Budgets::of(sdk::AttachmentId attachment) {
  const std::lock_guard lock(mutex_);
  auto& budget = all_[attachment.value];
  if (!budget) budget = std::make_shared<AttachmentBudget>(options_, seed_);
  return budget;
}

void Budgets::forget(sdk::AttachmentId attachment) {
  const std::lock_guard lock(mutex_);
  all_.erase(attachment.value);
}

void Budgets::sweep(Time now) {
  std::vector<std::shared_ptr<AttachmentBudget>> all;
  {
    const std::lock_guard lock(mutex_);
    all.reserve(all_.size());
    for (const auto& [id, budget] : all_) all.push_back(budget);
  }
  for (const auto& budget : all) budget->sweep(now);
}

Budgets::Size Budgets::size() const {
  const std::lock_guard lock(mutex_);
  Size size{.attachments = all_.size()};
  for (const auto& [id, budget] : all_) size.bytes += budget->bytes() + 64;
  return size;
}

}  // namespace sluice::dns
