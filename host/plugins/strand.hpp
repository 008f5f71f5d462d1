// One thread per plugin: its mailbox, its timers and its file descriptors, one call at a time.
//
//   auto strand = Strand::create({.mailbox_capacity = 4096}, client);
//   strand->begin("taps");
//   strand->post("attachment_added", [&] { ... });   // [any]
//   strand->finish([&] { ...last words... });        // [any]; then the thread ends
//
// The mailbox is level-triggered: at its capacity everything in it is dropped and one resync takes
// its place, so a plugin that is slower than its events loses none of the state they led to.
#pragma once

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "base/fd.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"

namespace sluice {

// [strand] What a strand calls besides the tasks posted to it.
class StrandClient {
 public:
  virtual ~StrandClient() = default;
  virtual void on_timer(std::uint64_t id) = 0;
  virtual void on_fd(int fd, std::uint32_t events) = 0;
  virtual void on_wake(std::uint64_t token) = 0;
  virtual void on_resync() = 0;
};

class Strand {
 public:
  using Task = std::function<void()>;
  using Clock = std::chrono::steady_clock;

  // What the strand is doing for its plugin now.
  struct Busy {
    const char* what = "";
    Clock::duration elapsed{};  // not counting time spent waiting for the core
  };

  // `client` outlives the strand.
  [[nodiscard]] static Result<std::unique_ptr<Strand>> create(std::size_t mailbox_capacity,
                                                              StrandClient& client);
  ~Strand();
  Strand(const Strand&) = delete;
  Strand& operator=(const Strand&) = delete;

  // [core loop] Starts the thread with `first` as its first task. The thread holds `keep_alive`
  // until it ends.
  [[nodiscard]] Status begin(const std::string& thread_name, Task first,
                             std::shared_ptr<void> keep_alive);

  // [any] Counted against the capacity; `what` is a literal. State mail tells of the core's state,
  // which a snapshot of it supersedes. False: no more mail is taken.
  enum class MailKind : std::uint8_t { state, other };
  bool post(const char* what, MailKind kind, Task task);
  // [any] Ahead of all that is counted, never dropped. For the host's own business.
  bool post_control(const char* what, Task task);
  // [any] One on_wake for any number of equal tokens that have not been handled yet.
  bool wake(std::uint64_t token);
  // [any] Drops the mail and runs `last`, after which the thread ends. Later mail is refused.
  void finish(Task last);
  // [any] Drops the state mail: what the caller posts next supersedes it.
  void drop_state_mail();

  // [strand]
  [[nodiscard]] bool is_current() const;
  [[nodiscard]] Status set_timer(std::uint64_t id, std::uint64_t delay_ns);
  [[nodiscard]] Status cancel_timer(std::uint64_t id);
  [[nodiscard]] Status watch(int fd, std::uint32_t events);
  [[nodiscard]] Status unwatch(int fd);
  // Time in `wait` is the core's, not the plugin's.
  void waiting(const Task& wait);
  // Within a task: another call into the plugin begins, with a deadline of its own.
  void now_doing(const char* what);

  // [any]
  [[nodiscard]] std::optional<Busy> busy() const;
  [[nodiscard]] std::uint64_t resyncs() const { return resyncs_.load(); }

  // [core loop] Once the last task has run: waits for the thread to end, or lets it go after
  // `patience` (a thread-local destructor of the plugin may hang). Never without.
  void join(std::chrono::milliseconds patience);
  // [core loop] Lets the thread go for good.
  void let_go();

 private:
  Strand(Fd epoll, Fd bell, Fd timer, std::size_t capacity, StrandClient& client)
      : epoll_(std::move(epoll)),
        bell_(std::move(bell)),
        timer_(std::move(timer)),
        capacity_(capacity),
        client_(client) {}
  struct Mail {
    const char* what = "";
    MailKind kind = MailKind::other;
    Task task;
  };
  struct ThreadStart;
  struct Watched {
    std::uint32_t serial = 0;  // tells a late event from one of a later fd with the same number
  };
  static void* thread_main(void* start);
  void run(Task first);
  void ring();
  bool deliver(Mail mail);
  bool run_one_mail();
  void run_due_timers();
  void arm_timer();
  void dispatch(std::uint64_t key, std::uint32_t events);
  void perform(const char* what, const Task& task);

  Fd epoll_, bell_, timer_;
  const std::size_t capacity_;
  StrandClient& client_;
  pthread_t thread_{};
  bool joinable_ = false;  // core loop

  mutable std::mutex mutex_;  // over the mailbox and what is being done
  std::deque<Mail> control_, mail_;
  std::set<std::uint64_t> pending_tokens_;
  bool resync_due_ = false;
  bool closed_ = false;
  const char* doing_ = nullptr;
  Clock::time_point doing_since_, waiting_since_;
  bool waiting_ = false;
  std::atomic<std::uint64_t> resyncs_{0};

  // The strand's own.
  bool ended_ = false;
  std::set<std::pair<BootTime, std::uint64_t>> due_;
  std::map<std::uint64_t, BootTime> timers_;
  std::map<int, Watched> watched_;
  std::uint32_t last_serial_ = 0;
};

}  // namespace sluice
