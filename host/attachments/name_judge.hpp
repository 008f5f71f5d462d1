// What the domain rules in force say of the names that addresses were learned under. A resolver
// judges names before it asks anybody; what it opens is held against the rules here once more,
// under the lock under which the rules change: when it is learned, and again with each change.
//
//   const NameJudge judge(rules, openings);
//   const auto ruling = judge.rule_on("www.example.org edge.cdn.example", now);  // a chain
//   if (ruling->denied) ...                     // a deny rule speaks of one of the names
//   for (const auto& right : ruling->rights)    // what the rules that decide on the first one open
//
// Made when it is first needed (10,000 rules take some 10 ms), immutable, any number of threads.
//
// A daemon that finds addresses of an earlier one does not know their names. So the mark that an
// address carries in the kernel stands for the opening *and* for all that could take a name of it
// away: rules below a wildcard's base, for a name reached by aliases each deny rule, for a decision
// every rule. After a start with the same rules the marks are the same; with others, what may not
// be allowed any more has a mark that nobody knows, and is revoked.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "attachments/opening.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"
#include "names/domain_index.hpp"
#include "policy/model.hpp"

namespace sluice {

class NameJudge {
 public:
  // `openings` beside `rules`; null: a deny. Both outlive this.
  NameJudge(const std::vector<Rule>& rules, const std::vector<OpeningPtr>& openings);

  // What one opening that decides on a name opens, and until when at most.
  struct Right {
    const Opening* opening = nullptr;
    BootTime until;         // of the rule that ends last; never: it does not end
    std::uint32_t tag = 0;  // in the kernel
  };
  struct Ruling {
    bool denied = false;   // by a rule that speaks of one of the names
    bool unruled = false;  // no rule speaks of the first one: a decider may allow it
    std::vector<Right> rights = {};

    [[nodiscard]] const Right* right(const Opening* opening) const;
    // A rule that decided has expired since, so another one may decide now.
    [[nodiscard]] bool ended(BootTime now) const;
  };
  // `names`: in presentation form, apart by one space each; the question's first, then all that it
  // led to. An error: one is no name.
  [[nodiscard]] Result<Ruling> rule_on(std::string_view names, BootTime now) const;

  // The opening that a mark stands for under these rules; null: none.
  [[nodiscard]] const Opening* marked(std::uint32_t tag) const;
  // The mark of what this decider allowed.
  [[nodiscard]] std::uint32_t decided_tag(std::uint32_t opening_tag) const;

 private:
  // What could take a name away from an opening: sums of hashes, so that order does not count.
  struct Tags {
    std::uint32_t direct = 0, by_alias = 0;
  };
  void make_tags(const std::vector<dns::DomainPattern>& patterns,
                 const std::vector<std::uint32_t>& numbers);

  const std::vector<Rule>& rules_;
  const std::vector<OpeningPtr>& openings_;
  dns::DomainIndex index_;
  std::vector<Tags> tags_;  // beside the rules
  std::unordered_map<std::uint32_t, const Opening*> by_tag_;
  std::uint64_t every_rule_ = 0;
};

}  // namespace sluice
