// The compiled image and the plain reading of the rules agree, on millions of verdicts over random
// policies. `SLUICE_ORACLE_SECONDS` makes it go on with fresh seeds for that long.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "unit/policy/oracle.hpp"

#include <doctest/doctest.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "policy/explain.hpp"
#include "unit/policy/random_policy.hpp"

namespace sluice::test {
namespace {

struct Tally {
  std::uint64_t policies = 0, refused = 0, verdicts = 0;
  std::array<std::uint64_t, 4> by_verdict{};
  std::uint64_t ip6 = 0, chains = 0, direct_tables = 0;
};

std::string words(const Packet& packet, std::uint64_t now) {
  Prefix host{packet.address, packet.family,
              static_cast<std::uint8_t>(packet.family == 4 ? 32 : 128)};
  return fmt::format("{} proto {} port {} at {}", host.text(), packet.protocol,
                     packet.port ? std::to_string(*packet.port) : "unknown", now);
}

// One policy, `packets` packets; false at the first disagreement, which it prints.
bool agree(Random& random, const RandomShape& shape, std::size_t packets, std::uint64_t seed,
           Tally& tally) {
  const RandomPolicy policy = random.policy(shape);
  const auto inputs = policy.inputs();
  const auto compiled = compile(inputs, policy.floor, BootTime{Random::kStart});
  ++tally.policies;
  if (!compiled) {
    // The only fault such a policy can have; it must name the rule.
    ++tally.refused;
    return compiled.error().code == E2BIG && compiled.error().rule_index != Error::kNoIndex;
  }
  tally.direct_tables +=
      compiled->descriptor.ip4.direct_bits != 0 || compiled->descriptor.ip6.direct_bits != 0;
  for (std::size_t i = 0; i < packets; ++i) {
    const Packet packet = random.packet();
    const std::uint64_t now = std::max(random.time(), Random::kStart);
    const std::uint32_t expected = oracle(inputs, policy.floor, packet, now);
    const std::uint32_t got = verdict(*compiled, packet, now);
    const Explanation explained = explain(inputs, policy.floor,
                                          {.address = packet.address,
                                           .family = packet.family,
                                           .protocol = packet.protocol,
                                           .port = packet.port},
                                          BootTime{now});
    ++tally.verdicts;
    ++tally.by_verdict[expected];
    tally.ip6 += packet.family == 6;
    tally.chains += trie_leaf(*compiled, packet) >= SLUICE_LEAF_DECISION;
    if (got == expected && static_cast<std::uint32_t>(explained.verdict) == expected) continue;
    std::printf("seed %llu: %s: rules say %u, image says %u, explain says %u\n",
                static_cast<unsigned long long>(seed), words(packet, now).c_str(), expected, got,
                static_cast<unsigned>(explained.verdict));
    for (const LayerInput& input : inputs)
      for (const Rule& rule : input.layer->rules)
        if (rule.prefix && inside(packet, *rule.prefix))
          std::printf("  %s expires %llu%s\n", describe(rule).c_str(),
                      static_cast<unsigned long long>(rule.expires.nanoseconds),
                      input.overrules_floor ? ", overrules the floor" : "");
    for (const Prefix& prefix : policy.floor.deny)
      if (inside(packet, prefix)) std::printf("  floor %s\n", prefix.text().c_str());
    return false;
  }
  return true;
}

void print(const char* what, const Tally& tally) {
  std::printf(
      "%s: %llu policies (%llu refused for chain length), %llu verdicts: none %llu, allow %llu, "
      "deny %llu, "
      "floor %llu; %llu IPv6, %llu by a decision chain\n",
      what, static_cast<unsigned long long>(tally.policies),
      static_cast<unsigned long long>(tally.refused),
      static_cast<unsigned long long>(tally.verdicts),
      static_cast<unsigned long long>(tally.by_verdict[0]),
      static_cast<unsigned long long>(tally.by_verdict[1]),
      static_cast<unsigned long long>(tally.by_verdict[2]),
      static_cast<unsigned long long>(tally.by_verdict[3]),
      static_cast<unsigned long long>(tally.ip6), static_cast<unsigned long long>(tally.chains));
  CHECK(tally.refused * 20 < tally.policies + 20);
}

TEST_CASE("small policies: the image says what the rules say") {
  Tally tally;
  bool fine = true;
  for (std::uint64_t seed = 1; fine && seed <= 12000; ++seed) {
    Random random(seed);
    RandomShape shape{.rules = 1 + random.below(40)};
    if (seed % 4 == 0) shape.with_ports = 0;  // inline leaves only
    if (seed % 4 == 1) shape.with_expiry = 0;
    if (seed % 16 == 2) shape.nested = 0.98;  // long chains of covering prefixes
    fine = agree(random, shape, 250, seed, tally);
  }
  CHECK(fine);
  print("small", tally);
}

TEST_CASE("large policies, with direct tables: the image says what the rules say") {
  Tally tally;
  bool fine = true;
  // IPv6 only, IPv4 only, both; of sizes at which the compiler takes different direct tables.
  for (std::uint64_t seed = 1; fine && seed <= 24; ++seed) {
    Random random(seed + 1000000);
    RandomShape shape{.rules = seed % 8 == 7 ? 60000u : seed % 2 ? 12000u : 1500u};
    shape.ip6 = seed % 3 == 0 ? 1.0 : seed % 3 == 1 ? 0.0 : 0.5;
    shape.nested = 0.3;
    shape.with_ports = seed % 4 == 0 ? 0 : 0.1;
    shape.with_expiry = 0.1;
    shape.floors = 1;
    fine = agree(random, shape,
                 shape.rules > 20000  ? 500
                 : shape.rules > 5000 ? 4000
                                      : 10000,
                 seed + 1000000, tally);
  }
  CHECK(tally.direct_tables >= 12);
  CHECK(fine);
  print("large", tally);
}

TEST_CASE("for as long as asked") {
  const char* seconds = std::getenv("SLUICE_ORACLE_SECONDS");
  if (seconds == nullptr) return;
  Tally tally;
  bool fine = true;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(seconds));
  std::uint64_t seed = std::random_device{}();
  for (seed <<= 32; fine && std::chrono::steady_clock::now() < end; ++seed) {
    Random random(seed);
    fine = agree(random, {.rules = 1 + random.below(100)}, 1000, seed, tally);
  }
  CHECK(fine);
  print("longer", tally);
}

}  // namespace
}  // namespace sluice::test
