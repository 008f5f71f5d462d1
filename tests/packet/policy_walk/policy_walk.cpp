// The kernel's verdicts are those of the rules: random policies, from the heap and from a blob.
#include <unistd.h>

#include <cstdio>

#define DOCTEST_CONFIG_IMPLEMENT
#include "packet/policy_walk/kernel_walk.hpp"
#include "unit/policy/oracle.hpp"
#include "unit/policy/random_policy.hpp"

#include <doctest/doctest.h>

namespace sluice::test {
namespace {

void same_verdicts(std::uint64_t seed, const RandomShape& shape, Storage storage,
                   std::size_t packets, std::uint64_t& verdicts, bool has_direct_table = false) {
  Random random(seed);
  const RandomPolicy policy = random.policy(shape);
  const auto inputs = policy.inputs();
  const auto compiled = compile(inputs, policy.floor, BootTime{Random::kStart});
  REQUIRE(compiled);
  const sluice_policy& made = compiled->descriptor;
  CHECK((made.ip4.direct_bits != 0 || made.ip6.direct_bits != 0) == has_direct_table);
  std::vector<Question> questions;
  std::vector<std::uint32_t> expected;
  for (std::size_t i = 0; i < packets; ++i) {
    const Packet packet = random.packet();
    const std::uint64_t now = std::max(random.time(), Random::kStart);
    questions.push_back({.address = packet.address,
                         .now = now,
                         .flags = packet.port ? SLUICE_PACKET_PORTS : SLUICE_PACKET_LATER_FRAGMENT,
                         .port = packet.port.value_or(0),
                         .protocol = packet.protocol,
                         .family = packet.family});
    expected.push_back(oracle(inputs, policy.floor, packet, now));
  }
  auto walk = KernelWalk::load(*compiled, questions, storage);
  REQUIRE_MESSAGE(walk, (walk ? "" : walk.error().message));
  const auto got = walk->verdicts();
  REQUIRE_MESSAGE(got, (got ? "" : got.error().message));
  for (std::size_t i = 0; i < got->size(); ++i) {
    CAPTURE(seed);
    CAPTURE(i);
    REQUIRE((*got)[i] == expected[i]);
  }
  verdicts += got->size();
}

TEST_CASE("the kernel's verdicts are those of the rules") {
  std::uint64_t verdicts = 0;
  for (Storage storage : {Storage::heap, Storage::blob}) {
    for (std::uint64_t seed = 1; seed <= 30; ++seed)
      same_verdicts(seed, {.rules = 1 + seed * 2}, storage, 1024, verdicts);
    for (double ip6 : {0.0, 1.0})
      for (std::size_t rules : {1500, 20000})
        same_verdicts(
            rules,
            {.rules = rules, .with_ports = 0.1, .with_expiry = 0.1, .ip6 = ip6, .nested = 0.5},
            storage, 2048, verdicts, rules == 20000);
  }
  std::printf("%llu verdicts in the kernel\n", static_cast<unsigned long long>(verdicts));
}

}  // namespace
}  // namespace sluice::test

int main(int argc, char** argv) {
  if (geteuid() != 0) {
    std::puts("skipped: loading BPF programs needs root");
    return 77;
  }
  return doctest::Context(argc, argv).run();
}
