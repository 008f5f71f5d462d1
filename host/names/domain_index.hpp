// Which rule speaks of a name: an immutable index over the domain patterns of one set of rules.
//
//   DomainIndex::Builder builder;
//   builder.add(*DomainPattern::parse("*.pypi.org"), 0, Action::allow);
//   builder.add(*DomainPattern::parse("evil.pypi.org"), 1, Action::deny);
//   const DomainIndex index = builder.build();
//   index.match(name, now).verdict;   // of "x.pypi.org": allow, by rule 0
//
// The most specific pattern wins, whether it allows or denies:
//   1. The pattern whose base is longest.
//   2. With the same base, for the base itself: "pypi.org" before ".pypi.org".
//   3. With the same base, for names below it: "*.pypi.org" and ".pypi.org" are equal.
//   4. Among equals deny wins. All equal allow rules count: each grants its own ports.
// A rule that has expired is not there; the next less specific one decides.
//
// One probe of a hash table for each depth at which a pattern exists, whatever the number of rules;
// the probes are started together, because each is a cache miss in a large index. No allocation in
// match(), any number of threads.
#pragma once

#include <bitset>
#include <cstdint>
#include <span>
#include <vector>

#ifndef SLUICE_SDK_QUALIFIED
#define SLUICE_SDK_QUALIFIED
#endif
#include <sluice/types.hpp>

#include "names/domain_pattern.hpp"

namespace sluice::dns {

inline constexpr sdk::Time kNever = sdk::Time::max();

enum class Verdict : std::uint8_t {
  none,  // no rule speaks of the name; the mode decides
  allow,
  deny,
};

struct Match {
  Verdict verdict = Verdict::none;
  bool wildcard = false;   // a pattern that covers more than one name: what budgets count
  std::uint32_t base = 0;  // names the winning pattern's base within this index
  // The rules that decide, none of them expired; at least one unless `verdict` is none. Valid while
  // the index is.
  std::span<const std::uint32_t> rules{};

  explicit operator bool() const { return verdict == Verdict::allow; }
};

class DomainIndex {
 public:
  class Builder {
   public:
    // `rule`: what match() shall call it; below 2^31.
    void add(const DomainPattern& pattern, std::uint32_t rule, sdk::Action action,
             sdk::Time expires = kNever);
    // Ends the builder. Patterns and rules in any order and number, the same pattern any number of
    // times.
    [[nodiscard]] DomainIndex build();

   private:
    friend class DomainIndex;
    struct Entry {
      std::uint32_t name = 0;  // offset into names_
      std::uint8_t name_size = 0;
      Reach reach = Reach::exact;
      bool deny = false;
      std::uint32_t rule = 0;
      sdk::Time expires = kNever;
    };
    [[nodiscard]] Bytes name_of(const Entry& entry) const {
      return {names_.data() + entry.name, entry.name_size};
    }
    std::vector<Entry> entries_;
    std::vector<std::uint8_t> names_;
  };

  DomainIndex() = default;  // matches nothing

  [[nodiscard]] Match match(const Name& name, sdk::Time now) const noexcept;

  // Of Match::base: the same number for the same base in every index of this process, so that what
  // is counted under it survives a change of rules.
  [[nodiscard]] std::uint64_t base_key(std::uint32_t base) const;
  // Wire form.
  [[nodiscard]] Bytes base_name(std::uint32_t base) const;

  // Heap held, in bytes.
  [[nodiscard]] std::size_t bytes() const;

 private:
  // A base and the rules at it, in words that lie together, so that a match takes one cache miss in
  // the table and one or two here:
  //   size of the name | bit of each list there is << 8
  //   the name in wire form, filled up to a word
  //   the lists in this order, each {denies, allows, entries...}, both kinds of entries with the
  //   latest expiry first, so that the live ones come first
  enum List : std::uint8_t {
    exact = 1 << 0,  // for the base itself, exact patterns
    apex = 1 << 1,   // for the base itself, "." patterns
    under = 1 << 2,  // for names below, "." and "*." patterns
  };

  void add_list(std::uint32_t record, List list, std::vector<const Builder::Entry*>& entries);
  void build_table(std::span<const std::uint32_t> records);
  [[nodiscard]] const std::uint32_t* find(std::uint64_t hash, Bytes name) const noexcept;
  [[nodiscard]] Match read(const std::uint32_t* record, List list, sdk::Time now) const noexcept;
  [[nodiscard]] std::span<const std::uint32_t> live(std::span<const std::uint32_t> rules,
                                                    sdk::Time now) const noexcept;

  std::vector<std::uint32_t> records_;
  // Open addressing: tag of the hash in the upper half, place of the record + 1 in the lower; 0 is
  // empty.
  std::vector<std::uint64_t> table_;
  unsigned shift_ = 64;                  // 64 - log2 of the table's size
  std::vector<sdk::Time> expires_;       // by rule; empty: no rule expires
  std::bitset<kMostLabels + 1> depths_;  // at which there is a base
  unsigned deepest_ = 0;
};

}  // namespace sluice::dns
