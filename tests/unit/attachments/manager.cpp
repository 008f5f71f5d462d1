#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "attachments/attachment_manager.hpp"

#include <doctest/doctest.h>

#include "stage.hpp"

using namespace sluice;
using namespace sluice::test;
using Heard = std::vector<std::string>;

// ---- attach, detach, wiring ---------------------------------------------------------------------

TEST_CASE("a new attachment starts under its wire's mode, before it is linked") {
  auto open = wire({"static"});
  open.mode = Mode::denylist;
  Stage stage(config_of({open}, {"169.254.169.254/32"}));
  const auto id = stage.attach(tap("tap1", 7));
  CHECK(stage.plane.calls("publish") == 0);  // it came with the attach
  CHECK(stage.passes(id, to("192.0.2.1")));
  CHECK_FALSE(stage.passes(id, to("169.254.169.254")));
  CHECK(stage.listener.take() == Heard{"added static tap1"});
}

TEST_CASE("a target that no wire matches is attached, and nothing leaves it") {
  Stage stage(config_of({wire({"static"}, {{"class", "vm"}})}));
  const auto id = stage.attach(tap("tap1", 7), {{"class", "other"}});
  CHECK_FALSE(stage.passes(id, to("192.0.2.1")));
  CHECK_FALSE(stage.in_kernel(id).options.replies);
  CHECK(stage.listener.take().empty());
  auto refused = stage.manager.replace_layer("static", id, allowlist({allow("0.0.0.0/0")}));
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == EPERM);
}

TEST_CASE("attach is idempotent per target, and another discovery is refused") {
  Stage stage(config_of({wire({"static"})}));
  const auto id = stage.attach(tap("tap1", 7));
  REQUIRE(stage.manager.replace_layer("static", id, allowlist({allow("192.0.2.0/24")})));
  stage.listener.take();
  CHECK(stage.attach(tap("tap1", 7)) == id);
  CHECK(stage.passes(id, to("192.0.2.1")));
  CHECK(stage.listener.take().empty());

  auto other = stage.manager.attach("libvirt", tap("tap1", 7), {});
  REQUIRE_FALSE(other);
  CHECK(other.error().code == EEXIST);
  CHECK(other.error().message.find("taps") != std::string::npos);
  CHECK(stage.manager.detach("libvirt", id, "").error().code == EPERM);
  CHECK(stage.manager.list().size() == 1);
}

TEST_CASE("a rename is the same attachment under its new name") {
  Stage stage(config_of({wire({"static"})}));
  const auto id = stage.attach(tap("tap1", 7));
  CHECK(stage.attach(tap("vm-web", 7)) == id);
  CHECK(target_name(stage.info(id).target) == "vm-web");
}

TEST_CASE("an ifindex that another device took is another attachment") {
  Stage stage(config_of({wire({"static"})}));
  const auto first = stage.attach(tap("tap1", 7));
  REQUIRE(stage.manager.replace_layer("static", first, allowlist({allow("0.0.0.0/0")})));
  stage.listener.take();
  bool late = false;
  SUBCASE("and we heard that the first one went") {}
  SUBCASE("and we have not heard yet") {
    late = true;
  }
  stage.plane.withhold_news(late);
  stage.plane.remove_target(stage.slot(first));
  const auto second = stage.attach(tap("tap9", 7));
  CHECK(second != first);
  CHECK_FALSE(stage.passes(second, to("192.0.2.1")));
  CHECK(stage.listener.take() == Heard{"removed static tap1", "added static tap9"});
  stage.plane.withhold_news(false);
  stage.turn();  // late news must not hit the new one
  CHECK(stage.manager.list().size() == 1);
  CHECK(stage.info(second).id == second);
}

TEST_CASE("a target that goes takes its attachment with it") {
  Stage stage(config_of({wire({"static"})}));
  const auto id = stage.attach(cgroup("/a", 55));
  stage.listener.take();
  stage.plane.remove_target(stage.slot(id));
  stage.turn();
  CHECK(stage.manager.list().empty());
  CHECK(stage.listener.take() == Heard{"removed static /a"});
  CHECK(stage.manager.replace_layer("static", id, {}).error().code == ENOENT);
}

TEST_CASE("a cgroup made anew under its name is another attachment") {
  Stage stage(config_of({wire({"static"})}));
  const auto first = stage.attach(cgroup("/a", 55));
  stage.plane.remove_target(stage.slot(first));
  const auto second = stage.attach(cgroup("/a", 56));
  stage.turn();
  CHECK(second != first);
  CHECK(stage.manager.list().size() == 1);
}

TEST_CASE("a failing attach leaves nothing behind and says what the data plane said") {
  Stage stage(config_of({wire({"static"})}));
  stage.plane.refuse("attach", {.message = "tap1: no such device", .code = ENODEV});
  auto refused = stage.manager.attach("taps", tap("tap1", 7), {});
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == ENODEV);
  CHECK(stage.manager.list().empty());
  CHECK(stage.listener.take().empty());
}

TEST_CASE("new labels match the wiring again, and layers of sources that stay are kept") {
  Stage stage(config_of(
      {wire({"static", "saas"}, {{"class", "vm"}}), wire({"static", "dns"}, {{"class", "ct"}})}));
  const auto id = stage.attach(tap("tap1", 7), {{"class", "vm"}});
  REQUIRE(stage.manager.replace_layer("static", id, allowlist({allow("192.0.2.0/24")})));
  REQUIRE(stage.manager.replace_layer("saas", id, allowlist({allow("198.51.100.0/24")})));
  stage.listener.take();

  REQUIRE(stage.manager.relabel("taps", id, {{"class", "ct"}}));
  CHECK(stage.passes(id, to("192.0.2.1")));
  CHECK_FALSE(stage.passes(id, to("198.51.100.1")));
  CHECK(stage.listener.take() ==
        Heard{"removed saas tap1", "changed static tap1", "added dns tap1"});

  SUBCASE("labels that no wire matches close it") {
    REQUIRE(stage.manager.relabel("taps", id, {}));
    CHECK_FALSE(stage.passes(id, to("192.0.2.1")));
  }
  SUBCASE("when the kernel refuses, labels and policy stay") {
    stage.plane.refuse("publish", {.message = "full", .code = ENOSPC});
    CHECK_FALSE(stage.manager.relabel("taps", id, {}));
    CHECK(stage.passes(id, to("192.0.2.1")));
    CHECK(stage.info(id).labels == Labels{{"class", "ct"}});
  }
}

TEST_CASE("observers hear of every attachment once, wired or not, and of its mode") {
  Stage stage(config_of({wire({"static", "saas"}, {{"class", "vm"}})}));
  const auto wired = stage.attach(tap("tap1", 7), {{"class", "vm"}});
  const auto closed = stage.attach(tap("tap2", 8));
  CHECK(std::exchange(stage.listener.observed, {}) == Heard{"added tap1", "added tap2"});
  stage.listener.take();
  REQUIRE(stage.manager.replace_layer("static", wired, allowlist({allow("192.0.2.0/24")})));
  CHECK(std::exchange(stage.listener.observed, {}) == Heard{"changed tap1"});
  CHECK(stage.listener.take() == Heard{"changed saas tap1"});  // not the one that spoke
  REQUIRE(stage.manager.replace_layer("static", wired, allowlist({})));
  CHECK(stage.listener.observed.empty());  // rules are no news to them
  REQUIRE(stage.manager.detach("taps", closed, "over"));
  CHECK(std::exchange(stage.listener.observed, {}) == Heard{"removed tap2"});
}

// ---- layers -------------------------------------------------------------------------------------

TEST_CASE("the mode is that of the first source, in the wire's order, which has set one") {
  struct Row {
    const char* description;
    std::optional<Mode> first, second;
    Mode expected;
  };
  const Row rows[] = {
      {"nobody has set one: the wire's", {}, {}, Mode::block_all},
      {"only the second has", {}, Mode::denylist, Mode::denylist},
      {"only the first has", Mode::allowlist, {}, Mode::allowlist},
      {"the first wins", Mode::block_all, Mode::disabled, Mode::block_all},
      {"the first wins, however open", Mode::disabled, Mode::block_all, Mode::disabled},
  };
  for (const auto& row : rows) {
    CAPTURE(row.description);
    Stage stage(config_of({wire({"one", "two"})}));
    const auto id = stage.attach(tap("tap1", 7));
    Layer first, second;
    first.mode = row.first;
    second.mode = row.second;
    REQUIRE(stage.manager.replace_layer("two", id, second));
    REQUIRE(stage.manager.replace_layer("one", id, first));
    CHECK(stage.in_kernel(id).attachment.mode == row.expected);
  }
}

TEST_CASE("rules are united over layers, and deny wins a tie between sources") {
  Stage stage(config_of({wire({"one", "two"})}));
  const auto id = stage.attach(tap("tap1", 7));
  REQUIRE(stage.manager.replace_layer("one", id, allowlist({allow("10.0.0.0/8")})));
  REQUIRE(stage.manager.replace_layer("two", id, only({deny("10.1.0.0/16")})));
  CHECK(stage.passes(id, to("10.2.0.1")));
  CHECK_FALSE(stage.passes(id, to("10.1.0.1")));
  REQUIRE(stage.manager.withdraw_layer("two", id));
  CHECK(stage.passes(id, to("10.1.0.1")));

  // As long a prefix, whichever of the two comes first.
  REQUIRE(stage.manager.replace_layer("two", id, only({deny("10.0.0.0/8")})));
  CHECK_FALSE(stage.passes(id, to("10.2.0.1")));
  REQUIRE(stage.manager.replace_layer("one", id, allowlist({deny("10.0.0.0/8")})));
  REQUIRE(stage.manager.replace_layer("two", id, only({allow("10.0.0.0/8")})));
  CHECK_FALSE(stage.passes(id, to("10.2.0.1")));
}

TEST_CASE("only a source that may overrule the floor opens what it denies") {
  auto config = config_of({wire({"saas", "static"})}, {"169.254.169.254/32"});
  PluginConfig trusted;
  trusted.instance = "static";
  trusted.overrides_floor = true;
  config.plugins.push_back(trusted);
  Stage stage(config);
  const auto id = stage.attach(tap("tap1", 7));
  const auto opening = allowlist({allow("169.254.169.254/32")});
  REQUIRE(stage.manager.replace_layer("saas", id, opening));
  CHECK_FALSE(stage.passes(id, to("169.254.169.254")));
  REQUIRE(stage.manager.replace_layer("static", id, opening));
  CHECK(stage.passes(id, to("169.254.169.254")));
}

TEST_CASE("audit and replies come from the first source that says so, else from the wire") {
  auto wired = wire({"one", "two"});
  wired.options.audit = true;
  Stage stage(config_of({wired}));
  const auto id = stage.attach(tap("tap1", 7));
  CHECK(stage.in_kernel(id).options.audit);
  CHECK(stage.in_kernel(id).options.replies);
  REQUIRE(stage.manager.replace_layer("two", id, flagged({}, false, false)));
  CHECK_FALSE(stage.in_kernel(id).options.audit);
  CHECK_FALSE(stage.in_kernel(id).options.replies);
  REQUIRE(stage.manager.replace_layer("one", id, flagged({}, true, {})));
  CHECK(stage.in_kernel(id).options.audit);
  CHECK_FALSE(stage.in_kernel(id).options.replies);
}

TEST_CASE("a rejected change changes nothing") {
  Stage stage(config_of({wire({"one"})}));
  const auto id = stage.attach(tap("tap1", 7));
  const auto good = stage.manager.replace_layer("one", id, allowlist({allow("192.0.2.0/24")}));
  REQUIRE(good);
  const auto check_unchanged = [&] {
    CHECK(stage.info(id).generation == good->generation);
    CHECK(stage.passes(id, to("192.0.2.1")));
    CHECK_FALSE(stage.passes(id, to("198.51.100.1")));
    // The layer in memory is the old one too: one more rule adds to it.
    REQUIRE(stage.manager.update_layer("one", id, {}, {allow("203.0.113.0/24")}, {}));
    CHECK(stage.passes(id, to("192.0.2.1")));
    CHECK_FALSE(stage.passes(id, to("198.51.100.1")));
  };
  SUBCASE("the kernel has no room") {
    stage.plane.refuse("publish", {.message = "the policy heap is full", .code = ENOSPC});
    auto refused = stage.manager.replace_layer("one", id, allowlist({allow("198.51.100.0/24")}));
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == ENOSPC);
    CHECK(refused.error().message == "tap1: the policy heap is full");
    check_unchanged();
  }
  SUBCASE("a rule has host bits") {
    auto bad = allow("198.51.100.0/24");
    bad.prefix->address[3] = 7;
    auto refused =
        stage.manager.replace_layer("one", id, allowlist({allow("198.51.100.0/24"), bad}));
    REQUIRE_FALSE(refused);
    CHECK(refused.error().rule_index == 1);
    check_unchanged();
  }
  SUBCASE("a rule has neither prefix nor name") {
    auto refused = stage.manager.replace_layer("one", id, allowlist({Rule{}}));
    REQUIRE_FALSE(refused);
    CHECK(refused.error().rule_index == 0);
    check_unchanged();
  }
  SUBCASE("more decisions on one prefix than the programs walk") {
    std::vector<Rule> rules;
    for (int i = 0; i < 400; ++i) {
      rules.push_back(allow("198.51.100.0/24", {port("tcp/" + std::to_string(2 * i + 1))}));
    }
    auto refused = stage.manager.replace_layer("one", id, allowlist(rules));
    REQUIRE_FALSE(refused);
    CHECK(refused.error().rule_index != Error::kNoIndex);
    check_unchanged();
  }
}

TEST_CASE("many layers with one call: all of them, or none") {
  Stage stage(config_of({wire({"one"})}));
  std::vector<AttachmentId> ids;
  for (std::uint32_t i = 1; i <= 4; ++i) {
    ids.push_back(stage.attach(tap("tap" + std::to_string(i), i)));
    REQUIRE(stage.manager.replace_layer("one", ids.back(), allowlist({allow("192.0.2.0/24")})));
  }
  const auto to_all = [&](const Layer& layer) {
    std::vector<LayerChange> changes;
    for (const auto id : ids) changes.push_back({id, layer});
    return changes;
  };
  const auto check_all = [&](const char* passing, const char* dropped) {
    for (const auto id : ids) {
      CHECK(stage.passes(id, to(passing)));
      CHECK_FALSE(stage.passes(id, to(dropped)));
    }
  };
  SUBCASE("all") {
    REQUIRE(stage.manager.replace_layers("one", to_all(allowlist({allow("198.51.100.0/24")}))));
    check_all("198.51.100.1", "192.0.2.1");
  }
  SUBCASE("the third is refused by the kernel") {
    stage.plane.refuse("publish", {.message = "full", .code = ENOSPC}, 2);
    auto refused =
        stage.manager.replace_layers("one", to_all(allowlist({allow("198.51.100.0/24")})));
    REQUIRE_FALSE(refused);
    CHECK(refused.error().item_index == 2);
    check_all("192.0.2.1", "198.51.100.1");
  }
  SUBCASE("the second has a bad rule") {
    auto changes = to_all(allowlist({allow("198.51.100.0/24")}));
    changes[1].layer.rules.push_back(Rule{});
    auto refused = stage.manager.replace_layers("one", changes);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().item_index == 1);
    CHECK(refused.error().rule_index == 1);
    check_all("192.0.2.1", "198.51.100.1");
  }
  SUBCASE("one is named twice") {
    auto changes = to_all(allowlist({}));
    changes[3].attachment = ids[0];
    CHECK_FALSE(stage.manager.replace_layers("one", changes));
    check_all("192.0.2.1", "198.51.100.1");
  }
}

TEST_CASE("a delta adds, removes, and knows which generation it was made for") {
  Stage stage(config_of({wire({"one"})}));
  const auto id = stage.attach(tap("tap1", 7));
  auto first = stage.manager.replace_layer("one", id, allowlist({allow("192.0.2.0/24")}));
  auto second = stage.manager.update_layer("one", id, first->generation, {allow("198.51.100.0/24")},
                                           {allow("192.0.2.0/24")});
  REQUIRE(second);
  CHECK(second->generation > first->generation);
  CHECK(stage.passes(id, to("198.51.100.1")));
  CHECK_FALSE(stage.passes(id, to("192.0.2.1")));

  auto stale = stage.manager.update_layer("one", id, first->generation, {deny("0.0.0.0/0")}, {});
  REQUIRE_FALSE(stale);
  CHECK(stale.error().code == ESTALE);
  CHECK(stage.passes(id, to("198.51.100.1")));

  auto same = stage.manager.update_layer("one", id, {}, {allow("198.51.100.0/24")}, {});
  REQUIRE(same);
  CHECK(same->generation == second->generation);  // nothing new, nothing published
}

TEST_CASE("a layer that says what is in force costs no publish") {
  Stage stage(config_of({wire({"one", "two"})}));
  const auto id = stage.attach(tap("tap1", 7));
  auto first = stage.manager.replace_layer("one", id, allowlist({allow("192.0.2.0/24")}));
  const auto publishes = stage.plane.calls("publish");
  auto again = stage.manager.replace_layer("one", id, allowlist({allow("192.0.2.0/24")}));
  REQUIRE(again);
  CHECK(again->generation == first->generation);
  CHECK(again->digest == first->digest);
  // Another source with the same rule: united, nothing changes for packets.
  REQUIRE(stage.manager.replace_layer("two", id, only({allow("192.0.2.0/24")})));
  CHECK(stage.plane.calls("publish") == publishes);
}

TEST_CASE("a thousand attachments with the same policy cost one compile") {
  Stage stage(config_of({wire({"one"})}));
  const auto before = stage.manager.tally().compiles;
  for (std::uint32_t i = 1; i <= 1000; ++i) {
    const auto id = stage.attach(tap("tap" + std::to_string(i), i));
    REQUIRE(stage.manager.replace_layer(
        "one", id, allowlist({allow("192.0.2.0/24"), allow_name("pypi.org")})));
  }
  CHECK(stage.manager.tally().compiles == before + 1);
  CHECK(stage.manager.tally().attachments == 1000);
}

// ---- tightening ---------------------------------------------------------------------------------

TEST_CASE("a change that takes something away cuts connections; one that only gives does not") {
  struct Row {
    const char* description;
    Layer before, after;
    bool cuts;
  };
  const auto with = [](Layer layer, Mode mode) {
    layer.mode = mode;
    return layer;
  };
  const auto base = allowlist({allow("192.0.2.0/24"), allow("198.51.100.0/24")});
  const Row rows[] = {
      {"an allow is added", base,
       allowlist({allow("192.0.2.0/24"), allow("198.51.100.0/24"), allow("203.0.113.0/24")}),
       false},
      {"an allow is removed", base, allowlist({allow("192.0.2.0/24")}), true},
      {"an allow is narrowed to a port", base,
       allowlist({allow("192.0.2.0/24"), allow("198.51.100.0/24", {port("tcp/443")})}), true},
      {"a deny is added", base,
       allowlist({allow("192.0.2.0/24"), allow("198.51.100.0/24"), deny("192.0.2.7/32")}), true},
      {"a deny is removed",
       allowlist({allow("192.0.2.0/24"), allow("198.51.100.0/24"), deny("192.0.2.7/32")}), base,
       false},
      {"block-all", base, with(base, Mode::block_all), true},
      {"denylist", base, with(base, Mode::denylist), false},
      {"allowlist again", with(base, Mode::denylist), base, true},
      {"disabled", base, with(base, Mode::disabled), false},
      {"replies end", base, flagged(base, {}, false), true},
      {"audit ends", flagged(base, true, {}), base, true},
      {"audit begins", base, flagged(base, true, {}), false},
  };
  for (const auto& row : rows) {
    CAPTURE(row.description);
    Stage stage(config_of({wire({"one"})}));
    const auto id = stage.attach(tap("tap1", 7));
    REQUIRE(stage.manager.replace_layer("one", id, row.before));
    const auto before = stage.in_kernel(id).severings;
    REQUIRE(stage.manager.replace_layer("one", id, row.after));
    CHECK((stage.in_kernel(id).severings > before) == row.cuts);
  }
}

TEST_CASE("an allow that moves from one source to another cuts nothing") {
  Stage stage(config_of({wire({"one", "two"})}));
  const auto id = stage.attach(tap("tap1", 7));
  REQUIRE(stage.manager.replace_layer("one", id, allowlist({allow("192.0.2.0/24")})));
  REQUIRE(stage.manager.replace_layer("two", id, allowlist({allow("192.0.2.0/24")})));
  const auto before = stage.in_kernel(id).severings;
  REQUIRE(stage.manager.replace_layer("one", id, allowlist({})));
  CHECK(stage.in_kernel(id).severings == before);
}

// ---- expiry -------------------------------------------------------------------------------------

TEST_CASE("a rule that ends is compiled away later, and both ends are told") {
  Stage stage(config_of({wire({"one"})}));
  const auto id = stage.attach(tap("tap1", 7));
  auto brief = allow("192.0.2.0/24");
  brief.expires = {stage.now.nanoseconds + 10'000'000'000};
  REQUIRE(stage.manager.replace_layer("one", id, allowlist({brief, allow("198.51.100.0/24")})));
  const auto publishes = stage.plane.calls("publish");
  const auto severings = stage.in_kernel(id).severings;
  stage.pass_time(9s);
  CHECK(stage.passes(id, to("192.0.2.1")));
  stage.pass_time(1s);
  CHECK_FALSE(stage.passes(id, to("192.0.2.1")));  // by the program's own clock
  CHECK(stage.plane.calls("publish") == publishes);
  stage.pass_time(2s);
  CHECK(stage.plane.calls("publish") == publishes + 1);
  CHECK(stage.in_kernel(id).severings == severings + 1);
  CHECK(stage.passes(id, to("198.51.100.1")));
  stage.pass_time(1h);
  CHECK(stage.plane.calls("publish") == publishes + 1);
}

// ---- adoption -----------------------------------------------------------------------------------

namespace {

// What a daemon leaves behind: tap1 with one layer of each source given.
std::shared_ptr<FakeKernel> leave_behind(const Config& config,
                                         const std::vector<std::pair<std::string, Layer>>& layers) {
  Stage stage(config);
  const auto id = stage.attach(tap("tap1", 7));
  for (const auto& [source, layer] : layers) {
    REQUIRE(stage.manager.replace_layer(source, id, layer));
  }
  return stage.kernel;
}

}  // namespace

TEST_CASE("an adopted attachment keeps its id and its policy until its source has spoken") {
  const auto config = config_of({wire({"static"})});
  const auto kernel = leave_behind(config, {{"static", allowlist({allow("192.0.2.0/24")})}});
  Stage stage(config, kernel);
  stage.run_source("static");
  stage.run_discovery();
  REQUIRE(stage.manager.list().size() == 1);
  CHECK(stage.manager.list().front().state == "adopted");
  CHECK(stage.manager.list().front().mode == Mode::allowlist);
  const auto before = stage.manager.list().front();

  const auto id = stage.attach(tap("tap1", 7));
  CHECK(id == before.id);
  CHECK(stage.info(id).incarnation == before.incarnation);
  CHECK(stage.info(id).state == "filtering");
  CHECK(stage.plane.calls("publish") == 0);
  CHECK(stage.passes(id, to("192.0.2.1")));
  CHECK(stage.listener.take() == Heard{"added static tap1"});

  auto spoken = stage.manager.replace_layer("static", id, allowlist({allow("198.51.100.0/24")}));
  REQUIRE(spoken);
  CHECK(spoken->generation > before.generation);
  CHECK(stage.passes(id, to("198.51.100.1")));
  CHECK_FALSE(stage.passes(id, to("192.0.2.1")));
}

TEST_CASE("the same policy after a restart cuts no connection") {
  const auto config = config_of({wire({"static"})});
  const auto layer = allowlist({allow("192.0.2.0/24")});
  const auto kernel = leave_behind(config, {{"static", layer}});
  Stage stage(config, kernel);
  const auto id = stage.attach(tap("tap1", 7));
  const auto severings = stage.in_kernel(id).severings;
  REQUIRE(stage.manager.replace_layer("static", id, layer));
  CHECK(stage.in_kernel(id).severings == severings);
}

TEST_CASE("with two sources an adopted policy stays until both have spoken") {
  const auto config = config_of({wire({"saas", "static"})});
  const auto kernel = leave_behind(config, {{"static", allowlist({allow("0.0.0.0/0")})},
                                            {"saas", allowlist({deny("192.0.2.0/24")})}});
  Stage stage(config, kernel);
  stage.run_source("saas");
  stage.run_source("static");
  const auto id = stage.attach(tap("tap1", 7));
  REQUIRE(stage.manager.replace_layer("static", id, allowlist({allow("0.0.0.0/0")})));
  CHECK_FALSE(stage.passes(id, to("192.0.2.1")));  // alone it would have opened this
  CHECK(stage.passes(id, to("198.51.100.1")));
  CHECK(stage.manager.tally().held == 1);

  SUBCASE("both have") {
    REQUIRE(stage.manager.replace_layer("saas", id, allowlist({deny("198.51.100.0/24")})));
    CHECK(stage.passes(id, to("192.0.2.1")));
    CHECK_FALSE(stage.passes(id, to("198.51.100.1")));
    CHECK(stage.manager.tally().held == 0);
  }
  SUBCASE("the other stays silent until the deadline") {
    stage.pass_time(4s);
    CHECK(stage.manager.tally().held == 1);
    stage.pass_time(2s);
    CHECK(stage.manager.tally().held == 0);
    CHECK(stage.passes(id, to("192.0.2.1")));
  }
  SUBCASE("block-all by the first needs nobody else") {
    Layer closed;
    closed.mode = Mode::block_all;
    REQUIRE(stage.manager.replace_layer("saas", id, closed));
    CHECK_FALSE(stage.passes(id, to("198.51.100.1")));
  }
  SUBCASE("a refused release keeps it") {
    stage.plane.refuse("publish", {.message = "full", .code = ENOSPC});
    CHECK_FALSE(stage.manager.replace_layer("saas", id, allowlist({})));
    CHECK(stage.manager.tally().held == 1);
    CHECK_FALSE(stage.passes(id, to("192.0.2.1")));
  }
}

TEST_CASE("silence of running sources ends in quarantine, silence of failed ones does not") {
  const auto config = config_of({wire({"static"})});
  const auto kernel = leave_behind(config, {{"static", allowlist({allow("192.0.2.0/24")})}});
  Stage stage(config, kernel);
  SUBCASE("running") {
    stage.run_source("static");
    const auto id = stage.attach(tap("tap1", 7));
    stage.pass_time(6s);
    CHECK_FALSE(stage.passes(id, to("192.0.2.1")));
  }
  SUBCASE("failed, then back") {
    stage.run_source("static", InstanceState::down);
    const auto id = stage.attach(tap("tap1", 7));
    stage.pass_time(1h);
    CHECK(stage.passes(id, to("192.0.2.1")));
    stage.run_source("static");
    stage.turn();
    CHECK_FALSE(stage.passes(id, to("192.0.2.1")));
  }
}

TEST_CASE("an adopted attachment that no wire matches is closed when it is claimed") {
  const auto kernel =
      leave_behind(config_of({wire({"static"})}), {{"static", allowlist({allow("192.0.2.0/24")})}});
  Stage stage(config_of({wire({"static"}, {{"class", "vm"}})}), kernel);
  const auto id = stage.attach(tap("tap1", 7));
  CHECK_FALSE(stage.passes(id, to("192.0.2.1")));
}

TEST_CASE("what nobody claims goes when all discoveries have listed, not before") {
  const auto config = config_of({wire({"static"})});
  const auto kernel = leave_behind(config, {{"static", allowlist({allow("192.0.2.0/24")})}});
  Stage stage(config, kernel);
  const auto present = [&] { return stage.manager.list().size(); };

  SUBCASE("all have listed") {
    stage.run_discovery("taps");
    stage.run_discovery("containers");
    stage.manager.started();
    REQUIRE(stage.manager.listed("taps"));
    stage.turn();
    CHECK(present() == 1);
    REQUIRE(stage.manager.listed("containers"));
    stage.turn();
    CHECK(present() == 0);
    CHECK(stage.plane.calls("detach") == 1);
  }
  SUBCASE("one is still starting") {
    stage.manager.instance("taps", {.discovery = true, .policy_source = false},
                           InstanceState::starting);
    stage.manager.started();
    stage.pass_time(1h);
    CHECK(present() == 1);
  }
  SUBCASE("one has failed: it may know them") {
    stage.run_discovery("containers");
    stage.manager.instance("taps", {.discovery = true, .policy_source = false},
                           InstanceState::down);
    stage.manager.started();
    REQUIRE(stage.manager.listed("containers"));
    stage.pass_time(1h);
    CHECK(present() == 1);
    stage.manager.forget_instance("taps");  // taken out of the configuration
    stage.turn();
    CHECK(present() == 0);
  }
  SUBCASE("a running one that never says so has until the deadline") {
    stage.run_discovery("taps");
    stage.manager.started();
    stage.pass_time(59s);
    CHECK(present() == 1);
    stage.pass_time(2s);
    CHECK(present() == 0);
  }
  SUBCASE("the host has not finished starting") {
    stage.pass_time(1h);
    CHECK(present() == 1);
  }
}

TEST_CASE("a discovery that restarts claims its attachments again; what it misses goes") {
  Stage stage(config_of({wire({"static"})}));
  stage.run_discovery();
  stage.manager.started();
  const auto kept = stage.attach(tap("tap1", 1));
  const auto lost = stage.attach(tap("tap2", 2));
  REQUIRE(stage.manager.replace_layer("static", kept, allowlist({allow("192.0.2.0/24")})));
  REQUIRE(stage.manager.listed("taps"));
  stage.turn();
  CHECK(stage.manager.list().size() == 2);

  stage.manager.instance("taps", {.discovery = true, .policy_source = false}, InstanceState::down);
  stage.pass_time(10min);
  CHECK(stage.passes(kept, to("192.0.2.1")));  // stays while it is down
  stage.run_discovery();
  CHECK(stage.attach(tap("tap1", 1)) == kept);
  REQUIRE(stage.manager.listed("taps"));
  stage.turn();
  CHECK(stage.manager.list().size() == 1);
  CHECK(stage.info(lost).id == AttachmentId{});
  CHECK(stage.passes(kept, to("192.0.2.1")));
}

TEST_CASE("what a discovery attaches and lists before it is said to run counts") {
  Stage stage(config_of({wire({"static"})}));
  const InstanceRoles discovery{.discovery = true, .policy_source = false};
  stage.manager.instance("taps", discovery, InstanceState::starting);
  stage.manager.instance("taps", discovery, InstanceState::starting);
  stage.attach(tap("tap1", 1));
  stage.attach(tap("tap2", 2));
  REQUIRE(stage.manager.listed("taps"));
  CHECK(stage.manager.all_listed());
  stage.manager.instance("taps", discovery, InstanceState::running);
  stage.manager.started();
  stage.pass_time(1h);
  CHECK(stage.manager.list().size() == 2);

  stage.manager.instance("taps", discovery, InstanceState::down);
  stage.manager.instance("taps", discovery, InstanceState::starting);
  CHECK_FALSE(stage.manager.all_listed());
  stage.attach(tap("tap1", 1));
  REQUIRE(stage.manager.listed("taps"));
  stage.turn();
  CHECK(stage.manager.list().size() == 2);  // not before it runs
  stage.manager.instance("taps", discovery, InstanceState::running);
  stage.turn();
  CHECK(stage.manager.list().size() == 1);
}

TEST_CASE("an instance renamed in the configuration hands its attachments over") {
  Stage stage(config_of({wire({"static"})}));
  stage.run_discovery("taps");
  stage.manager.started();
  const auto id = stage.attach(tap("tap1", 1));
  REQUIRE(stage.manager.replace_layer("static", id, allowlist({allow("192.0.2.0/24")})));
  stage.manager.instance("links", {.discovery = true, .policy_source = false},
                         InstanceState::starting);
  stage.manager.forget_instance("taps");
  stage.turn();
  stage.run_discovery("links");
  CHECK(stage.attach(tap("tap1", 1), {}, "links") == id);
  REQUIRE(stage.manager.listed("links"));
  stage.turn();
  CHECK(stage.passes(id, to("192.0.2.1")));
  CHECK(stage.info(id).discovered_by == "links");
}

TEST_CASE("an instance that asked while another had it gets it when that one is gone") {
  auto by_taps = wire({"static"});
  by_taps.discovered_by = "taps";
  auto by_links = wire({"static"});
  by_links.discovered_by = "links";
  auto rest = wire({});
  rest.mode = Mode::disabled;
  Stage stage(config_of({by_taps, rest}));
  stage.run_discovery("taps");
  stage.manager.started();
  const auto id = stage.attach(tap("tap1", 1));
  REQUIRE(stage.manager.replace_layer("static", id, allowlist({allow("192.0.2.0/24")})));
  REQUIRE(stage.manager.listed("taps"));
  const auto in_force = [&] {
    CHECK(stage.passes(id, to("192.0.2.1")));
    CHECK_FALSE(stage.passes(id, to("198.51.100.1")));
  };
  const auto refused = [&] {
    auto asked = stage.manager.attach("links", tap("tap1", 1), {{"class", "vm"}});
    REQUIRE_FALSE(asked);
    CHECK(asked.error().code == EEXIST);
  };
  // As the daemon does it: the new one starts, asks, and has listed before the old one is
  // forgotten.
  const InstanceRoles discovery{.discovery = true, .policy_source = false};
  stage.manager.begin_reload();
  stage.manager.instance("links", discovery, InstanceState::starting);
  SUBCASE("asked too early, never again") {
    refused();
    REQUIRE(stage.manager.listed("links"));
    stage.manager.instance("links", discovery, InstanceState::running);
    stage.manager.instance("taps", discovery, InstanceState::down);
    stage.turn();
    in_force();
    stage.manager.release("taps");
  }
  SUBCASE("the old one has stopped before") {
    stage.manager.instance("taps", discovery, InstanceState::down);
    stage.manager.release("taps");
    in_force();
    CHECK(stage.attach(tap("tap1", 1), {{"class", "vm"}}, "links") == id);
    REQUIRE(stage.manager.listed("links"));
    stage.manager.instance("links", discovery, InstanceState::running);
  }
  SUBCASE("it comes to it only after the reload") {
    stage.manager.instance("taps", discovery, InstanceState::down);
    stage.manager.release("taps");
    stage.manager.instance("links", discovery, InstanceState::running);
    stage.turn();
    in_force();
    stage.manager.forget_instance("taps");
    REQUIRE(stage.manager.rewire(Wiring(config_of({by_links, rest}))));
    stage.manager.end_reload();
    stage.turn();
    in_force();
    CHECK(stage.attach(tap("tap1", 1), {{"class", "vm"}}, "links") == id);
    REQUIRE(stage.manager.listed("links"));
  }
  stage.turn();
  in_force();  // under neither wiring is it a match before the rewire
  stage.manager.forget_instance("taps");
  REQUIRE(stage.manager.rewire(Wiring(config_of({by_links, rest}))));
  stage.manager.end_reload();
  for (int i = 0; i < 3; ++i) {
    stage.pass_time(61s);
    in_force();
  }
  CHECK(stage.info(id).discovered_by == "links");
  CHECK(stage.info(id).labels == Labels{{"class", "vm"}});
  CHECK(stage.plane.calls("detach") == 0);
}

TEST_CASE("what one discovery lets go and another has asked for changes hands") {
  Stage stage(config_of({wire({"static"}, {{"class", "vm"}}), wire({"static"})}));
  stage.run_discovery("taps");
  stage.run_discovery("links");
  stage.manager.started();
  const auto id = stage.attach(tap("tap1", 1));
  REQUIRE(stage.manager.replace_layer("static", id, allowlist({allow("192.0.2.0/24")})));
  for (const auto* name : {"taps", "links"}) REQUIRE(stage.manager.listed(name));
  CHECK(stage.manager.attach("links", tap("tap1", 1), {{"class", "vm"}}).error().code == EEXIST);
  const auto anew = [&](const std::string& name) {
    const InstanceRoles discovery{.discovery = true, .policy_source = false};
    stage.manager.instance(name, discovery, InstanceState::down);
    stage.manager.instance(name, discovery, InstanceState::running);
  };
  SUBCASE("by listing without it") {
    anew("taps");
    REQUIRE(stage.manager.listed("taps"));
    CHECK(stage.info(id).discovered_by == "links");
    stage.pass_time(1h);  // whether or not it ever asks again
    CHECK(stage.passes(id, to("192.0.2.1")));
  }
  SUBCASE("by a detach, if the other asks again") {
    REQUIRE(stage.manager.detach("taps", id, "renamed"));
    CHECK(stage.passes(id, to("192.0.2.1")));
    stage.pass_time(59s);
    CHECK(stage.attach(tap("tap1", 1), {{"class", "vm"}}, "links") == id);
    stage.pass_time(1h);
    CHECK(stage.passes(id, to("192.0.2.1")));
  }
  SUBCASE("by a detach, and the other does not want it any more: no filter without an owner") {
    REQUIRE(stage.manager.detach("taps", id, "renamed"));
    stage.pass_time(121s);
    CHECK(stage.manager.list().empty());
  }
  SUBCASE("not to a run that has ended") {
    anew("links");
    REQUIRE(stage.manager.listed("links"));
    REQUIRE(stage.manager.detach("taps", id, "gone"));
    CHECK(stage.manager.list().empty());
  }
  SUBCASE("not to one that is gone") {
    stage.manager.forget_instance("links");
    anew("taps");
    REQUIRE(stage.manager.listed("taps"));
    stage.turn();
    CHECK(stage.manager.list().empty());
  }
  SUBCASE("where the kernel refuses, it keeps what it has until it can") {
    auto other = wire({"static"}, {{"class", "vm"}});
    other.options.replies = false;
    REQUIRE(stage.manager.rewire(Wiring(config_of({other, wire({"static"})}))));
    stage.plane.refuse("publish", {.message = "full", .code = ENOSPC});
    anew("taps");
    REQUIRE(stage.manager.listed("taps"));
    CHECK(stage.passes(id, to("192.0.2.1")));
    CHECK(stage.info(id).discovered_by == "taps");
    stage.turn();
    CHECK(stage.info(id).discovered_by == "links");
    CHECK(stage.passes(id, to("192.0.2.1")));
  }
}

TEST_CASE("nothing is dropped while a reload is under way") {
  Stage stage(config_of({wire({"static"})}));
  stage.run_discovery("taps");
  stage.run_discovery("links");
  stage.manager.started();
  stage.attach(tap("tap1", 1));
  for (const auto* name : {"taps", "links"}) REQUIRE(stage.manager.listed(name));
  stage.manager.begin_reload();
  // Restarted with other patterns; "links" has yet to be, and lists once more when it has.
  stage.manager.instance("taps", {.discovery = true, .policy_source = false}, InstanceState::down);
  stage.run_discovery("taps");
  REQUIRE(stage.manager.listed("taps"));
  stage.turn();
  CHECK(stage.manager.list().size() == 1);
  stage.manager.end_reload();
  stage.turn();
  CHECK(stage.manager.list().empty());
}

// ---- reload -------------------------------------------------------------------------------------

TEST_CASE("a reload touches only what changed") {
  const auto vm = wire({"static"}, {{"class", "vm"}});
  auto ct = wire({"static"}, {{"class", "ct"}});
  Stage stage(config_of({vm, ct}));
  const auto one = stage.attach(tap("tap1", 1), {{"class", "vm"}});
  const auto two = stage.attach(tap("tap2", 2), {{"class", "ct"}});
  for (const auto id : {one, two}) {
    REQUIRE(stage.manager.replace_layer("static", id, allowlist({allow("192.0.2.0/24")})));
  }
  stage.listener.take();
  const auto publishes_one = stage.in_kernel(one).publishes;
  const auto publishes_two = stage.in_kernel(two).publishes;

  SUBCASE("nothing but its place in the file") {
    ct.place = {40, 1};
    REQUIRE(stage.manager.rewire(Wiring(config_of({vm, ct}))));
    CHECK(stage.in_kernel(one).publishes == publishes_one);
    CHECK(stage.in_kernel(two).publishes == publishes_two);
    CHECK(stage.listener.take().empty());
  }
  SUBCASE("one wire's option") {
    ct.options.replies = false;
    REQUIRE(stage.manager.rewire(Wiring(config_of({vm, ct}))));
    CHECK(stage.in_kernel(one).publishes == publishes_one);
    CHECK(stage.in_kernel(two).publishes == publishes_two + 1);
    CHECK(stage.listener.take() == Heard{"changed static tap2"});
  }
  SUBCASE("a source is added and one goes") {
    REQUIRE(stage.manager.rewire(Wiring(config_of({vm, wire({"saas"}, {{"class", "ct"}})}))));
    CHECK(stage.listener.take() == Heard{"removed static tap2", "added saas tap2"});
    CHECK_FALSE(stage.passes(two, to("192.0.2.1")));
    CHECK(stage.passes(one, to("192.0.2.1")));
  }
  SUBCASE("the floor") {
    REQUIRE(stage.manager.rewire(Wiring(config_of({vm, ct}, {"192.0.2.7/32"}))));
    CHECK_FALSE(stage.passes(one, to("192.0.2.7")));
    CHECK_FALSE(stage.passes(two, to("192.0.2.7")));
    CHECK(stage.passes(two, to("192.0.2.8")));
    const auto later = stage.attach(tap("tap3", 3), {{"class", "ct"}});
    REQUIRE(stage.manager.replace_layer("static", later, allowlist({allow("192.0.2.0/24")})));
    CHECK_FALSE(stage.passes(later, to("192.0.2.7")));
  }
}

TEST_CASE("a reload that cannot be applied changes nothing") {
  const auto config = config_of({wire({"static"})});
  Stage stage(config);
  std::vector<AttachmentId> ids;
  for (std::uint32_t i = 1; i <= 5; ++i) {
    ids.push_back(stage.attach(tap("tap" + std::to_string(i), i)));
    REQUIRE(stage.manager.replace_layer("static", ids.back(), allowlist({allow("192.0.2.0/24")})));
  }
  stage.listener.take();
  const auto check_unchanged = [&] {
    for (const auto id : ids) {
      CHECK(stage.passes(id, to("192.0.2.7")));
      CHECK_FALSE(stage.passes(id, to("198.51.100.1")));
    }
    CHECK(stage.listener.take().empty());
  };
  SUBCASE("an invalid floor") {
    auto broken = config_of({wire({"static"})});
    Prefix host_bits;
    host_bits.address = {192, 0, 2, 7};
    host_bits.length = 24;
    broken.floor.deny.push_back(host_bits);
    CHECK_FALSE(stage.manager.check_rewire(Wiring(broken)));
    CHECK_FALSE(stage.manager.rewire(Wiring(broken)));
    check_unchanged();
  }
  SUBCASE("the kernel refuses half way") {
    stage.plane.refuse("publish", {.message = "full", .code = ENOSPC}, 3);
    CHECK_FALSE(stage.manager.rewire(Wiring(config_of({wire({"static"})}, {"192.0.2.7/32"}))));
    check_unchanged();
  }
  // What is still in force is also what later changes build on.
  REQUIRE(stage.manager.update_layer("static", ids[0], {}, {allow("203.0.113.0/24")}, {}));
  CHECK(stage.passes(ids[0], to("192.0.2.7")));
}

TEST_CASE("who hears of an attachment hears whether it is audited, and who its sources are") {
  Stage stage(config_of({wire({"static", "dns"})}));
  const auto id = stage.attach(tap("tap1", 7));
  REQUIRE(stage.listener.last.sources);
  CHECK(*stage.listener.last.sources == std::vector<std::string>{"static", "dns"});
  CHECK_FALSE(stage.listener.last.audit);
  stage.listener.take();
  Layer audited;
  audited.audit = true;
  REQUIRE(stage.manager.replace_layer("static", id, audited));
  CHECK(stage.listener.take() == Heard{"changed dns tap1"});
  CHECK(stage.listener.last.audit);
  REQUIRE(stage.manager.rewire(Wiring(config_of({wire({"dns"})}))));
  CHECK(*stage.listener.last.sources == std::vector<std::string>{"dns"});
  REQUIRE(stage.manager.detach("taps", id, "over"));
  CHECK_FALSE(stage.listener.last.sources);
}

// ---- domain rules and learned addresses ---------------------------------------------------------

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

// ---- denials ------------------------------------------------------------------------------------

TEST_CASE("a denial names its attachment, its reason and the rule that explains it") {
  Stage stage(config_of({wire({"one"})}, {"169.254.169.254/32"}));
  const auto id = stage.attach(tap("tap1", 7));
  REQUIRE(stage.manager.replace_layer("one", id,
                                      allowlist({allow("10.0.0.0/8"), deny("10.1.0.0/16")})));
  stage.plane.deny(stage.slot(id), to("10.1.2.3"), SLUICE_REASON_DENY_RULE);
  stage.plane.deny(stage.slot(id), to("169.254.169.254"), SLUICE_REASON_DENY_FLOOR);
  stage.plane.deny(stage.slot(id), to("192.0.2.1"), SLUICE_REASON_DENY_MODE);
  stage.plane.deny(99, to("192.0.2.1"), SLUICE_REASON_DENY_UNJUDGED);
  stage.turn();
  REQUIRE(stage.listener.denied.size() == 4);
  CHECK(stage.listener.denied[0].attachment == id);
  CHECK(stage.listener.denied[0].reason == "explicit deny");
  CHECK(stage.listener.denied[0].rule.find("10.1.0.0/16") != std::string::npos);
  CHECK(stage.listener.denied[1].rule.find("169.254.169.254") != std::string::npos);
  CHECK(stage.listener.denied[2].rule.empty());
  CHECK(stage.listener.denied[2].reason == "not on the allowlist");
  CHECK_FALSE(stage.listener.denied[3].attachment);
  CHECK(stage.manager.counters(id)->denied_packets == 3);
}
