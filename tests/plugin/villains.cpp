// Each way a plugin can misbehave, and what the host does: one message that names the thing, the
// cause and the next step, while the host and the plugin next door go on.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "plugin/stage.hpp"

using namespace sluice;
using namespace sluice::testing;

namespace {

// The one complaint, which must be the only one.
std::string complaint(Stage& stage) {
  REQUIRE(stage.loop.run_until([&] { return !stage.complaints().empty(); }));
  const auto all = stage.complaints();
  REQUIRE_MESSAGE(all.size() == 1, all.back());
  return all.front();
}
std::string release(const Leash& leash) {
  return "release=" + std::to_string(leash.fd());
}

// No retry within the test.
void retry_never(Stage& stage) {
  stage.settings.first_backoff = std::chrono::hours(1);
  stage.settings.longest_backoff = std::chrono::hours(1);
}

}  // namespace

TEST_CASE("a throwing constructor fails the start") {
  Stage stage;
  retry_never(stage);
  const auto result = stage.start({{"next_door", "neighbour"}, {"zoo", "throwing_constructor"}});
  CHECK(result == "required plugin \"zoo\" is failed: cannot be created: no such zoo; build one");
  CHECK(complaint(stage) ==
        "plugin zoo (throwing_constructor.so) cannot be created: no such zoo; build one; next try "
        "in 3600 s");
  CHECK(stage.neighbour_lives());
}

TEST_CASE("a throwing start fails the start; the host goes on without what is not required") {
  Stage stage;
  retry_never(stage);
  CHECK(stage.start({{"next_door", "neighbour"}, {"zoo", "throwing_start", "", false}}).empty());
  CHECK(complaint(stage) ==
        "plugin zoo (throwing_start.so) cannot start: the zoo is closed; come back on Monday; next "
        "try in 3600 s");
  CHECK(stage.phase("zoo") == PluginPhase::failed);
  CHECK(stage.neighbour_lives());
}

TEST_CASE("what fails to start is tried again, each time later") {
  Stage stage;
  CHECK_FALSE(stage.start({{"zoo", "throwing_start"}}).empty());
  CHECK(stage.loop.run_until([&] { return stage.status("zoo").restarts >= 5; }));
  const auto all = stage.lines(4);
  REQUIRE(all.size() >= 5);
  CHECK(all[0].ends_with("next try in 1 ms"));
  CHECK(all[1].ends_with("next try in 2 ms"));
  CHECK(all[2].ends_with("next try in 4 ms"));
  CHECK(all[3].ends_with("next try in 8 ms"));
  CHECK(all[4].ends_with("next try in 8 ms"));  // the longest
}

TEST_CASE("a throwing event fails the instance, and nobody else") {
  Stage stage;
  retry_never(stage);
  CHECK(stage.start({{"next_door", "neighbour"}, {"bad", "throwing_event"}}).empty());
  stage.host->attachment_added("bad", attachment(1));
  stage.host->attachment_added("bad", attachment(2));  // the failed instance is not called again
  CHECK(stage.reaches("bad", PluginPhase::failed));
  CHECK(complaint(stage) ==
        "plugin bad (throwing_event.so) attachment_added threw: threw something that is no "
        "std::exception; next try "
        "in 3600 s");
  CHECK(stage.neighbour_lives());
}

TEST_CASE("a throwing stop is stopped all the same") {
  Stage stage;
  CHECK(stage.start({{"bad", "throwing_stop"}}).empty());
  stage.stop();
  CHECK(stage.phase("bad") == PluginPhase::stopped);
  CHECK(complaint(stage) == "bad: stop threw: I will not go");
}

TEST_CASE("failed() stops and restarts the instance until it holds") {
  Stage stage;
  // Not required: it may give up before or after the host has counted it as started.
  CHECK(stage.start({{"next_door", "neighbour"}, {"shaky", "gives_up", "times=3", false}}).empty());
  CHECK(stage.says("shaky: run 4"));
  CHECK(stage.reaches("shaky", PluginPhase::running));
  CHECK(stage.status("shaky").restarts == 3);
  const auto all = stage.complaints();
  REQUIRE(all.size() == 3);
  CHECK(all[0] ==
        "plugin shaky (gives_up.so) the upstream went away; check the cable; next try in 1 ms");
  CHECK(stage.neighbour_lives());
}

TEST_CASE("a plugin that fails over its new options comes back with them") {
  Stage stage;
  CHECK(stage.start({{"shy", "fails_reconfigured", "greeting=hello", false}}).empty());
  CHECK(stage.says("shy: hello"));
  CHECK(stage.start({{"shy", "fails_reconfigured", "greeting=servus", false}}).empty());
  CHECK(stage.says("shy: servus"));
  CHECK(stage.reaches("shy", PluginPhase::running));
  CHECK(complaint(stage) ==
        "plugin shy (fails_reconfigured.so) new options are too much for me; next try in 1 ms");
  CHECK(stage.lines(0, "shy: hello").size() == 1);
  // Nothing is left to be settled: another reload finds what runs.
  stage.phases.clear();
  CHECK(stage.start({{"shy", "fails_reconfigured", "greeting=servus", false}}).empty());
  CHECK(stage.phases.empty());
}

TEST_CASE("a start that hangs is quarantined, and discovery starts without it") {
  Stage stage;
  Leash leash;
  stage.settings.start_deadline = std::chrono::milliseconds(1500);
  const auto result =
      stage.start({{"next_door", "neighbour"}, {"stuck", "hanging_start", release(leash)}});
  CHECK(result ==
        "required plugin \"stuck\" is quarantined: has not returned from start() within 1500 ms");
  CHECK(complaint(stage) ==
        "plugin stuck (hanging_start.so) has not returned from start() within 1500 ms; "
        "quarantined: its services are "
        "shut, its thread is let go, its attachments keep their policy; mend the plugin, then "
        "restart sluiced");
  CHECK(stage.neighbour_lives());
  SUBCASE("and stays out of service when it comes back") {
    leash.release();
    CHECK(stage.says(
        "stuck: has come back from where it hung and was ended; it stays out of service"));
    CHECK(stage.phase("stuck") == PluginPhase::quarantined);
  }
  SUBCASE("and the host stops without it") {
    stage.stop();
    CHECK(stage.phase("stuck") == PluginPhase::quarantined);
    CHECK(stage.phase("next_door") == PluginPhase::stopped);
    leash.release();
    CHECK(stage.says("stuck: has come back"));
  }
  SUBCASE("and a reload starts it anew") {
    leash.release();
    CHECK(stage.start({{"next_door", "neighbour"}, {"stuck", "hanging_start", release(leash)}})
              .empty());
    CHECK(stage.phase("stuck") == PluginPhase::running);
    CHECK(stage.says("stuck: has come back"));
  }
}

TEST_CASE("an event that hangs is quarantined: its services are shut, nobody is cut off") {
  Stage stage;
  Leash leash;
  stage.settings.event_deadline = std::chrono::milliseconds(1500);
  CHECK(stage.start({{"next_door", "neighbour"}, {"stuck", "hanging_event", release(leash)}})
            .empty());
  stage.host->attachment_added("stuck", attachment(1));
  CHECK(stage.reaches("stuck", PluginPhase::quarantined));
  CHECK(
      complaint(stage).starts_with("plugin stuck (hanging_event.so) has not returned from "
                                   "attachment_added() within 1500 ms; quarantined: "));
  CHECK(stage.neighbour_lives());
  leash.release();
  CHECK(stage.says("stuck: has come back"));
  // Its call reached nobody: the attachment keeps its layer.
  CHECK(std::ranges::count(stage.core.calls, "stuck withdraw_layer 1") == 0);
}

TEST_CASE("a stop that hangs does not keep the host") {
  Stage stage;
  Leash leash;
  stage.settings.stop_deadline = std::chrono::milliseconds(1500);
  CHECK(
      stage.start({{"next_door", "neighbour"}, {"stuck", "hanging_stop", release(leash)}}).empty());
  stage.stop();
  CHECK(stage.phase("stuck") == PluginPhase::quarantined);
  CHECK(stage.phase("next_door") == PluginPhase::stopped);
  CHECK(
      complaint(stage).starts_with("plugin stuck (hanging_stop.so) has not returned from stop() "
                                   "within 1500 ms of being stopped; quarantined: "));
  leash.release();
  CHECK(stage.says("stuck: has come back"));
}

TEST_CASE("a thread that a plugin forgot is answered, after stop, with a shutdown") {
  Stage stage;
  Leash leash, report;
  CHECK(stage
            .start({{"next_door", "neighbour"},
                    {"ghost", "foreign_thread",
                     release(leash) + "\nreport=" + std::to_string(report.write_end())}})
            .empty());
  CHECK(stage.start({{"next_door", "neighbour"}}).empty());  // stopped and destroyed
  leash.release();
  int answers[3] = {};
  REQUIRE(::read(report.fd(), answers, sizeof answers) == sizeof answers);
  CHECK(answers[0] == -ESHUTDOWN);
  CHECK(answers[1] == -ESHUTDOWN);
  CHECK(answers[2] == -ESHUTDOWN);
  CHECK(stage.complaints().empty());
  CHECK(stage.neighbour_lives());
}

TEST_CASE("a full mailbox becomes one resync, and every attachment is told anew") {
  Stage stage;
  stage.core.attachments = {attachment(1), attachment(2)};
  stage.settings.mailbox_capacity = 64;
  CHECK(stage.start({{"next_door", "neighbour"}, {"flood", "flooder"}}).empty());
  CHECK(stage.says("flood: lists anew"));
  CHECK(stage.loop.run_until([&] { return stage.lines(0, "flood: knows 2").size() >= 2; }));
  CHECK(stage.status("flood").resyncs >= 1);
  CHECK(stage.complaints().front() ==
        "flood: was told more than it could take in; what was queued is dropped and it lists anew");
  CHECK(stage.phase("flood") == PluginPhase::running);
  CHECK(stage.neighbour_lives());
}

TEST_CASE("a call from the wrong thread is refused, and said once") {
  Stage stage;
  CHECK(stage.start({{"next_door", "neighbour"}, {"astray", "wrong_thread"}}).empty());
  CHECK(stage.says("astray: answers: 1 1 1 "));
  CHECK(complaint(stage) ==
        "astray: listed was called from a thread that is not its strand and was refused; let that "
        "thread call wake() "
        "and act in on_wake()");
  CHECK(std::ranges::count(stage.core.calls, "astray listed") == 0);
  CHECK(stage.neighbour_lives());
}

TEST_CASE("a call from the constructor is refused") {
  Stage stage;
  retry_never(stage);
  CHECK_FALSE(stage.start({{"early", "wrong_thread", "early=true"}}).empty());
  CHECK(stage.lines(4).front() ==
        "early: timer_set was called in the constructor and was refused; call it in start()");
}

TEST_CASE("a plugin of a newer minor works: what it has more is not looked at") {
  Stage stage;
  stage.core.attachments = {attachment(1)};
  CHECK(stage.start({{"later", "newer_minor", "two=second"}}).empty());
  CHECK(stage.says("later: one=default two=second "));
  REQUIRE(stage.loop.run_until([&] { return stage.core.layers.contains(1); }));
  const auto& rules = stage.core.layers[1].rules;
  REQUIRE(rules.size() == 2);
  CHECK(rules[0].domain == "first.example");
  CHECK(rules[1].domain == "second.example");
  CHECK(stage.complaints().empty());
}

TEST_CASE("a plugin that lies about its arguments is refused, and nothing reaches the core") {
  Stage stage;
  CHECK(stage.start({{"liar", "liar"}}).empty());
  CHECK(stage.says("liar: null lists: -22"));
  CHECK(stage.lines(0, ": 0").empty());
  CHECK(stage.lines(0, "without a word").empty());
  CHECK(stage.core.calls.empty());
}

TEST_CASE("a plugin with a C++ runtime of its own throws as it likes") {
  for (const char* library : {"own_runtime_gcc", "own_runtime_clang"}) {
    if (!std::filesystem::exists(std::filesystem::path(SLUICE_VILLAINS) /
                                 (std::string(library) + ".so"))) {
      MESSAGE(library << ": not built here");
      continue;
    }
    CAPTURE(library);
    Stage stage;
    retry_never(stage);
    stage.core.refuse_layers = ENOSPC;
    CHECK(stage.start({{"next_door", "neighbour"}, {"own", library}}).empty());
    CHECK(stage.says("own: caught what it threw"));
    stage.host->attachment_added("own", attachment(1));
    CHECK(stage.says("own: refused: the core has no room; ask again later"));
    CHECK(stage.reaches("own", PluginPhase::failed));
    CHECK(complaint(stage) ==
          "plugin own (" + std::string(library) +
              ".so) attachment_added threw: thrown across nothing; look at the barrier; next try "
              "in 3600 s");
    CHECK(stage.neighbour_lives());
  }
}
