#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "attachments/attachment_manager.hpp"

#include <doctest/doctest.h>

#include <future>

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

TEST_CASE("nobody is asked about an attachment while its sources are told of it") {
  Stage stage(config_of({wire({"static", "dns"})}));
  std::vector<bool> could_ask;
  stage.listener.before_added = [&] {
    could_ask.push_back(
        std::async(std::launch::async, [&] {
          return std::unique_lock(stage.listener.telling_mutex, std::try_to_lock).owns_lock();
        }).get());
  };
  stage.attach(tap("tap1", 7));
  CHECK(could_ask == std::vector{false, false, false});  // the observers are the third
  CHECK(stage.listener.telling_mutex.try_lock());
  stage.listener.telling_mutex.unlock();
}

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
