// The strand: one call at a time, in order; a mailbox that forgets details rather than the fact;
// nothing after the end.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "plugins/strand.hpp"

#include <doctest/doctest.h>
#include <sys/epoll.h>

#include <condition_variable>
#include <future>
#include <thread>
#include <vector>

using namespace sluice;

namespace {

// What happened on the strand, as words, with waiting for them.
class Diary {
 public:
  void write(const std::string& word) {
    const std::lock_guard lock(mutex_);
    words_.push_back(word);
    changed_.notify_all();
  }
  bool reaches(std::size_t count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_until(lock, std::chrono::system_clock::now() + std::chrono::seconds(60),
                               [&] { return words_.size() >= count; });
  }
  std::vector<std::string> words() {
    const std::lock_guard lock(mutex_);
    return words_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> words_;
};

struct Rig final : StrandClient {
  Diary diary;
  std::unique_ptr<Strand> strand;
  std::function<void(std::uint64_t)> timer_work = [](std::uint64_t) {};

  explicit Rig(std::size_t capacity = 1000) {
    strand = std::move(*Strand::create(capacity, *this));
  }
  ~Rig() override { end(); }
  void begin(Strand::Task first = [] {}) {
    REQUIRE(strand->begin("rig", std::move(first), nullptr).has_value());
  }
  void end() {
    if (!strand) return;
    strand->finish([] {});
    strand->join(std::chrono::seconds(60));
    strand.reset();
  }
  void post(const std::string& word) {
    strand->post("post", Strand::MailKind::state, [this, word] { diary.write(word); });
  }
  // Runs `work` on the strand and waits for it.
  void on_strand(const Strand::Task& work) {
    // By a promise: timers and descriptors write into the diary meanwhile.
    std::promise<void> done;
    strand->post_control("control", [&] {
      work();
      diary.write("control");
      done.set_value();
    });
    REQUIRE(done.get_future().wait_for(std::chrono::seconds(60)) == std::future_status::ready);
  }

  void on_timer(std::uint64_t id) override {
    timer_work(id);
    diary.write("timer " + std::to_string(id));
  }
  void on_fd(int, std::uint32_t events) override { diary.write("fd " + std::to_string(events)); }
  void on_wake(std::uint64_t token) override { diary.write("wake " + std::to_string(token)); }
  void on_resync() override { diary.write("resync"); }
};

// Keeps the strand busy until it is opened.
struct Gate {
  std::mutex mutex;
  Gate() { mutex.lock(); }
  void open() { mutex.unlock(); }
  void pass() { const std::lock_guard lock(mutex); }
};

using Words = std::vector<std::string>;

}  // namespace

TEST_CASE("mail is delivered in order, on one thread that is the strand's") {
  Rig rig;
  CHECK_FALSE(rig.strand->is_current());
  rig.begin([&] { rig.diary.write(rig.strand->is_current() ? "first" : "elsewhere"); });
  for (int i = 0; i < 200; ++i) rig.post(std::to_string(i));
  REQUIRE(rig.diary.reaches(201));
  const auto words = rig.diary.words();
  CHECK(words[0] == "first");
  for (int i = 0; i < 200; ++i) CHECK(words[static_cast<std::size_t>(i) + 1] == std::to_string(i));
}

TEST_CASE("a full mailbox becomes one resync") {
  Rig rig(10);
  Gate gate;
  rig.begin([&] { gate.pass(); });
  for (int i = 0; i < 11; ++i) rig.post(std::to_string(i));
  rig.post("told by the resync");
  CHECK(rig.strand->resyncs() == 1);
  gate.open();
  REQUIRE(rig.diary.reaches(1));
  rig.on_strand([] {});
  CHECK(rig.diary.words() == Words{"resync", "control"});
}

TEST_CASE("equal wakes that were not handled yet are one; after that, another") {
  Rig rig;
  Gate gate;
  rig.begin([&] { gate.pass(); });
  for (int i = 0; i < 5; ++i) CHECK(rig.strand->wake(7));
  CHECK(rig.strand->wake(8));
  gate.open();
  REQUIRE(rig.diary.reaches(2));
  CHECK(rig.strand->wake(7));
  REQUIRE(rig.diary.reaches(3));
  CHECK(rig.diary.words() == Words{"wake 7", "wake 8", "wake 7"});
}

TEST_CASE("a snapshot replaces the state mail and nothing else") {
  Rig rig;
  Gate gate;
  rig.begin([&] { gate.pass(); });
  rig.post("old state");
  CHECK(rig.strand->wake(1));
  rig.strand->drop_state_mail();
  rig.post("new state");
  gate.open();
  REQUIRE(rig.diary.reaches(2));
  CHECK(rig.diary.words() == Words{"wake 1", "new state"});
}

TEST_CASE("timers fire in the order they fall due; a cancelled one does not, one set again once") {
  Rig rig;
  rig.begin();
  rig.on_strand([&] {
    CHECK(rig.strand->set_timer(1, 40'000'000).has_value());
    CHECK(rig.strand->set_timer(2, 20'000'000).has_value());
    CHECK(rig.strand->set_timer(3, 1'000'000).has_value());
    CHECK(rig.strand->cancel_timer(3).has_value());
    CHECK(rig.strand->set_timer(1, 30'000'000).has_value());
    CHECK(rig.strand->set_timer(4, UINT64_MAX).has_value());  // never, not at once
  });
  REQUIRE(rig.diary.reaches(3));
  CHECK(rig.diary.words() == Words{"control", "timer 2", "timer 1"});
}

TEST_CASE("a timer that sets itself to at once does not starve the mail") {
  Rig rig;
  rig.timer_work = [&](std::uint64_t id) { (void)rig.strand->set_timer(id, 0); };
  rig.begin();
  rig.on_strand([&] { (void)rig.strand->set_timer(1, 0); });
  REQUIRE(rig.diary.reaches(50));
  rig.on_strand([&] { (void)rig.strand->cancel_timer(1); });
}

TEST_CASE("a watched descriptor is reported as long as it is ready, and not once it is unwatched") {
  Rig rig;
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  rig.begin();
  rig.on_strand([&] { CHECK(rig.strand->watch(ends[0], EPOLLIN).has_value()); });
  REQUIRE(::write(ends[1], "x", 1) == 1);
  REQUIRE(rig.diary.reaches(4));  // level-triggered
  rig.on_strand([&] {
    CHECK(rig.strand->unwatch(ends[0]).has_value());
    CHECK(rig.strand->unwatch(ends[0]).error().code == ENOENT);
    CHECK(rig.strand->watch(-1, EPOLLIN).error().code == EBADF);
  });
  const auto after = rig.diary.words().size();
  rig.on_strand([] {});
  CHECK(rig.diary.words().size() == after + 1);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST_CASE(
    "a descriptor that was closed without unwatch, and its number taken again, can be watched") {
  Rig rig;
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  rig.begin();
  rig.on_strand([&] { CHECK(rig.strand->watch(ends[0], EPOLLIN).has_value()); });
  const int number = ends[0];
  ::close(ends[0]);
  ::close(ends[1]);
  REQUIRE(::pipe(ends) == 0);
  REQUIRE(ends[0] == number);
  rig.on_strand([&] { CHECK(rig.strand->watch(ends[0], EPOLLIN).has_value()); });
  ::close(ends[1]);
  REQUIRE(rig.diary.reaches(3));
  rig.end();
  ::close(ends[0]);
}

TEST_CASE("finish drops the mail, runs the last words and takes nothing more") {
  Rig rig;
  Gate gate;
  rig.begin([&] { gate.pass(); });
  rig.post("dropped");
  CHECK(rig.strand->wake(1));
  rig.strand->finish([&] { rig.diary.write("last"); });
  rig.strand->finish([&] { rig.diary.write("never"); });
  CHECK_FALSE(rig.strand->wake(2));
  CHECK_FALSE(rig.strand->post_control("late", [&] { rig.diary.write("late"); }));
  gate.open();
  rig.strand->join(std::chrono::seconds(60));
  CHECK(rig.diary.words() == Words{"last"});
}

TEST_CASE("it says what it is busy with, and does not count its waiting for the core") {
  Rig rig;
  Gate gate, core;
  std::atomic<int> step{0};
  rig.begin();
  rig.strand->post("attachment_added", Strand::MailKind::state, [&] {
    step = 1;
    gate.pass();
    rig.strand->waiting([&] {
      step = 2;
      core.pass();
    });
  });
  while (step != 1) std::this_thread::yield();
  auto busy = rig.strand->busy();
  REQUIRE(busy.has_value());
  CHECK(std::string(busy->what) == "attachment_added");
  const auto before = busy->elapsed;
  while (rig.strand->busy()->elapsed <= before) std::this_thread::yield();  // it grows
  gate.open();
  while (step != 2) std::this_thread::yield();
  const auto waiting = rig.strand->busy()->elapsed;
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(rig.strand->busy()->elapsed == waiting);  // it stands still
  core.open();
  rig.on_strand([] {});
}

TEST_CASE("many threads at once: nothing is lost below the capacity") {
  Rig rig(100'000);
  rig.begin();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 500; ++i) {
        rig.post("p");
        rig.strand->wake(static_cast<std::uint64_t>(t * 1000 + i));
      }
    });
  for (auto& thread : threads) thread.join();
  CHECK(rig.diary.reaches(4000));
  CHECK(rig.strand->resyncs() == 0);
}
