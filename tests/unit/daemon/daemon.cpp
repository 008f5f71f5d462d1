#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "daemon/daemon.hpp"

#include <doctest/doctest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <fstream>
#include <iterator>
#include <sstream>

#include "stage.hpp"

using namespace sluice;
using namespace sluice::test;

TEST_CASE("a daemon attaches, filters, and leaves its filters in force") {
  Stage stage;
  stage.folder.write(plain());
  const int status = stage.live([&](Daemon& daemon) {
    CHECK(stage.attached() == 1);
    Stage::once(
        daemon, [&] { return stage.passes(1); }, [&] { daemon.request_stop(); });
  });
  CHECK(status == 0);
  CHECK(stage.passes(1));
  CHECK_FALSE(stage.passes(2));
}

TEST_CASE("its successor adopts what it finds, and keeps the policy until the source speaks") {
  Stage stage;
  stage.folder.write(plain());
  stage.live([&](Daemon& daemon) {
    Stage::once(
        daemon, [&] { return stage.passes(1); }, [&] { daemon.request_stop(); });
  });
  const auto before = stage.kernel->find_interface(7, 0)->attachment.incarnation;
  stage.folder.write(plain("[\"tap1:7\"]", 2));
  bool always = true;
  stage.live([&](Daemon& daemon) {
    always &= stage.passes(1) || stage.passes(2);
    Stage::once(
        daemon,
        [&] {
          always &= stage.passes(1) || stage.passes(2);
          return stage.passes(2);
        },
        [&] { daemon.request_stop(); });
  });
  CHECK(always);
  CHECK(stage.kernel->find_interface(7, 0)->attachment.incarnation == before);
  CHECK_FALSE(stage.passes(1));
}

TEST_CASE("what no discovery names any more is detached by the successor") {
  Stage stage;
  stage.folder.write(plain("[\"tap1:7\", \"tap2:8\"]"));
  stage.live([&](Daemon& daemon) { daemon.request_stop(); });
  CHECK(stage.attached() == 2);
  stage.folder.write(plain("[\"tap2:8\"]"));
  stage.live([&](Daemon& daemon) {
    Stage::once(
        daemon, [&] { return stage.attached() == 1; }, [&] { daemon.request_stop(); });
  });
  CHECK(stage.kernel->find_interface(8, 0) != nullptr);
}

TEST_CASE("a start that cannot succeed touches nothing") {
  Stage stage;
  const auto refused = [&] {
    auto daemon = Daemon::start(stage.folder.config(), stage.parts());
    REQUIRE_FALSE(daemon);
    CHECK(stage.attached() == 0);
    return daemon.error();
  };
  SUBCASE("no file") {
    CHECK(mentions(refused(), stage.folder.config().string()));
    CHECK(stage.opened == 0);
  }
  SUBCASE("several faults, each with its place") {
    stage.folder.write(
        "[plugin.finder]\nlibrary = \"stage_discovery\"\ninterfaces = 7\ncolour = \"red\"\n"
        "[plugin.rules]\nlibrary = \"stage_source\"\nallow = \"x\"\n");
    const auto errors = refused();
    CHECK(errors.size() >= 3);
    CHECK(mentions(errors, "sluice.toml:6:"));
    CHECK(mentions(errors, "colour"));
    CHECK(stage.opened == 0);
  }
  SUBCASE("no such library") {
    stage.folder.write("[plugin.finder]\nlibrary = \"nonesuch\"\n");
    CHECK(mentions(refused(), "nonesuch"));
    CHECK(stage.opened == 0);
  }
  SUBCASE("a wire names a source that is none") {
    auto text = plain();
    text.replace(text.find("sources = [\"rules\"]"), 19, "sources = [\"finder\"]");
    stage.folder.write(text);
    CHECK(mentions(refused(), "sluice.toml:11:1: [[wire]] 1: source \"finder\" (stage_discovery)"));
    CHECK(stage.opened == 0);
  }
  SUBCASE("missing capabilities") {
    stage.folder.write(plain());
    stage.privileges = fail_with(EPERM, "missing CAP_BPF");
    CHECK(mentions(refused(), "CAP_BPF"));
    CHECK(stage.opened == 0);
  }
  SUBCASE("the kernel lacks something") {
    stage.folder.write(plain());
    stage.open = fail("this kernel has no BPF");
    CHECK(mentions(refused(), "no BPF"));
  }
}

TEST_CASE("a second start on one state directory is refused while the first goes on") {
  Stage stage;
  stage.folder.write(plain());
  const int status = stage.live([&](Daemon& daemon) {
    auto second = Daemon::start(stage.folder.config(), stage.parts());
    REQUIRE_FALSE(second);
    CHECK(mentions(second.error(), "process " + std::to_string(::getpid())));
    CHECK(stage.opened == 1);  // the second came nowhere near the kernel
    daemon.request_stop();
  });
  CHECK(status == 0);
}

TEST_CASE("a required plugin that does not start ends the daemon; filters stay") {
  Stage stage;
  stage.folder.write(plain());
  stage.live([&](Daemon& daemon) {
    Stage::once(
        daemon, [&] { return stage.passes(1); }, [&] { daemon.request_stop(); });
  });
  stage.folder.write(plain("[\"tap1:7\"]", 1, "start = \"throw\""));
  CHECK(stage.live([](Daemon&) {}) == 1);
  CHECK(stage.ready == 1);
  CHECK(stage.passes(1));
}

TEST_CASE("the host goes on without a plugin that is not required") {
  Stage stage;
  stage.folder.write(plain("[\"tap1:7\"]", 1, "start = \"throw\"\nrequired = false"));
  const int status = stage.live([&](Daemon& daemon) {
    CHECK(stage.attached() == 1);
    CHECK_FALSE(stage.passes(1));
    daemon.request_stop();
  });
  CHECK(status == 0);
}

TEST_CASE("guards come when what exists is attached; one that cannot be set ends the start") {
  Stage stage;
  stage.folder.write(plain() + "[guard]\nuplinks = [\"eth0\"]\n");
  SUBCASE("set") {
    stage.live([&](Daemon& daemon) {
      CHECK(stage.kernel->guards.uplinks == Lines{"eth0"});
      daemon.request_stop();
    });
  }
  SUBCASE("refused") {
    stage.prepare = [](FakeDataPlane& plane) {
      plane.refuse("set_guards", {.message = "eth0: no such interface", .code = ENODEV});
    };
    CHECK(stage.live([](Daemon&) {}) == 1);
    CHECK(stage.attached() == 1);  // what was attached stays closed
  }
}

// ---- reload -------------------------------------------------------------------------------------

namespace {

// Runs a daemon on `before`, reloads it with `after`, returns what the reload complained of.
// `settled` must hold before the daemon is stopped.
Lines reload(
    Stage& stage, const std::string& before, const std::string& after,
    const std::function<bool()>& settled = [] { return true; }) {
  Lines complaints;
  stage.folder.write(before);
  const int status = stage.live([&](Daemon& daemon) {
    daemon.on_reloaded([&](Lines errors) {
      complaints = std::move(errors);
      Stage::once(daemon, settled, [&daemon] { daemon.request_stop(); });
    });
    Stage::once(
        daemon, [&] { return stage.passes(1); },
        [&] {
          stage.folder.write(after);
          daemon.request_reload();
        });
  });
  CHECK(status == 0);
  return complaints;
}

}  // namespace

TEST_CASE("a reload applies what changed") {
  Stage stage;
  SUBCASE("nothing") {
    CHECK(reload(stage, plain(), plain()).empty());
    CHECK(stage.passes(1));
  }
  SUBCASE("a source's option") {
    CHECK(
        reload(stage, plain(), plain("[\"tap1:7\"]", 2), [&] { return stage.passes(2); }).empty());
    CHECK_FALSE(stage.passes(1));
  }
  SUBCASE("the floor") {
    CHECK(reload(stage, plain(), plain() + "[floor]\ndeny = [\"10.0.1.5/32\"]\n").empty());
    CHECK_FALSE(stage.passes(1));
  }
  SUBCASE("a target less, a target more") {
    CHECK(reload(stage, plain(), plain("[\"tap3:9\"]"), [&] {
            return stage.kernel->find_interface(7, 0) == nullptr && stage.passes(1, 9);
          }).empty());
  }
  SUBCASE("a discovery's name: its plugin takes over at the first attempt") {
    auto after = plain();
    after.replace(after.find("plugin.finder"), 13, "plugin.seeker");
    CHECK(reload(stage, plain(), after, [&] { return stage.passes(1); }).empty());
  }
  SUBCASE("a discovery's option: it is done when that one has come to what exists") {
    const auto list = std::string("[\"tap1:7\", \"tap3:9\"]");
    bool found = false;
    stage.folder.write(plain());
    stage.live([&](Daemon& daemon) {
      daemon.on_reloaded([&](const Lines& errors) {
        CHECK(errors.empty());
        found = stage.attached() == 2;
        daemon.request_stop();
      });
      stage.folder.write(plain(list + "\nlate = true"));
      daemon.request_reload();
    });
    CHECK(found);
  }
  SUBCASE("a new source in the wire, which it hears of") {
    auto after = plain();
    after.replace(after.find("sources = [\"rules\"]"), 19, "sources = [\"rules\", \"more\"]");
    CHECK(reload(stage, plain(), "[plugin.more]\nlibrary = \"stage_source\"\nallow = 6\n" + after,
                 [&] { return stage.passes(6); })
              .empty());
    CHECK(stage.passes(1));
  }
  SUBCASE("a source that goes takes its rules") {
    auto before = plain();
    before.replace(before.find("sources = [\"rules\"]"), 19, "sources = [\"rules\", \"more\"]");
    before = "[plugin.more]\nlibrary = \"stage_source\"\nallow = 6\n" + before;
    CHECK(reload(stage, before, plain()).empty());
    CHECK(stage.passes(1));
    CHECK_FALSE(stage.passes(6));
  }
}

TEST_CASE("a reload whose discovery hangs is done in part, and says what waits for it") {
  Stage stage;
  auto after = plain("[\"tap1:7\"]\nhangs = true");
  after.replace(after.find("sources = [\"rules\"]"), 19, "sources = []");
  const auto complaints = reload(stage, plain(), after);
  CHECK(mentions(complaints,
                 "finder: has not listed what exists after 5 s; its 1 attachments "
                 "keep their former wire"));
  CHECK(stage.passes(1));
}

TEST_CASE("another plugin_path takes effect at a reload; what only a start reads is said to wait") {
  Stage stage;
  const auto elsewhere = stage.folder.path() / "plugins";
  std::filesystem::copy(STAGE_PLUGINS, elsewhere);
  stage.folder.write(plain());
  const auto original = stage.folder.text();
  auto moved = original;
  moved.replace(moved.find(STAGE_PLUGINS), std::string_view(STAGE_PLUGINS).size(),
                elsewhere.string());
  auto slower = moved;
  slower.insert(slower.find("state_dir"), "events_per_second = 1\n");

  std::ostringstream log;
  const auto sink = std::make_shared<spdlog::sinks::ostream_sink_mt>(log);
  spdlog::default_logger()->sinks().push_back(sink);
  std::vector<std::string> said;
  const auto runs_from_elsewhere = [&] {
    std::ifstream maps("/proc/self/maps");
    const std::string text(std::istreambuf_iterator<char>(maps), {});
    return text.find(elsewhere / "stage_source.so") != std::string::npos;
  };
  stage.live([&](Daemon& daemon) {
    daemon.on_reloaded([&](const Lines& errors) {
      CHECK(errors.empty());
      said.push_back(log.str());
      log.str("");
      CHECK(runs_from_elsewhere());
      if (said.size() == 2) return daemon.request_stop();
      stage.folder.write_whole(slower);
      daemon.request_reload();
    });
    CHECK_FALSE(runs_from_elsewhere());
    stage.folder.write_whole(moved);
    daemon.request_reload();
  });
  std::erase(spdlog::default_logger()->sinks(), sink);
  REQUIRE(said.size() == 2);
  CHECK(said[0].find("next start") == std::string::npos);
  CHECK(said[1].find("[host] events_per_second: takes effect at the next start") !=
        std::string::npos);
}

TEST_CASE("a reload that is invalid changes nothing and says why") {
  Stage stage;
  const auto unchanged = [&] {
    CHECK(stage.attached() == 1);
    CHECK(stage.passes(1));
    CHECK_FALSE(stage.passes(2));
  };
  SUBCASE("no TOML") {
    CHECK(mentions(reload(stage, plain(), plain("[\"tap3:9\"]", 2) + "[["), "sluice.toml:"));
  }
  SUBCASE("an unknown option") {
    CHECK(mentions(reload(stage, plain(), plain("[\"tap3:9\"]", 2, "colour = 1")), "colour"));
  }
  SUBCASE("a floor with host bits") {
    CHECK(mentions(
        reload(stage, plain(), plain("[\"tap3:9\"]", 2) + "[floor]\ndeny = [\"10.0.0.1/8\"]\n"),
        "10.0.0.1/8"));
  }
  SUBCASE("a fault in a plugin's own file") {
    CHECK(mentions(reload(stage, plain(), plain("[\"tap3:9\"]", 2, "check = \"complain\"")),
                   "policies.toml:3:7"));
  }
  SUBCASE("a plugin that crashes when it is checked") {
    CHECK(mentions(reload(stage, plain(), plain("[\"tap3:9\"]", 2, "check = \"crash\"")), "rules"));
  }
  SUBCASE("no file any more") {
    Lines complaints;
    stage.folder.write(plain());
    stage.live([&](Daemon& daemon) {
      daemon.on_reloaded([&](Lines errors) {
        complaints = std::move(errors);
        daemon.request_stop();
      });
      Stage::once(
          daemon, [&] { return stage.passes(1); },
          [&] {
            std::filesystem::remove(stage.folder.config());
            daemon.request_reload();
          });
    });
    CHECK(mentions(complaints, stage.folder.config().string()));
  }
  unchanged();
}

TEST_CASE("reloads that come while one runs make one more, with the newest file") {
  Stage stage;
  stage.folder.write(plain());
  int reloads = 0;
  stage.live([&](Daemon& daemon) {
    daemon.on_reloaded([&](const Lines& errors) {
      CHECK(errors.empty());
      if (++reloads == 2) {
        Stage::once(
            daemon, [&] { return stage.passes(4); }, [&daemon] { daemon.request_stop(); });
      }
    });
    daemon.request_reload();
    daemon.loop().post([&] {
      stage.folder.write(plain("[\"tap1:7\"]", 4));
      for (int i = 0; i < 5; ++i) daemon.request_reload();
    });
  });
  CHECK(reloads == 2);
}

TEST_CASE("a reload that is asked for during the start follows it") {
  Stage stage;
  stage.folder.write(plain());
  auto daemon = Daemon::start(stage.folder.config(), stage.parts());
  REQUIRE(daemon);
  // What the start has read is the past by now.
  stage.folder.write(plain("[\"tap1:7\"]", 4));
  (*daemon)->request_reload();
  int reloads = 0;
  (*daemon)->on_ready([&] { CHECK(reloads == 0); });
  (*daemon)->on_reloaded([&](const Lines& errors) {
    CHECK(errors.empty());
    reloads += 1;
    Stage::once(
        **daemon, [&] { return stage.passes(4); }, [&] { (*daemon)->request_stop(); });
  });
  CHECK(Stage::run(**daemon) == 0);
  CHECK(reloads == 1);
  CHECK(stage.passes(4));
}

TEST_CASE("a stop during a reload ends both") {
  Stage stage;
  stage.folder.write(plain());
  const int status = stage.live([&](Daemon& daemon) {
    daemon.request_reload();
    daemon.request_stop();
  });
  CHECK(status == 0);
}
