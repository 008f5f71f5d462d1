#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "discovery/name_pattern.hpp"

#include <doctest/doctest.h>

#include <stdexcept>
#include <string>
#include <vector>

using sluice::discovery::Captures;
using sluice::discovery::NamePattern;

TEST_CASE("a glob matches the whole name or not at all") {
  struct Row {
    const char *pattern, *name;
    bool matches;
  };
  const std::vector<Row> rows{
      {"tap0", "tap0", true},
      {"tap0", "tap01", false},
      {"tap0", "xtap0", false},
      {"tap*", "tap", true},
      {"tap*", "tap12", true},
      {"tap*", "atap1", false},
      {"*", "anything", true},
      {"*0", "tap10", true},
      {"*0", "tap01", false},
      {"v*h*1", "veth-1", true},
      {"v*h*1", "veth-12", false},
      {"**", "x", true},
      {"tap?", "tap7", true},
      {"tap?", "tap", false},
      {"tap?", "tap77", false},
      {"tap[0-4]", "tap4", true},
      {"tap[0-4]", "tap5", false},
      {"tap[!0-4]", "tap5", true},
      {"tap[^0-4]", "tap0", false},
      {"tap[]x]", "tap]", true},
      {"tap[a-]", "tap-", true},
      {"a[*]b", "a*b", true},
      {"a[*]b", "axb", false},
      {"a[{]b", "a{b", true},
      {R"(qemu\x2d*.scope)", R"(qemu\x2d1.scope)", true},  // a backslash is only itself
      {R"(qemu\x2d*.scope)", "qemux2d1.scope", false},
      {"[\xc0-\xff]x", "\xc3x", true},  // bytes, and not as signed ones
  };
  for (const Row& row : rows) {
    CAPTURE(row.pattern);
    CAPTURE(row.name);
    CHECK(NamePattern::parse(row.pattern).matches(row.name) == row.matches);
  }
}

TEST_CASE("a capture remembers one or more characters, the leftmost as few as it can") {
  struct Row {
    const char *pattern, *name;
    Captures captures;
  };
  const std::vector<Row> rows{
      {"vm-{id}", "vm-7", {{"id", "7"}}},
      {"{vm_id}.scope", "web.1.scope", {{"vm_id", "web.1"}}},
      {"vm-{tenant}-{id}", "vm-acme-7-b", {{"tenant", "acme"}, {"id", "7-b"}}},
      {"{a}{b}", "xyz", {{"a", "x"}, {"b", "yz"}}},
      {"*{a}", "xyz", {{"a", "xyz"}}},
      {"t{a}?", "txyz", {{"a", "xy"}}},
  };
  for (const Row& row : rows) {
    CAPTURE(row.pattern);
    const auto got = NamePattern::parse(row.pattern).match(row.name);
    REQUIRE(got.has_value());
    CHECK(*got == row.captures);
  }
  CHECK_FALSE(NamePattern::parse("vm-{id}").match("vm-").has_value());
}

TEST_CASE("a pattern that cannot be meant is refused with pattern, fault and remedy") {
  struct Row {
    const char *pattern, *says;
  };
  const std::vector<Row> rows{
      {"", "is empty"},           {"tap[0-", "never closed"}, {"tap[]", "never closed"},
      {"vm-{id", "never closed"}, {"vm-{}", "not a capture"}, {"vm-{a b}", "not a capture"},
      {"{a}-{a}", "twice"},       {"[9-0]", "backwards"},
  };
  for (const Row& row : rows) {
    CAPTURE(row.pattern);
    try {
      (void)NamePattern::parse(row.pattern);
      FAIL("accepted");
    } catch (const std::invalid_argument& error) {
      CHECK(std::string(error.what()).find(row.says) != std::string::npos);
      CHECK(std::string(error.what()).find("\"" + std::string(row.pattern) + "\"") !=
            std::string::npos);
    }
  }
}

TEST_CASE("a pattern of many stars on a name that almost matches costs no exponential time") {
  std::string pattern, name(200, 'a');
  for (int i = 0; i < 60; ++i) pattern += "*a{c" + std::to_string(i) + "}";
  CHECK_FALSE(NamePattern::parse(pattern + "b").matches(name));
  CHECK(NamePattern::parse(pattern).matches(name));
}

TEST_CASE("a literal pattern knows that it is one") {
  CHECK(NamePattern::parse("eth0").is_literal());
  for (const char* text : {"eth*", "eth?", "eth[0]", "{x}", "*"})
    CHECK_FALSE(NamePattern::parse(text).is_literal());
}
