#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "daemon/check.hpp"

#include <doctest/doctest.h>

#include "stage.hpp"

using namespace sluice;
using namespace sluice::test;
using namespace std::chrono_literals;

namespace {

Lines check(const Folder& folder, std::chrono::milliseconds patience = 30s) {
  return check_configuration(folder.config(), ::getuid(), patience);
}

}  // namespace

TEST_CASE("a sound configuration has no errors") {
  const Folder folder;
  folder.write(plain());
  CHECK(check(folder) == Lines{});
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
