#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dns/rule_book.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>

using namespace sluice::dns;
using namespace sluice::sdk;

namespace {

Rule allow(std::string domain) {
  Rule rule{.action = Action::allow};
  rule.domain = std::move(domain);
  return rule;
}
Rule deny(std::string domain) {
  Rule rule{.action = Action::deny};
  rule.domain = std::move(domain);
  return rule;
}
Name name(const char* text) {
  return *Name::from_text(text);
}
Time at(int seconds) {
  return Time(std::chrono::seconds(seconds));
}
constexpr AttachmentId kOne{1}, kTwo{2};

}  // namespace

TEST_CASE("equal rules of many attachments exist once") {
  RuleBook book;
  const auto rules = [] {
    std::vector<Rule> all;
    for (int i = 0; i < 100; ++i) all.push_back(allow("*.h" + std::to_string(i) + ".org"));
    return all;
  };
  for (std::uint64_t id = 1; id <= 50; ++id) CHECK(book.assign({id}, rules()).changed);
  CHECK(book.size().attachments == 50);
  CHECK(book.size().sets == 1);
  CHECK(book.rules({1}) == book.rules({50}));
  CHECK_FALSE(book.assign({7}, rules()).changed);
  for (std::uint64_t id = 1; id <= 50; ++id) book.remove({id});
  CHECK(book.size().attachments == 0);
  CHECK(book.size().sets == 0);
}

TEST_CASE("rules that differ in anything are different sets") {
  Rule base = allow("pypi.org");
  base.ports = {{.protocol = 6, .any_port = false, .first = 443, .last = 443}};
  const std::vector<std::function<void(Rule&)>> changes = {
      [](Rule& rule) { rule.action = Action::deny; },
      [](Rule& rule) { rule.domain = "pypi.net"; },
      [](Rule& rule) { rule.domain = ".pypi.org"; },
      [](Rule& rule) { rule.ports.clear(); },
      [](Rule& rule) { rule.ports[0].protocol = 17; },
      [](Rule& rule) { rule.ports[0].first = 442; },
      [](Rule& rule) { rule.ports[0].last = 444; },
      [](Rule& rule) { rule.ports[0].any_port = true; },
      [](Rule& rule) { rule.expires = at(5); },
      [](Rule& rule) { rule.name = "other"; },
      [](Rule& rule) { rule.ranges = {Prefix::parse("10.0.0.0/8")}; },
      [](Rule& rule) { rule.types = {16}; },
      [](Rule& rule) { rule.public_suffix = true; },
  };
  for (std::size_t i = 0; i < changes.size(); ++i) {
    INFO("change " << i);
    Rule other = base;
    changes[i](other);
    RuleBook book;
    book.assign(kOne, std::vector{base});
    CHECK(book.assign(kTwo, std::vector{other}).changed);
    CHECK(book.size().sets == 2);
    CHECK_FALSE(book.rules(kOne)->says(std::vector{other}));
    // And within one set: both keep their own terms.
    const RuleSet both(std::vector{base, other});
    CHECK(both.says(std::vector{base, other}));
    CHECK_FALSE(both.says(std::vector{other, base}));
    CHECK(RuleSet::hash_of(std::vector{base}) != RuleSet::hash_of(std::vector{other}));
  }
}

TEST_CASE("a rule keeps its number, its terms and its text") {
  Rule first = allow("*.A.org");
  first.name = "agents:allow:1";
  first.ranges = {Prefix::parse("10.0.0.0/8")};
  Rule second = first;
  second.domain = "b.org";
  Rule third = allow("c.org");
  third.types = {16, 33};
  Rule fourth = first;
  fourth.domain = "d.org";
  const RuleSet set(std::vector{first, second, third, fourth});
  REQUIRE(set.size() == 4);
  CHECK(set.pattern(0) == "*.A.org");
  CHECK(set.pattern(3) == "d.org");
  for (const std::uint32_t number : {0u, 1u, 3u}) {
    CHECK(set.rule(number).name == "agents:allow:1");
    CHECK(set.rule(number).ranges == first.ranges);
    CHECK(set.rule(number).types.empty());
  }
  CHECK(&set.rule(0) == &set.rule(3));  // terms exist once
  CHECK(set.rule(2).types == third.types);
  CHECK(set.match(name("x.a.org"), at(0)).rules[0] == 0);
  CHECK(set.match(name("c.org"), at(0)).rules[0] == 2);
}

TEST_CASE("A, AAAA, HTTPS and SVCB pass, the rest if one of the rules that decide says so") {
  Rule texts = allow("a.org");
  texts.types = {16};
  Rule mail = allow("a.org");
  mail.types = {15};
  const RuleSet set(std::vector{texts, mail, allow("b.org"), deny("c.org")});
  struct Row {
    const char* name;
    std::uint16_t type;
    bool passes;
  };
  for (const Row& row : std::initializer_list<Row>{
           {"a.org", 1, true},
           {"a.org", 28, true},
           {"a.org", 64, true},
           {"a.org", 65, true},
           {"a.org", 16, true},
           {"a.org", 15, true},
           {"a.org", 33, false},
           {"a.org", 255, false},
           {"b.org", 1, true},
           {"b.org", 16, false},
           {"c.org", 1, false},
           {"none.org", 1, false},
       }) {
    INFO(std::string(row.name) << " " << row.type);
    CHECK(set.allows_type(set.match(name(row.name), at(0)), row.type) == row.passes);
  }
}

TEST_CASE("what cannot be read is without effect, keeps its number and widens nothing") {
  struct Row {
    std::string domain;
    const char* probe;  // a name that a careless reading would allow
    const char* why;
  };
  for (const Row& row : std::initializer_list<Row>{
           {"", "example.org", "names no domain"},
           {"*", "example.org", "star"},
           {".", "example.org", "names no domain"},
           {"*.com", "evil.com", "public suffix"},
           {".co.uk", "evil.co.uk", "public suffix"},
           {"*.Co.UK", "evil.co.uk", "public suffix"},
           {"*.github.io", "evil.github.io", "public suffix"},
           {"example.org.", "example.org", "empty label"},
           {"exa*.org", "example.org", "star"},
           {"*.*.example.org", "a.b.example.org", "star"},
           {"192.0.2.1", "192.0.2.1", "address"},
           {"b\xc3\xbc"
            "cher.example",
            "xn--bcher-kva.example", "ASCII"},
           {std::string(254, 'a'), "a", "253"},
       }) {
    INFO(row.domain);
    RuleBook book;
    const auto outcome = book.assign(kOne, std::vector{allow(row.domain), allow("good.org")});
    REQUIRE(outcome.complaints.size() == 1);
    INFO(outcome.complaints[0]);
    CHECK(outcome.complaints[0].find(row.why) != std::string::npos);
    CHECK(outcome.complaints[0].find("without effect") != std::string::npos);
    CHECK(outcome.rules->match(name(row.probe), at(0)).verdict == Verdict::none);
    CHECK(outcome.rules->match(name("good.org"), at(0)).rules[0] == 1);
  }
}

TEST_CASE("a public suffix is covered where the rule says so, and may always be denied") {
  Rule wide = allow("*.com");
  wide.public_suffix = true;
  const RuleSet set(std::vector{wide, deny("*.uk"), allow("com")});
  CHECK(set.complaints().empty());
  CHECK(set.match(name("evil.com"), at(0)).verdict == Verdict::allow);
  CHECK(set.match(name("a.co.uk"), at(0)).verdict == Verdict::deny);
  CHECK(set.match(name("com"), at(0)).rules[0] == 2);
}

TEST_CASE("a deny of some ports denies the name") {
  Rule some = deny("a.org");
  some.ports = {{.protocol = 6, .any_port = false, .first = 25, .last = 25}};
  const RuleSet set(std::vector{some, allow("a.org")});
  CHECK(set.match(name("a.org"), at(0)).verdict == Verdict::deny);
}

TEST_CASE("a rule that has ended is not there") {
  Rule soon = allow("a.org");
  soon.expires = at(10);
  const RuleSet set(std::vector{soon, deny("*.org")});
  CHECK(set.match(name("a.org"), at(9)).verdict == Verdict::allow);
  CHECK(set.match(name("a.org"), at(10)).verdict == Verdict::deny);
}

TEST_CASE("a complaint is made once, and many are summed up") {
  RuleBook book;
  CHECK(book.assign(kOne, std::vector{allow("*.com")}).complaints.size() == 1);
  CHECK(book.assign(kTwo, std::vector{allow("*.com")}).complaints.empty());
  // Another set with the same fault: said already.
  CHECK(book.assign(kOne, std::vector{allow("*.com"), allow("a.org")}).complaints.empty());
  CHECK(book.assign(kOne, std::vector{allow("*.net"), allow("*.com")}).complaints.size() == 1);

  std::vector<Rule> many;
  for (int i = 0; i < 1000; ++i) many.push_back(allow("*.*.h" + std::to_string(i)));
  const auto outcome = book.assign(kOne, many);
  CHECK(outcome.complaints.size() == RuleSet::kMostComplaints + 1);
  CHECK(outcome.complaints.back().find("980 more") != std::string::npos);
}

TEST_CASE("what a source wrote is escaped in a complaint") {
  Rule odd = allow(std::string("a\n\x1b[31m\"b\0", 10));
  odd.name = std::string(500, 'n');
  const RuleSet set(std::vector{odd});
  REQUIRE(set.complaints().size() == 1);
  for (const char c : set.complaints()[0]) CHECK((c >= 0x20 && c < 0x7f));
  CHECK(set.complaints()[0].size() < 400);
}

TEST_CASE("a reader sees new rules at once and lets go of what is gone") {
  RuleBook book;
  RuleBook::Reader reader(book);
  CHECK(reader.get(kOne) == nullptr);
  book.assign(kOne, std::vector{allow("a.org")});
  REQUIRE(reader.get(kOne) != nullptr);
  CHECK(reader.get(kOne)->match(name("a.org"), at(0)));
  CHECK(reader.get(kTwo) == nullptr);
  book.assign(kOne, std::vector{allow("b.org")});
  CHECK_FALSE(reader.get(kOne)->match(name("a.org"), at(0)));
  CHECK(reader.get(kOne)->match(name("b.org"), at(0)));
  CHECK(reader.share(kOne) == book.rules(kOne));

  book.remove(kOne);
  CHECK(reader.get(kOne) == nullptr);
  CHECK(reader.share(kOne) == nullptr);
  book.assign(kOne, std::vector{allow("c.org")});
  CHECK(reader.get(kOne)->match(name("c.org"), at(0)));

  // Not asked again: sweep() lets go.
  const std::weak_ptr<const RuleSet> set = book.rules(kOne);
  book.remove(kOne);
  CHECK_FALSE(set.expired());
  reader.sweep();
  CHECK(set.expired());
}

TEST_CASE("no rules at all are rules too") {
  RuleBook book;
  RuleBook::Reader reader(book);
  CHECK(book.assign(kOne, {}).changed);
  REQUIRE(reader.get(kOne) != nullptr);
  CHECK(reader.get(kOne)->match(name("a.org"), at(0)).verdict == Verdict::none);
}

TEST_CASE("workers read while rules are replaced, and never see half of a set") {
  RuleBook book;
  // In each version every name of it is allowed and every other is not.
  const auto rules_of = [](int version) {
    std::vector<Rule> rules;
    for (int i = 0; i < 20; ++i)
      rules.push_back(allow("n" + std::to_string(i) + ".v" + std::to_string(version % 4) + ".org"));
    return rules;
  };
  for (std::uint64_t id = 1; id <= 8; ++id) book.assign({id}, rules_of(0));
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::atomic<std::uint64_t> looked{0};
  std::vector<std::jthread> workers;
  for (int w = 0; w < 3; ++w)
    workers.emplace_back([&] {
      RuleBook::Reader reader(book);
      std::vector<Name> names;
      for (int version = 0; version < 4; ++version)
        for (int i = 0; i < 20; ++i)
          names.push_back(
              *Name::from_text("n" + std::to_string(i) + ".v" + std::to_string(version) + ".org"));
      while (!stop)
        for (std::uint64_t id = 1; id <= 8; ++id) {
          const RuleSet* set = reader.get({id});
          if (set == nullptr) continue;  // removed for a moment
          int allowed = 0;
          for (const Name& one : names) allowed += static_cast<bool>(set->match(one, at(0)));
          wrong += allowed != 20;
          looked.fetch_add(1, std::memory_order_relaxed);
        }
    });
  for (int version = 1; version < 600; ++version)
    for (std::uint64_t id = 1; id <= 8; ++id) {
      if ((version + static_cast<int>(id)) % 7 == 0) book.remove({id});
      book.assign({id}, rules_of(version));
    }
  while (looked < 1000) std::this_thread::yield();
  stop = true;
  workers.clear();
  CHECK(wrong == 0);
}
