#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "discovery/keeper.hpp"

#include <doctest/doctest.h>

#include <cerrno>

#include "unit/discovery/scripted_host.hpp"

using namespace sluice::discovery;
using Strings = std::vector<std::string>;

namespace {

WantedTarget tap(std::uint32_t ifindex, const std::string& name) {
  return {.kind = TargetKind::interface, .name = name, .ifindex = ifindex};
}

constexpr std::uint64_t kMillisecond = 1'000'000, kSecond = 1'000'000'000;

}  // namespace

TEST_CASE("what is wanted is attached, what is no longer wanted is detached") {
  ScriptedHost host;
  Keeper keeper(host);
  keeper.want(7, tap(7, "tap0"), {{"class", "vm"}});
  CHECK(host.calls.empty());
  run_out(keeper);
  CHECK(host.calls == Strings{"attach tap0"});
  CHECK(keeper.attached() == 1);
  keeper.want(7, tap(7, "tap0"), {{"class", "vm"}});
  run_out(keeper);
  CHECK(host.calls.size() == 1);
  keeper.unwant(7, "gone");
  run_out(keeper);
  CHECK(host.calls == Strings{"attach tap0", "detach 1 (gone)"});
  CHECK(host.attachments.empty());
  CHECK(keeper.wanted() == 0);
  CHECK(keeper.attached() == 0);
}

TEST_CASE("new labels relabel; a new name attaches again, which is idempotent") {
  ScriptedHost host;
  Keeper keeper(host);
  keeper.want(7, tap(7, "tap0"), {});
  run_out(keeper);
  keeper.want(7, tap(7, "tap0"), {{"bridge", "br0"}});
  run_out(keeper);
  keeper.want(7, tap(7, "tap9"), {{"bridge", "br0"}});
  run_out(keeper);
  CHECK(host.calls == Strings{"attach tap0", "relabel 1", "attach tap9"});
  CHECK(host.attachments.size() == 1);
  CHECK(host.attachments.at(1).labels == Labels{{"bridge", "br0"}});
}

TEST_CASE("an attachment that the core has dropped is made again when it is relabelled") {
  ScriptedHost host;
  Keeper keeper(host);
  keeper.want(7, tap(7, "tap0"), {});
  run_out(keeper);
  host.attachments.clear();
  keeper.want(7, tap(7, "tap0"), {{"a", "b"}});
  run_out(keeper);
  CHECK(host.calls == Strings{"attach tap0", "relabel 1", "attach tap0"});
  CHECK(keeper.attachment_of(7) == 2);
  CHECK(keeper.attached() == 1);
}

TEST_CASE("what went and came back under the same key is another thing: detached first") {
  ScriptedHost host;
  Keeper keeper(host);
  keeper.want(7, tap(7, "tap0"), {});
  run_out(keeper);
  keeper.unwant(7, "deleted");
  keeper.want(7, tap(7, "tap0"), {});
  CHECK(keeper.attachment_of(7) == 0);
  run_out(keeper);
  CHECK(host.calls == Strings{"attach tap0", "detach 1 (deleted)", "attach tap0"});
  CHECK(keeper.attachment_of(7) == 2);
}

TEST_CASE("all detaches go before any attach: a name is re-used under another key") {
  ScriptedHost host;
  Keeper keeper(host);
  keeper.want(7, tap(7, "tap0"), {});
  run_out(keeper);
  keeper.want(8, tap(8, "tap0"), {});
  keeper.unwant(7, "deleted");
  run_out(keeper);
  CHECK(host.calls == Strings{"attach tap0", "detach 1 (deleted)", "attach tap0"});
}

TEST_CASE("a target that came and went before its turn is never attached") {
  ScriptedHost host;
  Keeper keeper(host);
  keeper.want(7, tap(7, "tap0"), {});
  keeper.unwant(7, "deleted");
  run_out(keeper);
  CHECK(host.calls.empty());
  keeper.want(7, tap(7, "tap0"), {});
  keeper.unwant(7, "deleted");
  keeper.want(7, tap(7, "tap1"), {});
  run_out(keeper);
  CHECK(host.calls == Strings{"attach tap1"});
}

TEST_CASE("a turn makes a bounded number of calls and asks for another") {
  ScriptedHost host;
  Keeper keeper(host, {.calls_per_turn = 10});
  for (std::uint32_t i = 1; i <= 25; ++i) keeper.want(i, tap(i, "tap" + std::to_string(i)), {});
  keeper.listing_complete();
  CHECK(keeper.turn() == 0);
  CHECK(host.calls.size() == 10);
  CHECK(host.listed_calls == 0);
  run_out(keeper);
  CHECK(host.attachments.size() == 25);
  CHECK(host.calls.back() == "listed");
  CHECK(host.listed_calls == 1);
}

TEST_CASE("a failed attach is tried again with growing delays, and said once for each cause") {
  ScriptedHost host;
  Keeper keeper(host, {.first_retry_ns = 250 * kMillisecond, .longest_retry_ns = 2 * kSecond});
  host.refuse_attach = [](const WantedTarget& target) {
    return AttachmentHost::Answer{ENOMEM, 0, target.name + ": the map is full; raise it"};
  };
  for (std::uint32_t i = 1; i <= 100; ++i) keeper.want(i, tap(i, "tap" + std::to_string(i)), {});
  run_out(keeper);
  CHECK(host.calls.size() == 100);
  CHECK(host.lines_at(LogLevel::warning) == 1);
  CHECK(keeper.turn() == 250 * kMillisecond);

  std::vector<std::uint64_t> delays;
  for (int round = 0; round < 6; ++round) {
    const std::uint64_t delay = keeper.turn();
    delays.push_back(delay / kMillisecond);
    host.clock += delay;
    run_out(keeper);
  }
  CHECK(delays == std::vector<std::uint64_t>{250, 500, 1000, 2000, 2000, 2000});
  CHECK(host.calls.size() == 700);
  CHECK(host.lines_at(LogLevel::warning) == 1);

  SUBCASE("another cause is another line") {
    host.refuse_attach = [](const WantedTarget&) {
      return AttachmentHost::Answer{EIO, 0, "the kernel refuses"};
    };
    host.clock += 2 * kSecond;
    run_out(keeper);
    CHECK(host.lines_at(LogLevel::warning) == 2);
    // The host's text did not say whose fault it was; the keeper does.
    CHECK(host.lines.back().second.starts_with("tap"));
  }
  SUBCASE("when it works again, that is said once too") {
    host.refuse_attach = [](const WantedTarget&) { return AttachmentHost::Answer{}; };
    host.clock += 2 * kSecond;
    run_out(keeper);
    CHECK(host.attachments.size() == 100);
    CHECK(host.lines_at(LogLevel::info) == 1);
    CHECK(host.lines.back().second.find("100 targets") != std::string::npos);
    CHECK(keeper.turn() == Keeper::kIdle);
  }
  SUBCASE("what disappears is not tried again") {
    for (std::uint32_t i = 1; i <= 100; ++i) keeper.unwant(i, "deleted");
    CHECK(keeper.turn() == Keeper::kIdle);
    CHECK(host.calls.size() == 700);
  }
}

TEST_CASE("a target that disappears while it is attached is a debug line, not a failure") {
  ScriptedHost host;
  Keeper keeper(host);
  for (const int code : {ENODEV, ENOENT}) {
    host.lines.clear();
    host.refuse_attach = [&](const WantedTarget&) {
      return AttachmentHost::Answer{code, 0, "no such"};
    };
    keeper.want(7, tap(7, "tap0"), {});
    keeper.listing_complete();
    run_out(keeper);
    CHECK(host.lines_at(LogLevel::debug) == 1);
    CHECK(host.lines.size() == 1);
    keeper.unwant(7, "deleted");
  }
  CHECK(host.listed_calls == 2);
}

TEST_CASE("listed waits for targets that may have a filter from before, but not for ever") {
  ScriptedHost host;
  Keeper keeper(host, {.failures_before_listed = 3});
  int code = ENOMEM;
  host.refuse_attach = [&](const WantedTarget& target) {
    return AttachmentHost::Answer{target.ifindex == 2 ? code : 0, 0, "no"};
  };
  keeper.want(1, tap(1, "tap1"), {});
  keeper.want(2, tap(2, "tap2"), {});
  keeper.listing_complete();
  run_out(keeper);
  CHECK(host.listed_calls == 0);

  SUBCASE("until it is attached") {
    code = 0;
    host.clock += kSecond;
    run_out(keeper);
    CHECK(host.listed_calls == 1);
  }
  SUBCASE("until it has failed too often") {
    for (int i = 0; i < 3; ++i) {
      host.clock += 60 * kSecond;
      run_out(keeper);
    }
    CHECK(host.listed_calls == 1);
  }
  SUBCASE("not for a refusal") {
    code = EINVAL;
    host.clock += kSecond;
    run_out(keeper);
    CHECK(host.listed_calls == 1);
    CHECK(keeper.turn() == 60 * kSecond);
  }
  SUBCASE("not for what is gone") {
    keeper.unwant(2, "deleted");
    run_out(keeper);
    CHECK(host.listed_calls == 1);
  }
}

TEST_CASE("what another discovery has is asked for again soon, and listed waits a moment for it") {
  ScriptedHost host;
  Keeper keeper(host);
  bool taken = true;
  host.refuse_attach = [&](const WantedTarget& target) {
    return AttachmentHost::Answer{taken ? EEXIST : 0, 0, target.name + ": attached by others"};
  };
  keeper.want(1, tap(1, "tap1"), {});
  keeper.listing_complete();
  run_out(keeper);
  CHECK(host.listed_calls == 0);
  CHECK(keeper.turn() == 250 * kMillisecond);
  CHECK(host.lines.empty());  // a configuration that changes is no news

  SUBCASE("it lets go of it") {
    taken = false;
    host.clock += 250 * kMillisecond;
    run_out(keeper);
    CHECK(host.names() == Strings{"tap1"});
    CHECK(host.listed_calls == 1);
    CHECK(host.lines.empty());
  }
  SUBCASE("it does not") {
    std::vector<std::uint64_t> delays;
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t delay = keeper.turn();
      delays.push_back(delay / kMillisecond);
      host.clock += delay;
      run_out(keeper);
    }
    CHECK(delays ==
          std::vector<std::uint64_t>{250, 500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000});
    CHECK(host.listed_calls == 1);
    CHECK(host.lines_at(LogLevel::warning) == 1);
    keeper.unwant(1, "deleted");
    CHECK(keeper.turn() == Keeper::kIdle);
  }
}

TEST_CASE("a failed detach is tried again before its successor is attached") {
  ScriptedHost host;
  Keeper keeper(host);
  keeper.want(7, tap(7, "tap0"), {});
  run_out(keeper);
  host.detach_code = EBUSY;
  keeper.unwant(7, "deleted");
  keeper.want(7, tap(7, "tap0"), {});
  run_out(keeper);
  CHECK(host.calls.back() == "detach 1 (deleted)");
  CHECK(host.lines_at(LogLevel::warning) == 1);
  host.detach_code = 0;
  host.clock += kSecond;
  run_out(keeper);
  CHECK(host.calls.back() == "attach tap0");
  CHECK(keeper.attachment_of(7) == 2);
}

TEST_CASE("a detach that waits to be tried again is not forgotten when its successor goes too") {
  ScriptedHost host;
  Keeper keeper(host);
  keeper.want(7, tap(7, "tap0"), {});
  run_out(keeper);
  host.detach_code = EBUSY;
  keeper.unwant(7, "deleted");
  run_out(keeper);
  keeper.want(7, tap(7, "tap0"), {});
  run_out(keeper);
  keeper.unwant(7, "deleted");
  run_out(keeper);
  host.detach_code = 0;
  host.clock += 60 * kSecond;
  run_out(keeper);
  CHECK(host.attachments.empty());
  CHECK(keeper.wanted() == 0);
  CHECK(keeper.turn() == Keeper::kIdle);
}

TEST_CASE("reaffirming asks for everything again and takes over a new id") {
  ScriptedHost host;
  Keeper keeper(host);
  keeper.want(1, tap(1, "tap1"), {});
  keeper.want(2, tap(2, "tap2"), {});
  run_out(keeper);
  host.attachments.erase(keeper.attachment_of(2));  // died unseen
  keeper.reaffirm();
  run_out(keeper);
  CHECK(host.names() == Strings{"tap1", "tap2"});
  CHECK(keeper.attachment_of(1) == 1);
  CHECK(keeper.attachment_of(2) == 3);
  CHECK(keeper.attached() == 2);
}

TEST_CASE("after the host has shut down nothing is called any more") {
  ScriptedHost host;
  Keeper keeper(host);
  host.refuse_attach = [](const WantedTarget&) { return AttachmentHost::Answer{ESHUTDOWN, 0, {}}; };
  keeper.want(1, tap(1, "tap1"), {});
  keeper.want(2, tap(2, "tap2"), {});
  CHECK(keeper.turn() == Keeper::kIdle);
  CHECK(keeper.turn() == Keeper::kIdle);
  CHECK(host.calls.size() == 1);
  CHECK(host.lines.empty());
}
