// Answers, "there is none" and failures, kept until their TTL ends, shared by all attachments and
// workers.
//
//   if (auto answer = cache.find({name, type, kClassIn, dnssec_ok, checking_disabled}, asker, now))
//     ...                     // judge chain and grants by the asker's rules, push, then send
//   else                      // ask upstream, then
//     cache.store(key, std::move(answer), {asker, by_wildcard}, ttl, now);
//
// What is in the cache has been judged for nobody: each asker's rules are asked about the name
// before find() and about chain and addresses after it.
//
// A guest must not fill it so that others suffer:
//
// - What only a wildcard allows is unbounded in number and goes to a part of its own, where it
//   displaces only its like. It moves to the main part when *another* attachment asks for it.
//
// - Every entry is on the account of the attachment that brought it in. When room is needed, the
//   inserting attachment's account is compared with a few others', and the largest gives, oldest
//   first; what was asked for since it was last spared is spared. So a flooder displaces itself.
//
// Whether a name is here can be told by timing: who shares a resolver can learn that somebody
// asked.
//
// Sharded by the hash of the key, with a lock per shard. find() allocates nothing. The hash is
// seeded, so that nobody can aim at one shard or chain.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#ifndef SLUICE_SDK_QUALIFIED
#define SLUICE_SDK_QUALIFIED
#endif
#include <sluice/types.hpp>

#include "dns/answer.hpp"
#include "names/name.hpp"

namespace sluice::dns {

// Names one behind the other in wire form: 3 bytes to 255 for each instead of the 256 of a Name.
class PackedNames {
 public:
  void add(const Name& name);
  [[nodiscard]] std::size_t size() const { return count_; }
  [[nodiscard]] std::size_t bytes() const { return wire_.capacity(); }
  // Calls `each(const Name&)` in order; stops where it returns false.
  template <typename Each>
  void for_each(Each each) const {
    for (std::size_t at = 0; at < wire_.size();) {
      std::size_t size = 0;
      while (wire_[at + size] != 0) size += 1u + wire_[at + size];
      ++size;
      // What add() wrote is read: it is a name.
      if (!each(*Name::from_wire(Bytes(wire_).subspan(at, size)))) return;
      at += size;
    }
  }

 private:
  std::vector<std::uint8_t> wire_;
  std::size_t count_ = 0;
};

struct CachedAnswer {
  enum class Kind : std::uint8_t { positive, negative, failure };

  std::uint64_t id = 0;  // by the cache: names this answer for as long as the process lives
  Kind kind = Kind::positive;
  std::uint32_t failures = 0;     // failure: how many useless answers in a row
  sdk::Time stored{}, expires{};  // by the cache
  // The response as it is patched for each client; may be empty for a failure.
  std::vector<std::uint8_t> message;
  std::vector<std::uint16_t> ttl_offsets;  // into `message`
  std::vector<Grant> grants;               // unvetted
  PackedNames names;                       // what Grant::name counts in
  std::uint16_t chain = 0;                 // how many of them, from the first, are the chain
};
using CachedAnswerPtr = std::shared_ptr<const CachedAnswer>;

class AnswerCache {
 public:
  struct Settings {
    std::size_t bytes = 32 << 20;  // of everything the entries take, bookkeeping included
    unsigned shards = 16;          // rounded up to a power of two
    double trial_share = 0.25;     // of `bytes`: for what only wildcards allow
    std::chrono::seconds longest_positive{86400};
    std::chrono::seconds longest_negative{3600};  // RFC 2308 section 5 advises one to three hours
    // RFC 9520 section 3.2: at least a second, doubling, never over five minutes. What was not
    // answered at all is kept for the first of them.
    std::chrono::seconds first_failure{5};
    std::chrono::seconds longest_failure{300};
  };

  struct Key {
    const Name& name;
    std::uint16_t type = 1;
    std::uint16_t record_class = 1;
    bool dnssec_ok = false;
    bool checking_disabled = false;
  };
  struct Origin {
    sdk::AttachmentId attachment{};
    // The name is one that no rule spells out: allowed by a wildcard, a mode or a decider.
    bool by_wildcard = true;
  };

  AnswerCache() : AnswerCache(Settings{}) {}
  explicit AnswerCache(Settings settings);
  ~AnswerCache();
  AnswerCache(const AnswerCache&) = delete;
  AnswerCache& operator=(const AnswerCache&) = delete;

  // [any] Null: not here, or no longer valid.
  [[nodiscard]] CachedAnswerPtr find(const Key& key, sdk::AttachmentId asker, sdk::Time now);

  // [any] Keeps a positive or negative answer for `ttl`, cut to the longest allowed, and replaces
  // what was there. Gives back what is kept; where nothing is kept (ttl 0, too large) it is the
  // answer all the same, with an id of its own, so that the caller can go on with it.
  CachedAnswerPtr store(const Key& key, CachedAnswer answer, Origin origin,
                        std::chrono::seconds ttl, sdk::Time now);

  enum class Failure : std::uint8_t {
    answer,  // there was an answer, and it is useless: that says something about the name
    silence  // none came: that says nothing, and the names asked for meanwhile must not outlast it
  };
  // [any] Keeps a failure; a useless answer is kept twice as long as the one before in a row. A
  // valid answer that is there stays and is given back: an upstream that is down ends nothing
  // early.
  CachedAnswerPtr store_failure(const Key& key, Failure why, CachedAnswer answer, Origin origin,
                                sdk::Time now);

  // [any]
  void erase(const Key& key);
  void clear();
  // The attachment is gone. Its answers stay, go first when room is needed, and pass to whoever
  // asks for one.
  void forget(sdk::AttachmentId attachment);

  struct Statistics {
    std::uint64_t hits = 0, misses = 0, evictions = 0;
    std::size_t entries = 0, bytes = 0, trial_entries = 0, trial_bytes = 0;
  };
  [[nodiscard]] Statistics statistics() const;

 private:
  struct Entry;
  struct Account;
  struct Part;
  struct Shard;

  [[nodiscard]] std::uint64_t hash(const Key& key) const;
  [[nodiscard]] Shard& shard_of(std::uint64_t hash) const;
  CachedAnswerPtr put(Shard& shard, std::uint64_t hash, const Key& key, CachedAnswer&& answer,
                      Origin origin);

  Settings settings_;
  std::uint64_t seed_;
  unsigned shard_shift_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::atomic<std::uint64_t> next_id_{1};
};

}  // namespace sluice::dns
