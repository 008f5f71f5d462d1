// The values a plugin works with: what they parse, what they refuse.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <sluice/plugin.hpp>

using namespace sluice;

TEST_CASE("a prefix is parsed, or refused with a reason") {
  struct Row {
    const char* text;
    const char* expected;  // null: refused
  };
  const Row rows[] = {{"10.0.0.0/8", "10.0.0.0/8"},
                      {"192.0.2.1", "192.0.2.1/32"},
                      {"0.0.0.0/0", "0.0.0.0/0"},
                      {"2001:db8::/32", "2001:db8::/32"},
                      {"::1", "::1/128"},
                      {"10.0.0.1/8", nullptr},
                      {"2001:db8::1/64", nullptr},
                      {"10.0.0.0/33", nullptr},
                      {"10.0.0.0/", nullptr},
                      {"10.0.0.0/-1", nullptr},
                      {"10.0.0.0/8x", nullptr},
                      {"ten", nullptr},
                      {"", nullptr}};
  for (const auto& [text, expected] : rows) {
    CAPTURE(text);
    if (expected != nullptr)
      CHECK(Prefix::parse(text).text() == expected);
    else
      CHECK_THROWS_AS((void)Prefix::parse(text), Error);
  }
}

TEST_CASE("an error has a positive code, whichever sign it was made with") {
  CHECK(Error(ENODEV, "x").code() == ENODEV);
  CHECK(Error(-ENODEV, "x").code() == ENODEV);
  CHECK(Error(0, "x").code() == EIO);
}

TEST_CASE("the barrier turns whatever is thrown into an errno and a message") {
  const auto outcome = [](auto thrower) {
    std::pair<int, std::string> result;
    result.first =
        detail::guarded(thrower, [&](int, std::string_view text) { result.second = text; });
    return result;
  };
  using Outcome = std::pair<int, std::string>;
  CHECK(outcome([]() -> int { return 3; }) == Outcome(3, ""));
  CHECK(outcome([]() -> int { throw Error(EBUSY, "later"); }) == Outcome(-EBUSY, "later"));
  CHECK(outcome([]() -> int { throw std::bad_alloc(); }) == Outcome(-ENOMEM, "out of memory"));
  CHECK(outcome([]() -> int { throw std::runtime_error("no"); }) == Outcome(-EIO, "no"));
  CHECK(outcome([]() -> int { throw 42; }).first == -EIO);
  CHECK(outcome([]() -> int { throw std::system_error(EPERM, std::generic_category()); }).first ==
        -EPERM);
}

TEST_CASE("a message is cut to the room there is, never within a character") {
  char room[6];
  detail::write_message(room, sizeof room, "short and long");
  CHECK(std::string(room) == "short");
  detail::write_message(room, sizeof room, "abcd\xc3\xa4");
  CHECK(std::string(room) == "abcd");
  detail::write_message(room, sizeof room, "abc\xc3\xa4");
  CHECK(std::string(room) == "abc\xc3\xa4");
  detail::write_message(nullptr, 0, "nowhere");
}

TEST_CASE("rules cross the boundary and come back as they were") {
  Rule rule{.action = Action::allow,
            .prefix = Prefix::parse("10.20.0.0/16"),
            .ports = {{6, false, 443, 443}, {17, true}},
            .expires = Time(std::chrono::seconds(5)),
            .name = "web"};
  Rule domain{.action = Action::deny, .domain = "*.example.org"};
  const std::vector<Rule> rules{rule, domain};
  const detail::RawRules raw(rules);
  CHECK(detail::rules_of(raw.data(), raw.size()) == rules);
}

TEST_CASE("a rule that ended at the epoch does not become eternal") {
  const std::vector<Rule> rules{
      {.action = Action::allow, .domain = "a.example", .expires = Time{}}};
  const detail::RawRules raw(rules);
  CHECK(raw.data()->expires != 0);
}

TEST_CASE("a rule with both a prefix and a domain, or neither, is refused by index") {
  const std::vector<Rule> rules{{.domain = "a.example"}, {}};
  try {
    const detail::RawRules raw(rules);
    FAIL("must throw");
  } catch (const Error& error) {
    CHECK(error.rule_index() == 1);
  }
}
