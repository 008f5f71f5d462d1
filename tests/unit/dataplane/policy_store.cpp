// Where policies live in the kernel, over maps of the test's own: no region is handed out twice,
// equal policies exist once, space comes back only after its grace period, and what does not fit is
// refused whole.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dataplane/policy_store.hpp"

#include <map>
#include <random>

#include "unit/dataplane/maps.hpp"

using namespace sluice;
using namespace sluice::test;

namespace {

// A policy of `count` elements that all carry `seed`, so that what overwrites another is seen.
CompiledPolicy policy_of(std::uint64_t seed, std::uint32_t count) {
  CompiledPolicy policy;
  policy.elements.resize(count);
  for (std::uint32_t i = 0; i < count; ++i) {
    policy.elements[i].node.vector = seed;
    policy.elements[i].node.leafvec = i;
  }
  policy.descriptor.ip4.root = policy.descriptor.ip6.root = SLUICE_NO_TRIE;
  policy.descriptor.digest[0] = seed;
  policy.descriptor.digest[1] = count;
  return policy;
}

struct Stage {
  std::uint32_t policies, heap, blobs;
  Fd policy_map = array_map("test_policies", sizeof(sluice_policy), policies);
  Fd heap_map = array_map("test_heap", sizeof(sluice_element), heap, BPF_F_MMAPABLE);
  Fd blob_map = blobs_map(blobs);
  PolicyStore store{maps()};

  explicit Stage(std::uint32_t policy_entries = 16, std::uint32_t heap_entries = 1024,
                 std::uint32_t blob_entries = 4)
      : policies(policy_entries), heap(heap_entries), blobs(blob_entries) {}

  [[nodiscard]] PolicyStore::Maps maps() const {
    return {policy_map.get(), heap_map.get(), blob_map.get(), policies, heap, blobs};
  }
  [[nodiscard]] sluice_policy descriptor(std::uint32_t index) const {
    sluice_policy policy{};
    REQUIRE(bpf_map_lookup_elem(policy_map.get(), &index, &policy) == 0);
    return policy;
  }
  // Does the kernel hold every element of the policy, where its descriptor points?
  [[nodiscard]] bool holds(std::uint32_t index, const CompiledPolicy& policy) const {
    const sluice_policy found = descriptor(index);
    if (found.elements != policy.elements.size()) return false;
    Fd inner;
    if (found.blob != 0) {
      std::uint32_t id = 0;
      if (bpf_map_lookup_elem(blob_map.get(), &found.blob, &id) != 0) return false;
      inner = Fd(bpf_map_get_fd_by_id(id));
    }
    for (std::uint32_t i = 0; i < found.elements; ++i) {
      const bool in_blob = found.blob != 0;
      const std::uint32_t at = in_blob ? i / SLUICE_PAGE_ELEMENTS : found.base + i;
      sluice_blob_page page{};
      const sluice_element& element = page.element[in_blob ? i % SLUICE_PAGE_ELEMENTS : 0];
      if (bpf_map_lookup_elem(in_blob ? inner.get() : heap_map.get(), &at, &page) != 0 ||
          std::memcmp(&element, &policy.elements[i], sizeof(element)) != 0)
        return false;
    }
    return true;
  }
  void pass_grace_period() { store.reclaim(store.take_retired()); }
};

}  // namespace

TEST_CASE("an acquired policy is in the kernel, whole") {
  Stage stage;
  const auto small = policy_of(1, 7), empty = policy_of(2, 0), large = policy_of(3, 700);
  const auto first = stage.store.acquire(small).value();
  const auto second = stage.store.acquire(empty).value();
  const auto third = stage.store.acquire(large).value();
  CHECK(stage.holds(first, small));
  CHECK(stage.holds(second, empty));
  CHECK(stage.holds(third, large));
  CHECK(stage.descriptor(first).blob == 0);
  CHECK(stage.descriptor(third).blob != 0);  // over a third of the heap
  CHECK(first != 0);
  CHECK(stage.store.digest_of(first) == Digest{1, 7});
  CHECK(stage.store.digest_of(15) == Digest{});
}

TEST_CASE("equal policies exist once, for as long as anybody refers to them") {
  Stage stage;
  const auto policy = policy_of(1, 7);
  const auto index = stage.store.acquire(policy).value();
  CHECK(stage.store.acquire(policy).value() == index);
  stage.store.reference(index);
  stage.store.release(index);
  stage.store.release(index);
  CHECK(stage.store.take_retired().empty());
  stage.store.release(index);
  const auto retired = stage.store.take_retired();
  REQUIRE(retired.size() == 1);
  CHECK(retired[0].index == index);
  stage.store.reclaim(retired);
  CHECK(stage.store.digest_of(index) == Digest{});
}

TEST_CASE("space comes back only when its grace period is over") {
  Stage stage(16, 100);
  const auto first = policy_of(1, 25), second = policy_of(2, 25);
  const auto index = stage.store.acquire(first).value();
  const auto base = stage.descriptor(index).base;
  stage.store.release(index);
  const auto waiting = stage.store.take_retired();
  const auto other = stage.store.acquire(second).value();
  CHECK(other != index);
  CHECK(stage.descriptor(other).base != base);
  CHECK(stage.holds(index, first));  // a program may still be walking it
  stage.store.reclaim(waiting);
  const auto third = policy_of(3, 25);
  CHECK(stage.descriptor(stage.store.acquire(third).value()).base == base);
}

TEST_CASE("what is acquired again during its grace period is kept") {
  Stage stage;
  const auto policy = policy_of(1, 7);
  const auto index = stage.store.acquire(policy).value();
  stage.store.release(index);
  const auto waiting = stage.store.take_retired();
  CHECK(stage.store.acquire(policy).value() == index);
  stage.store.reclaim(waiting);
  CHECK(stage.store.digest_of(index) == Digest{1, 7});
  // Released once more: the old grace period does not count for the new release.
  stage.store.release(index);
  stage.store.reclaim(waiting);
  CHECK(stage.store.digest_of(index) == Digest{1, 7});
  const auto again = stage.store.take_retired();
  REQUIRE(again.size() == 1);
  CHECK(again[0].serial != waiting[0].serial);
  stage.store.reclaim(again);
  CHECK(stage.store.digest_of(index) == Digest{});
  stage.store.reclaim(again);  // twice is once
  CHECK(stage.descriptor(stage.store.acquire(policy_of(2, 7)).value()).base == 0);
}

TEST_CASE("a full heap makes a blob") {
  Stage stage(16, 100);
  for (std::uint64_t seed = 1; seed <= 4; ++seed)
    CHECK(stage.descriptor(stage.store.acquire(policy_of(seed, 25)).value()).blob == 0);
  const auto policy = policy_of(5, 25);
  const auto index = stage.store.acquire(policy).value();
  CHECK(stage.descriptor(index).blob != 0);
  CHECK(stage.holds(index, policy));
}

TEST_CASE("a full table refuses whole: nothing is taken, and what is there stays") {
  SUBCASE("policies") {
    Stage stage(4, 1024);
    std::vector<std::uint32_t> held;
    for (std::uint64_t seed = 1; seed <= 3; ++seed)
      held.push_back(stage.store.acquire(policy_of(seed, 10)).value());
    const auto refused = stage.store.acquire(policy_of(9, 10));
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == ENOSPC);
    CHECK(refused.error().message.find("max_attachments") != std::string::npos);
    for (std::uint64_t seed = 1; seed <= 3; ++seed)
      CHECK(stage.holds(held[seed - 1], policy_of(seed, 10)));
    CHECK(stage.store.acquire(policy_of(2, 10)).value() == held[1]);  // an equal one still fits
    stage.store.release(held[2]);
    stage.pass_grace_period();
    const auto fits = stage.store.acquire(policy_of(9, 10)).value();
    CHECK(stage.descriptor(fits).base == 20);  // the refusal took no space
  }
  SUBCASE("blobs") {
    Stage stage(16, 100, 3);
    const auto first = stage.store.acquire(policy_of(1, 50)).value();
    const auto second = stage.store.acquire(policy_of(2, 50)).value();
    const auto refused = stage.store.acquire(policy_of(3, 50));
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == ENOSPC);
    CHECK(stage.holds(first, policy_of(1, 50)));
    CHECK(stage.holds(second, policy_of(2, 50)));
    stage.store.release(first);
    stage.pass_grace_period();
    CHECK(stage.holds(stage.store.acquire(policy_of(3, 50)).value(), policy_of(3, 50)));
  }
}

TEST_CASE("what a daemon before left is adopted, and never handed out") {
  Stage stage(16, 100);
  const auto kept = policy_of(1, 20), gone = policy_of(2, 20);
  const auto dropped = stage.store.acquire(gone).value();
  const auto index = stage.store.acquire(kept).value();
  const auto large = stage.store.acquire(policy_of(3, 60)).value();
  REQUIRE(stage.descriptor(dropped).base == 0);
  PolicyStore next(stage.maps());
  REQUIRE(next.adopt(index, 2));
  REQUIRE(next.adopt(large, 1));
  CHECK(next.acquire(kept).value() == index);
  for (std::uint64_t seed = 10; seed < 16; ++seed) {
    const auto made = next.acquire(policy_of(seed, 20));
    if (made) CHECK(stage.holds(*made, policy_of(seed, 20)));
  }
  CHECK(stage.holds(index, kept));
  CHECK(stage.holds(large, policy_of(3, 60)));
  PolicyStore confused(stage.maps());
  REQUIRE(confused.adopt(index, 1));
  CHECK_FALSE(confused.adopt(index, 1));  // its region is taken
  CHECK_FALSE(confused.adopt(9999, 1));   // no such policy
}

TEST_CASE("ten thousand steps at random: no two live policies ever share an element") {
  Stage stage(64, 512, 8);
  std::mt19937_64 engine(7);
  const auto below = [&](std::uint64_t n) { return engine() % n; };
  struct Held {
    std::uint32_t index, references;
    CompiledPolicy policy;
  };
  std::map<std::uint64_t, Held> held;  // by seed
  std::vector<std::pair<std::vector<PolicyStore::Retired>, int>> waiting;
  std::uint64_t refused = 0, blobs = 0;
  for (int step = 0; step < 10000; ++step) {
    const std::uint64_t seed = 1 + below(40);
    if (below(100) < 55) {
      const auto policy = policy_of(seed, static_cast<std::uint32_t>(1 + seed * 7 % 130));
      const auto index = stage.store.acquire(policy);
      if (!index) {
        CHECK(index.error().code == ENOSPC);
        ++refused;
      } else if (auto it = held.find(seed); it != held.end()) {
        CHECK(it->second.index == *index);
        ++it->second.references;
      } else {
        held[seed] = {*index, 1, policy};
        blobs += stage.descriptor(*index).blob != 0 ? 1 : 0;
      }
    } else if (auto it = held.find(seed); it != held.end()) {
      stage.store.release(it->second.index);
      if (--it->second.references == 0) held.erase(it);
    }
    if (below(10) == 0) waiting.emplace_back(stage.store.take_retired(), step);
    if (!waiting.empty() && below(10) == 0) {
      stage.store.reclaim(waiting.front().first);
      waiting.erase(waiting.begin());
    }
    if (step % 100 != 0) continue;
    std::map<std::uint32_t, std::uint32_t> regions;  // heap: base to end
    for (const auto& [unused, one] : held) {
      CHECK(stage.holds(one.index, one.policy));
      const sluice_policy at = stage.descriptor(one.index);
      if (at.blob == 0) CHECK(regions.emplace(at.base, at.base + at.elements).second);
    }
    std::uint32_t end = 0;
    for (const auto& [base, until] : regions) {
      CHECK(base >= end);
      CHECK(until <= 512);
      end = until;
    }
  }
  CHECK(blobs > 0);
  MESSAGE(refused, " refused, ", blobs, " blobs");
}
