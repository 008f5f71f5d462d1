// The kernel's learned addresses and what is kept in memory of them, over maps of the test's own.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dataplane/learned_map.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <optional>
#include <random>
#include <thread>

#include "unit/dataplane/learn_program.hpp"
#include "unit/dataplane/maps.hpp"

using namespace sluice;
using namespace sluice::test;

namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;

Address ip4(std::uint8_t c, std::uint8_t d) {
  return {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 51, c, d};
}
BootTime in(std::uint64_t seconds) {
  return {boot_now().nanoseconds + seconds * kSecond};
}
LearnedAddress lasting(const Address& address, BootTime active, BootTime grace) {
  return {.address = address, .active_until = active, .grace_until = grace};
}
std::vector<PortRange> ports(std::initializer_list<const char*> texts) {
  std::vector<PortRange> ranges;
  for (const char* text : texts) ranges.push_back(PortRange::parse(text).value());
  return ranges;
}

Fd learned_map(std::uint32_t entries) {
  LIBBPF_OPTS(bpf_map_create_opts, options, .map_flags = BPF_F_NO_PREALLOC);
  Fd map(bpf_map_create(BPF_MAP_TYPE_HASH, "test_learned", sizeof(sluice_learned_key),
                        sizeof(sluice_learned), entries, &options));
  REQUIRE_MESSAGE(map, "bpf_map_create: errno ", errno);
  return map;
}

struct Stage {
  Fd map, port_sets = array_map("test_port_sets", sizeof(sluice_port_set), 64);
  Fd program;
  KernelLearnedMap learned;
  Stage(bool with_program, std::uint32_t entries)
      : map(learned_map(entries)),
        program(with_program ? learn_program(map.get()) : Fd{}),
        learned(map.get(), port_sets.get(), 64, program.get()) {
    learned.open(1, "tap1");
    learned.open(2, "tap2");
  }
  [[nodiscard]] std::optional<sluice_learned> at(std::uint32_t scope, const Address& address) {
    sluice_learned_key key{};
    key.scope = scope;
    std::memcpy(key.address, address.data(), 16);
    sluice_learned value{};
    if (bpf_map_lookup_elem(map.get(), &key, &value) != 0) return std::nullopt;
    return value;
  }
  void packet_seen(std::uint32_t scope, const Address& address, std::uint64_t when) {
    auto value = at(scope, address).value();
    value.last_seen = when;
    sluice_learned_key key{};
    key.scope = scope;
    std::memcpy(key.address, address.data(), 16);
    REQUIRE(bpf_map_update_elem(map.get(), &key, &value, BPF_EXIST) == 0);
  }
  [[nodiscard]] std::map<std::pair<std::uint32_t, Address>, sluice_learned> all() {
    std::map<std::pair<std::uint32_t, Address>, sluice_learned> found;
    sluice_learned_key key{}, next{};
    for (const void* from = nullptr; bpf_map_get_next_key(map.get(), from, &next) == 0;
         from = &key) {
      key = next;
      Address address{};
      std::memcpy(address.data(), key.address, 16);
      if (const auto value = at(key.scope, address)) found[{key.scope, address}] = *value;
    }
    return found;
  }
};
// As it is from kernel 6.1, and before.
struct ByProgram : Stage {
  explicit ByProgram(std::uint32_t entries = 65536) : Stage(true, entries) {}
};
struct BySystemCalls : Stage {
  explicit BySystemCalls(std::uint32_t entries = 65536) : Stage(false, entries) {}
};

}  // namespace

TEST_CASE_TEMPLATE("one address, and many at once, are in the kernel when learn returns", T,
                   ByProgram, BySystemCalls) {
  T stage;
  const auto active = in(60), grace = in(90);
  const auto one = lasting(ip4(100, 1), active, grace);
  REQUIRE(stage.learned.learn(1, std::span(&one, 1), ports({"tcp/443"})));
  std::vector<LearnedAddress> many;
  for (std::uint8_t i = 0; i < 200; ++i) many.push_back(lasting(ip4(101, i), active, grace));
  REQUIRE(stage.learned.learn(1, many, {}));
  CHECK(stage.all().size() == 201);
  const auto value = stage.at(1, one.address).value();
  CHECK(value.active_until == active.nanoseconds);
  CHECK(value.grace_until == grace.nanoseconds);
  CHECK(value.port_set == 1);
  CHECK(stage.at(1, ip4(101, 199))->port_set == 0);
  CHECK_FALSE(stage.at(2, one.address));
}

TEST_CASE_TEMPLATE("an address learned again is as it was given last, and its last packet is known",
                   T, ByProgram, BySystemCalls) {
  T stage;
  const auto address = ip4(100, 1);
  const auto learn = [&](BootTime active, BootTime grace, const std::vector<PortRange>& list) {
    const auto one = lasting(address, active, grace);
    REQUIRE(stage.learned.learn(1, std::span(&one, 1), list));
    const auto value = stage.at(1, address).value();
    CHECK(value.active_until == active.nanoseconds);
    CHECK(value.grace_until == grace.nanoseconds);
    REQUIRE(stage.learned.all(1).size() == 1);
    CHECK(stage.learned.all(1)[0].ports == list);
    return value;
  };
  learn(in(600), in(600), {});
  stage.packet_seen(1, address, 4711);
  CHECK(learn(in(60), in(90), ports({"tcp/443"})).last_seen == 4711);    // narrower
  CHECK(learn(in(60), in(90), ports({"tcp/22"})).last_seen == 4711);     // other ports
  CHECK(learn(in(900), in(950), ports({"tcp/443"})).last_seen == 4711);  // longer
  CHECK(learn({1}, in(60), ports({"tcp/443"})).last_seen == 4711);       // in its grace
  CHECK(learn({1}, in(70), ports({"tcp/22"})).last_seen == 4711);        // with other ports
  CHECK(learn(in(60), in(90), ports({"tcp/443"})).last_seen == 4711);    // and back
  CHECK(stage.all().size() == 1);
}

TEST_CASE_TEMPLATE("a full map refuses the whole call, and what was there stays as it was", T,
                   ByProgram, BySystemCalls) {
  T stage(8);
  std::vector<LearnedAddress> few;
  for (std::uint8_t i = 0; i < 4; ++i) few.push_back(lasting(ip4(100, i), in(60), in(60)));
  REQUIRE(stage.learned.learn(1, few, ports({"tcp/443"})));
  const auto before = stage.all();
  std::vector<LearnedAddress> many;  // two that are known, with new ends and ports, and too many
  for (std::uint8_t i = 2; i < 60; ++i) many.push_back(lasting(ip4(100, i), in(600), in(600)));
  const auto refused = stage.learned.learn(1, many, {});
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == E2BIG);
  CHECK(refused.error().message.find("tap1") != std::string::npos);
  const auto after = stage.all();
  REQUIRE(after.size() == before.size());
  for (const auto& [key, value] : before) {
    CHECK(after.at(key).active_until == value.active_until);
    CHECK(after.at(key).port_set == value.port_set);
  }
  // And memory agrees with the kernel: what could not be written is written when there is room.
  const std::array gone{ip4(100, 0), ip4(100, 1)};
  REQUIRE(stage.learned.revoke(1, gone));
  const auto two = std::span(many).first(2);
  REQUIRE(stage.learned.learn(1, two, {}));
  CHECK(stage.at(1, ip4(100, 2))->active_until == many[0].active_until.nanoseconds);
}

TEST_CASE_TEMPLATE("of an address given twice the last counts, and it is undone to where it began",
                   T, ByProgram, BySystemCalls) {
  T stage(4);
  const auto brief = lasting(ip4(100, 1), in(60), in(60));
  const auto longer = lasting(ip4(100, 1), in(600), in(600));
  const LearnedAddress twice[] = {longer, brief, longer};
  REQUIRE(stage.learned.learn(1, twice, {}));
  CHECK(stage.at(1, brief.address)->active_until == longer.active_until.nanoseconds);
  stage.packet_seen(1, brief.address, 4711);
  std::vector<LearnedAddress> many;  // new ones twice as well, then more than there is room for
  for (std::uint8_t i = 1; i < 40; ++i) {
    many.push_back(lasting(ip4(100, i), in(900), in(900)));
    many.push_back(lasting(ip4(100, i), in(1000), in(1000)));
  }
  CHECK(stage.learned.learn(1, many, {}).error().code == E2BIG);
  CHECK(stage.all().size() == 1);
  CHECK(stage.at(1, brief.address)->active_until == longer.active_until.nanoseconds);
  CHECK(stage.at(1, brief.address)->last_seen == 4711);
}

TEST_CASE_TEMPLATE("a port list goes when its last address has gone, however that goes", T,
                   ByProgram, BySystemCalls) {
  T stage;  // 63 places
  const auto stays = lasting(ip4(1, 1), in(600), in(600));
  REQUIRE(stage.learned.learn(1, std::span(&stays, 1), ports({"udp/53"})));
  const auto kept = stage.at(1, stays.address)->port_set;
  for (std::uint16_t port = 1; port < 1000; ++port) {
    CAPTURE(port);
    const std::vector<PortRange> list{{6, false, port, port}}, other{{17, false, port, port}};
    const auto scope = 10u + port;
    stage.learned.open(scope, "tap");
    const LearnedAddress some[] = {lasting(ip4(2, 1), in(60), in(60)),
                                   lasting(ip4(2, 2), in(60), in(60))};
    REQUIRE(stage.learned.learn(scope, some, list));
    REQUIRE(stage.learned.learn(scope, std::span(some).first(1), other));
    stage.learned.reclaim_port_sets(stage.learned.idle_port_sets());
    sluice_port_set set{};
    std::uint32_t index = stage.at(scope, ip4(2, 2))->port_set;
    REQUIRE(bpf_map_lookup_elem(stage.port_sets.get(), &index, &set) == 0);
    CHECK(set.spans == 1);
    CHECK(set.span[0].ports.first == port);
    index = stage.at(scope, ip4(2, 1))->port_set;
    REQUIRE(bpf_map_lookup_elem(stage.port_sets.get(), &index, &set) == 0);
    CHECK(set.spans == 1);
    CHECK(set.span[0].protocol == 17);
    if (port % 4 == 0) {
      stage.learned.close(scope);
    } else if (port % 4 == 1) {
      REQUIRE(stage.learned.revoke(scope, std::array{ip4(2, 1), ip4(2, 2)}));
    } else if (port % 4 == 2) {
      REQUIRE(stage.learned.learn(scope, some, {}));
    } else {
      stage.learned.sweep(in(61));
    }
    CHECK(stage.at(1, stays.address)->port_set == kept);
    stage.learned.reclaim_port_sets(stage.learned.idle_port_sets());
  }
  CHECK(stage.learned.all(1)[0].ports == ports({"udp/53"}));
}

TEST_CASE_TEMPLATE("a closed scope leaves nothing behind and takes nothing any more", T, ByProgram,
                   BySystemCalls) {
  T stage;
  const auto address = lasting(ip4(100, 1), in(60), in(60));
  REQUIRE(stage.learned.learn(1, std::span(&address, 1), {}));
  REQUIRE(stage.learned.learn(2, std::span(&address, 1), {}));
  stage.learned.close(1);
  CHECK_FALSE(stage.at(1, address.address));
  CHECK(stage.at(2, address.address));
  CHECK(stage.learned.learn(1, std::span(&address, 1), {}).error().code == ENOENT);
  CHECK(stage.learned.revoke(1, std::span(&address.address, 1)).error().code == ENOENT);
  CHECK_FALSE(stage.at(1, address.address));
}

TEST_CASE_TEMPLATE("revoke takes out what is there and does not mind what is not", T, ByProgram,
                   BySystemCalls) {
  T stage;
  std::vector<LearnedAddress> many;
  std::vector<Address> odd;
  for (std::uint8_t i = 0; i < 100; ++i) {
    many.push_back(lasting(ip4(100, i), in(60), in(60)));
    if (i % 2 == 1) odd.push_back(many.back().address);
    odd.push_back(ip4(101, i));  // never learned
  }
  REQUIRE(stage.learned.learn(1, many, {}));
  // One is missing although it is thought to be there.
  sluice_learned_key key{};
  key.scope = 1;
  std::memcpy(key.address, ip4(100, 11).data(), 16);
  REQUIRE(bpf_map_delete_elem(stage.map.get(), &key) == 0);
  REQUIRE(stage.learned.revoke(1, odd));
  const auto left = stage.all();
  CHECK(left.size() == 50);
  for (const auto& [at, value] : left) CHECK(at.second[15] % 2 == 0);
}

TEST_CASE_TEMPLATE("what has ended is swept, wherever it stands among many", T, ByProgram,
                   BySystemCalls) {
  T stage;
  std::vector<LearnedAddress> many;
  for (std::uint32_t i = 0; i < 10000; ++i) {
    const auto address =
        ip4(static_cast<std::uint8_t>(i / 250), static_cast<std::uint8_t>(i % 250));
    many.push_back(i % 10 == 0 ? lasting(address, {1}, {2}) : lasting(address, in(60), in(60)));
  }
  REQUIRE(stage.learned.learn(1, many, {}));
  stage.learned.sweep(boot_now());
  CHECK(stage.all().size() == 9000);
  stage.learned.sweep(in(61));
  CHECK(stage.all().empty());
}

TEST_CASE_TEMPLATE(
    "the next daemon knows what the one before learned, and clears what has no attachment", T,
    ByProgram, BySystemCalls) {
  T stage;
  auto here = lasting(ip4(100, 1), in(600), in(600));
  here.owner = 4711;
  const auto gone = lasting(ip4(100, 2), in(600), in(600));
  REQUIRE(stage.learned.learn(1, std::span(&here, 1), ports({"tcp/443"})));
  REQUIRE(stage.learned.learn(2, std::span(&gone, 1), {}));
  KernelLearnedMap next(stage.map.get(), stage.port_sets.get(), 64);
  next.open(1, "tap1");
  next.adopt();
  const auto all = next.all(1);
  REQUIRE(all.size() == 1);
  CHECK(all[0].address.address == here.address);
  CHECK(all[0].address.active_until == here.active_until);
  CHECK(all[0].address.owner == 4711);
  CHECK(all[0].ports == ports({"tcp/443"}));
  CHECK(next.all(2).empty());
  CHECK(stage.at(1, here.address));
  CHECK_FALSE(stage.at(2, gone.address));
  const auto shorter = lasting(here.address, in(60), in(60));
  REQUIRE(next.learn(1, std::span(&shorter, 1), ports({"tcp/443"})));
  CHECK(stage.at(1, here.address)->active_until == shorter.active_until.nanoseconds);
  next.close(1);
  CHECK(stage.all().empty());
}

// Each thread has addresses of its own in scopes that all share, and keeps a model of them.
TEST_CASE_TEMPLATE("many threads at once: afterwards the kernel has what each of them was told", T,
                   ByProgram, BySystemCalls) {
  T stage;
  constexpr std::uint32_t kThreads = 4, kScopes = 6;
  for (std::uint32_t scope = 3; scope <= kScopes; ++scope) stage.learned.open(scope, "tap");
  using Model = std::map<std::pair<std::uint32_t, Address>, std::uint64_t>;
  std::vector<Model> models(kThreads);
  std::atomic<bool> wrong{false};
  std::array<std::atomic<bool>, kScopes + 1> closed{};
  std::vector<std::thread> threads;
  for (std::uint32_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      std::mt19937 random(thread);
      auto& model = models[thread];
      for (int round = 0; round < 3000; ++round) {
        const auto scope = 1 + random() % kScopes;
        std::vector<LearnedAddress> some;
        std::vector<Address> addresses;
        for (auto left = 1 + random() % 16; left > 0; --left) {
          addresses.push_back(
              ip4(static_cast<std::uint8_t>(thread), static_cast<std::uint8_t>(random() % 200)));
          some.push_back(lasting(addresses.back(), in(600 + random() % 100), in(800)));
        }
        const bool was_closed = closed[scope].load();
        if (random() % 4 != 0) {
          const auto list = random() % 2 ? ports({"tcp/443"}) : ports({"udp/53", "tcp/22"});
          const bool done = stage.learned.learn(scope, some, list).has_value();
          if (done && was_closed) wrong = true;
          if (!done) continue;
          for (const auto& one : some) {
            model[{scope, one.address}] = one.active_until.nanoseconds;
          }
        } else if (stage.learned.revoke(scope, addresses)) {
          for (const auto& address : addresses) model.erase({scope, address});
        }
      }
    });
  }
  for (const std::uint32_t scope : {5u, 6u}) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    stage.learned.sweep(boot_now());
    stage.learned.close(scope);
    closed[scope] = true;
  }
  for (auto& thread : threads) thread.join();
  CHECK_FALSE(wrong.load());
  Model expected;
  for (const auto& model : models) {
    for (const auto& [key, end] : model) {
      if (key.first < 5) expected[key] = end;
    }
  }
  const auto found = stage.all();
  REQUIRE(found.size() == expected.size());
  for (const auto& [key, end] : expected) {
    REQUIRE(found.contains(key));
    CHECK(found.at(key).active_until == end);
  }
}

TEST_CASE_TEMPLATE("the programs are told which addresses are worth looking up", T, ByProgram,
                   BySystemCalls) {
  T stage;
  std::array<__u64, SLUICE_LEARNED_BITS / 64> hints{};
  stage.learned.open(3, "tap3", hints.data());
  const auto hinted = [&](const Address& address) {
    std::uint64_t halves[2];
    std::memcpy(halves, address.data(), sizeof(halves));
    const auto bit = sluice_learned_bit(halves[0], halves[1]);
    return (hints[bit / 64] >> bit % 64 & 1) != 0;
  };
  CHECK(std::ranges::count(hints, 0u) == static_cast<std::ptrdiff_t>(hints.size()));
  const LearnedAddress brief[] = {lasting(ip4(1, 1), in(1), in(1)),
                                  lasting(ip4(1, 2), in(1), in(1))};
  const LearnedAddress lasts[] = {lasting(ip4(1, 3), in(600), in(600))};
  REQUIRE(stage.learned.learn(3, brief, {}));
  REQUIRE(stage.learned.learn(3, lasts, {}));
  for (std::uint8_t d : {1, 2, 3}) CHECK(hinted(ip4(1, d)));
  stage.learned.sweep(in(2));
  CHECK(hinted(ip4(1, 3)));
  CHECK_FALSE(hinted(ip4(1, 1)));
  CHECK_FALSE(hinted(ip4(1, 2)));

  // A daemon that finds them hints at them again.
  std::ranges::fill(hints, 0);
  KernelLearnedMap next(stage.map.get(), stage.port_sets.get(), 64);
  next.open(3, "tap3", hints.data());
  next.adopt();
  CHECK(hinted(ip4(1, 3)));
}

TEST_CASE_TEMPLATE("in grace, an address is unused when the last packet for it is too long ago", T,
                   ByProgram, BySystemCalls) {
  T stage;
  const std::array all{
      lasting(ip4(100, 1), in(-10), in(600)), lasting(ip4(100, 2), in(-10), in(600)),
      lasting(ip4(100, 3), in(60), in(600)), lasting(ip4(100, 4), in(-10), in(600))};
  REQUIRE(stage.learned.learn(1, all, {}));
  const auto now = boot_now().nanoseconds;
  stage.packet_seen(1, ip4(100, 2), now - 1'000'000'000);
  stage.packet_seen(1, ip4(100, 4), now - KernelLearnedMap::kIdle - 1'000'000'000);
  const std::array asked{ip4(100, 1), ip4(100, 2), ip4(100, 3), ip4(100, 4), ip4(100, 5)};
  CHECK(stage.learned.unused(1, asked) == std::vector{ip4(100, 1), ip4(100, 4)});
}
