// Questions, decisions, pushed answers and reports on their way between plugins, and those who
// misbehave on it.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "plugin/stage.hpp"

using namespace sluice;
using namespace sluice::testing;

namespace {

AttachmentInfo wired(std::uint64_t id, std::vector<std::string> sources) {
  auto info = attachment(id);
  info.sources = std::make_shared<const std::vector<std::string>>(std::move(sources));
  return info;
}
// As the manager tells: each source of the wire, in its order. With a `pause` after each, those
// told first could long have asked those told last.
void appears(Stage& stage, std::uint64_t id, const std::vector<std::string>& sources,
             std::chrono::milliseconds pause = {}) {
  const auto telling = stage.host->telling();
  for (const auto& source : sources) {
    stage.host->attachment_added(source, wired(id, sources));
    std::this_thread::sleep_for(pause);
  }
}
void disappears(Stage& stage, std::uint64_t id, const std::vector<std::string>& sources) {
  for (const auto& source : sources) stage.host->attachment_removed(source, attachment(id), "gone");
}
void retry_never(Stage& stage) {
  stage.settings.first_backoff = std::chrono::hours(1);
  stage.settings.longest_backoff = std::chrono::hours(1);
}

}  // namespace

TEST_CASE("a question goes to the wire's first decider, its decision back to whoever asked") {
  Stage stage;
  CHECK(stage
            .start({{"dns", "asker"},
                    {"other", "decider"},
                    {"first", "decider", "how=deny"},
                    {"second", "decider"}})
            .empty());
  appears(stage, 7, {"dns", "first", "second"});
  CHECK(stage.says("dns: decided 1 deny deny"));
  CHECK(stage.says("first: was heard"));
  CHECK(stage.lines(0, "first: heard of 7").size() == 1);
  CHECK(stage.lines(0, "first: asked about q.example by 7").size() == 1);
  CHECK(stage.lines(0, "other: ").empty());
  CHECK(stage.lines(0, "second: asked").empty());
}

TEST_CASE("nobody is asked about an attachment that he has not heard of") {
  Stage stage;
  constexpr std::chrono::milliseconds kPause{50};
  SUBCASE("a decider") {
    CHECK(stage.start({{"dns", "asker"}, {"judge", "decider"}}).empty());
    appears(stage, 7, {"dns", "judge"}, kPause);
    CHECK(stage.says("dns: decided 1 allow"));
    const auto told = stage.lines(0, "judge: ");
    REQUIRE(told.size() >= 2);
    CHECK(told[0].ends_with("heard of 7"));
    CHECK(told[1].ends_with("asked about q.example by 7"));
  }
  SUBCASE("a resolver that is pushed to") {
    CHECK(stage.start({{"dns", "asker", "questions=0"}, {"coredns", "pusher"}}).empty());
    appears(stage, 7, {"coredns", "dns"}, kPause);
    CHECK(stage.says("coredns: may give it"));
    const auto told = stage.lines(0, "dns: ");
    REQUIRE(told.size() >= 2);
    CHECK(told[0].ends_with("heard of 7"));
    CHECK(told[1].find("pushed a.example") != std::string::npos);
  }
}

TEST_CASE("who may not ask, and who is not there to decide") {
  Stage stage;
  retry_never(stage);
  SUBCASE("no decider on the wire") {
    CHECK(stage.start({{"dns", "asker"}, {"other", "decider"}}).empty());
    appears(stage, 7, {"dns"});
    CHECK(stage.says("dns: nobody decides"));
  }
  SUBCASE("an attachment whose wire does not name the asker") {
    CHECK(stage.start({{"dns", "asker", "about=8"}, {"judge", "decider"}}).empty());
    stage.host->attachment_added("judge", wired(8, {"judge"}));
    appears(stage, 7, {"dns", "judge"});
    CHECK(stage.says("dns: nobody decides"));
    CHECK(stage.lines(0, "judge: asked").empty());
  }
  SUBCASE("an attachment that is gone") {
    CHECK(stage.start({{"dns", "asker", "about=8"}, {"judge", "decider"}}).empty());
    appears(stage, 8, {"judge", "dns"});
    CHECK(stage.says("judge: was heard"));
    disappears(stage, 8, {"judge", "dns"});
    appears(stage, 7, {"dns", "judge"});
    CHECK(stage.says("dns: nobody decides"));
  }
  SUBCASE("a decider that has failed") {
    CHECK(stage.start({{"dns", "asker"}, {"judge", "decider", "how=fail", false}}).empty());
    appears(stage, 7, {"dns", "judge"});
    CHECK(stage.says("dns: decided 1 none decider down: judge stopped before it answered"));
    CHECK(stage.reaches("judge", PluginPhase::failed));
    appears(stage, 8, {"dns", "judge"});
    CHECK(stage.says("dns: ask failed with " + std::to_string(EHOSTDOWN)));
  }
}

TEST_CASE("deciders that misbehave: the asker hears exactly once, and in time") {
  Stage stage;
  retry_never(stage);
  Leash leash;
  SUBCASE("silent: the deadline decides nothing") {
    CHECK(stage.start({{"dns", "asker", "patience_ms=50"}, {"judge", "decider", "how=silent"}})
              .empty());
    appears(stage, 7, {"dns", "judge"});
    CHECK(stage.says("dns: decided 1 none deadline: judge has not answered in time"));
  }
  SUBCASE("hanging: the deadline as well, and what it says when it wakes up is not heard") {
    CHECK(stage
              .start({{"dns", "asker", "patience_ms=50"},
                      {"judge", "decider", "how=hang\nrelease=" + std::to_string(leash.fd())}})
              .empty());
    appears(stage, 7, {"dns", "judge"});
    CHECK(stage.says("dns: decided 1 none deadline"));
    leash.release();
    CHECK(stage.says("judge: was not heard"));
  }
  SUBCASE("throwing: it is down") {
    CHECK(stage.start({{"dns", "asker"}, {"judge", "decider", "how=throw", false}}).empty());
    appears(stage, 7, {"dns", "judge"});
    CHECK(stage.says("dns: decided 1 none decider down"));
  }
  SUBCASE("answering twice") {
    CHECK(stage.start({{"dns", "asker"}, {"judge", "decider", "how=twice"}}).empty());
    appears(stage, 7, {"dns", "judge"});
    CHECK(stage.says("judge: was heard once"));
  }
  SUBCASE("answering with nonsense, then well") {
    CHECK(stage.start({{"dns", "asker"}, {"judge", "decider", "how=nonsense"}}).empty());
    appears(stage, 7, {"dns", "judge"});
    CHECK(stage.says("judge: nonsense: error " + std::to_string(EINVAL)));
    CHECK(stage.says("dns: decided 1 allow nonsense"));
  }
  SUBCASE("answering for questions that were put to another") {
    CHECK(stage
              .start({{"dns", "asker", "patience_ms=200"},
                      {"judge", "decider", "how=silent"},
                      {"impostor", "decider", "how=guess"}})
              .empty());
    appears(stage, 7, {"dns", "judge"});
    CHECK(stage.says("judge: asked about q.example"));
    appears(stage, 8, {"dns", "impostor"});
    CHECK(stage.says("impostor: guessed"));
    CHECK(stage.lines(0, "impostor: decided for another").empty());
    CHECK(stage.loop.run_until(
        [&] { return stage.lines(0, "dns: decided 1 none deadline").size() == 2; }));
  }
  CHECK(stage.loop.run_until([&] { return !stage.lines(0, "dns: decided 1").empty(); }));
  const auto heard = stage.lines(0, "dns: decided 1");
  CHECK(heard.size() == (stage.lines(0, "impostor: guessed").empty() ? 1u : 2u));
}

TEST_CASE("a decider that is told more than it takes in loses no question unheard") {
  Stage stage;
  Leash leash;
  stage.settings.mailbox_capacity = 8;
  CHECK(stage
            .start({{"dns", "asker", "questions=40"},
                    {"judge", "decider", "how=hang\nrelease=" + std::to_string(leash.fd())}})
            .empty());
  appears(stage, 7, {"dns", "judge"});
  CHECK(stage.says("none decider down: judge is told more than it takes in"));
  leash.release();
  CHECK(stage.loop.run_until([&] { return stage.lines(0, "dns: decided ").size() == 40; }));
}

TEST_CASE("a pushed answer is given once the wire's resolver has taken it") {
  Stage stage;
  CHECK(stage.start({{"dns", "asker"}, {"coredns", "pusher"}}).empty());
  appears(stage, 7, {"dns", "coredns"});
  CHECK(stage.says("coredns: may give it"));
  CHECK(stage.lines(0, "dns: pushed a.example 1 198.51.100.7").size() == 1);
  CHECK(stage.says("dns: taken"));
  CHECK(stage.lines(0, "dns: answered").empty());
}

TEST_CASE("pushes that must not be given") {
  Stage stage;
  retry_never(stage);
  Leash leash;
  const auto refused = [](int code) {
    return "coredns: must not give it: " + std::to_string(code);
  };
  SUBCASE("the resolver refuses") {
    CHECK(stage.start({{"dns", "asker", "pushes=refuse"}, {"coredns", "pusher"}}).empty());
    appears(stage, 7, {"dns", "coredns"});
    CHECK(stage.says(refused(EACCES) + " that name is not allowed"));
  }
  SUBCASE("the resolver does not answer in time") {
    CHECK(stage.start({{"dns", "asker", "pushes=ignore"}, {"coredns", "pusher", "patience_ms=50"}})
              .empty());
    appears(stage, 7, {"dns", "coredns"});
    CHECK(stage.says(refused(ETIMEDOUT)));
  }
  SUBCASE("no resolver on the wire") {
    CHECK(stage.start({{"dns", "asker"}, {"coredns", "pusher"}}).empty());
    appears(stage, 7, {"coredns"});
    CHECK(stage.says(refused(ENOENT)));
  }
  SUBCASE("another's attachment") {
    CHECK(stage.start({{"dns", "asker"}, {"coredns", "pusher", "for=8"}}).empty());
    appears(stage, 8, {"dns"});
    appears(stage, 7, {"dns", "coredns"});
    CHECK(stage.says(refused(ENOENT)));
    CHECK(stage.lines(0, "dns: pushed").empty());
  }
  SUBCASE("the resolver is stopped meanwhile, and the pusher does not wait on") {
    CHECK(stage.start({{"dns", "asker", "pushes=ignore"}, {"coredns", "pusher"}}).empty());
    appears(stage, 7, {"dns", "coredns"});
    CHECK(stage.says("dns: pushed a.example"));
    stage.start({{"coredns", "pusher"}});
    CHECK(stage.says(refused(EHOSTDOWN)));
  }
  SUBCASE("the pusher is stopped while it waits") {
    CHECK(stage.start({{"dns", "asker", "pushes=ignore"}, {"coredns", "pusher"}}).empty());
    appears(stage, 7, {"dns", "coredns"});
    CHECK(stage.says("dns: pushed a.example"));
    stage.stop();
    CHECK(stage.lines(0, refused(ESHUTDOWN)).size() == 1);
    CHECK(stage.phase("coredns") == PluginPhase::stopped);
  }
}

TEST_CASE("reports reach every observer, are bounded, and what is dropped is counted") {
  Stage stage;
  SUBCASE("all of them") {
    CHECK(stage.start({{"dns", "asker", "reports=3"}, {"one", "watcher"}, {"two", "watcher"}})
              .empty());
    appears(stage, 7, {"dns"});
    const std::string line = "query reported.example allowed *.example 198.51.100.7";
    CHECK(stage.loop.run_until([&] {
      return stage.lines(0, "one: " + line).size() == 3 &&
             stage.lines(0, "two: " + line).size() == 3;
    }));
    CHECK(stage.status("one").reports_dropped == 0);
  }
  SUBCASE("more than fit") {
    stage.settings.denial_capacity = 2;
    Leash leash;
    CHECK(stage
              .start({{"dns", "asker", "reports=50"},
                      {"slow", "watcher", "release=" + std::to_string(leash.fd())}})
              .empty());
    appears(stage, 7, {"dns"});
    CHECK(stage.says("dns: reported"));
    leash.release();
    CHECK(stage.loop.run_until([&] {
      return stage.status("slow").reports_dropped + stage.lines(0, "slow: query").size() == 50;
    }));
    CHECK(stage.status("slow").reports_dropped >= 46);
  }
}

TEST_CASE("what no honest plugin says of names is refused, each time with an errno") {
  Stage stage;
  CHECK(stage.start({{"liar", "tall_tales"}, {"seen", "watcher"}}).empty());
  appears(stage, 7, {"liar"});
  CHECK(stage.says("liar: that is all"));
  CHECK(stage.lines(0, "liar: believed").empty());
  CHECK(stage.lines(0, "seen: query").empty());
}

TEST_CASE("wires may name deciders and answer sources, and nobody without a say") {
  Stage stage;
  for (const auto* library : {"decider", "pusher", "asker", "finder"}) stage.install(library);
  const auto prepared = stage.make().prepare(stage.configs(
      {{"judge", "decider"}, {"coredns", "pusher"}, {"dns", "asker"}, {"taps", "finder"}}));
  REQUIRE(prepared.has_value());
  WireConfig wire;
  wire.sources = {"judge", "coredns", "dns"};
  CHECK(check_wires(*prepared, {wire}, "sluice.toml").empty());
  wire.sources.push_back("taps");
  const auto errors = check_wires(*prepared, {wire}, "sluice.toml");
  REQUIRE(errors.size() == 1);
  CHECK(errors[0].text.find("\"taps\" (finder) decides no policy") != std::string::npos);
}
