#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "names/domain_index.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <optional>
#include <random>
#include <string>
#include <thread>

using namespace sluice::dns;
using sluice::sdk::Action;
using sluice::sdk::Time;

namespace {

struct Written {
  std::string pattern;
  Action action = Action::allow;
  Time expires = kNever;
};

Time at(int seconds) {
  return Time(std::chrono::seconds(seconds));
}

DomainIndex index_of(const std::vector<Written>& rules) {
  DomainIndex::Builder builder;
  for (std::uint32_t number = 0; number < rules.size(); ++number)
    builder.add(*DomainPattern::parse(rules[number].pattern), number, rules[number].action,
                rules[number].expires);
  return builder.build();
}

// The text of the specification, one rule after the other.
struct Expected {
  Verdict verdict = Verdict::none;
  std::vector<std::uint32_t> rules;
};

Expected judge(const std::vector<std::pair<DomainPattern, Written>>& rules, const Name& name,
               Time now) {
  const auto rank = [&](const DomainPattern& pattern) {
    return pattern.base.labels() * 2 + (pattern.reach == Reach::exact ? 1 : 0);
  };
  std::optional<std::size_t> best;
  for (const auto& [pattern, rule] : rules)
    if (rule.expires > now && pattern.matches(name) && (!best || rank(pattern) > *best))
      best = rank(pattern);
  Expected expected;
  if (!best) return expected;
  for (const Action action : {Action::deny, Action::allow}) {
    for (std::uint32_t number = 0; number < rules.size(); ++number) {
      const auto& [pattern, rule] = rules[number];
      if (rule.action == action && rule.expires > now && rank(pattern) == *best &&
          pattern.matches(name))
        expected.rules.push_back(number);
    }
    if (expected.rules.empty()) continue;
    expected.verdict = action == Action::deny ? Verdict::deny : Verdict::allow;
    break;
  }
  return expected;
}

std::vector<std::uint32_t> sorted(std::span<const std::uint32_t> rules) {
  std::vector<std::uint32_t> all(rules.begin(), rules.end());
  std::ranges::sort(all);
  return all;
}

}  // namespace

TEST_CASE("the most specific pattern decides, and deny wins among equals") {
  struct Row {
    const char* what;
    std::vector<Written> rules;
    const char* name;
    Verdict verdict;
    std::vector<std::uint32_t> by;
  };
  constexpr auto allow = Action::allow, deny = Action::deny;
  for (const Row& row : std::initializer_list<Row>{
           {"no rule", {}, "a.org", Verdict::none, {}},
           {"exact", {{"pypi.org", allow}}, "pypi.org", Verdict::allow, {0}},
           {"exact is not below", {{"pypi.org", allow}}, "a.pypi.org", Verdict::none, {}},
           {"a neighbour with the same end",
            {{".pypi.org", allow}},
            "xpypi.org",
            Verdict::none,
            {}},
           {"star is not the apex", {{"*.pypi.org", allow}}, "pypi.org", Verdict::none, {}},
           {"star is any depth", {{"*.pypi.org", allow}}, "a.b.c.d.pypi.org", Verdict::allow, {0}},
           {"dot is apex", {{".pypi.org", allow}}, "pypi.org", Verdict::allow, {0}},
           {"dot is below", {{".pypi.org", allow}}, "a.b.pypi.org", Verdict::allow, {0}},
           {"longer base wins, allow",
            {{"*.org", deny}, {"*.pypi.org", allow}},
            "a.pypi.org",
            Verdict::allow,
            {1}},
           {"longer base wins, deny",
            {{"*.org", allow}, {"*.pypi.org", deny}},
            "a.pypi.org",
            Verdict::deny,
            {1}},
           {"exact before dot, allow",
            {{".pypi.org", deny}, {"pypi.org", allow}},
            "pypi.org",
            Verdict::allow,
            {1}},
           {"exact before dot, deny",
            {{".pypi.org", allow}, {"pypi.org", deny}},
            "pypi.org",
            Verdict::deny,
            {1}},
           {"exact before star above",
            {{"*.pypi.org", deny}, {"a.pypi.org", allow}},
            "a.pypi.org",
            Verdict::allow,
            {1}},
           {"star of the name does not cover it",
            {{"*.pypi.org", allow}, {"*.a.pypi.org", deny}},
            "a.pypi.org",
            Verdict::allow,
            {0}},
           {"dot and star are equal below: deny",
            {{".pypi.org", allow}, {"*.pypi.org", deny}},
            "a.pypi.org",
            Verdict::deny,
            {1}},
           {"dot and star are equal below: deny, other way",
            {{".pypi.org", deny}, {"*.pypi.org", allow}},
            "a.pypi.org",
            Verdict::deny,
            {0}},
           {"dot and star are united below",
            {{".pypi.org", allow}, {"*.pypi.org", allow}},
            "a.pypi.org",
            Verdict::allow,
            {0, 1}},
           {"star says nothing of the apex beside dot",
            {{".pypi.org", allow}, {"*.pypi.org", deny}},
            "pypi.org",
            Verdict::allow,
            {0}},
           {"same pattern twice",
            {{"pypi.org", allow}, {"pypi.org", allow}},
            "pypi.org",
            Verdict::allow,
            {0, 1}},
           {"same pattern, deny among allows",
            {{"pypi.org", allow}, {"pypi.org", deny}, {"pypi.org", allow}},
            "pypi.org",
            Verdict::deny,
            {1}},
           {"two denies", {{"a.org", deny}, {"a.org", deny}}, "a.org", Verdict::deny, {0, 1}},
           {"less specific allows do not join",
            {{"*.pypi.org", allow}, {"a.pypi.org", allow}},
            "a.pypi.org",
            Verdict::allow,
            {1}},
           {"a top-level pattern", {{".org", deny}}, "org", Verdict::deny, {0}},
           {"the root is nobody's", {{".org", allow}}, ".", Verdict::none, {}},
           {"expired: not there", {{"a.org", allow, at(10)}}, "a.org", Verdict::none, {}},
           {"expired exact: the star decides",
            {{"a.b.org", allow, at(10)}, {"*.b.org", deny}},
            "a.b.org",
            Verdict::deny,
            {1}},
           {"expired deny: the allow beside it",
            {{"a.org", allow}, {"a.org", deny, at(10)}},
            "a.org",
            Verdict::allow,
            {0}},
           {"not expired", {{"a.org", allow, at(11)}}, "a.org", Verdict::allow, {0}},
           {"the live ones of several",
            {{"a.org", allow, at(5)}, {"a.org", allow}, {"a.org", allow, at(50)}},
            "a.org",
            Verdict::allow,
            {1, 2}},
       }) {
    INFO(std::string(row.what));
    const DomainIndex index = index_of(row.rules);
    const Match match = index.match(*Name::from_text(row.name), at(10));
    CHECK(match.verdict == row.verdict);
    CHECK(sorted(match.rules) == row.by);
  }
}

TEST_CASE("a match says whether a wildcard decided, and under what name to count it") {
  const DomainIndex index = index_of({{"a.org"}, {"*.a.org"}, {".b.org"}});
  const auto match = [&](const char* name) { return index.match(*Name::from_text(name), at(0)); };
  CHECK_FALSE(match("a.org").wildcard);
  CHECK(match("x.a.org").wildcard);
  CHECK(match("b.org").wildcard);
  CHECK(index.base_key(match("x.a.org").base) == index.base_key(match("y.x.a.org").base));
  CHECK(index.base_key(match("x.a.org").base) != index.base_key(match("x.b.org").base));
  // The same in another index, at another place.
  const DomainIndex other = index_of({{"*.b.org"}, {"c.org"}, {"*.a.org"}});
  CHECK(other.base_key(other.match(*Name::from_text("x.a.org"), at(0)).base) ==
        index.base_key(match("x.a.org").base));
}

TEST_CASE("a name of 127 labels meets rules at every depth") {
  std::string text = "x";
  for (int i = 1; i < 127; ++i) text = "x." + text;
  const Name name = *Name::from_text(text);
  REQUIRE(name.labels() == 127);
  std::vector<Written> rules{{"*.x", Action::allow}};
  CHECK(index_of(rules).match(name, at(0)).rules[0] == 0);
  rules.push_back({"*" + text.substr(1), Action::deny});  // one label below 126
  CHECK(index_of(rules).match(name, at(0)).verdict == Verdict::deny);
  rules.push_back({text, Action::allow});
  CHECK(index_of(rules).match(name, at(0)).rules[0] == 2);
  CHECK(index_of(rules).match(name.parent(), at(0)).verdict == Verdict::allow);
}

TEST_CASE("every length of label is told apart from its neighbours") {
  std::vector<Written> rules;
  for (std::size_t length = 1; length <= 63; ++length)
    for (const char* top : {"org", "net"}) rules.push_back({std::string(length, 'a') + "." + top});
  const DomainIndex index = index_of(rules);
  for (std::uint32_t number = 0; number < rules.size(); ++number) {
    const Name name = *Name::from_text(rules[number].pattern);
    CHECK(sorted(index.match(name, at(0)).rules) == std::vector{number});
    for (std::size_t place = 0; place < rules[number].pattern.size() - 4; ++place) {
      std::string other = rules[number].pattern;
      other[place] = 'b';
      CHECK_FALSE(index.match(*Name::from_text(other), at(0)));
    }
  }
}

TEST_CASE("millions of names are judged as the text says") {
  std::uint64_t judged = 0, decided = 0;
  for (unsigned seed = 1; seed <= 1500; ++seed) {
    std::mt19937 random(seed);
    const auto below = [&](unsigned limit) { return static_cast<unsigned>(random() % limit); };
    // Few labels, so that patterns cover, shadow and repeat each other.
    static constexpr const char* kLabels[] = {"a", "b", "c", "ab", "abcdefghijklmnopqrs"};
    const unsigned labels = 2 + below(4);
    const auto random_name = [&](unsigned most) {
      std::string text;
      for (unsigned i = 0, count = 1 + below(most); i < count; ++i)
        text += (i == 0 ? "" : ".") + std::string(kLabels[below(labels)]);
      return text;
    };
    std::vector<Written> written;
    std::vector<std::pair<DomainPattern, Written>> rules;
    for (unsigned i = 0, count = below(40); i < count; ++i) {
      static constexpr const char* kFronts[] = {"", "*.", "."};
      Written rule{kFronts[below(3)] + random_name(4),
                   below(2) == 0 ? Action::allow : Action::deny};
      if (below(3) == 0) rule.expires = at(static_cast<int>(below(20)));
      rules.emplace_back(*DomainPattern::parse(rule.pattern), rule);
      written.push_back(std::move(rule));
    }
    const DomainIndex index = index_of(written);
    for (unsigned i = 0; i < 1500; ++i) {
      const Name name = *Name::from_text(random_name(6));
      const Time now = at(static_cast<int>(below(20)));
      const Expected expected = judge(rules, name, now);
      const Match match = index.match(name, now);
      ++judged;
      decided += expected.verdict != Verdict::none;
      if (match.verdict == expected.verdict && sorted(match.rules) == expected.rules) continue;
      INFO("seed " << seed << ", name " << name.text().view());
      CHECK(match.verdict == expected.verdict);
      CHECK(sorted(match.rules) == expected.rules);
      return;
    }
  }
  CHECK(judged == 2'250'000);
  CHECK(decided > judged / 2);
}

TEST_CASE("names that are no text are matched by their bytes") {
  const DomainIndex index = index_of({{"*.a.org"}, {"x.a.org", Action::deny}});
  CHECK(index.match(*Name::from_text("x\\.a.a.org"), at(0)).verdict == Verdict::allow);
  CHECK(index.match(*Name::from_text("\\000.a.org"), at(0)).verdict == Verdict::allow);
  // One label "x.a.org" under the root is not the name x.a.org.
  CHECK(index.match(*Name::from_text("x\\.a\\.org"), at(0)).verdict == Verdict::none);
  CHECK(index.match(*Name::from_text("x\\.a.org"), at(0)).verdict == Verdict::none);
}

TEST_CASE("many threads read one index") {
  std::vector<Written> rules;
  for (int i = 0; i < 2000; ++i)
    rules.push_back(
        {"*.h" + std::to_string(i) + ".org", i % 3 == 0 ? Action::deny : Action::allow});
  const DomainIndex index = index_of(rules);
  std::atomic<int> wrong{0};
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int round = 0; round < 20; ++round)
        for (int i = t; i < 2000; i += 3) {
          const Match match =
              index.match(*Name::from_text("a.b.h" + std::to_string(i) + ".org"), at(0));
          wrong += match.rules.size() != 1 || match.rules[0] != static_cast<std::uint32_t>(i) ||
                   (match.verdict == Verdict::deny) != (i % 3 == 0);
        }
    });
  threads.clear();
  CHECK(wrong == 0);
}
