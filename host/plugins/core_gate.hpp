// The way from plugins' threads to the core, which can be shut: they outlive the plugin host where
// one of them hangs.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <shared_mutex>

#include "attachments/core.hpp"
#include "plugins/core_loop.hpp"

namespace sluice {

class CoreGate : public std::enable_shared_from_this<CoreGate> {
 public:
  CoreGate(Core& core, CoreLoop& loop) : core_(core), loop_(&loop) {}

  // [any] False: shut.
  bool post(CoreLoop::Task task) {
    const std::lock_guard lock(mutex_);
    if (loop_ == nullptr) return false;
    loop_->post([self = shared_from_this(), task = std::move(task)] {
      if (self->open_on_loop_) task();
    });
    return true;
  }

  // [any] Runs `work` on the calling thread, for what the core marks [any]. False: shut. What is in
  // here holds up the end of the daemon: no waiting.
  template <typename Work>
  bool direct(Work&& work) {
    // Asked first, so that those who keep coming do not keep shut() from the lock.
    if (!open_.load(std::memory_order_relaxed)) return false;
    const std::shared_lock lock(direct_mutex_);
    if (!open_.load(std::memory_order_relaxed)) return false;
    work(core_);
    return true;
  }

  // [strand], [any] other thread of a plugin. Runs `work` on the core loop and waits for it. False:
  // it did not run, and will not.
  bool call(const std::function<void(Core&)>& work) {
    auto call = std::make_shared<Call>();
    // Destroyed unrun when the loop drops the task: that ends the wait as well.
    auto ending = std::make_shared<Ending>(call);
    const bool posted = post([this, &work, ending] {
      work(core_);
      ending->call->finish(true);
    });
    ending.reset();
    if (!posted) return false;
    std::unique_lock lock(call->mutex);
    call->changed.wait(lock, [&] { return call->finished; });
    return call->ran;
  }

  // [core loop] Tasks that are posted already do not run any more.
  void shut() {
    open_on_loop_ = false;
    open_.store(false);
    { const std::unique_lock lock(direct_mutex_); }  // what runs in direct() has ended
    const std::lock_guard lock(mutex_);
    loop_ = nullptr;
  }

 private:
  struct Call {
    std::mutex mutex;
    std::condition_variable changed;
    bool finished = false, ran = false;
    void finish(bool with_result) {
      const std::lock_guard lock(mutex);
      if (finished) return;
      finished = true;
      ran = with_result;
      changed.notify_one();
    }
  };
  struct Ending {
    std::shared_ptr<Call> call;
    explicit Ending(std::shared_ptr<Call> of) : call(std::move(of)) {}
    ~Ending() { call->finish(false); }
  };

  Core& core_;
  bool open_on_loop_ = true;  // the core loop's
  std::mutex mutex_;
  CoreLoop* loop_;  // under mutex_
  std::shared_mutex direct_mutex_;
  std::atomic<bool> open_{true};
};

}  // namespace sluice
