// The domain rules of all attachments: equal rules exist once, however many attachments have them,
// and workers read them without a lock.
//
//   RuleBook book;
//   auto outcome = book.assign(id, rules);          // strand, from Resolver::domain_rules
//   for (const auto& text : outcome.complaints) log(LogLevel::warning, text);
//
//   RuleBook::Reader reader(book);                  // one per worker
//   if (const RuleSet* set = reader.get(id)) ... set->match(name, now) ...
//
// A rule that cannot be read (no name, not ASCII, an address, over 253 bytes, an allow that covers
// a public suffix without saying so) is without effect and reported as text, once. It keeps its
// number, and no other rule becomes wider for it.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "dns/published.hpp"
#include "names/domain_index.hpp"

namespace sluice::dns {

// RR types that every allow rule lets through.
[[nodiscard]] constexpr bool is_default_type(std::uint16_t type) {
  return type == 1 || type == 28 || type == 64 || type == 65;  // A, AAAA, SVCB, HTTPS
}

// What Resolver::domain_rules brought, in the same order: a rule's number is its place in that
// list. The ids by which learn() knows the rules are the attachment's own, and no part of this.
// Immutable.
class RuleSet {
 public:
  explicit RuleSet(std::span<const sdk::Rule> rules);
  RuleSet(const RuleSet&) = delete;
  RuleSet& operator=(const RuleSet&) = delete;

  // Allocates nothing. A deny rule denies the whole name, whatever its ports: which ports of an
  // address a name may not use cannot be told apart from those that another name of the same
  // address may.
  [[nodiscard]] Match match(const Name& name, sdk::Time now) const noexcept {
    return index_.match(name, now);
  }
  // Whether one of the rules that decided lets this RR type through.
  [[nodiscard]] bool allows_type(const Match& match, std::uint16_t type) const;

  // What the rule says. Rules that differ by their domain alone share this: `domain` is empty in
  // it.
  [[nodiscard]] const sdk::Rule& rule(std::uint32_t number) const {
    return groups_[entries_[number].group];
  }
  // The rule's domain as it came.
  [[nodiscard]] std::string_view pattern(std::uint32_t number) const {
    return {patterns_.data() + entries_[number].pattern, entries_[number].pattern_size};
  }
  // Names the pattern that decided, for what is counted per wildcard: the same in every set, so
  // that counts survive a change of rules.
  [[nodiscard]] std::uint64_t base_key(const Match& match) const {
    return index_.base_key(match.base);
  }

  [[nodiscard]] std::size_t size() const { return entries_.size(); }
  [[nodiscard]] std::uint64_t hash() const { return hash_; }
  // Rules without effect, and why; at most kMostComplaints and how many more there are.
  static constexpr std::size_t kMostComplaints = 20;
  [[nodiscard]] const std::vector<std::string>& complaints() const { return complaints_; }
  // Whether it was made of rules equal to these.
  [[nodiscard]] bool says(std::span<const sdk::Rule> rules) const;
  // Heap held, in bytes, about.
  [[nodiscard]] std::size_t bytes() const;

  [[nodiscard]] static std::uint64_t hash_of(std::span<const sdk::Rule> rules);

 private:
  struct Entry {
    std::uint32_t pattern = 0;  // offset into patterns_
    std::uint32_t pattern_size = 0;
    std::uint32_t group = 0;
  };
  void read(const sdk::Rule& rule, std::uint32_t number, DomainIndex::Builder& builder);
  void complain(const sdk::Rule& rule, std::string_view what);

  std::vector<sdk::Rule> groups_;  // distinct but for the domain
  std::vector<Entry> entries_;
  std::string patterns_;
  DomainIndex index_;
  std::vector<std::string> complaints_;
  std::size_t complaint_count_ = 0;
  std::uint64_t hash_ = 0;
};

using RuleSetPtr = std::shared_ptr<const RuleSet>;

class RuleBook {
 private:
  struct Page {
    Published<RuleSet> rules;
    std::atomic<bool> gone{false};
  };
  using PagePtr = std::shared_ptr<Page>;

 public:
  struct Outcome {
    RuleSetPtr rules;
    // False: equal to what the attachment had. Then nothing learned under it needs to be looked at.
    bool changed = false;
    // Not reported before by this book.
    std::vector<std::string> complaints;
  };
  // [any] The rules of this attachment from now on; readers see them with their next get().
  Outcome assign(sdk::AttachmentId id, std::span<const sdk::Rule> rules);
  // [any] As if it had never had any.
  void remove(sdk::AttachmentId id);

  // [any] What was assigned last, or null.
  [[nodiscard]] RuleSetPtr rules(sdk::AttachmentId id) const;

  struct Size {
    std::size_t attachments = 0, sets = 0, bytes = 0;
  };
  [[nodiscard]] Size size() const;

  // One per thread. A get() is a look into a table of its own and an atomic load.
  class Reader {
   public:
    explicit Reader(const RuleBook& book) : book_(&book) {}

    // The attachment's rules as of now; null: it has none yet, which allows nothing in an
    // allowlist. Valid until the next get() for the same attachment or sweep().
    [[nodiscard]] const RuleSet* get(sdk::AttachmentId id);
    // Keeps it beyond that.
    [[nodiscard]] RuleSetPtr share(sdk::AttachmentId id);
    // Lets go of attachments that are gone and of sets that were replaced; now and then, when idle.
    void sweep();

   private:
    struct Seen {
      PagePtr page;
      Published<RuleSet>::Reader reader;
    };
    [[nodiscard]] Seen* find(sdk::AttachmentId id);

    const RuleBook* book_;
    std::unordered_map<std::uint64_t, Seen> seen_;
  };

 private:
  [[nodiscard]] PagePtr page(sdk::AttachmentId id) const;
  [[nodiscard]] RuleSetPtr share_or_make(std::span<const sdk::Rule> rules);
  void forget_unused();

  mutable std::mutex mutex_;
  std::unordered_map<std::uint64_t, PagePtr> pages_;
  std::unordered_multimap<std::uint64_t, std::weak_ptr<const RuleSet>> sets_;  // by hash
  std::size_t forget_at_ = 64;
  std::unordered_set<std::uint64_t> complained_;  // hashes of texts
};

}  // namespace sluice::dns
