#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "daemon/state_lock.hpp"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>

using namespace sluice;

namespace {

struct TemporaryFolder {
  TemporaryFolder() {
    char pattern[] = "/tmp/sluice-lock-XXXXXX";
    path = ::mkdtemp(pattern);
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

}  // namespace

TEST_CASE("a second start on one state directory is refused and names the first") {
  const TemporaryFolder folder;
  const auto state = folder.path / "a" / "state";
  int ready[2], release[2];
  REQUIRE(::pipe(ready) == 0);
  REQUIRE(::pipe(release) == 0);
  const auto child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::close(release[1]);
    auto lock = StateLock::take(state);
    char byte = lock ? 'y' : 'n';
    if (::write(ready[1], &byte, 1) != 1) ::_exit(1);
    (void)!::read(release[0], &byte, 1);  // until the parent closes it or dies
    ::_exit(0);
  }
  char byte = 0;
  REQUIRE(::read(ready[0], &byte, 1) == 1);
  CHECK(byte == 'y');

  auto refused = StateLock::take(state);
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == EBUSY);
  CHECK(refused.error().message.find("process " + std::to_string(child)) != std::string::npos);
  CHECK(refused.error().message.find(state.string()) != std::string::npos);
  CHECK(StateLock::take(folder.path / "other"));

  ::kill(child, SIGKILL);  // however it ends, the lock ends with it
  REQUIRE(::waitpid(child, nullptr, 0) == child);
  CHECK(StateLock::take(state));
  for (const int end : {ready[0], ready[1], release[0], release[1]}) ::close(end);
}

TEST_CASE("the state directory is made, for its owner only") {
  const TemporaryFolder folder;
  const auto state = folder.path / "state";
  REQUIRE(StateLock::take(state));
  CHECK((std::filesystem::status(state).permissions() & std::filesystem::perms::all) ==
        std::filesystem::perms::owner_all);
}

TEST_CASE("a state directory that cannot be made is named, with the cure") {
  const TemporaryFolder folder;
  REQUIRE(StateLock::take(folder.path / "x"));
  auto refused = StateLock::take(folder.path / "x" / "lock" / "below-a-file");
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message.find("below-a-file") != std::string::npos);
  CHECK(refused.error().message.find("host.state_dir") != std::string::npos);
}
