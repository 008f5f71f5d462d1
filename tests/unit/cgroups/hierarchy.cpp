// The real hierarchy, and the tree over it.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "cgroups/hierarchy.hpp"

#include <doctest/doctest.h>
#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <thread>

#include "cgroups/cgroup_tree.hpp"
#include "unit/cgroups/throwaway_cgroup.hpp"
#include "unit/discovery/scripted_host.hpp"

using namespace sluice::cgroups;
using namespace sluice::discovery;
using sluice::test::ThrowawayCgroup;
using Strings = std::vector<std::string>;

namespace {

struct Bench {
  KernelHierarchy hierarchy;
  ScriptedHost host;
  Keeper keeper{host, {.calls_per_turn = 100000}};
  CgroupTree tree;
  int overflows = 0;

  Bench(const ThrowawayCgroup& subtree, const Strings& patterns)
      : hierarchy(subtree.mount()),
        tree(CgroupSelection(options(subtree, patterns)), hierarchy, keeper, host) {
    tree.relist();
    catch_up();
  }
  static CgroupSelectionOptions options(const ThrowawayCgroup& subtree, const Strings& patterns) {
    CgroupSelectionOptions result;
    for (const auto& pattern : patterns) result.match.push_back(subtree.name() + pattern);
    return result;
  }
  void catch_up() {
    for (;;) {
      const auto events = hierarchy.events(256);
      for (const auto& event : events) {
        overflows += event.what == Hierarchy::Event::What::overflow ? 1 : 0;
        tree.handle(event);
      }
      if (!tree.work(64) && events.empty()) break;
    }
    run_out(keeper);
  }
  std::map<std::string, std::uint64_t> attached() {
    catch_up();
    std::map<std::string, std::uint64_t> result;
    for (const auto& [id, attached] : host.attachments)
      result[attached.target.name] = attached.target.cgroup_id;
    REQUIRE(result.size() == host.attachments.size());
    return result;
  }
};

#define SLUICE_NEEDS_CGROUP(subtree)                                    \
  ThrowawayCgroup subtree;                                              \
  if (subtree.name().empty()) {                                         \
    MESSAGE("not run: cannot make a cgroup below " << subtree.mount()); \
    return;                                                             \
  }

}  // namespace

TEST_CASE("the cgroup2 mount is found in the text of /proc/mounts") {
  CHECK(find_cgroup2("proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n") ==
        "/sys/fs/cgroup");
  CHECK(find_cgroup2("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
                     "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n") ==
        "/sys/fs/cgroup/unified");
  CHECK(find_cgroup2("none /mnt/a\\040b\\134c cgroup2 rw 0 0") == "/mnt/a b\\c");
  CHECK(find_cgroup2("cgroup2 /x cgroup rw 0 0\n").empty());
  CHECK(find_cgroup2("").empty());
}

TEST_CASE("what is no cgroup2 file system is refused by name") {
  CHECK_THROWS_WITH_AS(KernelHierarchy("/proc"),
                       "/proc: is no cgroup2 file system; see /proc/mounts for one",
                       std::runtime_error);
  CHECK_THROWS_AS(KernelHierarchy("/nowhere/at/all"), std::runtime_error);
}

TEST_CASE("real cgroups: existing, new, removed, made again") {
  SLUICE_NEEDS_CGROUP(subtree);
  REQUIRE(subtree.make("/vms"));
  REQUIRE(subtree.make("/vms/1"));
  Bench bench(subtree, {"/vms/*", "/late/{x}/*.scope"});
  const std::string vm = subtree.name() + "/vms/1";
  CHECK(bench.attached() == std::map<std::string, std::uint64_t>{{vm, subtree.id("/vms/1")}});

  REQUIRE(subtree.make("/late"));
  REQUIRE(subtree.make("/late/t"));
  REQUIRE(subtree.make("/late/t/a.scope"));
  CHECK(bench.attached().contains(subtree.name() + "/late/t/a.scope"));

  const auto before = subtree.id("/vms/1");
  REQUIRE(subtree.remove("/vms/1"));
  REQUIRE(subtree.make("/vms/1"));
  REQUIRE(subtree.id("/vms/1") != before);
  CHECK(bench.attached().at(vm) == subtree.id("/vms/1"));

  REQUIRE(subtree.remove("/late/t/a.scope"));
  REQUIRE(subtree.remove("/late/t"));
  REQUIRE(subtree.remove("/late"));
  CHECK(bench.attached().size() == 1);
  // The root, the subtree and /vms; what was removed is not watched any more.
  CHECK(bench.tree.watches() == 3);
}

TEST_CASE("the inode number is the id that the kernel gives to programs") {
  SLUICE_NEEDS_CGROUP(subtree);
  REQUIRE(subtree.make("/a"));
  KernelHierarchy hierarchy(subtree.mount());
  const auto outside = hierarchy.look(subtree.name() + "/a", false);
  const auto inside = hierarchy.look(subtree.name() + "/a", true);
  CHECK(outside.exists);
  CHECK(outside.id == subtree.id("/a"));
  CHECK(inside.id == outside.id);
  CHECK(inside.watch >= 0);
  CHECK(inside.error == 0);
  CHECK_FALSE(hierarchy.look(subtree.name() + "/b", true).exists);
}

TEST_CASE("2,000 cgroups made and removed in storms, events lost on the way: equal in the end") {
  SLUICE_NEEDS_CGROUP(subtree);
  for (const char* tenant : {"/a", "/b", "/c", "/d"}) REQUIRE(subtree.make(tenant));
  Bench bench(subtree, {"/*/*.scope", "/*/deep/**"});
  std::mt19937 random(11);
  const auto path = [](int i) {
    return std::string("/") + "abcd"[i % 4] + "/vm" + std::to_string(i) + ".scope";
  };
  std::map<std::string, std::uint64_t> expected;
  const auto check = [&] {
    expected.clear();
    for (int i = 0; i < 2000; ++i)
      if (const auto id = subtree.id(path(i))) expected[subtree.name() + path(i)] = id;
    REQUIRE(bench.attached() == expected);
  };
  for (int i = 0; i < 2000; ++i) REQUIRE(subtree.make(path(i)));
  check();
  CHECK(expected.size() == 2000);
  // Four storms; in the last ones nothing is read in between, so that the queue (16,384) overflows.
  for (int storm = 0; storm < 4; ++storm) {
    const int changes = storm < 2 ? 3000 : 20000;
    for (int change = 0; change < changes; ++change) {
      const std::string one = path(static_cast<int>(random() % 2000));
      if (!subtree.remove(one)) REQUIRE(subtree.make(one));
      if (storm < 2 && change % 100 == 0) bench.catch_up();
    }
    check();
  }
  if (sluice::test::queue_length() <= 16384) {
    CHECK(bench.overflows >= 1);
    CHECK(bench.host.listed_calls >= 2);
  }
  CHECK(bench.tree.watches() == 6);  // the root, the subtree and four tenants; no scope
}

TEST_CASE("another process makes and removes while the tree is walked: equal in the end") {
  SLUICE_NEEDS_CGROUP(subtree);
  std::thread other([&] {
    for (int i = 0; i < 600; ++i) {
      const std::string slice = "/s" + std::to_string(i % 7);
      (void)subtree.make(slice);
      (void)subtree.make(slice + "/pod");
      (void)subtree.make(slice + "/pod/c");
      if (i % 3 == 0) subtree.remove_all(slice);
    }
  });
  {
    Bench bench(subtree, {"/*/pod/*", "/*/pod"});
    for (int i = 0; i < 200; ++i) bench.catch_up();
    other.join();
    std::map<std::string, std::uint64_t> expected;
    for (int i = 0; i < 7; ++i)
      for (const char* below : {"/pod", "/pod/c"}) {
        const std::string path = "/s" + std::to_string(i) + below;
        if (const auto id = subtree.id(path)) expected[subtree.name() + path] = id;
      }
    CHECK(bench.attached() == expected);
  }
}

TEST_CASE(
    "with the user's inotify watches used up, cgroups are found all the same, and it is said") {
  SLUICE_NEEDS_CGROUP(subtree);
  for (int i = 0; i < 20; ++i) {
    REQUIRE(subtree.make("/t" + std::to_string(i)));
    REQUIRE(subtree.make("/t" + std::to_string(i) + "/vm"));
  }
  // A user namespace has a limit of its own, so that this machine's stays as it is.
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    if (unshare(CLONE_NEWUSER) != 0) _exit(77);
    std::ofstream("/proc/self/setgroups") << "deny";
    std::ofstream("/proc/self/uid_map") << "0 0 1";
    std::ofstream("/proc/self/gid_map") << "0 0 1";
    std::ofstream limit("/proc/sys/user/max_inotify_watches");
    limit << "10" << std::endl;
    if (!limit) _exit(77);
    Bench bench(subtree, {"/*/*"});
    if (bench.host.attachments.size() != 20) _exit(1);
    if (bench.host.lines_at(LogLevel::error) != 1) _exit(2);
    if (bench.host.lines.back().second.find("fs.inotify.max_user_watches") == std::string::npos)
      _exit(3);
    if (bench.tree.poll_interval() == Keeper::kIdle) _exit(4);
    if (!subtree.make("/t19/late") || !subtree.make("/t0/late")) _exit(5);
    bench.tree.poll();
    bench.catch_up();
    if (bench.host.attachments.size() != 22) _exit(6);
    _exit(0);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) {
    MESSAGE("not run: no user namespace here");
    return;
  }
  CHECK(WEXITSTATUS(status) == 0);
}
