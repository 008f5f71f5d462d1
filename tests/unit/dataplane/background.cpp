#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dataplane/background.hpp"

#include <doctest/doctest.h>

#include <semaphore>
#include <vector>

using namespace sluice;

TEST_CASE("a job waits once under its name, and one that has begun swallows no further request") {
  Background background;
  std::binary_semaphore begun(0), go_on(0), last_done(0);
  std::vector<int> done;  // of the background's thread, until last_done
  const auto job = [&](int number) {
    return [&done, number]() -> Background::Completion {
      done.push_back(number);
      return {};
    };
  };
  background.run_once("a", [&]() -> Background::Completion {
    begun.release();
    go_on.acquire();
    done.push_back(1);
    return {};
  });
  begun.acquire();
  background.run_once("a", job(2));  // the first has begun, and may have looked already
  background.run_once("a", job(3));
  background.run_once("b", job(4));
  background.run(job(5));
  background.run(job(6));
  background.run_once("a", job(7));
  background.run([&]() -> Background::Completion {
    last_done.release();
    return {};
  });
  go_on.release();
  last_done.acquire();
  CHECK(done == std::vector{1, 2, 4, 5, 6});
}
