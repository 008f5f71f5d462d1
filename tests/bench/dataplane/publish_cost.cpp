// From rules to in force: compile, write, flip, read back.
#include <fstream>

#include "bench/dataplane/peers.hpp"
#include "bench/dataplane/sandbox.hpp"
#include "bench/dataplane/sections.hpp"

namespace sluice::bench {
namespace {

void settle(KernelDataPlane& plane) {
  for (int i = 0; i < 5; ++i) {
    plane.poll({});
    usleep(10000);
  }
}

void one_rule(KernelDataPlane& plane, std::uint32_t slot, std::size_t others, double budget50,
              double budget99, const Options& options) {
  Layer layer = layer_of(mixed_prefixes(others, 4), Action::allow);
  layer.rules.push_back(layer.rules.front());
  std::vector<double> took;
  const std::uint32_t times = options.quick ? 300 : 2000;
  for (std::uint32_t i = 0; i < times; ++i) {
    layer.rules.back().prefix =
        Prefix::parse(fmt::format("203.0.{}.{}/32", 113 + i / 250, 1 + i % 250)).value();
    took.push_back(timed([&] {
      const CompiledPolicy policy = must_compile(layer);
      need(plane.publish({.slot = slot, .mode = Mode::allowlist, .policy = &policy}), "publish");
    }));
    plane.poll({});
  }
  const std::string name = fmt::format("one rule more, beside {}: ", others);
  row(name + "p50", quantile(took, 0.5), budget50);
  row(name + "p99", quantile(took, 0.99), budget99);
}

void replace(KernelDataPlane& plane, std::uint32_t slot, std::size_t count, double budget,
             const Options& options) {
  const auto first = mixed_prefixes(count, 4, 1), second = mixed_prefixes(count, 4, 2);
  const Layer layers[] = {layer_of(first, Action::allow), layer_of(second, Action::allow)};
  std::vector<double> took, compile_part, with_text;
  const int times = options.quick ? 3 : count >= 1000000 ? 5 : 15;
  std::vector<std::string> texts;
  for (const Prefix& prefix : first) texts.push_back(prefix.text());
  for (int i = 0; i < times; ++i) {
    took.push_back(timed([&] {
      CompiledPolicy policy;
      compile_part.push_back(timed([&] { policy = must_compile(layers[i % 2]); }));
      need(plane.publish({.slot = slot, .mode = Mode::allowlist, .policy = &policy}), "publish");
    }));
    settle(plane);
  }
  const double parsing = timed([&] {
    for (const std::string& text : texts)
      if (!Prefix::parse(text)) give_up(text);
  });
  std::vector<Peer> peers{{"of it compile", median(compile_part)}, {"from text +", parsing}};

  // The peers' tools parse text too; a million takes nft long, so it is replaced once.
  const auto file = [](const char* name) { return (scratch() / name).string(); };
  if (have_tool("nft")) {
    shell(
        "ip link show nftbench >/dev/null 2>&1 || ip link add nftbench type veth peer name "
        "nftpeer");
    write_nft_set(file("nft"), "nftbench", first);
    write_nft_replacement(file("nft-again"), second);
    shell("nft -f " + file("nft"));
    peers.push_back({"nft -f", timed([&] { shell("nft -f " + file("nft-again")); })});
    shell("nft delete table netdev bench");
  }
  if (have_tool("ipset")) {
    write_ipset(file("ipset"), "first", first);
    write_ipset(file("ipset-again"), "second", second);
    shell("ipset restore -f " + file("ipset"));
    peers.push_back({"ipset restore and swap", timed([&] {
                       shell("ipset restore -f " + file("ipset-again") +
                             " && ipset swap first second");
                     })});
    shell("ipset destroy");
  }
  row(fmt::format("{} prefixes replaced", count), median(took), budget, peers);
}

}  // namespace

void publish_cost(const Options& options) {
  heading("Publish",
          "from rules in memory to in force and read back; peers from text, by their tools");
  const HostConfig config = host_config("auto");
  const auto plane = open_plane(config);
  const Tap tap("bench0");
  const auto attachment =
      need(plane->attach(InterfaceTarget{.ifindex = tap.ifindex()}, nullptr), "attach");
  settle(*plane);
  one_rule(*plane, attachment.slot, 10, 50e3, 1e6, options);
  one_rule(*plane, attachment.slot, 100, 50e3, 1e6, options);
  one_rule(*plane, attachment.slot, 4000, 50e3, 1e6, options);
  settle(*plane);
  replace(*plane, attachment.slot, 4000, 3e6, options);
  replace(*plane, attachment.slot, 100000, 50e6, options);
  if (!options.quick) replace(*plane, attachment.slot, 1000000, 500e6, options);
  need(plane->detach(attachment.slot), "detach");
}

}  // namespace sluice::bench
