#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "daemon/event_loop.hpp"

#include <doctest/doctest.h>
#include <unistd.h>

#include <array>
#include <string>
#include <thread>

using namespace sluice;
using namespace std::chrono_literals;

namespace {

struct Pipe {
  Pipe() {
    std::array<int, 2> ends{};
    REQUIRE(::pipe(ends.data()) == 0);
    read = Fd(ends[0]);
    write = Fd(ends[1]);
  }
  void ring() { REQUIRE(::write(write.get(), "x", 1) == 1); }
  void drain() {
    char byte = 0;
    REQUIRE(::read(read.get(), &byte, 1) == 1);
  }
  Fd read, write;
};

}  // namespace

TEST_CASE("posts from many threads run on the loop's thread, each thread's in order") {
  auto loop = EventLoop::create().value();
  constexpr int kThreads = 4, kPosts = 500;
  std::array<int, kThreads> next{};
  int done = 0;
  bool in_order = true, here = true;
  const auto self = std::this_thread::get_id();
  std::vector<std::jthread> threads;
  for (std::size_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (int i = 0; i < kPosts; ++i) {
        loop->post([&, thread, i] {
          in_order &= next[thread]++ == i;
          here &= std::this_thread::get_id() == self;
          if (++done == kThreads * kPosts) loop->stop();
        });
      }
    });
  }
  loop->run();
  CHECK(done == kThreads * kPosts);
  CHECK(in_order);
  CHECK(here);
}

TEST_CASE("a task may post, unwatch itself, and stop the loop") {
  auto loop = EventLoop::create().value();
  Pipe pipe;
  int calls = 0;
  REQUIRE(loop->watch(pipe.read.get(), [&] {
    ++calls;
    loop->unwatch(pipe.read.get());
    loop->post([&] { loop->post([&] { loop->stop(); }); });
  }));
  pipe.ring();
  loop->run();
  CHECK(calls == 1);
}

TEST_CASE("one task may unwatch what another turn's task would read") {
  auto loop = EventLoop::create().value();
  Pipe first, second;
  int calls = 0;
  const auto forget_both = [&] {
    ++calls;
    loop->unwatch(first.read.get());
    loop->unwatch(second.read.get());
  };
  REQUIRE(loop->watch(first.read.get(), forget_both));
  REQUIRE(loop->watch(second.read.get(), forget_both));
  first.ring();
  second.ring();
  loop->turn(0ms);
  CHECK(calls == 1);
}

TEST_CASE("timers run once or again and again, in no turn after they were cancelled") {
  auto loop = EventLoop::create().value();
  std::string order;
  EventLoop::TimerId repeated = 0, never = 0;
  loop->after(20ms, [&] { order += 'c'; });
  loop->after(0ms, [&] {
    order += 'a';
    loop->cancel(never);
  });
  never = loop->after(0ms, [&] { order += 'X'; });
  repeated = loop->every(0ms + 1us, [&] {
    order += 'b';
    if (order.size() > 10) loop->cancel(repeated), loop->stop();
  });
  loop->run();
  CHECK(order.find('X') == std::string::npos);
  CHECK(order.front() == 'a');
  CHECK(std::count(order.begin(), order.end(), 'a') == 1);
}

TEST_CASE("a descriptor that cannot be watched is an error") {
  auto loop = EventLoop::create().value();
  CHECK_FALSE(loop->watch(-1, [] {}));
}
