#include "dataplane/background.hpp"

#include <pthread.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace sluice {

Background::Background()
    : ready_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      thread_([this](const std::stop_token& stop) { loop(stop); }) {}

Background::~Background() {
  thread_.request_stop();
  wake_.notify_all();
}

void Background::run(Job job) {
  {
    const std::lock_guard lock(mutex_);
    jobs_.push_back({{}, std::move(job)});
  }
  wake_.notify_one();
}

void Background::run_once(const std::string& name, Job job) {
  {
    const std::lock_guard lock(mutex_);
    if (std::ranges::count(jobs_, name, &Waiting::name) != 0) return;
    jobs_.push_back({name, std::move(job)});
  }
  wake_.notify_one();
}

void Background::complete() {
  std::uint64_t count = 0;
  [[maybe_unused]] const ssize_t got = read(ready_.get(), &count, sizeof(count));
  std::vector<Completion> done;
  {
    const std::lock_guard lock(mutex_);
    done.swap(done_);
  }
  for (auto& completion : done)
    if (completion) completion();
}

void Background::loop(const std::stop_token& stop) {
  pthread_setname_np(pthread_self(), "background");
  std::unique_lock lock(mutex_);
  while (wake_.wait(lock, stop, [this] { return !jobs_.empty(); })) {
    if (stop.stop_requested()) return;
    Job job = std::move(jobs_.front().job);
    jobs_.pop_front();
    lock.unlock();
    Completion completion = job();
    lock.lock();
    done_.push_back(std::move(completion));
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(ready_.get(), &one, sizeof(one));
  }
}

}  // namespace sluice
