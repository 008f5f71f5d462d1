#include "attachments/name_judge.hpp"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "names/rule_pattern.hpp"

namespace sluice {
namespace {

sdk::Time time_of(BootTime time) {
  return time.never() ? dns::kNever : sdk::Time(std::chrono::nanoseconds(time.nanoseconds));
}

// FNV-1a, as no hash of the library is the same in the next release.
class Hash {
 public:
  Hash& add(std::string_view text) {
    for (const unsigned char byte : text) step(byte);
    step(0);
    return *this;
  }
  Hash& add(std::uint64_t number) {
    for (int i = 0; i < 8; ++i) step(static_cast<unsigned char>(number >> (8 * i)));
    return *this;
  }
  [[nodiscard]] std::uint64_t value() const { return state_; }
  // As Opening::tag: never 0, and without the bit that is not its own.
  [[nodiscard]] std::uint32_t tag() const {
    const auto folded = static_cast<std::uint32_t>(state_ ^ (state_ >> 32)) & ~kSeveralOwners;
    return folded != 0 ? folded : 1;
  }

 private:
  void step(unsigned char byte) { state_ = (state_ ^ byte) * 0x100000001b3ull; }
  std::uint64_t state_ = 0xcbf29ce484222325ull;
};

std::string_view text_of(dns::Bytes wire) {
  return {reinterpret_cast<const char*>(wire.data()), wire.size()};
}

}  // namespace

NameJudge::NameJudge(const std::vector<Rule>& rules, const std::vector<OpeningPtr>& openings)
    : rules_(rules), openings_(openings), tags_(rules.size()) {
  dns::DomainIndex::Builder builder;
  std::vector<dns::DomainPattern> patterns;
  std::vector<std::uint32_t> numbers;  // of their rules
  patterns.reserve(rules.size());
  numbers.reserve(rules.size());
  for (std::uint32_t number = 0; number < rules.size(); ++number) {
    const auto& rule = rules[number];
    const auto action = rule.action == Action::allow ? sdk::Action::allow : sdk::Action::deny;
    auto pattern = dns::rule_pattern({rule.domain, action, rule.public_suffix});
    if (!pattern) continue;  // without effect, as the resolver has reported
    builder.add(*pattern, number, action, time_of(rule.expires));
    patterns.push_back(std::move(*pattern));
    numbers.push_back(number);
  }
  index_ = builder.build();
  make_tags(patterns, numbers);
}

void NameJudge::make_tags(const std::vector<dns::DomainPattern>& patterns,
                          const std::vector<std::uint32_t>& numbers) {
  // By base of a pattern that covers names below it: the rules that are more specific.
  struct Below {
    std::uint64_t below = 0;   // strictly
    std::uint64_t denies = 0;  // at the base itself
    std::uint64_t exacts = 0;  // likewise, exact allows
  };
  std::unordered_map<std::string_view, Below> bases;
  for (const auto& pattern : patterns) bases.try_emplace(text_of(pattern.base.wire()));
  std::uint64_t every_deny = 0;
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    const auto& pattern = patterns[i];
    const auto wire = pattern.base.wire();
    const bool deny = rules_[numbers[i]].action != Action::allow;
    const auto hash = Hash()
                          .add(deny ? "deny" : "allow")
                          .add(static_cast<std::uint64_t>(pattern.reach))
                          .add(text_of(wire))
                          .value();
    every_rule_ += hash;
    if (deny) every_deny += hash;
    auto& own = bases.at(text_of(wire));
    if (deny)
      own.denies += hash;
    else if (pattern.reach == dns::Reach::exact)
      own.exacts += hash;
    for (std::size_t at = 1u + wire[0]; at < wire.size() && wire[at] != 0; at += 1u + wire[at]) {
      if (const auto found = bases.find(text_of(wire.subspan(at))); found != bases.end())
        found->second.below += hash;
    }
  }
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    const auto number = numbers[i];
    if (!openings_[number]) continue;
    const auto& base = bases.at(text_of(patterns[i].base.wire()));
    auto rivals = base.denies;
    if (patterns[i].reach != dns::Reach::exact) rivals += base.below;
    if (patterns[i].reach == dns::Reach::with_below) rivals += base.exacts;
    const auto* opening = openings_[number].get();
    tags_[number] = {Hash().add(opening->tag).add(rivals).tag(),
                     Hash().add(opening->tag).add(rivals).add("alias").add(every_deny).tag()};
    by_tag_.emplace(tags_[number].direct, opening);
    by_tag_.emplace(tags_[number].by_alias, opening);
  }
}

const NameJudge::Right* NameJudge::Ruling::right(const Opening* opening) const {
  const auto found = std::ranges::find(rights, opening, &Right::opening);
  return found == rights.end() ? nullptr : &*found;
}

bool NameJudge::Ruling::ended(BootTime now) const {
  return std::ranges::any_of(
      rights, [&](const Right& right) { return !right.until.never() && right.until <= now; });
}

Result<NameJudge::Ruling> NameJudge::rule_on(std::string_view names, BootTime now) const {
  const auto at = time_of(now);
  Ruling ruling;
  const bool alias = names.contains(' ');
  for (bool first = true; first || !names.empty(); first = false) {
    const auto end = std::min(names.find(' '), names.size());
    const auto name = dns::Name::from_text(names.substr(0, end));
    if (!name) {
      return fail("\"{}\" is no name: {}", names.substr(0, end), dns::describe(name.error()));
    }
    names.remove_prefix(std::min(end + 1, names.size()));
    const auto match = index_.match(*name, at);
    ruling.denied |= match.verdict == dns::Verdict::deny;
    if (!first) continue;
    ruling.unruled = match.verdict == dns::Verdict::none;
    if (match.verdict != dns::Verdict::allow) continue;
    for (const auto number : match.rules) {
      const auto* opening = openings_[number].get();
      const auto until = rules_[number].expires;
      const auto known = std::ranges::find(ruling.rights, opening, &Right::opening);
      if (known == ruling.rights.end()) {
        const auto& tags = tags_[number];
        ruling.rights.push_back({opening, until, alias ? tags.by_alias : tags.direct});
      } else if (!known->until.never()) {
        known->until = until.never() ? until : std::max(known->until, until);
      }
    }
  }
  if (ruling.denied) ruling.rights.clear();
  return ruling;
}

const Opening* NameJudge::marked(std::uint32_t tag) const {
  const auto found = by_tag_.find(tag);
  return found == by_tag_.end() ? nullptr : found->second;
}

std::uint32_t NameJudge::decided_tag(std::uint32_t opening_tag) const {
  return Hash().add(opening_tag).add("decided").add(every_rule_).tag();
}

}  // namespace sluice
