// What domain rules say of a chain of names, and the marks that stand for it beyond a daemon's
// life.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "attachments/name_judge.hpp"

#include <doctest/doctest.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

using namespace sluice;

namespace {

struct Rules {
  std::vector<Rule> rules;
  std::vector<OpeningPtr> openings;
  std::unique_ptr<NameJudge> judge;

  explicit Rules(const std::vector<std::string>& texts) {
    for (const auto& text : texts) {
      Rule rule;
      rule.action = text[0] == '+' ? Action::allow : Action::deny;
      rule.domain = text.substr(1);
      rules.push_back(rule);
      openings.push_back(rule.action == Action::allow
                             ? std::make_shared<const Opening>(Opening::of(rule))
                             : nullptr);
    }
    judge = std::make_unique<NameJudge>(rules, openings);
  }
  [[nodiscard]] std::string on(const std::string& names) const {
    const auto ruling = judge->rule_on(names, {1});
    if (!ruling) return "no name";
    if (ruling->denied) return "denied";
    if (ruling->unruled) return "unruled";
    std::string by;
    for (const auto& right : ruling->rights) by += right.opening->domain + " ";
    return by;
  }
  [[nodiscard]] std::uint32_t mark(const std::string& names) const {
    return judge->rule_on(names, {1})->rights.at(0).tag;
  }
};

}  // namespace

TEST_CASE("the first name is allowed by a rule, and none of them is denied by one") {
  const Rules rules({"+*.example.org", "-bad.example.org", "+x.example.org", "-.evil.example",
                     "+*.example.org", "+*.com"});
  CHECK(rules.on("a.example.org") == "*.example.org *.example.org ");
  CHECK(rules.on("x.example.org") == "x.example.org ");
  CHECK(rules.on("bad.example.org") == "denied");
  CHECK(rules.on("a.example.org cdn.example edge.evil.example") == "denied");
  CHECK(rules.on("a.example.org cdn.example") == "*.example.org *.example.org ");
  CHECK(rules.on("cdn.example a.example.org") == "unruled");
  CHECK(rules.on("cdn.example bad.example.org") == "denied");
  CHECK(rules.on("example.com") == "unruled");  // a public suffix, and the rule does not say so
  CHECK(rules.on("a..b") == "no name");
}

TEST_CASE("a mark stands for the opening and for all that could take a name of it away") {
  const Rules rules({"+*.example.org", "+one.example", "+.example.net"});
  const auto wild = rules.mark("a.example.org"), alias = rules.mark("a.example.org b.example");
  const auto one = rules.mark("one.example"), both = rules.mark("example.net");
  CHECK(std::set{wild, alias, one, both}.size() == 4);
  CHECK(rules.judge->marked(wild) == rules.openings[0].get());
  CHECK(rules.judge->marked(alias) == rules.openings[0].get());
  CHECK(rules.judge->marked(wild + 1) == nullptr);

  struct Row {
    std::string more;
    bool wild, alias, one, both;  // keeps its mark
  };
  const Row rows[] = {
      {"+other.example", true, true, true, true},    {"+a.example.org", false, false, true, true},
      {"-a.example.org", false, false, true, true},  {"-*.example.org", false, false, true, true},
      {"-far.example", true, false, true, true},     {"-one.example", true, false, false, true},
      {"-x.one.example", true, false, true, true},   {"+example.net", true, true, true, false},
      {"+*.a.example.net", true, true, true, false}, {"-org", true, false, true, true},
  };
  for (const auto& row : rows) {
    CAPTURE(row.more);
    const Rules with({row.more, "+.example.net", "+one.example", "+*.example.org"});
    CHECK((with.judge->marked(wild) != nullptr) == row.wild);
    CHECK((with.judge->marked(alias) != nullptr) == row.alias);
    CHECK((with.judge->marked(one) != nullptr) == row.one);
    CHECK((with.judge->marked(both) != nullptr) == row.both);
    CHECK(with.judge->decided_tag(7) != rules.judge->decided_tag(7));
  }
}
