#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dns/cache.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <random>
#include <string>
#include <thread>

using namespace sluice::dns;
using sluice::sdk::AttachmentId;
using sluice::sdk::Time;
using std::chrono::seconds;

namespace {

constexpr AttachmentId kOne{1}, kTwo{2};
constexpr AnswerCache::Origin kByRule{.attachment = kOne, .by_wildcard = false};
constexpr auto kUseless = AnswerCache::Failure::answer, kSilence = AnswerCache::Failure::silence;

Time at(std::int64_t s) {
  return Time(seconds(s));
}
Name name(const std::string& text) {
  return *Name::from_text(text);
}
Name numbered(int i) {
  return name("n" + std::to_string(i) + ".example.org");
}

CachedAnswer answer(std::size_t size = 100, std::uint8_t fill = 0) {
  CachedAnswer made;
  made.message.assign(size, fill);
  made.ttl_offsets = {12, 40};
  return made;
}

AnswerCache small(std::size_t bytes, double trial_share = 0.5) {
  return AnswerCache({.bytes = bytes, .shards = 1, .trial_share = trial_share});
}

}  // namespace

TEST_CASE("an answer is kept until its TTL ends") {
  AnswerCache cache;
  const Name a = name("a.org");
  CHECK(cache.find({a}, kOne, at(0)) == nullptr);
  const auto kept = cache.store({a}, answer(50, 7), kByRule, seconds(60), at(100));
  REQUIRE(kept);
  CHECK(kept->id != 0);
  CHECK(kept->stored == at(100));
  CHECK(kept->expires == at(160));
  CHECK(cache.find({a}, kOne, at(100)) == kept);
  CHECK(cache.find({a}, kTwo, at(159)) == kept);
  CHECK(cache.find({a}, kOne, at(160)) == nullptr);
  CHECK(cache.statistics().entries == 0);
  CHECK(kept->message.size() == 50);  // who holds it, holds it
  CHECK(cache.statistics().hits == 2);
  CHECK(cache.statistics().misses == 2);
}

TEST_CASE("every part of the question is part of the key") {
  AnswerCache cache;
  const Name a = name("a.org"), b = name("b.org"), below = name("x.a.org");
  const AnswerCache::Key key{.name = a, .type = 1, .record_class = 1};
  cache.store(key, answer(), kByRule, seconds(60), at(0));
  const AnswerCache::Key others[] = {
      {.name = b, .type = 1, .record_class = 1},
      {.name = below, .type = 1, .record_class = 1},
      {.name = a, .type = 28, .record_class = 1},
      {.name = a, .type = 1, .record_class = 3},
      {.name = a, .type = 1, .record_class = 1, .dnssec_ok = true},
      {.name = a, .type = 1, .record_class = 1, .checking_disabled = true},
  };
  for (const auto& other : others) {
    CHECK(cache.find(other, kOne, at(1)) == nullptr);
    cache.store(other, answer(), kByRule, seconds(60), at(0));
  }
  CHECK(cache.statistics().entries == 7);
  CHECK(cache.find(key, kOne, at(1)));
  cache.erase(key);
  CHECK(cache.find(key, kOne, at(1)) == nullptr);
  CHECK(cache.statistics().entries == 6);
  cache.clear();
  CHECK(cache.statistics().entries == 0);
  CHECK(cache.statistics().bytes == 0);
}

TEST_CASE("each answer has an id of its own, replaced ones included") {
  AnswerCache cache;
  const Name a = name("a.org");
  const auto first = cache.store({a}, answer(), kByRule, seconds(60), at(0));
  const auto second = cache.store({a}, answer(), kByRule, seconds(60), at(1));
  CHECK(first->id != second->id);
  CHECK(cache.find({a}, kOne, at(2)) == second);
  CHECK(cache.statistics().entries == 1);
}

TEST_CASE("TTLs are cut to what is sane, and nothing is kept for no time") {
  AnswerCache cache;
  const Name a = name("a.org");
  CHECK(cache.store({a}, answer(), kByRule, seconds(1u << 31), at(0))->expires == at(86400));
  CachedAnswer none = answer();
  none.kind = CachedAnswer::Kind::negative;
  CHECK(cache.store({a}, none, kByRule, seconds(86400), at(0))->expires == at(3600));
  const auto zero = cache.store({a}, answer(), kByRule, seconds(0), at(5));
  REQUIRE(zero);
  CHECK(zero->id != 0);
  CHECK(cache.find({a}, kOne, at(5)) == nullptr);  // the one before is replaced all the same
  CHECK(cache.store({a}, answer(), kByRule, seconds(-5), at(5))->expires == at(5));
}

TEST_CASE("useless answers are kept for 5 s, twice as long each time, never over five minutes") {
  AnswerCache cache;
  const Name a = name("a.org");
  std::int64_t now = 1000;
  for (const std::int64_t lasts : {5, 10, 20, 40, 80, 160, 300, 300, 300}) {
    const auto failure = cache.store_failure({a}, kUseless, {}, kByRule, at(now));
    CHECK(failure->kind == CachedAnswer::Kind::failure);
    CHECK(failure->expires == at(now + lasts));
    // A second worker that failed at the same time does not count twice.
    CHECK(cache.store_failure({a}, kUseless, {}, kByRule, at(now + 1)) == failure);
    CHECK(cache.find({a}, kTwo, at(now + lasts - 1)) == failure);
    CHECK(cache.find({a}, kTwo, at(now + lasts)) == nullptr);
    now += lasts;
  }
  // Long ago is not in a row.
  CHECK(cache.store_failure({a}, kUseless, {}, kByRule, at(now + 301))->failures == 1);
  // A success ends the row.
  cache.store({a}, answer(), kByRule, seconds(10), at(now + 310));
  CHECK(cache.store_failure({a}, kUseless, {}, kByRule, at(now + 320))->failures == 1);
}

TEST_CASE("that nobody answered is kept for 5 s each time, and counts for nothing") {
  AnswerCache cache;
  const Name a = name("a.org");
  std::int64_t now = 1000;
  const auto lasts = [&](AnswerCache::Failure why) {
    const auto failure = cache.store_failure({a}, why, {}, kByRule, at(now));
    CHECK(cache.find({a}, kTwo, failure->expires - seconds(1)) == failure);
    const auto duration = failure->expires - at(now);
    now += duration / seconds(1);
    return duration / seconds(1);
  };
  for (int i = 0; i < 5; ++i) CHECK(lasts(kSilence) == 5);
  CHECK(lasts(kUseless) == 5);
  CHECK(lasts(kUseless) == 10);
  CHECK(lasts(kSilence) == 5);
  CHECK(lasts(kUseless) == 20);
}

TEST_CASE("a failure does not end a valid answer early") {
  AnswerCache cache;
  const Name a = name("a.org");
  const auto good = cache.store({a}, answer(), kByRule, seconds(60), at(0));
  CHECK(cache.store_failure({a}, kUseless, {}, kByRule, at(10)) == good);
  CHECK(cache.find({a}, kOne, at(11)) == good);
}

TEST_CASE("memory is bounded and what was not asked for goes first") {
  AnswerCache cache = small(64 * 1024, 0);
  for (int i = 0; i < 50; ++i) cache.store({numbered(i)}, answer(), kByRule, seconds(600), at(0));
  REQUIRE(cache.statistics().entries == 50);
  for (int i = 50; i < 5000; ++i) {
    // The first ten are asked for again and again.
    for (int hot = 0; hot < 10; ++hot) CHECK(cache.find({numbered(hot)}, kOne, at(1)));
    cache.store({numbered(i)}, answer(), kByRule, seconds(600), at(1));
    REQUIRE(cache.statistics().bytes <= 64 * 1024);
  }
  CHECK(cache.statistics().evictions > 4000);
  CHECK(cache.statistics().entries > 100);
}

TEST_CASE("the bytes that are counted are those that are taken") {
  AnswerCache cache = small(1 << 20, 0);
  for (int i = 0; i < 100; ++i)
    cache.store({numbered(i)}, answer(1000), kByRule, seconds(600), at(0));
  CHECK(cache.statistics().bytes > 100 * 1000);
  CHECK(cache.statistics().bytes < 100 * 1600);
}

TEST_CASE("an answer that would take a large part of the cache is not kept") {
  AnswerCache cache = small(64 * 1024, 0);
  const Name a = name("a.org");
  const auto large = cache.store({a}, answer(40000), kByRule, seconds(60), at(0));
  CHECK(large->message.size() == 40000);
  CHECK(cache.find({a}, kOne, at(1)) == nullptr);
}

TEST_CASE("names that only a wildcard allows displace no others") {
  AnswerCache cache = small(128 * 1024);
  for (int i = 0; i < 50; ++i) cache.store({numbered(i)}, answer(), kByRule, seconds(600), at(0));
  for (int i = 1000; i < 20000; ++i)
    cache.store({numbered(i)}, answer(), {.attachment = kTwo, .by_wildcard = true}, seconds(600),
                at(1));
  for (int i = 0; i < 50; ++i) CHECK(cache.find({numbered(i)}, kOne, at(2)));
  CHECK(cache.statistics().trial_bytes <= 64 * 1024);
}

TEST_CASE("what a second attachment asks for has stood its trial") {
  AnswerCache cache = small(128 * 1024);
  const AnswerCache::Origin wildcard{.attachment = kOne, .by_wildcard = true};
  const Name popular = name("popular.example.org"), own = name("own.example.org");
  cache.store({popular}, answer(), wildcard, seconds(600), at(0));
  cache.store({own}, answer(), wildcard, seconds(600), at(0));
  CHECK(cache.statistics().trial_entries == 2);
  for (int i = 0; i < 5; ++i)
    CHECK(cache.find({own}, kOne, at(1)));  // asking oneself proves nothing
  CHECK(cache.statistics().trial_entries == 2);
  CHECK(cache.find({popular}, kTwo, at(1)));
  CHECK(cache.statistics().trial_entries == 1);
  CHECK(cache.statistics().entries == 2);
  for (int i = 0; i < 20000; ++i)
    cache.store({numbered(i)}, answer(), wildcard, seconds(600), at(1));
  CHECK(cache.find({popular}, kOne, at(2)));
  CHECK_FALSE(cache.find({own}, kOne, at(2)));
  // Stored anew, by a wildcard again: it stays.
  cache.store({popular}, answer(), wildcard, seconds(600), at(3));
  for (int i = 0; i < 20000; ++i)
    cache.store({numbered(i)}, answer(), wildcard, seconds(600), at(3));
  CHECK(cache.find({popular}, kOne, at(4)));
}

TEST_CASE("a flooder displaces itself, not its neighbours, in both parts") {
  for (const bool by_wildcard : {true, false})
    for (const int flooders : {1, 8}) {
      INFO("by wildcard " << by_wildcard << ", flooders " << flooders);
      AnswerCache cache = small(1 << 20);
      // Twenty quiet attachments with ten names each, some of which were never asked for again.
      for (int quiet = 0; quiet < 20; ++quiet)
        for (int i = 0; i < 10; ++i)
          cache.store(
              {name("q" + std::to_string(quiet) + "." + std::to_string(i) + ".org")}, answer(),
              {.attachment = {static_cast<std::uint64_t>(100 + quiet)}, .by_wildcard = by_wildcard},
              seconds(600), at(0));
      for (int i = 0; i < 40000; ++i)
        cache.store({numbered(i)}, answer(),
                    {.attachment = {static_cast<std::uint64_t>(1 + i % flooders)},
                     .by_wildcard = by_wildcard},
                    seconds(600), at(1));
      int kept = 0;
      for (int quiet = 0; quiet < 20; ++quiet)
        for (int i = 0; i < 10; ++i)
          kept += cache.find({name("q" + std::to_string(quiet) + "." + std::to_string(i) + ".org")},
                             {static_cast<std::uint64_t>(100 + quiet)}, at(2)) != nullptr;
      CHECK(kept == 200);
    }
}

TEST_CASE("what an attachment left behind stays, and is the first to go") {
  AnswerCache cache = small(256 * 1024);
  for (int i = 0; i < 300; ++i) cache.store({numbered(i)}, answer(), kByRule, seconds(600), at(0));
  cache.forget(kOne);
  CHECK(cache.find({numbered(5)}, kTwo, at(1)));
  CHECK(cache.statistics().entries == 300);
  for (int i = 1000; i < 1200; ++i)
    cache.store({numbered(i)}, answer(), {.attachment = kTwo, .by_wildcard = false}, seconds(600),
                at(1));
  for (int i = 1000; i < 1200; ++i) CHECK(cache.find({numbered(i)}, kTwo, at(2)));
  CHECK(cache.statistics().entries < 500);
}

TEST_CASE("names packed are the names given") {
  PackedNames names;
  const Name all[] = {name("a.org"), Name(), name("b.a.org"), name(std::string(63, 'x') + ".org")};
  for (const Name& one : all) names.add(one);
  CHECK(names.size() == 4);
  std::size_t at = 0;
  names.for_each([&](const Name& one) {
    CHECK(one == all[at]);
    ++at;
    return true;
  });
  CHECK(at == 4);
  at = 0;
  names.for_each([&](const Name&) { return ++at != 2; });
  CHECK(at == 2);
}

TEST_CASE("one shard or many, all is found again") {
  for (const unsigned shards : {1u, 2u, 3u, 64u}) {
    AnswerCache cache({.bytes = 64 << 20, .shards = shards});
    for (int i = 0; i < 2000; ++i)
      cache.store({numbered(i)}, answer(10), kByRule, seconds(600), at(0));
    int found = 0;
    for (int i = 0; i < 2000; ++i) found += cache.find({numbered(i)}, kOne, at(1)) != nullptr;
    CHECK(found == 2000);
  }
}

TEST_CASE("many threads store, find, promote, erase and forget") {
  AnswerCache cache({.bytes = 512 * 1024, .shards = 4});
  std::atomic<int> wrong{0};
  std::vector<std::jthread> threads;
  for (unsigned t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      for (int i = 0; i < 20000; ++i) {
        const int which = static_cast<int>(random() % 3000);
        const Name one = numbered(which);
        const AttachmentId id{1 + random() % 6};
        const auto now = at(i / 100);
        // The message says which name it belongs to.
        const auto size = static_cast<std::size_t>(20 + which % 200);
        switch (random() % 10) {
          case 0:
            cache.erase({one});
            break;
          case 1:
            cache.store_failure({one}, random() % 2 == 0 ? kUseless : kSilence, answer(size),
                                {id, random() % 2 == 0}, now);
            break;
          case 2:
            if (random() % 50 == 0) cache.forget(id);
            break;
          case 3:
          case 4:
          case 5:
            cache.store({one}, answer(size), {id, random() % 2 == 0}, seconds(random() % 50), now);
            break;
          default:
            if (const auto found = cache.find({one}, id, now))
              wrong += found->message.size() != size || found->expires <= now;
        }
      }
    });
  threads.clear();
  CHECK(wrong == 0);
  CHECK(cache.statistics().bytes <= 512 * 1024);
  cache.clear();
  CHECK(cache.statistics().bytes == 0);
  CHECK(cache.statistics().entries == 0);
}
