// Whose an attachment is: after a restart, when its discovery restarts, is renamed or lets go of
// it.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "attachments/attachment_manager.hpp"

#include <doctest/doctest.h>

#include "stage.hpp"

using namespace sluice;
using namespace sluice::test;
using Heard = std::vector<std::string>;

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

namespace {

// A reload has tightened the wire of tap1 and begun its discovery anew, which hangs.
struct Hanging : Stage {
  explicit Hanging(InstanceState state) : Stage(config_of({wire({"static"}, kVm)})) {
    auto tight = wire({}, kVm);
    tight.mode = Mode::block_all;
    tightened = config_of({tight, wire({"static"})});
    run_discovery();
    manager.started();
    id = attach(tap("tap1", 1), kVm);
    REQUIRE(manager.replace_layer("static", id, allowlist({allow("192.0.2.0/24")})));
    REQUIRE(manager.listed("taps"));
    manager.begin_reload();
    begin_anew(state);
    rewire();
  }
  void begin_anew(InstanceState state) {
    manager.instance("taps", kDiscovery, InstanceState::down);
    manager.instance("taps", kDiscovery, state);
  }
  void rewire() {
    REQUIRE(manager.rewire(Wiring(tightened)));
    manager.end_reload();
    turn();
    CHECK(keeps_its_wire());
  }
  [[nodiscard]] bool is_open() const { return passes(id, to("192.0.2.1")); }
  [[nodiscard]] bool keeps_its_wire() const {
    return is_open() && manager.left_to_rewire() == std::map<std::string, std::size_t>{{"taps", 1}};
  }

  inline static const Labels kVm{{"class", "vm"}};
  static constexpr InstanceRoles kDiscovery{.discovery = true, .policy_source = false};
  Config tightened;
  AttachmentId id;
};

}  // namespace

TEST_CASE("a discovery that began anew and hangs does not keep a former wiring in force") {
  for (const auto state : {InstanceState::running, InstanceState::starting}) {
    Hanging stage(state);
    stage.pass_time(59s);
    CHECK(stage.keeps_its_wire());
    stage.pass_time(2s);
    CHECK_FALSE(stage.is_open());
    CHECK(stage.manager.left_to_rewire().empty());
  }
}

TEST_CASE("what a rewire left to a discovery's next run is matched when that comes, or fails to") {
  Hanging stage(InstanceState::running);
  SUBCASE("it comes to it: what it says now counts") {
    CHECK(stage.attach(tap("tap1", 1), {{"class", "container"}}) == stage.id);
    CHECK(stage.manager.left_to_rewire().empty());
    stage.pass_time(61s);
    CHECK(stage.is_open());
  }
  SUBCASE("it lists without it") {
    REQUIRE(stage.manager.listed("taps"));
    CHECK(stage.manager.left_to_rewire().empty());
  }
  SUBCASE("it fails") {
    stage.manager.instance("taps", Hanging::kDiscovery, InstanceState::down);
    stage.pass_time(61s);
    CHECK_FALSE(stage.is_open());
  }
  SUBCASE("the kernel refuses at first") {
    stage.plane.refuse("publish", {.message = "full", .code = ENOSPC});
    stage.pass_time(61s);
    CHECK(stage.keeps_its_wire());
    stage.pass_time(6s);
    CHECK_FALSE(stage.is_open());
  }
  SUBCASE("the next reload begins it anew") {
    stage.manager.begin_reload();
    stage.begin_anew(InstanceState::running);
    stage.pass_time(61s);
    CHECK(stage.keeps_its_wire());
    stage.begin_anew(InstanceState::running);
    stage.rewire();
    stage.pass_time(59s);
    CHECK(stage.keeps_its_wire());
    stage.pass_time(2s);
    CHECK_FALSE(stage.is_open());
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
