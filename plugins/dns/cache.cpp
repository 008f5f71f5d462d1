#include "dns/cache.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <unordered_map>
#include <utility>

#include "dns/seed.hpp"

namespace sluice::dns {
namespace {

using sdk::AttachmentId;
using sdk::Time;

constexpr std::size_t kAllocation = 16;  // what malloc adds to a block
constexpr std::uint64_t kNobody = 0;     // holds what attachments that are gone have brought in
constexpr unsigned kAccountsAsked = 4;   // beside the inserting one, when room is needed
// In a row; then one goes even if it was asked for. Bounds the time under the lock.
constexpr unsigned kSpared = 64;

std::size_t heap_of(const CachedAnswer& answer) {
  return sizeof(answer) + answer.message.capacity() +
         answer.ttl_offsets.capacity() * sizeof(answer.ttl_offsets[0]) +
         answer.grants.capacity() * sizeof(Grant) + answer.names.bytes() + 5 * kAllocation;
}

}  // namespace

void PackedNames::add(const Name& name) {
  const Bytes wire = name.wire();
  wire_.insert(wire_.end(), wire.begin(), wire.end());
  ++count_;
}

// Followed by the name's wire form, in the same block.
struct AnswerCache::Entry {
  Entry* next = nullptr;                     // in its bucket
  Entry *older = nullptr, *newer = nullptr;  // in its account
  Account* account = nullptr;
  CachedAnswerPtr answer;
  std::uint64_t hash = 0;
  std::uint32_t cost = 0;
  std::uint16_t type = 0, record_class = 0;
  std::uint8_t name_size = 0;
  bool dnssec_ok = false, checking_disabled = false;
  bool on_trial = false;
  bool asked_for = false;  // since it was last spared

  [[nodiscard]] std::uint8_t* name() { return reinterpret_cast<std::uint8_t*>(this + 1); }

  [[nodiscard]] bool is(std::uint64_t of, const Key& key) {
    return hash == of && type == key.type && record_class == key.record_class &&
           dnssec_ok == key.dnssec_ok && checking_disabled == key.checking_disabled &&
           name_size == key.name.size() &&
           std::memcmp(name(), key.name.wire().data(), name_size) == 0;
  }

  static Entry* make(std::uint64_t hash, const Key& key) {
    const Bytes wire = key.name.wire();
    void* block = ::operator new(sizeof(Entry) + wire.size());
    auto* entry = new (block) Entry;
    entry->hash = hash;
    entry->type = key.type;
    entry->record_class = key.record_class;
    entry->dnssec_ok = key.dnssec_ok;
    entry->checking_disabled = key.checking_disabled;
    entry->name_size = static_cast<std::uint8_t>(wire.size());
    std::memcpy(entry->name(), wire.data(), wire.size());
    return entry;
  }
  static void destroy(Entry* entry) {
    entry->~Entry();
    ::operator delete(entry);
  }
};

// What one attachment brought into one part of a shard, oldest first.
struct AnswerCache::Account {
  std::uint64_t attachment = 0;
  Entry *oldest = nullptr, *newest = nullptr;
  std::size_t bytes = 0;
  std::size_t place = 0;  // in the part's ring
};

struct AnswerCache::Part {
  std::size_t limit = 0, bytes = 0, entries = 0;
  std::unordered_map<std::uint64_t, Account> accounts;  // none is empty
  std::vector<Account*> ring;
  std::size_t hand = 0;

  Account& account(std::uint64_t attachment) {
    const auto [found, is_new] = accounts.try_emplace(attachment);
    if (is_new) {
      found->second.attachment = attachment;
      found->second.place = ring.size();
      ring.push_back(&found->second);
    }
    return found->second;
  }

  void link(Entry* entry, std::uint64_t attachment) {
    Account& of = account(attachment);
    entry->account = &of;
    entry->newer = nullptr;
    entry->older = of.newest;
    (of.newest != nullptr ? of.newest->newer : of.oldest) = entry;
    of.newest = entry;
    of.bytes += entry->cost;
    bytes += entry->cost;
    ++entries;
  }

  void unlink(Entry* entry) {
    Account& of = *entry->account;
    (entry->older != nullptr ? entry->older->newer : of.oldest) = entry->newer;
    (entry->newer != nullptr ? entry->newer->older : of.newest) = entry->older;
    of.bytes -= entry->cost;
    bytes -= entry->cost;
    --entries;
    entry->account = nullptr;
    if (of.oldest != nullptr) return;
    ring[of.place] = ring.back();
    ring[of.place]->place = of.place;
    ring.pop_back();
    accounts.erase(of.attachment);
  }

  // Who gives when `inserting` needs room: whoever is gone, then the largest. Null: nobody has
  // anything.
  Account* giver(std::uint64_t inserting) {
    if (const auto gone = accounts.find(kNobody); gone != accounts.end()) return &gone->second;
    const auto own = accounts.find(inserting);
    Account* most = own == accounts.end() ? nullptr : &own->second;
    for (unsigned i = 0; i < kAccountsAsked && i < ring.size(); ++i) {
      Account* other = ring[hand++ % ring.size()];
      if (most == nullptr || other->bytes > most->bytes) most = other;
    }
    return most;
  }
};

struct AnswerCache::Shard {
  mutable std::mutex mutex;
  std::vector<Entry*> buckets = std::vector<Entry*>(64);
  Part main, trial;
  std::uint64_t hits = 0, misses = 0, evictions = 0;

  ~Shard() { clear(); }

  Part& part_of(const Entry& entry) { return entry.on_trial ? trial : main; }

  Entry** find(std::uint64_t hash, const Key& key) {
    Entry** at = &buckets[hash & (buckets.size() - 1)];
    while (*at != nullptr && !(*at)->is(hash, key)) at = &(*at)->next;
    return at;
  }

  void remove(Entry** at) {
    Entry* entry = *at;
    *at = entry->next;
    part_of(*entry).unlink(entry);
    Entry::destroy(entry);
  }
  void remove(Entry* entry) {
    Entry** at = &buckets[entry->hash & (buckets.size() - 1)];
    while (*at != entry) at = &(*at)->next;
    remove(at);
  }

  // Until `cost` more fit into the part.
  void make_room(Part& part, std::size_t cost, std::uint64_t inserting) {
    while (part.bytes + cost > part.limit) {
      Account* from = part.giver(inserting);
      if (from == nullptr) return;
      for (unsigned spared = 0; from->oldest->asked_for && spared < kSpared; ++spared) {
        Entry* entry = from->oldest;
        entry->asked_for = false;
        if (entry == from->newest) break;
        from->oldest = entry->newer;
        from->oldest->older = nullptr;
        entry->newer = nullptr;
        entry->older = from->newest;
        from->newest->newer = entry;
        from->newest = entry;
      }
      remove(from->oldest);
      ++evictions;
    }
  }

  void insert(Entry* entry) {
    if (main.entries + trial.entries >= buckets.size()) grow();
    Entry*& first = buckets[entry->hash & (buckets.size() - 1)];
    entry->next = first;
    first = entry;
  }

  void grow() {
    std::vector<Entry*> wider(buckets.size() * 2);
    for (Entry* entry : buckets)
      while (entry != nullptr) {
        Entry*& first = wider[entry->hash & (wider.size() - 1)];
        Entry* next = std::exchange(entry->next, first);
        first = entry;
        entry = next;
      }
    buckets.swap(wider);
  }

  void clear() {
    for (Entry*& bucket : buckets)
      while (bucket != nullptr) remove(&bucket);
  }
};

AnswerCache::AnswerCache(Settings settings) : settings_(settings), seed_(random_seed()) {
  const unsigned count = std::bit_ceil(std::max(1u, settings_.shards));
  shard_shift_ = 63 - static_cast<unsigned>(std::countr_zero(count));
  const double share = std::clamp(settings_.trial_share, 0.0, 1.0);
  for (unsigned i = 0; i < count; ++i) {
    auto shard = std::make_unique<Shard>();
    const std::size_t bytes = settings_.bytes / count;
    shard->trial.limit = static_cast<std::size_t>(static_cast<double>(bytes) * share);
    shard->main.limit = bytes - shard->trial.limit;
    shards_.push_back(std::move(shard));
  }
}

AnswerCache::~AnswerCache() = default;

std::uint64_t AnswerCache::hash(const Key& key) const {
  const std::uint64_t terms =
      std::uint64_t{key.type} << 32 | std::uint64_t{key.record_class} << 16 |
      std::uint64_t{key.dnssec_ok} << 1 | std::uint64_t{key.checking_disabled};
  const auto product = static_cast<unsigned __int128>(key.name.hash(seed_) ^ terms) * (seed_ | 1);
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

AnswerCache::Shard& AnswerCache::shard_of(std::uint64_t hash) const {
  return *shards_[hash >> 1 >> shard_shift_];  // twice: with one shard the shift is by all 64 bits
}

CachedAnswerPtr AnswerCache::find(const Key& key, AttachmentId asker, Time now) {
  const std::uint64_t of = hash(key);
  Shard& shard = shard_of(of);
  const std::lock_guard lock(shard.mutex);
  Entry** at = shard.find(of, key);
  Entry* entry = *at;
  if (entry == nullptr || entry->answer->expires <= now) {
    ++shard.misses;
    // An ended failure stays for its count, until it is displaced.
    if (entry != nullptr && entry->answer->kind != CachedAnswer::Kind::failure) shard.remove(at);
    return nullptr;
  }
  ++shard.hits;
  entry->asked_for = true;
  CachedAnswerPtr answer = entry->answer;
  if (entry->on_trial && entry->account->attachment != asker.value &&
      entry->cost <= shard.main.limit) {
    // Making room frees entries of the main part only, so this one stays.
    shard.trial.unlink(entry);
    entry->on_trial = false;
    shard.make_room(shard.main, entry->cost, asker.value);
    shard.main.link(entry, asker.value);
  } else if (entry->account->attachment == kNobody && asker.value != kNobody) {
    Part& part = shard.part_of(*entry);
    part.unlink(entry);
    part.link(entry, asker.value);
  }
  return answer;
}

CachedAnswerPtr AnswerCache::store(const Key& key, CachedAnswer answer, Origin origin,
                                   std::chrono::seconds ttl, Time now) {
  answer.id = next_id_.fetch_add(1, std::memory_order_relaxed);
  answer.failures = 0;
  answer.stored = now;
  const auto longest = answer.kind == CachedAnswer::Kind::positive   ? settings_.longest_positive
                       : answer.kind == CachedAnswer::Kind::negative ? settings_.longest_negative
                                                                     : settings_.longest_failure;
  ttl = std::clamp(ttl, std::chrono::seconds(0), longest);
  answer.expires = now + ttl;
  const std::uint64_t of = hash(key);
  Shard& shard = shard_of(of);
  const std::lock_guard lock(shard.mutex);
  return put(shard, of, key, std::move(answer), origin);
}

CachedAnswerPtr AnswerCache::store_failure(const Key& key, Failure why, CachedAnswer answer,
                                           Origin origin, Time now) {
  answer.id = next_id_.fetch_add(1, std::memory_order_relaxed);
  answer.kind = CachedAnswer::Kind::failure;
  answer.failures = 0;
  answer.stored = now;
  const std::uint64_t of = hash(key);
  Shard& shard = shard_of(of);
  const std::lock_guard lock(shard.mutex);
  if (const Entry* entry = *shard.find(of, key); entry != nullptr) {
    const CachedAnswer& former = *entry->answer;
    if (former.expires > now) return entry->answer;
    if (former.kind == CachedAnswer::Kind::failure &&
        now < former.expires + settings_.longest_failure)
      answer.failures = former.failures;
  }
  if (why == Failure::answer) ++answer.failures;
  const unsigned doublings = why == Failure::answer ? std::min(answer.failures - 1, 16u) : 0;
  answer.expires = now + std::min(settings_.first_failure * (std::int64_t{1} << doublings),
                                  settings_.longest_failure);
  return put(shard, of, key, std::move(answer), origin);
}

CachedAnswerPtr AnswerCache::put(Shard& shard, std::uint64_t of, const Key& key,
                                 CachedAnswer&& answer, Origin origin) {
  answer.message.shrink_to_fit();
  answer.ttl_offsets.shrink_to_fit();
  answer.grants.shrink_to_fit();
  auto kept = std::make_shared<const CachedAnswer>(std::move(answer));
  bool on_trial = origin.by_wildcard;
  if (Entry** at = shard.find(of, key); *at != nullptr) {
    on_trial = on_trial && (*at)->on_trial;  // what others ask for too stays in the main part
    shard.remove(at);
  }
  if (kept->expires <= kept->stored) return kept;
  const std::size_t cost = heap_of(*kept) + sizeof(Entry) + key.name.size() + kAllocation;
  Part& part = on_trial ? shard.trial : shard.main;
  // One answer must not push out a large part of the shard.
  if (cost > part.limit / 4) return kept;
  shard.make_room(part, cost, origin.attachment.value);
  Entry* entry = Entry::make(of, key);
  entry->answer = kept;
  entry->cost = static_cast<std::uint32_t>(cost);
  entry->on_trial = on_trial;
  shard.insert(entry);
  part.link(entry, origin.attachment.value);
  return kept;
}

void AnswerCache::erase(const Key& key) {
  const std::uint64_t of = hash(key);
  Shard& shard = shard_of(of);
  const std::lock_guard lock(shard.mutex);
  if (Entry** at = shard.find(of, key); *at != nullptr) shard.remove(at);
}

void AnswerCache::clear() {
  for (const auto& shard : shards_) {
    const std::lock_guard lock(shard->mutex);
    shard->clear();
  }
}

void AnswerCache::forget(AttachmentId attachment) {
  if (attachment.value == kNobody) return;
  for (const auto& shard : shards_) {
    const std::lock_guard lock(shard->mutex);
    for (Part* part : {&shard->main, &shard->trial})
      for (;;) {
        // Looked up each time: with its last entry the account is gone.
        const auto account = part->accounts.find(attachment.value);
        if (account == part->accounts.end()) break;
        Entry* entry = account->second.oldest;
        part->unlink(entry);
        part->link(entry, kNobody);
      }
  }
}

AnswerCache::Statistics AnswerCache::statistics() const {
  Statistics sum;
  for (const auto& shard : shards_) {
    const std::lock_guard lock(shard->mutex);
    sum.hits += shard->hits;
    sum.misses += shard->misses;
    sum.evictions += shard->evictions;
    sum.entries += shard->main.entries + shard->trial.entries;
    sum.bytes += shard->main.bytes + shard->trial.bytes;
    sum.trial_entries += shard->trial.entries;
    sum.trial_bytes += shard->trial.bytes;
  }
  return sum;
}

}  // namespace sluice::dns
