// Where an attachment's port 53 goes, by its wire and by what its resolver does; and who may learn
// whose question it is.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <sstream>

#include "attachments/attachment_manager.hpp"
#include "stage.hpp"

using namespace sluice;
using namespace sluice::test;
using Heard = std::vector<std::string>;

namespace {

constexpr InstanceRoles kResolver{.discovery = false, .policy_source = false, .resolver = true};

struct Redirection : Stage {
  Redirection() : Stage(config_of({wire({"static", "dns"})})) {
    manager.instance("dns", kResolver, InstanceState::starting);
  }
  std::uint32_t mark_of(AttachmentId id) { return in_kernel(id).attachment.asker_mark; }
};

}  // namespace

TEST_CASE("port 53 is taken from the first moment on, before the resolver serves") {
  Redirection stage;
  const auto id = stage.attach(tap("tap1", 7));
  CHECK(stage.in_kernel(id).options.redirect_dns);
  CHECK(stage.info(id).redirected);
  const int sockets[] = {11, 12};
  REQUIRE(stage.manager.serve("dns", sockets));
  CHECK(stage.plane.kernel().served.at(stage.in_kernel(id).options.resolver) ==
        std::vector<int>{11, 12});
  CHECK(stage.in_kernel(id).options.redirect_dns);
}

TEST_CASE("a resolver that runs and serves no sockets leaves port 53 to the policy") {
  Redirection stage;
  const auto id = stage.attach(tap("tap1", 7));
  stage.manager.instance("dns", kResolver, InstanceState::running);
  stage.manager.turn();
  CHECK_FALSE(stage.in_kernel(id).options.redirect_dns);
  CHECK_FALSE(stage.info(id).redirected);
  stage.listener.take();
  // It may still begin to.
  REQUIRE(stage.manager.serve("dns", std::vector{11}));
  CHECK(stage.in_kernel(id).options.redirect_dns);
  CHECK(stage.info(id).redirected);
  const auto heard = stage.listener.take();
  CHECK(std::ranges::count(heard, "changed dns tap1") == 1);
}

TEST_CASE("a resolver that dies keeps port 53: what it would be asked goes nowhere") {
  Redirection stage;
  const auto id = stage.attach(tap("tap1", 7));
  REQUIRE(stage.manager.serve("dns", std::vector{11}));
  stage.manager.instance("dns", kResolver, InstanceState::running);
  stage.manager.instance("dns", kResolver, InstanceState::down);
  stage.manager.turn();
  CHECK(stage.in_kernel(id).options.redirect_dns);
  CHECK(stage.plane.calls("end_serving") == 0);
}

TEST_CASE("a wire without a resolver is not redirected; taken out of the wire, no longer") {
  Stage stage(config_of({wire({"static"})}));
  stage.manager.instance("dns", kResolver, InstanceState::running);
  REQUIRE(stage.manager.serve("dns", std::vector{11}));
  const auto id = stage.attach(tap("tap1", 7));
  CHECK_FALSE(stage.in_kernel(id).options.redirect_dns);
  REQUIRE(stage.manager.rewire(Wiring(config_of({wire({"static", "dns"})}))));
  CHECK(stage.in_kernel(id).options.redirect_dns);
  REQUIRE(stage.manager.rewire(Wiring(config_of({wire({"static"})}))));
  CHECK_FALSE(stage.in_kernel(id).options.redirect_dns);
}

TEST_CASE("names for a target whose questions cannot be taken: said once, with cause and cure") {
  std::ostringstream text;
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(text)));
  const auto said = [&] { return std::exchange(text, std::ostringstream()).str(); };
  {
    Redirection stage;
    REQUIRE(stage.manager.serve("dns", std::vector{11}));
    InterfaceTarget outward{.name = "mvtap1", .ifindex = 8, .side = Side::workload_egress};
    InterfaceTarget inside{.name = "eth0", .ifindex = 2, .netns_cookie = 77};
    inside.netns_path = "/run/netns/guest";
    const auto names = only({allow_name("pypi.org")});
    const auto id = stage.attach(outward);
    REQUIRE(stage.manager.replace_layer("static", id, allowlist({allow("192.0.2.0/24")})));
    CHECK(said().empty());
    REQUIRE(stage.manager.replace_layer("static", id, names));
    const auto once = said();
    for (const char* part : {"mvtap1", "pypi.org", "dns", "side = \"egress\"", "instead"})
      CHECK(once.find(part) != std::string::npos);
    REQUIRE(stage.manager.replace_layer("static", id, only({allow_name(".debian.org")})));
    CHECK(said().empty());
    const auto other = stage.attach(inside);
    REQUIRE(stage.manager.replace_layer("static", other, names));
    const auto second = said();
    CHECK(second.find("eth0") != std::string::npos);
    CHECK(second.find("another network namespace") != std::string::npos);
    const auto usual = stage.attach(tap("tap1", 7));
    REQUIRE(stage.manager.replace_layer("static", usual, names));
    CHECK(said().empty());
  }
  spdlog::set_default_logger(before);
}

TEST_CASE("only a resolver that serves sockets misses the questions of such a target") {
  std::ostringstream text;
  const auto before = spdlog::default_logger();
  spdlog::set_default_logger(std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(text)));
  const auto said = [&] { return std::exchange(text, std::ostringstream()).str(); };
  {
    Stage stage(config_of({wire({"static", "feed", "dns"})}));
    stage.manager.instance("feed", kResolver, InstanceState::starting);  // it only pushes
    const auto attach_named = [&](const std::string& name, std::uint32_t ifindex) {
      const auto id = stage.attach(
          InterfaceTarget{.name = name, .ifindex = ifindex, .side = Side::workload_egress});
      REQUIRE(stage.manager.replace_layer("static", id, only({allow_name("pypi.org")})));
    };
    attach_named("mvtap1", 8);
    stage.manager.instance("feed", kResolver, InstanceState::running);
    stage.manager.turn();
    attach_named("mvtap2", 9);
    REQUIRE(stage.manager.serve("feed", {}));
    CHECK(said().empty());

    SUBCASE("one that is on no wire of its does not count") {
      stage.manager.instance("other", kResolver, InstanceState::running);
      REQUIRE(stage.manager.serve("other", std::vector{11}));
      CHECK(said().empty());
    }
    SUBCASE("beside one that serves it is said, also of those that were there before") {
      stage.manager.instance("dns", kResolver, InstanceState::starting);
      CHECK(said().empty());
      REQUIRE(stage.manager.serve("dns", std::vector{11}));
      const auto both = said();
      for (const char* part : {"mvtap1", "mvtap2", "cannot be taken to dns"})
        CHECK(both.find(part) != std::string::npos);
      CHECK(both.find("feed") == std::string::npos);
      attach_named("mvtap3", 10);
      CHECK(said().find("mvtap3") != std::string::npos);
      REQUIRE(stage.manager.serve("dns", std::vector{12}));
      CHECK(said().empty());
    }
  }
  spdlog::set_default_logger(before);
}

TEST_CASE("the host's routes go with the last resolver of the configuration, and not before") {
  Redirection stage;
  stage.manager.started();
  stage.manager.turn();
  CHECK(stage.plane.calls("end_serving") == 0);
  stage.manager.forget_instance("dns");
  stage.manager.turn();
  CHECK(stage.plane.calls("end_serving") == 1);
}

TEST_CASE("only the resolver of its wire learns whose mark it is, and nobody after a detach") {
  Redirection stage;
  const auto id = stage.attach(tap("tap1", 7));
  const auto mark = stage.mark_of(id);
  REQUIRE(stage.manager.asker_of_mark("dns", mark));
  CHECK(*stage.manager.asker_of_mark("dns", mark) == id);
  CHECK(stage.manager.asker_of_mark("other", mark).error().code == ENOENT);
  CHECK(stage.manager.asker_of_mark("dns", mark + 1).error().code == ENOENT);
  stage.plane.kernel().streams[5] = {.mark = mark, .asked = {}};
  CHECK(stage.manager.asker_of_stream("dns", 5)->attachment == id);
  REQUIRE(stage.manager.detach("taps", id, "gone"));
  CHECK(stage.manager.asker_of_mark("dns", mark).error().code == ENOENT);
  CHECK(stage.manager.asker_of_stream("dns", 5).error().code == ENOENT);
}

TEST_CASE("a question that waited for the next daemon has an asker before a discovery claims it") {
  auto kernel = std::make_shared<FakeKernel>();
  std::uint32_t mark = 0;
  AttachmentId id;
  {
    Stage first(config_of({wire({"static", "dns"})}), kernel);
    id = first.attach(tap("tap1", 7));
    mark = first.in_kernel(id).attachment.asker_mark;
  }
  Stage next(config_of({wire({"static", "dns"})}), kernel);
  next.manager.instance("dns", kResolver, InstanceState::starting);
  next.manager.instance("other", kResolver, InstanceState::starting);
  REQUIRE(next.manager.asker_of_mark("dns", mark));
  CHECK(*next.manager.asker_of_mark("dns", mark) == id);
  CHECK(next.attach(tap("tap1", 7)) == id);
  CHECK(*next.manager.asker_of_mark("dns", mark) == id);
  CHECK(next.manager.asker_of_mark("other", mark).error().code == ENOENT);
}

TEST_CASE("four resolvers have places of their own; a fifth is refused") {
  Redirection stage;
  for (const char* name : {"dns", "dns2", "dns3", "dns4"})
    REQUIRE(stage.manager.serve(name, std::vector{11}));
  CHECK(stage.plane.kernel().served.size() == 4);
  const auto fifth = stage.manager.serve("dns5", std::vector{11});
  REQUIRE_FALSE(fifth);
  CHECK(fifth.error().code == ENOSPC);
}
