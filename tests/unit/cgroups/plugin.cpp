// The plugin through its C table, under FakeHost, against the real cgroup2 hierarchy.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "cgroups/plugin.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <sluice/fake_host.hpp>

#include "unit/cgroups/throwaway_cgroup.hpp"

using namespace std::chrono_literals;
using sluice::cgroups::CgroupsPlugin;
using sluice::sdk::CgroupTarget;
using sluice::sdk::Error;
using sluice::sdk::FakeHost;
using sluice::sdk::Labels;
using sluice::sdk::LogLevel;
using sluice::test::ThrowawayCgroup;
using Strings = std::vector<std::string>;
using Cgroups = std::map<std::string, std::uint64_t>;

namespace {

// Everything that the kernel has said by now, and what follows from it at once.
void settle(FakeHost& host) {
  do host.advance(0ns);
  while (host.run_ready_fds() > 0);
}

Cgroups attached(FakeHost& host) {
  settle(host);
  Cgroups result;
  for (const auto& [id, attached] : host.attachments()) {
    const auto& target = std::get<CgroupTarget>(attached.target);
    REQUIRE(result.emplace(target.path, target.cgroup_id).second);
  }
  return result;
}

// What it asked of the core, without timers and watches.
Strings asked(const FakeHost& host) {
  Strings result;
  for (const auto& call : host.calls())
    if (!call.starts_with("fd_") && !call.starts_with("timer_")) result.push_back(call);
  return result;
}

std::size_t lines_at(const FakeHost& host, LogLevel level) {
  const auto lines = host.lines();
  return static_cast<std::size_t>(std::count_if(
      lines.begin(), lines.end(), [&](const auto& line) { return line.level == level; }));
}

#define SLUICE_NEEDS_CGROUP(subtree)                                    \
  ThrowawayCgroup subtree;                                              \
  if (subtree.name().empty()) {                                         \
    MESSAGE("not run: cannot make a cgroup below " << subtree.mount()); \
    return;                                                             \
  }

}  // namespace

TEST_CASE("options that cannot be meant are refused before anything is opened") {
  const auto refusal_of = [](const Strings& match, const Labels& labels) {
    FakeHost host("groups");
    host.configure("match", match);
    host.configure("labels", labels);
    try {
      host.create<CgroupsPlugin>();
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  CHECK(refusal_of({}, {}).starts_with("groups: match: nothing selects a cgroup"));
  CHECK(refusal_of({"machine.slice/*"}, {})
            .starts_with("groups: match: pattern \"machine.slice/*\""));
  CHECK(
      refusal_of({"/{vm}"}, {{"id", "$vmid"}}).starts_with("groups: labels.id: nothing is called"));
  CHECK(refusal_of({"/{vm}"}, {{"id", "$vm"}}) == "accepted");
}

TEST_CASE("existing, new, removed, made again; labels from the path") {
  SLUICE_NEEDS_CGROUP(subtree);
  REQUIRE(subtree.make("/acme"));
  REQUIRE(subtree.make("/acme/7.scope"));
  FakeHost host;
  host.configure("match", Strings{subtree.name() + "/{tenant}/{vm_id}.scope"});
  host.configure("exclude", Strings{subtree.name() + "/*/mgmt.scope"});
  host.configure("labels", Labels{{"class", "vm"}, {"who", "$tenant-$vm_id"}});
  host.create<CgroupsPlugin>();
  host.start();
  const std::string path = subtree.name() + "/acme/7.scope";
  CHECK(attached(host) == Cgroups{{path, subtree.id("/acme/7.scope")}});
  CHECK(asked(host) == Strings{"attach " + path, "listed"});
  CHECK(host.attachments().begin()->second.labels == Labels{{"cgroup", path},
                                                            {"tenant", "acme"},
                                                            {"vm_id", "7"},
                                                            {"class", "vm"},
                                                            {"who", "acme-7"}});
  REQUIRE(subtree.make("/globex"));
  REQUIRE(subtree.make("/globex/8.scope"));
  REQUIRE(subtree.make("/globex/mgmt.scope"));
  CHECK(attached(host).size() == 2);

  host.forget_calls();
  const auto before = subtree.id("/acme/7.scope");
  REQUIRE(subtree.remove("/acme/7.scope"));
  REQUIRE(subtree.make("/acme/7.scope"));
  REQUIRE(subtree.id("/acme/7.scope") != before);
  CHECK(attached(host).at(path) == subtree.id("/acme/7.scope"));
  CHECK(asked(host) == Strings{"detach 1 (the cgroup was removed)", "attach " + path});

  subtree.remove_all("/acme");
  subtree.remove_all("/globex");
  CHECK(attached(host).empty());
}

TEST_CASE("2,000 cgroups, made and removed in storms: equal in the end") {
  SLUICE_NEEDS_CGROUP(subtree);
  REQUIRE(subtree.make("/vms"));
  FakeHost host;
  host.configure("match", Strings{subtree.name() + "/vms/*"});
  host.create<CgroupsPlugin>();
  host.start();
  const auto path = [](int i) { return "/vms/" + std::to_string(i); };
  const auto check = [&] {
    Cgroups expected;
    for (int i = 0; i < 2000; ++i)
      if (const auto id = subtree.id(path(i))) expected[subtree.name() + path(i)] = id;
    REQUIRE(attached(host) == expected);
    return expected.size();
  };
  for (int i = 0; i < 2000; ++i) REQUIRE(subtree.make(path(i)));
  CHECK(check() == 2000);
  for (int i = 0; i < 2000; ++i) REQUIRE(subtree.remove(path(i)));
  CHECK(check() == 0);
  // More events than the queue holds (16,384), none read in between.
  for (int round = 0; round < 5; ++round)
    for (int i = 0; i < 2000; ++i) {
      REQUIRE(subtree.make(path(i)));
      if (round < 4 || i % 2 == 0) REQUIRE(subtree.remove(path(i)));
    }
  CHECK(check() == 1000);
  if (sluice::test::queue_length() > 16384) return;
  CHECK(lines_at(host, LogLevel::warning) == 1);
  CHECK(host.count_calls("listed") == 2);
}

TEST_CASE(
    "a cgroup that is gone before it is attached is a debug line; other failures are tried again") {
  SLUICE_NEEDS_CGROUP(subtree);
  for (int i = 0; i < 20; ++i) REQUIRE(subtree.make("/" + std::to_string(i)));
  FakeHost host;
  host.configure("match", Strings{subtree.name() + "/*"});
  host.create<CgroupsPlugin>();
  SUBCASE("gone") {
    host.refuse("attach", ENOENT, "no such cgroup");
    host.start();
    settle(host);
    CHECK(lines_at(host, LogLevel::warning) == 0);
    CHECK(lines_at(host, LogLevel::debug) == 20);
    CHECK(host.count_calls("listed") == 1);
  }
  SUBCASE("refused for a while") {
    host.refuse("attach", ENOMEM, "no memory");
    host.start();
    settle(host);
    CHECK(lines_at(host, LogLevel::warning) == 1);
    CHECK(host.count_calls("listed") == 0);
    host.allow("attach");
    host.advance(1s);
    CHECK(attached(host).size() == 20);
    CHECK(host.count_calls("listed") == 1);
  }
}

TEST_CASE("after a resync everything is asked for again; stop leaves every filter") {
  SLUICE_NEEDS_CGROUP(subtree);
  REQUIRE(subtree.make("/a"));
  REQUIRE(subtree.make("/b"));
  FakeHost host;
  host.configure("match", Strings{subtree.name() + "/*"});
  host.create<CgroupsPlugin>();
  host.start();
  CHECK(attached(host).size() == 2);
  host.forget_calls();
  host.resync();
  settle(host);
  CHECK(host.count_calls("attach") == 2);
  CHECK(asked(host).back() == "listed");
  host.stop();
  CHECK(host.count_calls("detach") == 0);
  CHECK(host.watched().empty());
}
