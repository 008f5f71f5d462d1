#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dns/push_memory.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <thread>

using namespace sluice::dns;
using sluice::sdk::AttachmentId;
using sluice::sdk::Time;

namespace {
Time at(int seconds) {
  return Time(std::chrono::seconds(seconds));
}
constexpr AttachmentId kOne{1}, kTwo{2};
}  // namespace

TEST_CASE("a push suffices for its attachment, its answer and its time") {
  PushMemory memory;
  CHECK_FALSE(memory.suffices(kOne, 7, at(0)));
  memory.record(kOne, memory.ticket(kOne), 7, at(100));
  CHECK(memory.suffices(kOne, 7, at(100)));
  CHECK_FALSE(memory.suffices(kOne, 7, at(101)));
  CHECK_FALSE(memory.suffices(kOne, 8, at(1)));
  CHECK_FALSE(memory.suffices(kTwo, 7, at(1)));
  // The later of two counts: another worker may have pushed for longer.
  memory.record(kOne, memory.ticket(kOne), 7, at(50));
  CHECK(memory.suffices(kOne, 7, at(100)));
  memory.record(kOne, memory.ticket(kOne), 7, at(200));
  CHECK(memory.suffices(kOne, 7, at(200)));
}

TEST_CASE("no answer is none's") {
  PushMemory memory;
  memory.record(kOne, memory.ticket(kOne), 0, at(100));
  memory.record(kOne, memory.ticket(kOne), 1, at(100));
  CHECK_FALSE(memory.suffices(kOne, 0, at(-100)));
}

TEST_CASE("after clear() nothing suffices, for that attachment alone") {
  PushMemory memory({.shards = 1});
  memory.record(kOne, memory.ticket(kOne), 7, at(100));
  memory.record(kTwo, memory.ticket(kTwo), 7, at(100));
  memory.clear(kOne);
  CHECK_FALSE(memory.suffices(kOne, 7, at(1)));
  CHECK(memory.suffices(kTwo, 7, at(100)));
  memory.record(kOne, memory.ticket(kOne), 7, at(100));
  CHECK(memory.suffices(kOne, 7, at(100)));
}

TEST_CASE("a push that crossed with a clear() does not count") {
  for (const bool forget : {false, true}) {
    INFO("forgotten " << forget);
    PushMemory memory({.shards = 1});
    const auto old_ticket = memory.ticket(kOne);
    forget ? memory.forget(kOne) : memory.clear(kOne);
    memory.record(kOne, old_ticket, 7, at(100));
    CHECK_FALSE(memory.suffices(kOne, 7, at(1)));
    // Nor after a newer record.
    memory.record(kOne, memory.ticket(kOne), 8, at(100));
    memory.record(kOne, old_ticket, 7, at(100));
    CHECK_FALSE(memory.suffices(kOne, 7, at(1)));
    CHECK(memory.suffices(kOne, 8, at(100)));
  }
}

TEST_CASE("a ticket is its attachment's: what becomes of others does not end it") {
  PushMemory memory({.shards = 1});
  const auto ticket = memory.ticket(kOne);
  memory.clear(kTwo);
  (void)memory.ticket(kTwo);
  memory.clear(kTwo);
  memory.forget(kTwo);
  memory.record(kOne, ticket, 7, at(100));
  CHECK(memory.suffices(kOne, 7, at(100)));
  memory.record(kTwo, ticket, 7, at(100));
  CHECK_FALSE(memory.suffices(kTwo, 7, at(1)));
}

TEST_CASE("a late worker does not bring back the memory of an attachment that is gone") {
  PushMemory memory;
  const auto ticket = memory.ticket(kOne);
  memory.forget(kOne);
  memory.record(kOne, ticket, 7, at(100));
  CHECK(memory.bytes() == 0);
  memory.record(kOne, {}, 7, at(100));  // no ticket at all
  CHECK(memory.bytes() == 0);
}

TEST_CASE("memory is bounded, nothing when idle, and keeps what ends last") {
  PushMemory memory({.most_answers = 64});
  CHECK(memory.bytes() == 0);
  for (std::uint64_t answer = 1; answer <= 10000; ++answer)
    memory.record(kOne, memory.ticket(kOne), answer, at(static_cast<int>(answer)));
  CHECK(memory.bytes() < 64 * 16 + 200);
  int kept = 0;
  for (std::uint64_t answer = 9900; answer <= 10000; ++answer)
    kept += memory.suffices(kOne, answer, at(1));
  CHECK(kept >= 48);
  memory.forget(kOne);
  CHECK(memory.bytes() == 0);
}

TEST_CASE("growing loses nothing that fits") {
  PushMemory memory({.most_answers = 1024});
  for (std::uint64_t answer = 1; answer <= 200; ++answer)
    memory.record(kOne, memory.ticket(kOne), answer * 977, at(100));
  int kept = 0;
  for (std::uint64_t answer = 1; answer <= 200; ++answer)
    kept += memory.suffices(kOne, answer * 977, at(100));
  CHECK(kept >= 190);  // sets of eight may overflow before the table grows
}

TEST_CASE("of pushes and revocations that race, none stands that was revoked") {
  // The kernel's map, as one word: whether the address is in it.
  std::atomic<bool> in_kernel{false};
  PushMemory memory;
  std::mutex kernel;
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::vector<std::jthread> workers;
  for (int i = 0; i < 3; ++i)
    workers.emplace_back([&] {
      while (!stop) {
        {
          const std::lock_guard lock(kernel);  // no revocation between the two looks
          wrong += memory.suffices(kOne, 7, at(1)) && !in_kernel;
        }
        const auto ticket = memory.ticket(kOne);
        in_kernel = true;
        memory.record(kOne, ticket, 7, at(100));
      }
    });
  for (int i = 0; i < 20000; ++i) {
    const std::lock_guard lock(kernel);
    in_kernel = false;
    memory.clear(kOne);
  }
  stop = true;
  workers.clear();
  CHECK(wrong == 0);
}
