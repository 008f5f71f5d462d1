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
#include "plugins/core_loop.hpp"

namespace sluice {

class EventLoop final : public CoreLoop {
 public:
  using Clock = std::chrono::steady_clock;

  [[nodiscard]] static Result<std::unique_ptr<EventLoop>> create();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // [any] Runs on the loop's thread, in order of posting. After close() it is destroyed at once.
  void post(Task task) override;
  // [loop] Destroys what was posted and did not run, and whatever is posted from now on.
  void close();

  // [loop] `fd` stays the caller's; unwatch it before it is closed.
  [[nodiscard]] Status watch(int fd, Task on_readable);
  void unwatch(int fd);

  // [loop]
  TimerId after(Duration delay, Task task) override;
  TimerId every(Duration interval, Task task);
  void cancel(TimerId id) override;

  // [loop] Runs tasks until stop(). Tasks run between waits; none is waited for.
  void run();
  void stop() { running_ = false; }
  // [loop] Runs what is ready and returns; waits at most `patience` for something to be.
  void turn(Duration patience);

 private:
  struct Timer {
    Clock::time_point due;
    Duration interval;  // zero: once
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
  bool closed_ = false;       // under mutex_
};

}  // namespace sluice
