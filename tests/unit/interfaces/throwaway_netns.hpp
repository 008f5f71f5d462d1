// A network namespace for this process alone, gone with it, and ip(8) to fill it. Needs root.
#pragma once

#include <doctest/doctest.h>
#include <sched.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace sluice::test {

// Moves the calling thread into a new network namespace. False without the privilege.
inline bool enter_new_netns() {
  return unshare(CLONE_NEWNET) == 0;
}

// Lines of ip(8) in one process; fails the test when one of them fails.
inline void ip(const std::string& lines) {
  FILE* pipe = popen("ip -batch -", "w");
  REQUIRE(pipe != nullptr);
  REQUIRE(fwrite(lines.data(), 1, lines.size(), pipe) == lines.size());
  const int status = pclose(pipe);
  CAPTURE(lines);
  REQUIRE(status == 0);
}

// Skips a test that cannot run here, and says so.
#define SLUICE_NEEDS_NETNS()                                                        \
  if (!sluice::test::enter_new_netns()) {                                           \
    MESSAGE("not run: a network namespace needs CAP_SYS_ADMIN: ", strerror(errno)); \
    return;                                                                         \
  }

}  // namespace sluice::test
