// The core loop: one thread that owns everything of the kernel. Other threads reach it by post().
//
//   auto loop = EventLoop::create().value();
//   loop->every(200ms, [&] { plane.poll(events); });
//   loop->run();    // until stop()
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace sluice {

class EventLoop {
 public:
  using Task = std::function<void()>;
  using Clock = std::chrono::steady_clock;
  using TimerId = std::uint64_t;

  [[nodiscard]] static Result<std::unique_ptr<EventLoop>> create();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // [any] Runs on the loop's thread, in order of posting. What is posted after run() has returned
  // runs when run() is called again, or never.
  void post(Task task);

  // [loop] `fd` stays the caller's; unwatch it before it is closed.
  [[nodiscard]] Status watch(int fd, Task on_readable);
  void unwatch(int fd);

  // [loop]
  TimerId after(Clock::duration delay, Task task);
  TimerId every(Clock::duration interval, Task task);
  void cancel(TimerId id);

  // [loop] Runs tasks until stop(). Tasks run between waits; none is waited for.
  void run();
  void stop() { running_ = false; }
  // [loop] Runs what is ready and returns; waits at most `patience` for something to be.
  void turn(Clock::duration patience);

 private:
  struct Timer {
    Clock::time_point due;
    Clock::duration interval;  // zero: once
    Task task;
  };
  EventLoop(Fd epoll, Fd wake) : epoll_(std::move(epoll)), wake_(std::move(wake)) {}
  void run_posted();
  void run_timers();

  Fd epoll_, wake_;
  bool running_ = false;
  std::map<int, std::shared_ptr<Task>> watched_;
  std::map<TimerId, Timer> timers_;
  TimerId last_timer_ = 0;
  std::mutex mutex_;
  std::vector<Task> posted_;  // under mutex_
};

}  // namespace sluice
