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
  Rule inside{.action = Action::allow,
              .domain = "*.corp",
              .ranges = {Prefix::parse("10.0.0.0/8"), Prefix::parse("fd00::/8")},
              .types = {15, 65280},
              .public_suffix = true};
  const std::vector<Rule> rules{rule, domain, inside};
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

TEST_CASE("what is said of names crosses the boundary and comes back as it was") {
  const Query query{.id = 9, .attachment = {7}, .name = "a.example", .type = 28};
  const auto raw_query = detail::raw_query(query);
  CHECK(detail::query_of(&raw_query) == query);

  const Decision decision{.action = Decision::Action::allow,
                          .ttl = std::chrono::seconds(5),
                          .ports = {{6, false, 443, 443}},
                          .addresses = {Address::parse("192.0.2.1"), Address::parse("2001:db8::1")},
                          .address_ttl = std::chrono::seconds(60),
                          .ranges = {Prefix::parse("10.0.0.0/8")},
                          .reason = "because"};
  CHECK(detail::decision_of(detail::RawDecision(decision).get()) == decision);

  const Answer answer{.attachment = {7},
                      .name = "a.example",
                      .chain = {"b.example", "c.example"},
                      .addresses = {{Address::parse("192.0.2.1"), 60}}};
  CHECK(detail::answer_of(detail::RawAnswer(answer).get()) == answer);

  const std::vector<Address> given{Address::parse("192.0.2.1"), Address::parse("2001:db8::1")};
  QueryReport one{.attachment = {7},
                  .time = Time(std::chrono::seconds(3)),
                  .name = "a.example",
                  .type = 1,
                  .verdict = QueryVerdict::allowed,
                  .cached = true,
                  .stream = true,
                  .extended_error = std::uint16_t{0},
                  .count = 3,
                  .rule = "*.example",
                  .upstream = "192.0.2.53:53",
                  .addresses = given,
                  .push_time = std::chrono::microseconds(2)};
  QueryReport two{.name = "b.example",
                  .verdict = QueryVerdict::denied,
                  .decided = true,
                  .response_code = 3,
                  .addresses = std::span(given).first(1)};
  const std::vector<QueryReport> reports{one, two};
  const detail::RawReports raw(reports);
  const detail::Reports kept(raw.data(), raw.size());
  const auto back = kept.get();
  REQUIRE(back.size() == 2);
  CHECK(back[0].name == "a.example");
  CHECK(back[0].cached);
  CHECK(back[0].stream);
  CHECK_FALSE(back[0].decided);
  CHECK(back[0].extended_error == 0);
  CHECK(back[0].count == 3);
  CHECK(back[0].rule == "*.example");
  CHECK(std::ranges::equal(back[0].addresses, given));
  CHECK(back[0].push_time == std::chrono::microseconds(2));
  CHECK(back[1].verdict == QueryVerdict::denied);
  CHECK(back[1].decided);
  CHECK(back[1].response_code == 3);
  CHECK_FALSE(back[1].extended_error);
  REQUIRE(back[1].addresses.size() == 1);
  CHECK(back[1].addresses[0] == given[0]);
}

TEST_CASE("a service that an older host does not have says so") {
  try {
    detail::known(static_cast<int (*)()>(nullptr));
    FAIL("must throw");
  } catch (const Error& error) {
    CHECK(error.code() == ENOSYS);
  }
}
