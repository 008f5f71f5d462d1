// Addresses hang on the names that led to them: a name that is not allowed any more loses what only
// it had opened, at once, and its siblings lose nothing.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "stage.hpp"

using namespace sluice;
using namespace sluice::test;
using namespace std::chrono_literals;

namespace {

constexpr std::uint64_t kMinute = 60'000'000'000;

Rule deny_name(const std::string& domain) {
  auto rule = allow_name(domain);
  rule.action = Action::deny;
  return rule;
}

struct Names : Stage {
  explicit Names(std::vector<Rule> rules, std::shared_ptr<FakeKernel> kernel_in_use = nullptr)
      : Stage(config_of({wire({"one", "saas", "dns"})}), std::move(kernel_in_use)) {
    if (this->kernel->slots.empty()) run_source("one");
    id = attach(tap("tap1", 7));
    say(std::move(rules));
  }
  void say(std::vector<Rule> rules) {
    REQUIRE(manager.replace_layer("one", id, allowlist(std::move(rules))));
  }
  [[nodiscard]] std::uint32_t rule_of(const std::string& domain) const {
    for (const auto& rule : listener.domains)
      if (rule.domain == domain) return rule.id.value;
    return 999;
  }
  // As a resolver that judges by the list it knows: 0, or why not.
  int open(const std::vector<std::string_view>& names, std::uint32_t rule,
           const std::vector<std::string>& texts, std::uint64_t ttl = kMinute,
           std::uint64_t grace = 0) {
    std::vector<Address> addresses;
    for (const auto& text : texts) addresses.push_back(mapped(text));
    const NameGrant grant{.rule = rule, .addresses = addresses, .ttl_ns = ttl, .grace_ns = grace};
    const auto status = manager.learn("dns", id, {names, std::span(&grant, 1)});
    return status ? 0 : status.error().code;
  }
  [[nodiscard]] bool reaches(const std::string& address, std::uint16_t port = 443) const {
    return passes(id, to(address, port));
  }

  AttachmentId id;
};

}  // namespace

TEST_CASE("a deny under a wildcard closes what the name had opened, and nothing of its siblings") {
  const auto all = allow_name("*.example.org");
  Names stage({all});
  const auto rule = stage.rule_of("*.example.org");
  REQUIRE(stage.open({"a.example.org"}, rule, {"192.0.2.1", "2001:db8::1", "192.0.2.99"}) == 0);
  REQUIRE(stage.open({"b.example.org"}, rule, {"192.0.2.2", "2001:db8::2", "192.0.2.99"}) == 0);
  const auto severings = stage.in_kernel(stage.id).severings;
  stage.say({all, deny_name("a.example.org")});
  for (const char* gone : {"192.0.2.1", "2001:db8::1"}) CHECK_FALSE(stage.reaches(gone));
  for (const char* stays : {"192.0.2.2", "2001:db8::2", "192.0.2.99"}) CHECK(stage.reaches(stays));
  CHECK(stage.in_kernel(stage.id).severings > severings);

  SUBCASE("a resolver that judged by the former list opens nothing any more") {
    // The wildcard's rule is still in force; that the name is not its own any more is known here.
    CHECK(stage.rule_of("*.example.org") == rule);
    CHECK(stage.open({"a.example.org"}, rule, {"192.0.2.3"}) == ESTALE);
    CHECK_FALSE(stage.reaches("192.0.2.3"));
    CHECK(stage.open({"b.example.org"}, rule, {"192.0.2.4"}) == 0);
  }
  SUBCASE("what two names had opened goes with the second one") {
    stage.say({all, deny_name(".example.org")});
    CHECK(stage.learned(stage.id).empty());
  }
  SUBCASE("without the deny the name may come back") {
    stage.say({all});
    CHECK_FALSE(stage.reaches("192.0.2.1"));  // with its next answer only
    CHECK(stage.open({"a.example.org"}, rule, {"192.0.2.1"}) == 0);
  }
}

TEST_CASE("a deny of a name on the way closes what was reached through it") {
  const auto all = allow_name("*.example.org");
  Names stage({all});
  const auto rule = stage.rule_of("*.example.org");
  REQUIRE(stage.open({"a.example.org", "edge.bad.example", "x.cdn.example"}, rule, {"192.0.2.1"}) ==
          0);
  REQUIRE(stage.open({"b.example.org", "x.cdn.example"}, rule, {"192.0.2.2"}) == 0);
  stage.say({all, deny_name(".bad.example")});
  CHECK_FALSE(stage.reaches("192.0.2.1"));
  CHECK(stage.reaches("192.0.2.2"));
  CHECK(stage.open({"c.example.org", "edge.bad.example"}, rule, {"192.0.2.3"}) == ESTALE);
  // An allow speaks of the question alone.
  stage.say({all, allow_name("x.cdn.example", {port("tcp/25")})});
  CHECK(stage.reaches("192.0.2.2"));
}

TEST_CASE("when a more specific rule has expired, the one behind it decides at once") {
  auto narrow = allow_name("a.example.org", {port("tcp/443")});
  Names stage({allow_name("*.example.org", {port("tcp/8443")}), narrow});
  narrow.expires = {stage.now.nanoseconds + kMinute};
  stage.say({allow_name("*.example.org", {port("tcp/8443")}), narrow});
  const auto wide = stage.rule_of("*.example.org");
  REQUIRE(stage.open({"a.example.org"}, stage.rule_of("a.example.org"), {"192.0.2.1"}) == 0);
  CHECK(stage.open({"a.example.org"}, wide, {"192.0.2.1"}) == ESTALE);
  // The core loop has not come round to forgetting what ended.
  stage.now.nanoseconds += kMinute;
  CHECK_FALSE(stage.reaches("192.0.2.1"));
  CHECK(stage.open({"a.example.org"}, wide, {"192.0.2.2"}) == 0);
  CHECK(stage.reaches("192.0.2.2", 8443));
  CHECK_FALSE(stage.reaches("192.0.2.2"));
}

TEST_CASE("a rule that now decides on a name puts its ports in the place of the former one's") {
  const auto all = allow_name("*.example.org");
  Names stage({all});
  const auto wide = stage.rule_of("*.example.org");
  REQUIRE(stage.open({"a.example.org"}, wide, {"192.0.2.1"}) == 0);
  REQUIRE(stage.open({"b.example.org"}, wide, {"192.0.2.2"}) == 0);
  CHECK(stage.reaches("192.0.2.1", 22));
  SUBCASE("a more specific one with fewer ports") {
    stage.say({all, allow_name("a.example.org", {port("tcp/443")})});
    CHECK_FALSE(stage.reaches("192.0.2.1", 22));
    CHECK(stage.reaches("192.0.2.1", 443));  // what runs there is allowed, and goes on
    CHECK(stage.reaches("192.0.2.2", 22));
    CHECK(stage.open({"a.example.org"}, wide, {"192.0.2.1"}) == ESTALE);
    CHECK_FALSE(stage.reaches("192.0.2.1", 22));
  }
  SUBCASE("the same with an end of its own") {
    auto brief = allow_name("a.example.org", {port("tcp/443")});
    brief.expires = {stage.now.nanoseconds + 10'000'000'000};
    stage.say({all, brief});
    CHECK(stage.reaches("192.0.2.1", 443));
    stage.now.nanoseconds += 11'000'000'000;
    CHECK_FALSE(stage.reaches("192.0.2.1", 443));  // in the kernel, with nobody's help
  }
  SUBCASE("the wildcard itself, with other ports") {
    stage.say({allow_name("*.example.org", {port("tcp/443")})});
    for (const char* address : {"192.0.2.1", "192.0.2.2"}) {
      CHECK(stage.reaches(address, 443));
      CHECK_FALSE(stage.reaches(address, 22));
    }
  }
  SUBCASE("a less specific one, when the rule goes") {
    stage.say({allow_name(".org", {port("tcp/25")}), all});
    CHECK(stage.reaches("192.0.2.1", 22));
    auto wider = allow_name(".org", {port("tcp/25")});
    wider.public_suffix = true;
    stage.say({wider});
    CHECK(stage.reaches("192.0.2.1", 25));
    CHECK_FALSE(stage.reaches("192.0.2.1", 22));
  }
  SUBCASE("one that covers a public suffix without saying so decides on nothing") {
    stage.say({allow_name(".org", {port("tcp/25")})});
    CHECK(stage.learned(stage.id).empty());
  }
}

// 192.0.2.1 by one name for a minute with ssh, by another for an hour with the web.
TEST_CASE("an address that rules with different ports opened loses each one's ports with its end") {
  const auto kHour = 60 * kMinute;
  const auto until = [](Names& stage, std::uint64_t ns) { stage.now.nanoseconds += ns; };
  enum Then { no_daemon, daemon, further_answer, ended };
  for (const auto& [ssh_first, then] :
       {std::pair{true, no_daemon}, std::pair{false, no_daemon}, std::pair{true, daemon},
        std::pair{false, daemon}, std::pair{true, further_answer}, std::pair{false, further_answer},
        std::pair{true, ended}, std::pair{false, ended}}) {
    CAPTURE(ssh_first);
    CAPTURE(then);
    Names stage({allow_name("git.example", {port("tcp/22")}),
                 allow_name("cdn.example", {port("tcp/443")})});
    const auto ssh = [&](std::uint64_t ttl) {
      REQUIRE(stage.open({"git.example"}, stage.rule_of("git.example"),
                         {"192.0.2.1", "2001:db8::1"}, ttl) == 0);
    };
    const auto web = [&](std::uint64_t ttl) {
      REQUIRE(stage.open({"cdn.example"}, stage.rule_of("cdn.example"),
                         {"192.0.2.1", "2001:db8::1"}, ttl) == 0);
    };
    const auto check = [&](bool ssh_open, bool web_open) {
      for (const char* address : {"192.0.2.1", "2001:db8::1"}) {
        CAPTURE(address);
        CHECK(stage.reaches(address, 22) == ssh_open);
        CHECK(stage.reaches(address, 443) == web_open);
      }
    };
    if (ssh_first) ssh(kMinute);
    web(kHour);
    if (!ssh_first) ssh(kMinute);
    check(true, true);
    if (then == no_daemon) {  // with no daemon alive it ends for both: early, never late
      until(stage, kMinute + 1);
      check(false, false);
    }
    if (then == daemon) {  // with one, the other's stay open, without a gap
      const auto severings = stage.in_kernel(stage.id).severings;
      until(stage, kMinute - 1'500'000'000);
      check(true, true);
      stage.manager.turn();
      check(false, true);
      CHECK(stage.in_kernel(stage.id).severings > severings);
      until(stage, kMinute);
      stage.manager.turn();
      check(false, true);
      until(stage, kHour);
      check(false, false);
    }
    if (then == further_answer) {  // a further answer keeps both
      until(stage, kMinute / 2);
      ssh(kMinute);
      until(stage, kMinute - 10'000'000'000);
      stage.manager.turn();
      check(true, true);
      until(stage, 9'000'000'000);
      stage.manager.turn();
      check(false, true);
    }
    if (then == ended) {  // one that has ended does not come back with the other's answer
      until(stage, kMinute - 1'000'000'000);
      stage.manager.turn();
      until(stage, kMinute);
      web(kHour);
      check(false, true);
    }
  }
}

TEST_CASE("claims with different ports that end together change nothing by their end") {
  const auto kSecond = std::uint64_t{1'000'000'000};
  const std::vector tcp{port("tcp/443")}, udp{port("udp/443")};
  const auto when = [&](double seconds) {
    return BootTime{static_cast<std::uint64_t>(seconds * 1e9)};
  };
  const auto changes = [&](double now, double other_end) {
    const std::vector<Claim> claims{{tcp, when(100), when(130)}, {udp, when(100), when(other_end)}};
    return standing(claims, when(now)).changes_at.nanoseconds / kSecond;
  };
  for (const double now : {101.0, 128.0, 128.5, 129.0, 129.9, 130.0, 130.5, 132.0})
    CHECK(changes(now, 130) == 0);
  CHECK(changes(99, 130) == 100);   // what no new connection may use may be somebody else's
  CHECK(changes(101, 131) == 130);  // the one that is left keeps its port
  CHECK(changes(130, 131) == 0);
  CHECK(changes(131, 131) == 0);
  // Without a grace they end with what new connections may use.
  const std::vector<Claim> brief{{tcp, when(100), when(100)}, {udp, when(100), when(100)}};
  for (const double now : {50.0, 99.0, 101.0}) CHECK(standing(brief, when(now)).changes_at.never());
}

TEST_CASE("an address whose names end together is not severed over and over before its end") {
  for (const std::uint64_t grace : {std::uint64_t{0}, kMinute}) {
    CAPTURE(grace);
    Names stage({allow_name("git.example", {port("tcp/22")}),
                 allow_name("cdn.example", {port("tcp/443")})});
    for (const auto* name : {"git.example", "cdn.example"})
      REQUIRE(stage.open({name}, stage.rule_of(name), {"192.0.2.1"}, kMinute, grace) == 0);
    std::uint64_t severings = stage.in_kernel(stage.id).severings, most = 0;
    for (int i = 0; i < 70 + static_cast<int>(grace / 1'000'000'000); ++i) {
      for (int turn = 0; turn < 10; ++turn) stage.pass_time(100ms);
      const auto now = stage.in_kernel(stage.id).severings;
      most = std::max(most, static_cast<std::uint64_t>(now) - severings);
      severings = now;
      CHECK(stage.reaches("192.0.2.1", 22) == stage.reaches("192.0.2.1", 443));
    }
    CHECK(most <= 1);
    CHECK_FALSE(stage.reaches("192.0.2.1", 22));
  }
}

TEST_CASE("what is in its grace is not opened again by an answer of another rule") {
  Names stage({allow_name("git.example"), allow_name("cdn.example", {port("tcp/443")})});
  REQUIRE(stage.open({"git.example"}, stage.rule_of("git.example"), {"192.0.2.1"}, kMinute,
                     kMinute) == 0);
  stage.now.nanoseconds += kMinute + 1;
  CHECK_FALSE(stage.reaches("192.0.2.1", 22));
  REQUIRE(stage.open({"cdn.example"}, stage.rule_of("cdn.example"), {"192.0.2.1"}) == 0);
  CHECK(stage.reaches("192.0.2.1", 443));
  CHECK_FALSE(stage.reaches("192.0.2.1", 22));
}

TEST_CASE("an address of a reserved range does not pass to a rule without the range") {
  auto inside = allow_name("*.example.org");
  inside.ranges = {*Prefix::parse("10.0.0.0/8")};
  Names stage({inside});
  const auto rule = stage.rule_of("*.example.org");
  REQUIRE(stage.open({"a.example.org"}, rule, {"10.0.0.7"}) == 0);
  REQUIRE(stage.open({"b.example.org"}, rule, {"10.0.0.8"}) == 0);
  auto also = allow_name("b.example.org", {port("tcp/443")});
  also.ranges = {*Prefix::parse("10.0.0.0/8"), *Prefix::parse("192.168.0.0/16")};
  stage.say({inside, allow_name("a.example.org"), also});
  CHECK_FALSE(stage.reaches("10.0.0.7"));
  CHECK(stage.reaches("10.0.0.8"));
}

TEST_CASE("a rule that ends leaves its names to what decides then") {
  auto brief = allow_name("a.example.org");
  auto brief_deny = deny_name("b.example.org");
  const auto all = allow_name("*.example.org", {port("tcp/443")});
  Names stage({all});
  brief.expires = brief_deny.expires = {stage.now.nanoseconds + 10'000'000'000};
  stage.say({all, brief, brief_deny});
  REQUIRE(stage.open({"a.example.org"}, stage.rule_of("a.example.org"), {"192.0.2.1"}) == 0);
  CHECK(stage.open({"b.example.org"}, stage.rule_of("*.example.org"), {"192.0.2.2"}) == ESTALE);
  stage.pass_time(11s);
  CHECK(stage.open({"b.example.org"}, stage.rule_of("*.example.org"), {"192.0.2.2"}) == 0);
}

TEST_CASE("what a decider allowed is over when a rule speaks of the name") {
  Names stage({});
  stage.manager.instance("saas", {.policy_source = true, .decider = true}, InstanceState::running);
  REQUIRE(stage.open({"a.example"}, NameGrant::kDecided, {"192.0.2.1"}) == 0);
  REQUIRE(stage.open({"b.example", "c.example"}, NameGrant::kDecided, {"192.0.2.2"}) == 0);
  REQUIRE(stage.open({"d.example"}, NameGrant::kDecided, {"192.0.2.3"}) == 0);
  stage.say({deny_name("a.example"), deny_name("c.example")});
  CHECK_FALSE(stage.reaches("192.0.2.1"));
  CHECK_FALSE(stage.reaches("192.0.2.2"));
  CHECK(stage.reaches("192.0.2.3"));
  CHECK(stage.open({"a.example"}, NameGrant::kDecided, {"192.0.2.1"}) == ESTALE);
  CHECK(stage.open({"b.example", "c.example"}, NameGrant::kDecided, {"192.0.2.1"}) == ESTALE);
}

TEST_CASE("what is no name opens nothing") {
  Names stage({allow_name("*.example.org")});
  for (const char* name : {"a..example.org", ".", "a\\2.example.org"}) {
    CAPTURE(name);
    CHECK(stage.open({name}, stage.rule_of("*.example.org"), {"192.0.2.1"}) != 0);
  }
  CHECK(stage.learned(stage.id).empty());
}

TEST_CASE("after a restart with other rules, what may not be allowed any more is closed") {
  const auto org = allow_name("*.example.org"), net = allow_name("*.example.net");
  const auto one = allow_name("one.example");
  Names before({org, net, one});
  REQUIRE(before.open({"a.example.org"}, before.rule_of("*.example.org"), {"192.0.2.1"}) == 0);
  REQUIRE(before.open({"b.example.net"}, before.rule_of("*.example.net"), {"192.0.2.2"}) == 0);
  REQUIRE(before.open({"one.example"}, before.rule_of("one.example"), {"192.0.2.3"}) == 0);
  REQUIRE(before.open({"c.example.net", "x.cdn.example"}, before.rule_of("*.example.net"),
                      {"192.0.2.4"}) == 0);
  const auto next = [&](std::vector<Rule> rules) {
    Stage stage(config_of({wire({"one", "saas", "dns"})}), before.kernel);
    stage.run_source("one");
    stage.manager.instance("saas", {}, InstanceState::running);
    stage.manager.instance("dns", {}, InstanceState::running);
    const auto id = stage.attach(tap("tap1", 7));
    REQUIRE(stage.manager.replace_layer("one", id, allowlist(std::move(rules))));
    std::string open;
    for (int i = 1; i <= 4; ++i)
      if (stage.passes(id, to(fmt::format("192.0.2.{}", i)))) open += static_cast<char>('0' + i);
    return open;
  };
  SUBCASE("rules that had changed before it") {
    before.say({org, net, one, deny_name("x.example.net"), deny_name("far.example")});
    CHECK(next({org, net, one, deny_name("x.example.net"), deny_name("far.example")}) == "1234");
  }
  SUBCASE("the same rules, in another order") {
    CHECK(next({one, net, org}) == "1234");
  }
  SUBCASE("an allow elsewhere") {
    CHECK(next({org, net, one, allow_name("two.example")}) == "1234");
  }
  SUBCASE("a deny under one wildcard: its names are not known, so all of them go") {
    // And those that led through an alias, which it may be about.
    CHECK(next({org, net, one, deny_name("a.example.org")}) == "23");
  }
  SUBCASE("a more specific rule") {
    CHECK(next({org, net, one, allow_name("b.example.net", {port("tcp/25")})}) == "13");
  }
  SUBCASE("and a change after it judges them no other way") {
    Stage stage(config_of({wire({"one", "saas", "dns"})}), before.kernel);
    stage.run_source("one");
    stage.manager.instance("saas", {}, InstanceState::running);
    stage.manager.instance("dns", {}, InstanceState::running);
    const auto id = stage.attach(tap("tap1", 7));
    REQUIRE(stage.manager.replace_layer("one", id, allowlist({org, net, one})));
    CHECK(stage.passes(id, to("192.0.2.1")));
    REQUIRE(stage.manager.replace_layer("one", id,
                                        allowlist({org, net, one, deny_name("a.example.org")})));
    CHECK_FALSE(stage.passes(id, to("192.0.2.1")));
    CHECK(stage.passes(id, to("192.0.2.2")));
    CHECK(stage.passes(id, to("192.0.2.3")));
  }
}

TEST_CASE("a workload at its share opens nothing more, and takes nothing from another") {
  Stage stage(config_of({wire({"one", "dns"})}));
  stage.manager.set_learned_share(100);
  const auto villain = stage.attach(tap("tap1", 7)), other = stage.attach(tap("tap2", 8));
  auto all = allow_name("*.example.org");
  for (const auto id : {villain, other})
    REQUIRE(stage.manager.replace_layer("one", id, allowlist({all})));
  const auto rule = stage.listener.domains[0].id.value;
  const auto learn = [&](AttachmentId id, int number, const std::string& name) {
    const auto address = mapped(fmt::format("192.0.{}.{}", number / 256, number % 256));
    const auto status =
        stage.learn("dns", id, std::span(&address, 1), kMinute, 60 * kMinute, rule, name);
    return status ? 0 : status.error().code;
  };
  const auto name = [](int number) { return fmt::format("n{}.example.org", number); };
  for (int i = 0; i < 100; ++i) REQUIRE(learn(villain, i, name(i)) == 0);
  CHECK(learn(villain, 100, name(100)) == ENOSPC);
  CHECK(stage.learned(villain).size() == 100);

  CHECK(learn(other, 100, name(100)) == 0);  // whose share is its own
  SUBCASE("another name of an address counts: names are what takes memory") {
    CHECK(learn(villain, 0, name(100)) == ENOSPC);
  }
  SUBCASE("what is open stays open, and may be opened longer") {
    CHECK(learn(villain, 0, name(0)) == 0);
    CHECK(stage.passes(villain, to("192.0.0.0")));
  }
  SUBCASE("what no connection uses makes room, and what one uses does not") {
    stage.kernel->in_use.insert(mapped("192.0.0.7"));
    stage.now.nanoseconds += 2 * kMinute;
    for (int i = 200; i < 299; ++i) REQUIRE(learn(villain, i, name(i)) == 0);
    CHECK(stage.learned(villain).contains(mapped("192.0.0.7")));
    CHECK_FALSE(stage.learned(villain).contains(mapped("192.0.0.8")));
    CHECK(learn(villain, 299, name(299)) == ENOSPC);
  }
  SUBCASE("and a refused push leaves nothing behind, however often it comes") {
    for (int i = 1000; i < 3000; ++i) CHECK(learn(villain, i, name(i)) == ENOSPC);
    REQUIRE(stage.manager.replace_layer("one", villain, allowlist({})));
    CHECK(stage.learned(villain).empty());
    REQUIRE(stage.manager.replace_layer("one", villain, allowlist({all})));
    CHECK(learn(villain, 1, name(1)) == 0);
  }
}

TEST_CASE("long chains of names take of the share what they take of memory") {
  Names stage({allow_name("*.example.org")});
  const auto rule = stage.rule_of("*.example.org");
  constexpr std::uint32_t kShare = 100;
  stage.manager.set_learned_share(kShare);
  // As a zone that somebody in the workload serves answers: ten aliases of 249 characters.
  std::vector<std::string> links;
  for (char c = 'a'; c < 'a' + 10; ++c) {
    const std::string label(63, c);
    links.push_back(label + "." + label + "." + label + "." + label.substr(0, 57));
  }
  const auto open_long = [&](int number, const std::vector<std::string>& addresses) {
    const auto first = fmt::format("n{:03}.example.org", number);
    std::vector<std::string_view> names{first};
    names.insert(names.end(), links.begin(), links.end());
    return stage.open(names, rule, addresses);
  };
  const auto open_short = [&](int number) {
    const auto name = fmt::format("s{}.example.org", number);
    return stage.open({name}, rule, {fmt::format("198.18.0.{}", number)});
  };
  const auto address = [](int number) { return fmt::format("192.0.2.{}", number); };
  // 16 + 10 * 250 bytes: four units, and the owner.
  constexpr int kFit = kShare / 5;
  for (int i = 0; i < kFit; ++i) REQUIRE(open_long(i, {address(i)}) == 0);
  CHECK(open_long(kFit, {address(kFit)}) == ENOSPC);
  CHECK(open_short(0) == ENOSPC);
  CHECK(stage.learned(stage.id).size() == kFit);
  SUBCASE("names that are kept already cost nothing more, and may be opened longer") {
    CHECK(open_long(0, {address(0)}) == 0);
  }
  SUBCASE("what was refused has left nothing") {
    for (int i = 100; i < 200; ++i) CHECK(open_long(i, {address(i)}) == ENOSPC);
    REQUIRE(stage.manager.revoke("dns", stage.id, std::vector{mapped(address(3))}));
    stage.turn();
    stage.now.nanoseconds += 1'000'000'000;
    CHECK(open_long(kFit, {address(kFit)}) == 0);
    CHECK(open_short(0) == ENOSPC);
  }
  SUBCASE("what ends gives back what it took, no less and no more") {
    for (int round = 0; round < 3; ++round) {
      stage.now.nanoseconds += 2 * kMinute;
      for (int i = 0; i < static_cast<int>(kShare); ++i) REQUIRE(open_short(i) == 0);
      CHECK(open_short(kShare) == ENOSPC);
      stage.now.nanoseconds += 2 * kMinute;
      if (round == 1) stage.turn();  // the core loop may come first, or not
      for (int i = 0; i < kFit; ++i) REQUIRE(open_long(i, {address(i)}) == 0);
      CHECK(open_short(0) == ENOSPC);
    }
  }
  SUBCASE("a rule that goes gives it back") {
    stage.say({});
    stage.say({allow_name("*.example.org")});
    const auto again = stage.rule_of("*.example.org");
    for (int i = 0; i < static_cast<int>(kShare); ++i)
      REQUIRE(stage.open({fmt::format("s{}.example.org", i)}, again,
                         {fmt::format("198.18.0.{}", i)}) == 0);
  }
  SUBCASE("one chain to many addresses is kept once") {
    stage.now.nanoseconds += 2 * kMinute;
    std::vector<std::string> many;
    for (int i = 0; i < 96; ++i) many.push_back(address(i));
    CHECK(open_long(0, many) == 0);
    CHECK(open_short(0) == ENOSPC);
  }
}
