#include "plugins/strand.hpp"

#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

#include <array>
#include <cstring>
#include <limits>
#include <utility>

namespace sluice {
namespace {

// The strand whose thread this is.
thread_local const Strand* current_strand = nullptr;

// Serials of watched fds begin at 1, so these cannot be taken for one.
constexpr std::uint64_t kBell = 0, kTimer = 1;

std::uint64_t key_of(int fd, std::uint32_t serial) {
  return std::uint64_t{serial} << 32 | static_cast<std::uint32_t>(fd);
}

Status add_to_epoll(int epoll, int fd, std::uint32_t events, std::uint64_t key) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = key;
  if (::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0) return {};
  if (errno == EEXIST && ::epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event) == 0) return {};
  return fail_with(errno, "file descriptor {} cannot be watched: {}; is it open and pollable?", fd,
                   std::strerror(errno));
}

}  // namespace

struct Strand::ThreadStart {
  Strand* strand;
  Task first;
  std::shared_ptr<void> keep_alive;
};

Result<std::unique_ptr<Strand>> Strand::create(std::size_t mailbox_capacity, StrandClient& client) {
  Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
  Fd bell(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  // Delays count through a suspended machine: what they guard ends by that clock too.
  Fd timer(::timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!epoll || !bell || !timer)
    return fail_with(errno, "a plugin's thread needs three file descriptors: {}; raise LimitNOFILE",
                     std::strerror(errno));
  if (auto status = add_to_epoll(epoll.get(), bell.get(), EPOLLIN, kBell); !status)
    return std::unexpected(status.error());
  if (auto status = add_to_epoll(epoll.get(), timer.get(), EPOLLIN, kTimer); !status)
    return std::unexpected(status.error());
  return std::unique_ptr<Strand>(new Strand(std::move(epoll), std::move(bell), std::move(timer),
                                            std::max<std::size_t>(mailbox_capacity, 1), client));
}

Strand::~Strand() {
  // Runs on the strand's own thread when that was let go.
  if (joinable_) ::pthread_detach(thread_);
}

Status Strand::begin(const std::string& thread_name, Task first, std::shared_ptr<void> keep_alive) {
  std::unique_ptr<ThreadStart> start(
      new ThreadStart{this, std::move(first), std::move(keep_alive)});
  // The daemon's signals are the core loop's.
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const int error = ::pthread_create(&thread_, nullptr, thread_main, start.get());
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (error != 0)
    return fail_with(error, "a thread cannot be made: {}; raise TasksMax or RLIMIT_NPROC",
                     std::strerror(error));
  (void)start.release();  // the thread's now
  joinable_ = true;
  ::pthread_setname_np(thread_, thread_name.substr(0, 15).c_str());
  return {};
}

void* Strand::thread_main(void* raw) {
  std::unique_ptr<ThreadStart> start(static_cast<ThreadStart*>(raw));
  start->strand->run(std::exchange(start->first, {}));
  return nullptr;
}

void Strand::run(Task first) {
  current_strand = this;
  perform("start", std::exchange(first, {}));
  std::array<epoll_event, 32> events;
  while (!ended_) {
    // A bounded batch, so that mail cannot starve timers and fds.
    int left = 64;
    while (!ended_ && left > 0 && run_one_mail()) --left;
    if (ended_) break;
    run_due_timers();
    const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()),
                                   left == 0 ? 0 : -1);
    for (int i = 0; i < count && !ended_; ++i)
      dispatch(events[static_cast<std::size_t>(i)].data.u64,
               events[static_cast<std::size_t>(i)].events);
  }
  current_strand = nullptr;
}

void Strand::dispatch(std::uint64_t key, std::uint32_t events) {
  if (key == kBell || key == kTimer) {
    std::uint64_t count = 0;
    // Emptied before the queues are looked at: what comes in between rings again.
    [[maybe_unused]] const auto got =
        ::read(key == kBell ? bell_.get() : timer_.get(), &count, sizeof count);
    return;
  }
  const int fd = static_cast<int>(key & 0xffffffffu);
  const auto at = watched_.find(fd);
  if (at == watched_.end() || at->second.serial != key >> 32) return;
  perform("on_fd", [&] { client_.on_fd(fd, events); });
}

void Strand::perform(const char* what, const Task& task) {
  now_doing(what);
  task();
  const std::lock_guard lock(mutex_);
  doing_ = nullptr;
}

void Strand::now_doing(const char* what) {
  const std::lock_guard lock(mutex_);
  doing_ = what;
  doing_since_ = Clock::now();
}

void Strand::ring() {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(bell_.get(), &one, sizeof one);
}

bool Strand::deliver(Mail mail) {  // under mutex_
  if (closed_) return false;
  if (resync_due_ && mail.kind == MailKind::state) return true;  // the resync tells of it
  if (mail_.size() >= capacity_) {
    mail_.clear();
    pending_tokens_.clear();
    resync_due_ = true;
    resyncs_.fetch_add(1);
  } else {
    mail_.push_back(std::move(mail));
  }
  ring();
  return true;
}

bool Strand::post(const char* what, MailKind kind, Task task) {
  const std::lock_guard lock(mutex_);
  return deliver({what, kind, std::move(task)});
}

bool Strand::wake(std::uint64_t token) {
  const std::lock_guard lock(mutex_);
  if (closed_) return false;
  if (!pending_tokens_.insert(token).second) return true;
  return deliver({"on_wake", MailKind::other, [this, token] {
                    {
                      const std::lock_guard inner(mutex_);
                      pending_tokens_.erase(token);
                    }
                    client_.on_wake(token);
                  }});
}

bool Strand::post_control(const char* what, Task task) {
  const std::lock_guard lock(mutex_);
  if (closed_) return false;
  control_.push_back({what, MailKind::other, std::move(task)});
  ring();
  return true;
}

void Strand::finish(Task last) {
  const std::lock_guard lock(mutex_);
  if (closed_) return;
  closed_ = true;
  mail_.clear();
  control_.clear();
  resync_due_ = false;
  control_.push_back({"stop", MailKind::other, [this, last = std::move(last)] {
                        last();
                        ended_ = true;
                      }});
  ring();
}

void Strand::drop_state_mail() {
  const std::lock_guard lock(mutex_);
  std::erase_if(mail_, [](const Mail& mail) { return mail.kind == MailKind::state; });
}

bool Strand::run_one_mail() {
  Mail mail;
  {
    const std::lock_guard lock(mutex_);
    if (!control_.empty()) {
      mail = std::move(control_.front());
      control_.pop_front();
    } else if (resync_due_) {
      resync_due_ = false;
      mail = {"on_resync", MailKind::other, [this] { client_.on_resync(); }};
    } else if (!mail_.empty()) {
      mail = std::move(mail_.front());
      mail_.pop_front();
    } else {
      return false;
    }
  }
  perform(mail.what, mail.task);
  return true;
}

bool Strand::is_current() const {
  return current_strand == this;
}

Status Strand::set_timer(std::uint64_t id, std::uint64_t delay_ns) {
  (void)cancel_timer(id);
  const auto now = boot_now().nanoseconds;
  const auto most = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  const BootTime due{delay_ns > most - now ? most : now + delay_ns};
  due_.emplace(due, id);
  timers_[id] = due;
  arm_timer();
  return {};
}

Status Strand::cancel_timer(std::uint64_t id) {
  const auto at = timers_.find(id);
  if (at == timers_.end()) return {};
  due_.erase({at->second, id});
  timers_.erase(at);
  return {};
}

void Strand::arm_timer() {
  itimerspec spec{};
  if (!due_.empty()) {
    const auto due = due_.begin()->first.nanoseconds;
    spec.it_value.tv_sec = static_cast<time_t>(due / 1'000'000'000);
    spec.it_value.tv_nsec = static_cast<long>(due % 1'000'000'000);
  }
  ::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &spec, nullptr);
}

void Strand::run_due_timers() {
  if (due_.empty()) return;
  // A timer that sets itself again to "now" waits for the next round.
  const auto now = boot_now();
  while (!ended_ && !due_.empty() && due_.begin()->first <= now) {
    const auto id = due_.begin()->second;
    timers_.erase(id);
    due_.erase(due_.begin());
    perform("on_timer", [&] { client_.on_timer(id); });
  }
  arm_timer();
}

Status Strand::watch(int fd, std::uint32_t events) {
  if (fd < 0) return fail_with(EBADF, "file descriptor {} cannot be watched: it is not open", fd);
  // The plugin must see each event: one-shot and edge modes are the strand's to refuse.
  const auto allowed = events & (EPOLLIN | EPOLLOUT | EPOLLPRI | EPOLLRDHUP);
  auto serial = ++last_serial_;
  if (serial == 0) serial = ++last_serial_;
  if (auto status = add_to_epoll(epoll_.get(), fd, allowed, key_of(fd, serial)); !status)
    return status;
  watched_[fd] = {serial};
  return {};
}

Status Strand::unwatch(int fd) {
  const auto at = watched_.find(fd);
  if (at == watched_.end())
    return fail_with(ENOENT, "file descriptor {} is not watched; nothing to do", fd);
  watched_.erase(at);
  // Fails where the fd is closed already: then epoll has forgotten it by itself.
  (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  return {};
}

void Strand::waiting(const Task& wait) {
  {
    const std::lock_guard lock(mutex_);
    waiting_ = true;
    waiting_since_ = Clock::now();
  }
  wait();
  const std::lock_guard lock(mutex_);
  waiting_ = false;
  doing_since_ += Clock::now() - waiting_since_;
}

std::optional<Strand::Busy> Strand::busy() const {
  const std::lock_guard lock(mutex_);
  if (doing_ == nullptr) return std::nullopt;
  return Busy{doing_, (waiting_ ? waiting_since_ : Clock::now()) - doing_since_};
}

void Strand::join(std::chrono::milliseconds patience) {
  if (!joinable_) return;
  joinable_ = false;
  timespec until{};
  ::clock_gettime(CLOCK_REALTIME, &until);
  const auto nanoseconds = until.tv_nsec + patience.count() % 1000 * 1'000'000;
  until.tv_sec += patience.count() / 1000 + nanoseconds / 1'000'000'000;
  until.tv_nsec = nanoseconds % 1'000'000'000;
  if (::pthread_timedjoin_np(thread_, nullptr, &until) != 0) ::pthread_detach(thread_);
}

void Strand::let_go() {
  if (joinable_) ::pthread_detach(thread_);
  joinable_ = false;
}

}  // namespace sluice
