#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "daemon/check.hpp"

#include <doctest/doctest.h>

#include "stage.hpp"

using namespace sluice;
using namespace sluice::test;
using namespace std::chrono_literals;

namespace {

Lines check(const Folder& folder, std::chrono::milliseconds patience = 30s) {
  return check_configuration(folder.config(), ::getuid(), patience).errors;
}
Lines warnings(const Folder& folder) {
  const auto report = check_configuration(folder.config(), ::getuid());
  CHECK(report.errors == Lines{});
  return report.warnings;
}

}  // namespace

TEST_CASE("a sound configuration has no errors") {
  const Folder folder;
  folder.write(plain());
  CHECK(check(folder) == Lines{});
  CHECK(warnings(folder) == Lines{});
}

TEST_CASE("every error is found in one go, each with its place") {
  const Folder folder;
  folder.write(
      "[plugin.a]\nlibrary = \"stage_source\"\nallow = \"x\"\ncolour = 3\n"
      "[plugin.b]\nlibrary = \"stage_discovery\"\ninterfaces = true\n");
  const auto errors = check(folder);
  CHECK(errors.size() == 3);
  CHECK(mentions(errors, "sluice.toml:6:"));
  CHECK(mentions(errors, "sluice.toml:7:"));
  CHECK(mentions(errors, "sluice.toml:10:"));
}

TEST_CASE("plugins look at the files their options name, each of them") {
  const Folder folder;
  folder.write(
      "[plugin.a]\nlibrary = \"stage_source\"\ncheck = \"complain\"\n"
      "[plugin.b]\nlibrary = \"stage_source\"\ncheck = \"complain\"\n");
  const auto errors = check(folder);
  CHECK(errors.size() == 2);
  CHECK(mentions(errors, "policies.toml:3:7: not a network"));
}

TEST_CASE("a fault elsewhere hides nothing of what sound plugins find in their files") {
  const Folder folder;
  const auto faulty = [&](const std::string& fault) {
    folder.write("[plugin.a]\nlibrary = \"stage_source\"\ncheck = \"complain\"\n" + fault);
    return check(folder);
  };
  const struct {
    std::string text, says;
  } rows[] = {
      {"[floor]\ndeny = [\"10.0.0.1/8\"]\n", "10.0.0.1/8"},
      {"[plugin.b]\nlibrary = \"stage_source\"\ncolour = 3\n", "colour"},
      {"[plugin.b]\nlibrary = \"nonesuch\"\n", "nonesuch"},
      {"[[wire]]\nsources = [\"nobody\"]\n", "nobody"},
      {"[plugin.b]\nlibrary = \"stage_discovery\"\n[[wire]]\nsources = [\"b\"]\n",
       "decides no policy"},
  };
  for (const auto& row : rows) {
    CAPTURE(row.text);
    const auto errors = faulty(row.text);
    CHECK(errors.size() == 2);
    CHECK(mentions(errors, row.says));
    CHECK(mentions(errors, "policies.toml:3:7: not a network"));
  }
}

TEST_CASE("what a plugin warns of is told and is no error") {
  const Folder folder;
  folder.write(plain("[]", 1, "check = \"doubt\""));
  const auto said = warnings(folder);
  REQUIRE(said.size() == 1);
  CHECK(said[0].find("sluice.toml:7: [plugin.rules]: policies.d: nothing is there") !=
        std::string::npos);
}

TEST_CASE("plugins without a wire, and sources that no wire names, are doubtful") {
  const Folder folder;
  folder.write("[plugin.rules]\nlibrary = \"stage_source\"\n");
  CHECK(mentions(warnings(folder), "sluice.toml: there is no [[wire]], so no source has a say"));
  folder.write(plain() + "[plugin.more]\nlibrary = \"stage_source\"\n");
  const auto said = warnings(folder);
  CHECK(said.size() == 1);
  CHECK(mentions(said, "[plugin.more]: no [[wire]] names it among its sources"));
}

TEST_CASE("names that nobody resolves are doubtful") {
  const Folder folder;
  folder.write(plain("[]", 1, "check = \"names\""));
  const auto said = warnings(folder);
  CHECK(said.size() == 1);
  CHECK(mentions(said, "[plugin.rules]: its policies allow names (pypi.org), but no [[wire]]"));
}

TEST_CASE("a plugin that crashes costs one line, and is named") {
  const Folder folder;
  folder.write(
      "[plugin.a]\nlibrary = \"stage_source\"\ncheck = \"complain\"\n"
      "[plugin.b]\nlibrary = \"stage_source\"\ncheck = \"crash\"\n");
  const auto errors = check(folder);
  REQUIRE(errors.size() == 2);
  CHECK(errors[1].starts_with("plugin b: crashed with signal 9"));
}

TEST_CASE("a plugin that hangs is given up, and is named") {
  const Folder folder;
  folder.write("[plugin.a]\nlibrary = \"stage_source\"\ncheck = \"hang\"\n");
  const auto errors = check(folder, 500ms);
  REQUIRE(errors.size() == 1);
  CHECK(errors[0].starts_with("plugin a: did not finish its check"));
}

TEST_CASE("a checking program that cannot run is an error of the reload") {
  auto loop = EventLoop::create().value();
  auto run = CheckRun::start(*loop, "/nonexistent/sluiced", "x.toml", 1s,
                             [](bool, const Lines&) { FAIL("it never ran"); });
  CHECK_FALSE(run);
}

TEST_CASE("a check that does not end is killed, and that is an error") {
  auto loop = EventLoop::create().value();
  const Folder folder;
  folder.write("[plugin.a]\nlibrary = \"stage_source\"\ncheck = \"hang\"\n");
  std::optional<bool> result;
  Lines said;
  auto run = CheckRun::start(*loop, STAGE_CHECK, folder.config(), 300ms,
                             [&](bool fine, const Lines& lines) {
                               result = fine;
                               said = lines;
                               loop->stop();
                             });
  REQUIRE(run);
  loop->run();
  CHECK(result == false);
  CHECK(mentions(said, "did not end"));
}
