// What the plugin host needs of the daemon's core loop. EventLoop (host/daemon) is one.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>

namespace sluice {

class CoreLoop {
 public:
  using Task = std::function<void()>;
  using Duration = std::chrono::steady_clock::duration;
  using TimerId = std::uint64_t;

  virtual ~CoreLoop() = default;
  // [any] Runs on the loop's thread, in order of posting, never inside post(). A task that will not
  // run any more is destroyed: whoever waits for it learns of it that way.
  virtual void post(Task task) = 0;
  // [core loop]
  virtual TimerId after(Duration delay, Task task) = 0;
  virtual void cancel(TimerId id) = 0;
};

}  // namespace sluice
