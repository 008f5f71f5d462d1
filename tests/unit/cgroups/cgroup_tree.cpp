// The tree under a scripted hierarchy: races that the real kernel shows once in a thousand runs.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "cgroups/cgroup_tree.hpp"

#include <doctest/doctest.h>

#include <memory>
#include <random>

#include "unit/cgroups/scripted_hierarchy.hpp"
#include "unit/discovery/scripted_host.hpp"

using namespace sluice::cgroups;
using namespace sluice::discovery;
using Strings = std::vector<std::string>;

namespace {

struct Bench {
  ScriptedHierarchy kernel;
  ScriptedHost host;
  Keeper keeper{host, {.calls_per_turn = 100000}};
  std::unique_ptr<CgroupTree> tree;

  explicit Bench(CgroupSelectionOptions options)
      : tree(std::make_unique<CgroupTree>(CgroupSelection(std::move(options)), kernel, keeper,
                                          host)) {}
  void start() {
    tree->relist();
    catch_up();
  }
  void catch_up() {
    for (;;) {
      const auto events = kernel.events(64);
      for (const auto& event : events) tree->handle(event);
      if (!tree->work(16) && events.empty()) break;
    }
    run_out(keeper);
  }
  Strings names() const { return host.names(); }
  std::map<std::string, std::uint64_t> attached() const {
    std::map<std::string, std::uint64_t> result;
    for (const auto& [id, attached] : host.attachments)
      result[attached.target.name] = attached.target.cgroup_id;
    REQUIRE(result.size() == host.attachments.size());  // none twice
    return result;
  }
};

}  // namespace

TEST_CASE("existing cgroups, new ones, removed ones, and labels from their paths") {
  Bench bench({.match = {"/tenants/{tenant}/{vm_id}.scope"},
               .exclude = {"/tenants/*/mgmt.scope"},
               .labels = {{"class", "vm"}, {"who", "$tenant/$vm_id"}}});
  bench.kernel.make_all("/tenants/acme/1.scope");
  bench.kernel.make_all("/tenants/acme/mgmt.scope");
  bench.kernel.make_all("/other/acme/9.scope");
  bench.start();
  CHECK(bench.names() == Strings{"/tenants/acme/1.scope"});
  CHECK(bench.host.listed_calls == 1);
  const auto& [id, attached] = *bench.host.attachments.begin();
  CHECK(attached.target.kind == TargetKind::cgroup);
  CHECK(attached.target.cgroup_id == bench.kernel.id("/tenants/acme/1.scope"));
  CHECK(attached.labels == Labels{{"cgroup", "/tenants/acme/1.scope"},
                                  {"tenant", "acme"},
                                  {"vm_id", "1"},
                                  {"class", "vm"},
                                  {"who", "acme/1"}});
  bench.kernel.make_all("/tenants/globex/2.scope");
  bench.catch_up();
  CHECK(bench.names() == Strings{"/tenants/acme/1.scope", "/tenants/globex/2.scope"});
  bench.kernel.remove("/tenants/acme");
  bench.catch_up();
  CHECK(bench.names() == Strings{"/tenants/globex/2.scope"});
  // The root, /tenants and /tenants/globex; neither the matches nor /other.
  CHECK(bench.kernel.watches() == 3);
}

TEST_CASE("each match is attached, nested or not") {
  Bench bench({.match = {"/k/**"}});
  bench.kernel.make_all("/k/pod/container");
  bench.start();
  CHECK(bench.names() == Strings{"/k/pod", "/k/pod/container"});
}

TEST_CASE("a directory that is not there yet is found when it is made, with all below it") {
  Bench bench({.match = {"/a/b/c/*"}});
  bench.start();
  bench.kernel.make_all("/a/b/c/d");
  bench.catch_up();
  CHECK(bench.names() == Strings{"/a/b/c/d"});
}

TEST_CASE("nothing is missed, whatever is made while a directory is opened, watched and listed") {
  for (const char* moment : {"opened", "watched"}) {
    CAPTURE(moment);
    Bench bench({.match = {"/a/b/*"}});
    bench.start();
    bench.kernel.hook = [&, moment](const std::string& path, const std::string& at) {
      if (path == "/a" && at == moment && !bench.kernel.has("/a/b")) bench.kernel.make("/a/b");
      if (path == "/a/b" && at == moment && !bench.kernel.has("/a/b/c"))
        bench.kernel.make("/a/b/c");
    };
    bench.kernel.make("/a");
    bench.catch_up();
    CHECK(bench.names() == Strings{"/a/b/c"});
    CHECK(bench.host.attachments.size() == 1);
  }
}

TEST_CASE("a cgroup removed and made again under its name is another target, detached first") {
  Bench bench({.match = {"/vms/*"}});
  bench.kernel.make_all("/vms/7");
  bench.start();
  const auto before = bench.kernel.id("/vms/7");
  bench.host.calls.clear();

  SUBCASE("between two looks") {
    bench.kernel.remove("/vms/7");
    bench.kernel.make("/vms/7");
  }
  SUBCASE("several times over, and stale events change nothing") {
    for (int i = 0; i < 5; ++i) {
      bench.kernel.remove("/vms/7");
      bench.kernel.make("/vms/7");
    }
  }
  SUBCASE("events lost") {
    bench.kernel.queue_limit = 0;
    bench.kernel.remove("/vms/7");
    bench.kernel.make("/vms/7");
  }
  SUBCASE("with its parent") {
    bench.kernel.remove("/vms");
    bench.kernel.make_all("/vms/7");
  }
  bench.catch_up();
  CHECK(bench.kernel.id("/vms/7") != before);
  CHECK(bench.attached() ==
        std::map<std::string, std::uint64_t>{{"/vms/7", bench.kernel.id("/vms/7")}});
  Strings calls;
  for (const auto& call : bench.host.calls)
    if (call != "listed") calls.push_back(call);
  CHECK(calls == Strings{"detach 1 (the cgroup was removed)", "attach /vms/7"});
}

TEST_CASE("a directory replaced between being opened and being listed is not mixed with its heir") {
  Bench bench({.match = {"/vms/*/nic"}});
  bench.start();
  bool once = false;
  bench.kernel.hook = [&](const std::string& path, const std::string& at) {
    if (path != "/vms/7" || at != "opened" || once) return;
    once = true;
    bench.kernel.remove("/vms/7");
    bench.kernel.make_all("/vms/7/nic");
  };
  bench.kernel.make_all("/vms/7/nic");
  bench.catch_up();
  CHECK(bench.attached() ==
        std::map<std::string, std::uint64_t>{{"/vms/7/nic", bench.kernel.id("/vms/7/nic")}});
  CHECK(bench.kernel.watches() == 3);
}

TEST_CASE("after an overflow everything is looked through again") {
  Bench bench({.match = {"/vms/*"}});
  for (int i = 0; i < 50; ++i) bench.kernel.make_all("/vms/" + std::to_string(i));
  bench.start();
  bench.kernel.queue_limit = 3;
  for (int i = 0; i < 50; i += 2) bench.kernel.remove("/vms/" + std::to_string(i));
  for (int i = 100; i < 150; ++i) bench.kernel.make("/vms/" + std::to_string(i));
  bench.catch_up();
  CHECK(bench.host.attachments.size() == 75);
  CHECK(bench.host.listed_calls == 2);
  CHECK(bench.host.lines_at(LogLevel::warning) == 1);
}

TEST_CASE("when watches run out: one message, a look every second, and word when it is over") {
  Bench bench({.match = {"/t/*/*"}});
  for (int i = 0; i < 10; ++i) bench.kernel.make_all("/t/" + std::to_string(i) + "/vm");
  bench.kernel.watch_limit = 5;
  bench.start();
  CHECK(bench.host.attachments.size() == 10);
  REQUIRE(bench.host.lines_at(LogLevel::error) == 1);
  CHECK(bench.host.lines.back().second.find("fs.inotify.max_user_watches") != std::string::npos);
  CHECK(bench.host.lines.back().second.find("12 are needed") != std::string::npos);
  CHECK(bench.tree->poll_interval() == 1'000'000'000);

  for (int i = 0; i < 10; ++i) bench.kernel.make("/t/" + std::to_string(i) + "/late");
  bench.kernel.remove("/t/9/vm");
  bench.catch_up();
  CHECK(bench.host.attachments.size() < 19);
  bench.tree->poll();
  bench.catch_up();
  CHECK(bench.host.attachments.size() == 19);
  CHECK(bench.host.lines_at(LogLevel::error) == 1);

  bench.kernel.watch_limit = SIZE_MAX;
  bench.tree->poll();
  bench.catch_up();
  CHECK(bench.tree->poll_interval() == Keeper::kIdle);
  CHECK(bench.host.lines_at(LogLevel::info) == 1);
  bench.kernel.make("/t/9/later");
  bench.catch_up();
  CHECK(bench.host.attachments.size() == 20);
}

TEST_CASE("a removed directory that somebody holds open costs no watch any longer") {
  Bench bench({.match = {"/t/*/*"}});
  bench.kernel.make_all("/t/a/vm");
  bench.start();
  CHECK(bench.kernel.watches() == 3);
  bench.kernel.removed_are_held = true;
  bench.kernel.remove("/t/a");
  bench.catch_up();
  CHECK(bench.names().empty());
  CHECK(bench.kernel.watches() == 2);
}

TEST_CASE("an echo of what is known already costs one look, not a listing of everything below") {
  Bench bench({.match = {"/k/**"}});
  bench.kernel.make("/k");
  bench.start();
  bench.kernel.hook = [&](const std::string& path, const std::string& at) {
    if (path == "/k/pod" && at == "opened")
      for (int i = 0; i < 100; ++i) {
        const std::string child = "/k/pod/" + std::to_string(i);
        if (!bench.kernel.has(child)) bench.kernel.make(child);
      }
  };
  bench.kernel.make("/k/pod");
  bench.catch_up();
  CHECK(bench.host.attachments.size() == 101);
  bench.kernel.looks = 0;
  bench.tree->handle({Hierarchy::Event::What::created, 2, "pod"});
  bench.catch_up();
  CHECK(bench.kernel.looks == 1);
}

TEST_CASE("a tree of thousands is worked off in bounded steps") {
  Bench bench({.match = {"/vms/*"}});
  for (int i = 0; i < 3000; ++i) bench.kernel.make_all("/vms/" + std::to_string(i));
  bench.tree->relist();
  std::size_t steps = 0;
  for (bool more = true; more; ++steps) {
    const auto before = bench.kernel.looks;
    more = bench.tree->work(100);
    REQUIRE(bench.kernel.looks - before <= 100);
  }
  run_out(bench.keeper);
  CHECK(steps >= 30);
  CHECK(bench.host.attachments.size() == 3000);
  CHECK(bench.host.calls.back() == "listed");
}

TEST_CASE("after any storm, with races and lost events, both sides are equal") {
  std::mt19937 random(7);
  const auto below = [&](std::uint32_t limit) {
    return static_cast<std::uint32_t>(random() % limit);
  };
  const auto some_path = [&] {
    std::string path = "/" + std::string(1, static_cast<char>('a' + below(3)));
    for (std::uint32_t depth = below(4); depth > 0; --depth)
      path += "/" + std::string(1, static_cast<char>('a' + below(4)));
    return path;
  };
  for (int round = 0; round < 300; ++round) {
    CAPTURE(round);
    const CgroupSelectionOptions options{.match = {"/a/*", "/b/**/c", "/*/b/{x}"},
                                         .exclude = {"/a/d", "/b/d/**"}};
    const CgroupSelection oracle(options);
    Bench bench(options);
    const auto change = [&] {
      const std::string path = some_path();
      if (!bench.kernel.has(path))
        bench.kernel.make_all(path);
      else if (below(2) == 0)
        bench.kernel.remove(path);
    };
    // The kernel moves on in the middle of looks, too.
    bench.kernel.hook = [&](const std::string&, const std::string&) {
      if (below(6) == 0) change();
    };
    bench.kernel.queue_limit = round % 3 == 0 ? 4 : SIZE_MAX;
    bench.kernel.watch_limit = round % 5 == 0 ? 3 : SIZE_MAX;
    bench.tree->relist();
    for (int step = 0; step < 60; ++step) {
      change();
      for (const auto& event : bench.kernel.events(1 + below(3))) bench.tree->handle(event);
      bench.tree->work(below(4));
      if (below(3) == 0) (void)bench.keeper.turn();
    }
    bench.kernel.hook = [](const std::string&, const std::string&) {};
    bench.catch_up();
    // Without enough watches, the next look-through is what counts.
    bench.tree->poll();
    bench.catch_up();
    std::map<std::string, std::uint64_t> expected;
    for (const auto& [path, id] : bench.kernel.all()) {
      auto at = oracle.root();
      for (std::size_t i = 1; i < path.size();) {
        const std::size_t end = std::min(path.find('/', i), path.size());
        at = oracle.child(at, path.substr(i, end - i));
        i = end + 1;
      }
      if (oracle.is_selected(at)) expected[path] = id;
    }
    REQUIRE(bench.attached() == expected);
    REQUIRE(bench.tree->watches() == bench.kernel.watches());
  }
}
