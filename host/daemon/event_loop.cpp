#include "daemon/event_loop.hpp"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace sluice {

Result<std::unique_ptr<EventLoop>> EventLoop::create() {
  Fd epoll(epoll_create1(EPOLL_CLOEXEC));
  Fd wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = wake.get();
  if (!epoll || !wake || epoll_ctl(epoll.get(), EPOLL_CTL_ADD, wake.get(), &event) != 0) {
    return fail_with(errno, "event loop: {}; raise the limit of open files (LimitNOFILE=)",
                     std::strerror(errno));
  }
  return std::unique_ptr<EventLoop>(new EventLoop(std::move(epoll), std::move(wake)));
}

void EventLoop::post(Task task) {
  bool first = false;
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    first = posted_.empty();
    posted_.push_back(std::move(task));
  }
  if (!first) return;  // somebody has rung already
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(wake_.get(), &one, sizeof one);
}

void EventLoop::close() {
  std::vector<Task> leftover;  // destroyed without the lock: a task's end may post
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    leftover.swap(posted_);
  }
}

Status EventLoop::watch(int fd, Task on_readable) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = fd;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return fail_with(errno, "event loop: cannot watch fd {}: {}", fd, std::strerror(errno));
  }
  watched_[fd] = std::make_shared<Task>(std::move(on_readable));
  return {};
}

void EventLoop::unwatch(int fd) {
  if (watched_.erase(fd) != 0) epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

EventLoop::TimerId EventLoop::after(Duration delay, Task task) {
  timers_[++last_timer_] = {Clock::now() + delay, {}, std::move(task)};
  return last_timer_;
}

EventLoop::TimerId EventLoop::every(Duration interval, Task task) {
  timers_[++last_timer_] = {Clock::now() + interval, interval, std::move(task)};
  return last_timer_;
}

void EventLoop::cancel(TimerId id) {
  timers_.erase(id);
}

void EventLoop::run() {
  running_ = true;
  while (running_) turn(std::chrono::hours(1));
}

void EventLoop::turn(Duration patience) {
  auto until = Clock::now() + patience;
  for (const auto& [id, timer] : timers_) until = std::min(until, timer.due);
  // Rounded up, so that a timer is due when the wait ends.
  const auto wait = std::chrono::ceil<std::chrono::milliseconds>(
      std::max(Duration::zero(), until - Clock::now()));
  std::array<epoll_event, 32> events;
  const int count = epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()),
                               static_cast<int>(wait.count()));
  for (int i = 0; i < count; ++i) {
    const int fd = events[static_cast<std::size_t>(i)].data.fd;
    if (fd == wake_.get()) {
      std::uint64_t rings = 0;
      [[maybe_unused]] const auto read = ::read(wake_.get(), &rings, sizeof rings);
      continue;
    }
    // An earlier task of this turn may have unwatched it; a task may unwatch itself.
    if (auto found = watched_.find(fd); found != watched_.end()) {
      const auto task = found->second;
      (*task)();
    }
  }
  run_posted();
  run_timers();
}

void EventLoop::run_posted() {
  std::vector<Task> tasks;
  {
    const std::lock_guard lock(mutex_);
    tasks.swap(posted_);
  }
  for (auto& task : tasks) task();
}

void EventLoop::run_timers() {
  const auto now = Clock::now();
  std::vector<TimerId> due;
  for (const auto& [id, timer] : timers_) {
    if (timer.due <= now) due.push_back(id);
  }
  for (const auto id : due) {
    const auto found = timers_.find(id);
    if (found == timers_.end()) continue;  // cancelled by one that ran just now
    auto task = found->second.task;
    if (found->second.interval == Duration::zero()) {
      timers_.erase(found);
    } else {
      found->second.due = now + found->second.interval;
    }
    task();
  }
}

}  // namespace sluice
