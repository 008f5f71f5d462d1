// What a plugin's life looks like when all goes well: order, events, services, reload.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "plugin/stage.hpp"

using namespace sluice;
using namespace sluice::testing;

namespace {

std::ptrdiff_t place_of(const std::vector<std::string>& all, const std::string& text) {
  const auto at = std::find(all.begin(), all.end(), text);
  return at == all.end() ? -1 : at - all.begin();
}

Rule allowed(const std::string& domain) {
  Rule rule;
  rule.action = Action::allow;
  rule.domain = domain;
  return rule;
}

}  // namespace

TEST_CASE("sources run before a discovery starts, and stop after it") {
  Stage stage;
  CHECK(stage.start({{"taps", "neighbour"}, {"policy", "diligent"}, {"watch", "watcher"}}).empty());
  const auto running = place_of(stage.phases, "policy running");
  REQUIRE(running >= 0);
  CHECK(running < place_of(stage.phases, "taps starting"));
  stage.stop();
  CHECK(place_of(stage.phases, "taps stopped") < place_of(stage.phases, "policy stopping"));
  CHECK(stage.phase("taps") == PluginPhase::stopped);
  CHECK(stage.complaints().empty());
}

TEST_CASE("a discovery's calls reach the core as values, and a refusal comes back as an error") {
  Stage stage;
  CHECK(stage.start({{"taps", "finder"}}).empty());
  CHECK(stage.says("taps: refused 19: tap9: no such device"));
  CHECK(stage.core.calls == std::vector<std::string>{"taps attach tap0", "taps attach /vm.slice",
                                                     "taps relabel 1 class=ci", "taps attach tap9",
                                                     "taps listed"});
  const auto& cgroup = std::get<CgroupTarget>(stage.core.attachments.at(1).target);
  CHECK(cgroup.cgroup_id == 9);
}

TEST_CASE("a source is told of what exists when it starts, and of each change after") {
  Stage stage;
  stage.core.attachments = {attachment(1)};
  CHECK(stage.start({{"policy", "diligent"}}).empty());
  CHECK(stage.says("policy: added 1"));
  CHECK(stage.says("policy: applied 1"));
  stage.host->attachment_added("policy", attachment(2));
  stage.host->attachment_changed("policy", attachment(2));
  stage.host->attachment_removed("policy", attachment(2), "tap0 is gone");
  CHECK(stage.says("policy: changed 2 vm"));
  CHECK(stage.says("policy: removed 2 (tap0 is gone)"));

  const auto& layer = stage.core.layers.at(2);
  CHECK(layer.mode == Mode::allowlist);
  CHECK_FALSE(layer.audit.has_value());
  REQUIRE(layer.rules.size() == 2);
  CHECK(layer.rules[0].prefix->text() == "10.20.0.0/16");
  CHECK(layer.rules[0].ports == std::vector<PortRange>{{6, false, 443, 443}});
  CHECK(layer.rules[0].expires > boot_now());
  CHECK(layer.rules[0].name == "web");
  CHECK(layer.rules[1].action == Action::deny);
  CHECK(layer.rules[1].domain == "*.example.org");
  CHECK_FALSE(layer.rules[1].prefix.has_value());
}

TEST_CASE("an observer hears of denials and states, a resolver of domain rules") {
  Stage stage;
  stage.core.attachments = {attachment(1)};
  stage.make().domain_rules("watch", {1}, {allowed("pypi.org")});
  CHECK(stage.start({{"watch", "watcher"}, {"taps", "neighbour"}}).empty());
  CHECK(stage.says("watch: taps is running"));
  CHECK(stage.says("watch: counted 17 of 1"));
  // Rules that came before it ran are told when it runs.
  CHECK(stage.says("watch: rule 1 pypi.org"));
  stage.host->domain_rules("watch", {1}, {allowed(".npmjs.org")});
  CHECK(stage.says("watch: rule 1 .npmjs.org"));

  Denial denial;
  denial.attachment = {1};
  denial.event.family = 4;
  denial.event.protocol = 6;
  denial.event.destination_port_be = __builtin_bswap16(443);
  const std::uint8_t source[] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1};
  const std::uint8_t destination[] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 51, 100, 9};
  std::copy_n(source, 16, denial.event.source);
  std::copy_n(destination, 16, denial.event.destination);
  denial.reason = "not on the allowlist";
  stage.host->denials(std::array{denial});
  CHECK(stage.says("watch: denied 192.0.2.1 to 198.51.100.9:443, not on the allowlist"));

  // IPv4 reaches the core mapped, IPv6 as it is.
  REQUIRE(stage.loop.run_until([&] { return stage.core.learning().revoked.size() >= 2; }));
  const auto learning = stage.core.learning();
  CHECK(learning.learned[0] ==
        std::array<std::uint8_t, 16>{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 51, 100, 7});
  CHECK(learning.learned[1][0] == 0x20);
  CHECK(learning.revoked[0] == learning.learned[0]);
}

TEST_CASE("a resolver learns from any of its threads, at once, until it is stopped") {
  Stage stage;
  Leash leash, report;
  stage.core.attachments = {attachment(1)};
  stage.make().domain_rules("dns", {1}, {allowed("pypi.org")});
  CHECK(stage
            .start({{"dns", "learning_threads",
                     "release=" + std::to_string(leash.fd()) +
                         "\nreport=" + std::to_string(report.write_end())}})
            .empty());
  CHECK(stage.says("dns: refused 0"));
  const auto learning = stage.core.learning();
  CHECK(learning.learned.size() == 400);
  CHECK(learning.threads.size() == 4);
  CHECK_FALSE(learning.threads.contains(std::this_thread::get_id()));  // the core loop's
  CHECK(stage.start({}).empty());                                      // stopped and destroyed
  leash.release();
  int answer = 0;
  REQUIRE(::read(report.fd(), &answer, sizeof answer) == sizeof answer);
  CHECK(answer == -ESHUTDOWN);
  CHECK(stage.core.learning().learned.size() == 400);
  CHECK(stage.complaints().empty());
}

TEST_CASE("learning in a constructor is refused") {
  Stage stage;
  CHECK(stage.start({{"dns", "learning_threads", "release=-1\nreport=-1\nearly=true"}}).empty());
  CHECK(stage.core.learning().learned.empty());
  CHECK_FALSE(stage.lines(4, "dns: learn was called in the constructor and was refused").empty());
}

TEST_CASE("a reload touches only what differs") {
  Stage stage;
  CHECK(stage.start({{"taps", "neighbour"}, {"policy", "diligent"}, {"old", "diligent"}}).empty());
  stage.phases.clear();
  CHECK(stage
            .start({{"taps", "neighbour"},
                    {"policy", "diligent", "greeting=servus"},
                    {"new", "diligent", "greeting=moin"}})
            .empty());
  CHECK(stage.says("policy: now servus"));
  CHECK(stage.says("new: moin"));
  CHECK(stage.says("old: goodbye"));
  CHECK(stage.phases ==
        std::vector<std::string>{"old stopping", "old stopped", "new starting", "new running"});
  CHECK(stage.host->status().size() == 3);
  CHECK(stage.neighbour_lives());
}

TEST_CASE("what an instance had is free before any other starts") {
  Stage stage;
  stage.settings.on_removed = [&](const std::string& name) {
    stage.phases.push_back(name + " removed");
  };
  CHECK(stage.start({{"taps", "neighbour"}, {"kept", "neighbour"}}).empty());
  stage.phases.clear();
  CHECK(stage.start({{"links", "neighbour"}, {"kept", "diligent"}}).empty());
  const auto removed = place_of(stage.phases, "taps removed");
  CHECK(removed > place_of(stage.phases, "taps stopped"));
  CHECK(removed < place_of(stage.phases, "links starting"));
  CHECK(place_of(stage.phases, "kept removed") == -1);  // another library, the same name
}

TEST_CASE("a plugin that cannot be reconfigured is restarted with its new options") {
  Stage stage;
  CHECK(stage.start({{"policy", "diligent"}}).empty());
  stage.phases.clear();
  CHECK(stage.start({{"policy", "diligent", "greeting=servus\nreconfigurable=false"}}).empty());
  CHECK(stage.says("policy: servus"));
  CHECK(stage.phases ==
        std::vector<std::string>{"policy stopping", "policy starting", "policy running"});
  CHECK(stage.complaints().empty());
}

TEST_CASE("a plugin that refuses its new options keeps the old, and says why") {
  Stage stage;
  CHECK(stage.start({{"policy", "diligent"}}).empty());
  const auto message = stage.start({{"policy", "diligent", "picky=true"}});
  CHECK(message ==
        "plugin policy (diligent.so) refuses its new options and keeps the old: picky = true is "
        "not to my taste; "
        "leave it out");
  CHECK(stage.phase("policy") == PluginPhase::running);
  // What was refused is offered again, because it is not what runs.
  CHECK_FALSE(stage.start({{"policy", "diligent", "picky=true"}}).empty());
}

TEST_CASE("an instance whose library changes is another plugin") {
  Stage stage;
  CHECK(stage.start({{"one", "diligent"}}).empty());
  CHECK(stage.start({{"one", "neighbour"}}).empty());
  CHECK(stage.says("one: goodbye"));
  CHECK(stage.status("one").name == "neighbour");
}

TEST_CASE("two at a time are refused, and stop() ends what is under way") {
  Stage stage;
  stage.install("diligent");
  auto& host = stage.make();
  const auto configs = stage.configs({{"policy", "diligent"}});
  std::vector<std::string> results;
  const auto note = [&](Status status) {
    results.push_back(status ? "fine" : status.error().message);
  };
  host.apply(*host.prepare(configs), note);
  host.apply(*host.prepare(configs), note);
  REQUIRE(results.size() == 1);
  CHECK(results[0].find("started or stopped already") != std::string::npos);
  bool stopped = false;
  host.stop([&] { stopped = true; });
  CHECK(results.size() == 2);
  CHECK(stage.loop.run_until([&] { return stopped; }));
  CHECK(stage.phase("policy") == PluginPhase::stopped);
}

TEST_CASE("a host that is destroyed without stop() leaves no strand waiting") {
  Stage stage;
  CHECK(stage.start({{"taps", "neighbour"}, {"policy", "diligent"}}).empty());
  stage.host.reset();
  // The strands end by themselves: their library says so through the log that outlives them.
  CHECK(stage.says("policy: has come back"));
  CHECK(stage.says("taps: has come back"));
}
