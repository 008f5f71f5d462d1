#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "cgroups/path_pattern.hpp"

#include <doctest/doctest.h>

#include <functional>
#include <stdexcept>

#include "cgroups/cgroup_tree.hpp"

using namespace sluice::cgroups;
using sluice::discovery::Captures;

namespace {

// The walk's answer: positions carried from segment to segment, as the tree does it.
bool walks_to(const PathPattern& pattern, const std::string& path) {
  std::vector<PathPattern::Position> now, next;
  pattern.begin(now);
  for (std::size_t at = 1; at <= path.size();) {
    const std::size_t end = std::min(path.find('/', at), path.size());
    next.clear();
    for (const auto position : now) pattern.advance(position, path.substr(at, end - at), next);
    now = next;
    at = end + 1;
  }
  for (const auto position : now)
    if (pattern.is_match(position)) return true;
  return false;
}

bool leads_on(const CgroupSelection& selection, const std::string& path) {
  auto at = selection.root();
  for (std::size_t i = 1; i < path.size();) {
    const std::size_t end = std::min(path.find('/', i), path.size());
    at = selection.child(at, path.substr(i, end - i));
    i = end + 1;
  }
  return selection.leads_on(at);
}

}  // namespace

TEST_CASE("a pattern matches whole paths, segment by segment") {
  struct Row {
    const char *pattern, *path;
    bool matches;
  };
  const std::vector<Row> rows{
      {"/machine.slice/*.scope", "/machine.slice/vm.scope", true},
      {"/machine.slice/*.scope", "/machine.slice/a/vm.scope", false},
      {"/machine.slice/*.scope", "/machine.slice", false},
      {"/machine.slice/*.scope", "/machine.slice/vm.scope/emulator", false},
      {"/a", "/a", true},
      {"/a", "/ab", false},
      {"/*", "/a", true},
      {"/*", "/a/b", false},
      {"/k/**", "/k", false},
      {"/k/**", "/k/a", true},
      {"/k/**", "/k/a/b/c", true},
      {"/**", "/a", true},
      {"/**/*.scope", "/x.scope", true},
      {"/**/*.scope", "/a/b/x.scope", true},
      {"/**/*.scope", "/a/b/x.slice", false},
      {"/a/**/b", "/a/b", true},
      {"/a/**/b", "/a/x/y/b", true},
      {"/a/**/b", "/a/x/y/bc", false},
      {"/a/**/b/**/c", "/a/b/b/c/c", true},
      {"/a/**/b/**/c", "/a/c/c", false},
      {"/a/**/**", "/a", false},
      {"/a/**/**", "/a/x/y", true},
      {"/{t}/{v}.scope", "/acme/7.scope", true},
      {"/{t}/{v}.scope", "/acme/.scope", false},
      {"/x[0-9]/y?", "/x1/yz", true},
  };
  for (const Row& row : rows) {
    CAPTURE(row.pattern);
    CAPTURE(row.path);
    const auto pattern = PathPattern::parse(row.pattern);
    CHECK(pattern.match(row.path).has_value() == row.matches);
    CHECK(walks_to(pattern, row.path) == row.matches);
  }
}

TEST_CASE("captures come from the segments, with systemd's escapes undone") {
  struct Row {
    const char *pattern, *path;
    Captures captures;
  };
  const std::vector<Row> rows{
      {"/tenants/{tenant}/{vm_id}.scope",
       "/tenants/acme/7.scope",
       {{"tenant", "acme"}, {"vm_id", "7"}}},
      {R"(/machine.slice/machine-qemu\x2d{n}\x2d{vm}.scope)",
       R"(/machine.slice/machine-qemu\x2d12\x2dweb\x2dserver.scope)",
       {{"n", "12"}, {"vm", "web-server"}}},
      {"/**/docker-{id}.scope", "/system.slice/docker-0a1b.scope", {{"id", "0a1b"}}},
      {"/**/{pod}/**/{c}", "/k/p/c", {{"pod", "k"}, {"c", "c"}}},
      {"/{a}/b/{c}", "/x/b/z", {{"a", "x"}, {"c", "z"}}},
  };
  for (const Row& row : rows) {
    CAPTURE(row.pattern);
    const auto got = PathPattern::parse(row.pattern).match(row.path);
    REQUIRE(got.has_value());
    CHECK(*got == row.captures);
  }
}

TEST_CASE("an escape that is not printable, or not an escape, stays") {
  CHECK(unescape_unit_name(R"(a\x2db)") == "a-b");
  CHECK(unescape_unit_name(R"(a\x00b\x0ac\x20\xff)") == R"(a\x00b\x0ac\x20\xff)");
  CHECK(unescape_unit_name(R"(\x2)") == R"(\x2)");
  CHECK(unescape_unit_name(R"(\y2d\x2D)") == R"(\y2d\x2D)");
}

TEST_CASE("a pattern that cannot be meant is refused with pattern, fault and remedy") {
  struct Row {
    const char *pattern, *says;
  };
  const std::vector<Row> rows{
      {"", "does not begin with \"/\""},
      {"machine.slice", "does not begin with \"/\""},
      {"/", "is the root"},
      {"/a//b", "empty segment"},
      {"/a/", "empty segment"},
      {"/a/../b", "\"..\" segment"},
      {"/a/./b", "\".\" segment"},
      {"/a**", "whole segments"},
      {"/a/[x", "never closed"},
      {"/{a}/{a}", "twice"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.pattern);
    try {
      (void)PathPattern::parse(row.pattern);
      FAIL("accepted");
    } catch (const std::invalid_argument& error) {
      CAPTURE(error.what());
      CHECK(std::string(error.what()).find(row.says) != std::string::npos);
      CHECK(std::string(error.what()).find(row.pattern) != std::string::npos);
    }
  }
}

TEST_CASE("only directories that can still lead to a match are entered") {
  const CgroupSelection selection({.match = {"/machine.slice/*.scope", "/k/**", "/t/{x}/vm"},
                                   .exclude = {"/k/system/**", "/t/private/*"}});
  struct Row {
    const char* path;
    bool enters;
  };
  const std::vector<Row> rows{
      {"/", true},
      {"/machine.slice", true},
      {"/machine.slice/a.scope", false},
      {"/user.slice", false},
      {"/k", true},
      {"/k/a/b/c", true},
      {"/k/system", false},
      {"/k/systemd", true},
      {"/t", true},
      {"/t/a", true},
      {"/t/private", true},  // only its children are excluded, one by one
      {"/t/a/vm", false},
  };
  for (const Row& row : rows) {
    CAPTURE(row.path);
    CHECK(leads_on(selection, row.path) == row.enters);
  }
}

TEST_CASE("options that cannot be meant are refused") {
  CHECK_THROWS_AS(CgroupSelection({}), std::invalid_argument);
  CHECK_THROWS_AS(CgroupSelection({.match = {"x"}}), std::invalid_argument);
  CHECK_THROWS_AS(CgroupSelection({.match = {"/*"}, .exclude = {"/{x}"}}), std::invalid_argument);
  CHECK_THROWS_AS(CgroupSelection({.match = {"/{cgroup}"}}), std::invalid_argument);
  CHECK_THROWS_AS(CgroupSelection({.match = {"/{x}"}, .labels = {{"l", "$y"}}}),
                  std::invalid_argument);
}
