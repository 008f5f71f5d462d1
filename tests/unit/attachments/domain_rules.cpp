// Domain rules on their way to resolvers, and the addresses that these learn under them.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "attachments/attachment_manager.hpp"

#include <doctest/doctest.h>

#include "stage.hpp"

using namespace sluice;
using namespace sluice::test;
using Heard = std::vector<std::string>;

TEST_CASE("domain rules of all sources reach every source of the wire, united and whole") {
  Stage stage(config_of({wire({"one", "two", "dns"})}));
  const auto id = stage.attach(tap("tap1", 7));
  stage.listener.take();
  REQUIRE(stage.manager.replace_layer("one", id, only({allow_name("pypi.org")})));
  CHECK(stage.listener.take() ==
        Heard{"domains one pypi.org", "domains two pypi.org", "domains dns pypi.org"});
  REQUIRE(stage.manager.replace_layer("two", id,
                                      only({allow_name("pypi.org"), allow_name(".debian.org")})));
  CHECK(stage.listener.take().back() == "domains dns pypi.org .debian.org");
  // A change of prefixes only is no news for a resolver.
  REQUIRE(stage.manager.update_layer("two", id, {}, {allow("192.0.2.0/24")}, {}));
  CHECK(stage.listener.take().empty());
}

TEST_CASE("an address learned under a name passes on the ports of its rule, until its time") {
  Stage stage(config_of({wire({"one", "dns"})}));
  const auto id = stage.attach(tap("tap1", 7));
  REQUIRE(stage.manager.replace_layer("one", id,
                                      allowlist({allow_name("pypi.org", {port("tcp/443")})})));
  const auto address = mapped("192.0.2.7");
  REQUIRE(stage.learn("dns", id, std::span(&address, 1), 60'000'000'000, 30'000'000'000, 0));
  CHECK(stage.passes(id, to("192.0.2.7", 443)));
  CHECK_FALSE(stage.passes(id, to("192.0.2.7", 22)));
  stage.pass_time(61s);
  CHECK_FALSE(stage.passes(id, to("192.0.2.7", 443)));
}

TEST_CASE("what may not be learned") {
  Stage stage(config_of({wire({"one", "dns"})}, {"169.254.169.254/32"}));
  const auto id = stage.attach(tap("tap1", 7));
  auto denied_name = allow_name("evil.example");
  denied_name.action = Action::deny;
  auto expired = allow_name("old.example");
  expired.expires = {stage.now.nanoseconds + 1};
  REQUIRE(stage.manager.replace_layer(
      "one", id,
      allowlist({deny("10.0.0.0/8"), deny("192.0.2.0/24", {port("tcp/25")}), allow_name("pypi.org"),
                 denied_name, allow_name("mail.example", {port("tcp/25")}), expired})));
  stage.now.nanoseconds += 10;
  struct Row {
    const char* description;
    const char* address;
    const char* instance;
    std::uint32_t rule;
    int code;  // 0: learned
  };
  const Row rows[] = {
      {"an ordinary address", "192.0.2.7", "dns", 0, 0},
      {"an IPv6 address", "2001:db8::7", "dns", 0, 0},
      {"explicitly denied", "10.0.0.7", "dns", 0, EACCES},
      {"on the floor", "169.254.169.254", "dns", 0, EACCES},
      {"denied on all of the rule's ports", "192.0.2.7", "dns", 2, EACCES},
      {"under a deny", "198.51.100.7", "dns", 1, EACCES},
      {"under a rule that has ended", "198.51.100.7", "dns", 3, ESTALE},
      {"under a rule that does not exist", "198.51.100.7", "dns", 4, ESTALE},
      {"by a stranger", "198.51.100.7", "other", 0, EPERM},
  };
  for (const auto& row : rows) {
    CAPTURE(row.description);
    const auto learned = stage.learned(id).size();
    const auto address = mapped(row.address);
    auto status =
        stage.learn(row.instance, id, std::span(&address, 1), 60'000'000'000, 0, row.rule);
    CHECK((status ? 0 : status.error().code) == row.code);
    CHECK(stage.learned(id).size() == learned + (row.code == 0 ? 1 : 0));
  }
}

TEST_CASE("a push under several rules is one: every address with the ports of all, or nothing") {
  Stage stage(config_of({wire({"one", "dns"})}));
  const auto id = stage.attach(tap("tap1", 7));
  const auto web = allow_name("a.org", {port("tcp/443")}),
             mail = allow_name("a.org", {port("tcp/25")});
  REQUIRE(stage.manager.replace_layer("one", id,
                                      allowlist({deny("192.0.2.9", {port("tcp/25")}), web, mail})));
  const auto rule_id = [&](std::size_t index) { return stage.listener.domains[index].id.value; };
  const std::array both{mapped("192.0.2.7"), mapped("2001:db8::7")};
  const auto more = mapped("192.0.2.8");
  constexpr std::string_view kName = "a.org";
  constexpr std::uint64_t kMinute = 60'000'000'000;
  std::vector<NameGrant> grants{
      {.rule = rule_id(0), .addresses = both, .ttl_ns = kMinute, .grace_ns = 0},
      {.rule = rule_id(1), .addresses = both, .ttl_ns = 2 * kMinute, .grace_ns = 0},
      {.rule = rule_id(1), .addresses = std::span(&more, 1), .ttl_ns = kMinute, .grace_ns = 0}};
  const auto push = [&] {
    auto status = stage.manager.learn("dns", id, {std::span(&kName, 1), grants});
    return status ? 0 : status.error().code;
  };
  SUBCASE("all of it, in one write") {
    REQUIRE(push() == 0);
    for (const char* address : {"192.0.2.7", "2001:db8::7"}) {
      CHECK(stage.passes(id, to(address, 443)));
      CHECK(stage.passes(id, to(address, 25)));
      CHECK_FALSE(stage.passes(id, to(address, 80)));
    }
    CHECK_FALSE(stage.passes(id, to("192.0.2.8", 443)));
    CHECK(stage.passes(id, to("192.0.2.8", 25)));
    // Each rule owns its part: with one gone, its ports go, and its time.
    REQUIRE(stage.manager.replace_layer("one", id, allowlist({web})));
    CHECK(stage.passes(id, to("192.0.2.7", 443)));
    CHECK_FALSE(stage.passes(id, to("192.0.2.7", 25)));
    CHECK_FALSE(stage.passes(id, to("192.0.2.8", 25)));
    stage.pass_time(61s);
    CHECK_FALSE(stage.passes(id, to("192.0.2.7", 443)));
  }
  SUBCASE("nothing, where the kernel takes no more") {
    stage.plane.refuse("learn", {.message = "full", .code = ENOSPC});
    CHECK(push() == ENOSPC);
    CHECK(stage.learned(id).empty());
    REQUIRE(push() == 0);
    CHECK(stage.plane.calls("learn") == 1);  // nothing can come between its parts
  }
  SUBCASE("nothing, where one of the rules is not in force") {
    grants.back().rule = 999;
    CHECK(push() == ESTALE);
    CHECK(stage.learned(id).empty());
  }
  SUBCASE("nothing, where one address is denied under one of the rules; it is counted through") {
    const auto denied = mapped("192.0.2.9");
    grants.back().addresses = std::span(&denied, 1);
    auto status = stage.manager.learn("dns", id, {std::span(&kName, 1), grants});
    REQUIRE_FALSE(status);
    CHECK(status.error().code == EACCES);
    CHECK(status.error().rule_index == 4);
    CHECK(stage.learned(id).empty());
  }
}

TEST_CASE("one denied address among many learns none of them") {
  Stage stage(config_of({wire({"one", "dns"})}));
  const auto id = stage.attach(tap("tap1", 7));
  REQUIRE(
      stage.manager.replace_layer("one", id, allowlist({deny("10.0.0.0/8"), allow_name("a.org")})));
  const std::array addresses{mapped("192.0.2.7"), mapped("10.0.0.7")};
  auto status = stage.learn("dns", id, addresses, 60'000'000'000, 0, 0);
  REQUIRE_FALSE(status);
  CHECK(status.error().rule_index == 1);
  CHECK(status.error().message.find("10.0.0.7") != std::string::npos);
  CHECK(stage.learned(id).empty());
}

TEST_CASE("a domain rule keeps its id among others, and the id of one that went names no other") {
  Stage stage(config_of({wire({"one", "dns"})}));
  const auto id = stage.attach(tap("tap1", 7));
  const auto ids = [&](std::vector<Rule> rules) {
    REQUIRE(stage.manager.replace_layer("one", id, allowlist(std::move(rules))));
    std::map<std::string, std::uint32_t> by_name;
    for (const auto& rule : stage.listener.domains) by_name[rule.domain] = rule.id.value;
    return by_name;
  };
  const auto learn = [&](const char* text, std::uint32_t rule) {
    const auto address = mapped(text);
    const auto status = stage.learn("dns", id, std::span(&address, 1), 60'000'000'000, 0, rule);
    return status ? 0 : status.error().code;
  };
  const auto before = ids({allow_name("b.example"), allow_name("c.example")});
  // The index of "b" is now that of "a"; whoever still judges by the former list must not open "a".
  const auto after = ids({allow_name("a.example"), allow_name("c.example")});
  CHECK(after.at("c.example") == before.at("c.example"));
  CHECK(after.at("a.example") != before.at("b.example"));
  CHECK(learn("192.0.2.1", before.at("b.example")) == ESTALE);
  CHECK(learn("192.0.2.1", before.at("c.example")) == 0);
  // With other ports it opens something else.
  const auto ported = ids({allow_name("c.example", {port("tcp/443")})});
  CHECK(ported.at("c.example") != before.at("c.example"));
  CHECK(learn("192.0.2.2", before.at("c.example")) == ESTALE);
  CHECK(ids({allow_name("b.example")}).at("b.example") != before.at("b.example"));
}

TEST_CASE("attributes of domain rules: where they may stand and what they may say") {
  Stage stage(config_of({wire({"one", "dns"})}));
  const auto id = stage.attach(tap("tap1", 7));
  auto inside = allow_name("a.org");
  inside.ranges = {*Prefix::parse("10.0.0.0/8")};
  inside.types = {15, 65280};
  inside.public_suffix = true;
  REQUIRE(stage.manager.replace_layer("one", id, allowlist({inside})));

  const auto refused = [&](Rule rule) {
    auto result = stage.manager.replace_layer("one", id, allowlist({allow_name("b.org"), rule}));
    return !result && result.error().rule_index == 1;
  };
  auto denied = inside;
  denied.action = Action::deny;
  CHECK(refused(denied));
  auto prefix = allow("192.0.2.0/24");
  prefix.types = {15};
  CHECK(refused(prefix));
  auto crooked = inside;
  crooked.ranges[0].length = 4;
  CHECK(refused(crooked));
  for (const std::uint16_t type : {0, 41, 252, 255}) {
    auto meta = inside;
    meta.types = {type};
    CHECK(refused(meta));
  }
}

TEST_CASE("a rule that grants other ranges is another rule: what it opened goes") {
  Stage stage(config_of({wire({"one", "dns"})}));
  const auto id = stage.attach(tap("tap1", 7));
  auto inside = allow_name("a.org");
  inside.ranges = {*Prefix::parse("10.0.0.0/8")};
  REQUIRE(stage.manager.replace_layer("one", id, allowlist({inside})));
  const auto address = mapped("10.0.0.7");
  REQUIRE(stage.learn("dns", id, std::span(&address, 1), 60'000'000'000, 0, 0));
  CHECK(stage.passes(id, to("10.0.0.7")));
  auto renamed = inside;
  renamed.name = "renamed";
  REQUIRE(stage.manager.replace_layer("one", id, allowlist({renamed})));
  CHECK(stage.passes(id, to("10.0.0.7")));
  REQUIRE(stage.manager.replace_layer("one", id, allowlist({allow_name("a.org")})));
  CHECK_FALSE(stage.passes(id, to("10.0.0.7")));
}

TEST_CASE("a removed rule revokes what only it opened, at once, and cuts it") {
  Stage stage(config_of({wire({"one", "dns"})}));
  const auto id = stage.attach(tap("tap1", 7));
  const auto name_a = allow_name("a.org", {port("tcp/443")});
  const auto name_b = allow_name("b.org", {port("tcp/22")});
  REQUIRE(stage.manager.replace_layer("one", id, allowlist({name_a, name_b})));
  const std::array of_a{mapped("192.0.2.1"), mapped("192.0.2.2")};
  const std::array of_b{mapped("192.0.2.2"), mapped("192.0.2.3")};
  REQUIRE(stage.learn("dns", id, of_a, 60'000'000'000, 0, 0));
  REQUIRE(stage.learn("dns", id, of_b, 60'000'000'000, 0, 1));
  CHECK(stage.passes(id, to("192.0.2.2", 443)));
  CHECK(stage.passes(id, to("192.0.2.2", 22)));
  const auto severings = stage.in_kernel(id).severings;

  REQUIRE(stage.manager.replace_layer("one", id, allowlist({name_b})));
  CHECK_FALSE(stage.passes(id, to("192.0.2.1", 443)));
  CHECK_FALSE(stage.passes(id, to("192.0.2.2", 443)));  // a's port went with a
  CHECK(stage.passes(id, to("192.0.2.2", 22)));         // b still owns it
  CHECK(stage.passes(id, to("192.0.2.3", 22)));
  CHECK(stage.in_kernel(id).severings > severings);
  // b moved from index 1 to 0 and is still itself.
  REQUIRE(stage.manager.replace_layer("one", id, allowlist({})));
  CHECK(stage.learned(id).empty());
}

TEST_CASE("a domain rule that ends takes its addresses and is no longer listed") {
  Stage stage(config_of({wire({"one", "dns"})}));
  const auto id = stage.attach(tap("tap1", 7));
  auto brief = allow_name("a.org");
  brief.expires = {stage.now.nanoseconds + 10'000'000'000};
  REQUIRE(stage.manager.replace_layer("one", id, allowlist({brief, allow_name("b.org")})));
  const auto address = mapped("192.0.2.7");
  REQUIRE(stage.learn("dns", id, std::span(&address, 1), 3'600'000'000'000, 0, 0));
  stage.listener.take();
  stage.pass_time(11s);
  CHECK_FALSE(stage.passes(id, to("192.0.2.7")));
  CHECK(stage.listener.take() == Heard{"domains one b.org", "domains dns b.org"});
}

namespace {

// What a daemon that learned these three leaves in the kernel.
std::shared_ptr<FakeKernel> leave_learned(const Config& config, const std::vector<Rule>& rules) {
  Stage before(config);
  const auto id = before.attach(tap("tap1", 7));
  REQUIRE(before.manager.replace_layer("one", id, allowlist(rules)));
  for (std::uint32_t i = 0; i < rules.size(); ++i) {
    const std::array addresses{mapped(fmt::format("192.0.2.{}", i + 1)), mapped("192.0.2.99")};
    REQUIRE(before.learn("dns", id, addresses, 600'000'000'000 * (i + 1), 0, i));
  }
  return before.kernel;
}

}  // namespace

TEST_CASE("after a restart an address is held against its rule once the sources have spoken") {
  const auto config = config_of({wire({"one", "dns"})});
  auto name_a = allow_name("a.org", {port("tcp/443")});
  const auto name_b = allow_name("b.org", {port("tcp/22")});
  const auto kernel = leave_learned(config, {name_a, name_b});
  Stage stage(config, kernel);
  stage.run_source("one");
  stage.manager.instance("dns", {}, InstanceState::running);
  stage.run_discovery();
  const auto id = stage.attach(tap("tap1", 7));
  CHECK(stage.learned(id).size() == 3);  // nobody has spoken yet

  SUBCASE("a rule that went while no daemon ran takes its addresses along") {
    const auto severings = stage.in_kernel(id).severings;
    name_a.name = "renamed meanwhile";
    REQUIRE(stage.manager.replace_layer("one", id, allowlist({name_a})));
    CHECK(stage.passes(id, to("192.0.2.1", 443)));
    CHECK_FALSE(stage.passes(id, to("192.0.2.2", 22)));
    CHECK_FALSE(stage.passes(id, to("192.0.2.99", 22)));
    CHECK(stage.in_kernel(id).severings > severings);
    // And the rule that stayed owns its address again.
    REQUIRE(stage.manager.replace_layer("one", id, allowlist({})));
    CHECK(stage.learned(id).empty());
  }
  SUBCASE("with all rules there, all is there; one that two rules opened has the ports of one") {
    REQUIRE(stage.manager.replace_layer("one", id, allowlist({name_b, name_a})));
    CHECK(stage.passes(id, to("192.0.2.1", 443)));
    CHECK(stage.passes(id, to("192.0.2.2", 22)));
    CHECK(stage.passes(id, to("192.0.2.99", 22)));
    CHECK_FALSE(stage.passes(id, to("192.0.2.99", 443)));
  }
  SUBCASE("a rule with other ports is another rule") {
    name_a.ports = {port("tcp/80")};
    REQUIRE(stage.manager.replace_layer("one", id, allowlist({name_a, name_b})));
    CHECK_FALSE(stage.learned(id).contains(mapped("192.0.2.1")));
    CHECK(stage.learned(id).contains(mapped("192.0.2.2")));
  }
  SUBCASE("what nobody can say the owner of goes") {
    kernel->learned.begin()->second.at(mapped("192.0.2.1")).address.owner = 0;
    Stage next(config, kernel);
    next.run_source("one");
    next.manager.instance("dns", {}, InstanceState::running);
    const auto same = next.attach(tap("tap1", 7));
    REQUIRE(next.manager.replace_layer("one", same, allowlist({name_a, name_b})));
    CHECK_FALSE(next.learned(same).contains(mapped("192.0.2.1")));
    CHECK(next.learned(same).contains(mapped("192.0.2.2")));
  }
  SUBCASE("learned again before the sources have spoken, it has the ports of what is in force") {
    stage.run_source("two");
    REQUIRE(stage.manager.replace_layer("one", id, allowlist({name_b})));
    const auto address = mapped("192.0.2.1");  // a.org's
    REQUIRE(stage.learn("dns", id, std::span(&address, 1), 60'000'000'000, 0, 0));
    CHECK(stage.passes(id, to("192.0.2.1", 22)));
    CHECK_FALSE(stage.passes(id, to("192.0.2.1", 443)));
  }
}

TEST_CASE("a decision opens addresses only where a source of the wire decides") {
  Stage stage(config_of({wire({"one", "saas", "dns"})}, {"169.254.169.254/32"}));
  const auto id = stage.attach(tap("tap1", 7));
  REQUIRE(stage.manager.replace_layer("one", id, allowlist({deny("10.0.0.0/8")})));
  const std::array ports{port("tcp/443")};
  const auto learn = [&](const char* text) {
    const auto address = mapped(text);
    constexpr std::string_view kName = "decided.example";
    const NameGrant grant{.addresses = std::span(&address, 1),
                          .ttl_ns = 60'000'000'000,
                          .grace_ns = 0,
                          .ports = ports};
    auto status = stage.manager.learn("dns", id, {std::span(&kName, 1), std::span(&grant, 1)});
    return status ? 0 : status.error().code;
  };
  CHECK(learn("192.0.2.7") == EPERM);
  stage.manager.instance("saas", {.policy_source = true, .decider = true}, InstanceState::running);
  CHECK(learn("192.0.2.7") == 0);
  CHECK(stage.passes(id, to("192.0.2.7", 443)));
  CHECK_FALSE(stage.passes(id, to("192.0.2.7", 22)));
  CHECK(learn("10.0.0.7") == EACCES);
  CHECK(learn("169.254.169.254") == EACCES);
  CHECK(stage.learned(id).size() == 1);

  SUBCASE("a change of rules does not touch it") {
    REQUIRE(stage.manager.replace_layer("one", id, allowlist({allow_name("a.org")})));
    CHECK(stage.learned(id).size() == 1);
  }
  SUBCASE("it goes when the wire loses its decider") {
    REQUIRE(stage.manager.rewire(Wiring(config_of({wire({"one", "dns"})}))));
    CHECK(stage.learned(id).empty());
    CHECK(learn("192.0.2.7") == EPERM);
  }
  SUBCASE("after a restart it stays while the same instance decides") {
    for (const bool decides : {true, false}) {
      Stage next(config_of({wire({"one", "saas", "dns"})}), stage.kernel);
      next.run_source("one");
      next.manager.instance("saas", {.policy_source = true, .decider = decides},
                            InstanceState::running);
      next.manager.instance("dns", {}, InstanceState::running);
      const auto same = next.attach(tap("tap1", 7));
      REQUIRE(next.manager.replace_layer("saas", same, only({})));
      CHECK(next.learned(same).size() == 1);
      REQUIRE(next.manager.replace_layer("one", same, allowlist({})));
      CHECK(next.learned(same).size() == (decides ? 1 : 0));
    }
  }
}
