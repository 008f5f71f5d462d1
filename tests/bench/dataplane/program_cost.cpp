// The program alone, through BPF_PROG_TEST_RUN, over a no-op program: no device, no driver, no
// stack. Hot: one destination again and again, what a flow sees. Random: another of 262,144
// destinations on every run, set by a small program before ours, so that the caches are cold.
#include <bpf/bpf.h>
#include <netinet/in.h>

#include <cstring>

#include "bench/dataplane/peers.hpp"
#include "bench/dataplane/sandbox.hpp"
#include "bench/dataplane/sections.hpp"

namespace sluice::bench {
namespace {

constexpr std::size_t kRandom = 1u << 18, kLearned = 1u << 16;
constexpr int kPasses = -1;  // TCX_NEXT

// Nanoseconds per run; ends the section when the verdict is not the expected one.
double run(int program, const std::vector<std::uint8_t>& frame, std::uint32_t ifindex, int repeat) {
  __sk_buff context{};
  context.ifindex = ifindex;
  std::vector<std::uint8_t> out(frame.size() + 64);
  LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = frame.data(), .data_out = out.data(),
              .data_size_in = static_cast<std::uint32_t>(frame.size()),
              .data_size_out = static_cast<std::uint32_t>(out.size()), .ctx_in = &context,
              .ctx_size_in = sizeof(context), .repeat = repeat);
  // Not options.duration, which goes on while others have the CPU.
  const double start = cpu_now();
  if (bpf_prog_test_run_opts(program, &options) != 0)
    give_up(fmt::format("BPF_PROG_TEST_RUN: {}", strerror(errno)));
  if (static_cast<int>(options.retval) != kPasses)
    give_up(fmt::format("BPF_PROG_TEST_RUN: verdict {} instead of {}",
                        static_cast<int>(options.retval), kPasses));
  return (cpu_now() - start) / repeat;
}

struct Bed {
  const Options& options;
  HostConfig config = host_config("tcx");
  std::unique_ptr<KernelDataPlane> plane = open_plane(config);
  Tap tap{"bench0"};
  PeerPrograms peers;
  KernelAttachment attachment =
      need(plane->attach(InterfaceTarget{.name = "bench0", .ifindex = tap.ifindex()}, nullptr),
           "attach");
  Fd filter = linked_program(config, attachment.slot);

  explicit Bed(const Options& chosen) : options(chosen) {}

  struct Cost {
    double noop, over, trie;
  };
  static Cost cost_of(const std::vector<double>& noop, const std::vector<double>& ours,
                      const std::vector<double>& trie) {
    const double base = undisturbed(noop);
    return {base, undisturbed(ours) - base, trie.empty() ? 0 : undisturbed(trie) - base};
  }
  // In turns, so that a disturbance does not fall on one of them only.
  Cost measure(const std::vector<std::uint8_t>& frame, int noop, int ours, int trie) const {
    const int rounds = options.quick ? 7 : 21, repeat = options.quick ? 50000 : 100000;
    std::vector<double> base, with, peer;
    for (int round = 0; round < rounds; ++round) {
      base.push_back(run(noop, frame, tap.ifindex(), repeat));
      with.push_back(run(ours, frame, tap.ifindex(), repeat));
      if (trie >= 0) peer.push_back(run(trie, frame, tap.ifindex(), repeat));
    }
    return cost_of(base, with, peer);
  }
  Cost hot(const std::vector<std::uint8_t>& frame, bool trie) const {
    return measure(frame, peers.do_nothing(), filter.get(), trie ? peers.trie_filter() : -1);
  }
  Cost random(const std::vector<std::uint8_t>& frame, std::uint8_t family,
              const std::vector<Address>& destinations, bool trie) {
    peers.set_destinations(destinations, family);
    const int rounds = options.quick ? 5 : 9;
    std::vector<double> base, with, peer;
    const auto contender = [&](int program) {
      peers.set_contender(program);
      return run(peers.aim(family), frame, tap.ifindex(), kRandom);
    };
    for (int round = 0; round < rounds; ++round) {
      base.push_back(contender(peers.do_nothing()));
      with.push_back(contender(filter.get()));
      if (trie) peer.push_back(contender(peers.trie_filter()));
    }
    return cost_of(base, with, peer);
  }

  void learn(const std::vector<Address>& addresses, std::uint8_t family) {
    const std::uint64_t until = boot_now().nanoseconds + 3600'000'000'000ull;
    std::vector<LearnedAddress> learned;
    for (const Address& address : addresses)
      learned.push_back({mapped(address, family), {until}, {until}});
    need(plane->learned().learn(attachment.scope, learned, {}), "learn");
  }
  void forget(const std::vector<Address>& addresses, std::uint8_t family) {
    std::vector<Address> keys;
    for (const Address& address : addresses) keys.push_back(mapped(address, family));
    need(plane->learned().revoke(attachment.scope, keys), "revoke");
  }
};

void print(const std::string& what, const Bed::Cost& cost, double budget) {
  std::vector<Peer> others{{"no-op", cost.noop}};
  if (cost.trie > 0) others.push_back({"LPM_TRIE over no-op", cost.trie});
  row(what, cost.over, budget, others);
}

void one_size(Bed& bed, std::uint8_t family, std::size_t count) {
  const auto set = mixed_prefixes(count, family);
  const CompiledPolicy policy = must_compile(layer_of(set, Action::allow));
  need(
      bed.plane->publish({.slot = bed.attachment.slot, .mode = Mode::allowlist, .policy = &policy}),
      "publish");
  const bool trie = family == 4;
  if (trie) bed.peers.set_trie(set, true);
  const auto nets = inside(set, kRandom);
  const auto names = outside(set, kLearned);
  bed.learn(names, family);
  const auto frame = [&](std::uint8_t protocol, const Address& to) {
    return packet(family, protocol, bed.tap.mac(), to);
  };
  const std::string name = fmt::format("IPv{}, {} prefixes: ", family, count);
  print(name + "net, hot", bed.hot(frame(IPPROTO_TCP, nets[0]), trie), 60);
  print(name + "net, hot, UDP", bed.hot(frame(IPPROTO_UDP, nets[0]), false), 60);
  print(name + "net, random", bed.random(frame(IPPROTO_TCP, nets[0]), family, nets, trie), 0);
  print(name + "learned, hot", bed.hot(frame(IPPROTO_TCP, names[0]), false), 60);
  print(name + "learned, random of 65,536",
        bed.random(frame(IPPROTO_TCP, names[0]), family, names, false), 0);
  bed.forget(names, family);
  bed.plane->poll({});
}

}  // namespace

void program_cost(const Options& options) {
  heading("Program alone, allow", "BPF_PROG_TEST_RUN, cost over a no-op program");
  Bed bed(options);
  for (const std::uint8_t family : {std::uint8_t{4}, std::uint8_t{6}})
    for (const std::size_t count : {1000, 100000, 1000000})
      if (!options.quick || count <= 100000) one_size(bed, family, count);
}

}  // namespace sluice::bench
