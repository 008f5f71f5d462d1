// The whole filter: frames written to a tap, each to another destination, all of them dropped, by
// a bare drop or by a contender. Every contender has a tap of its own and holds the same prefixes;
// they take turns. Time is the writer's CPU time, since a tap hands the frame to the stack inside
// write().
#include <bpf/bpf.h>
#include <netinet/in.h>
#include <unistd.h>

#include <cstring>

#include "bench/dataplane/peers.hpp"
#include "bench/dataplane/sandbox.hpp"
#include "bench/dataplane/sections.hpp"
#include "dataplane/tc_filter.hpp"

namespace sluice::bench {
namespace {

// Of the IPv4 header: iptables sees a packet only after the stack has checked it.
void set_checksum(std::vector<std::uint8_t>& frame) {
  frame[24] = frame[25] = 0;
  std::uint32_t sum = 0;
  for (unsigned i = 14; i < 34; i += 2)
    sum += static_cast<std::uint32_t>(frame[i] << 8 | frame[i + 1]);
  sum = (sum & 0xffff) + (sum >> 16);
  sum = ~((sum & 0xffff) + (sum >> 16));
  frame[24] = static_cast<std::uint8_t>(sum >> 8);
  frame[25] = static_cast<std::uint8_t>(sum);
}

struct Contender {
  std::string name;
  std::unique_ptr<Tap> tap;
  std::vector<std::uint8_t> frame;
  std::vector<double> took;

  explicit Contender(std::string title, const std::string& device)
      : name(std::move(title)),
        tap(std::make_unique<Tap>(device)),
        frame(packet(4, IPPROTO_UDP, tap->mac(), {})) {}

  void round(const std::vector<Address>& destinations, std::size_t from, std::size_t count) {
    const double start = cpu_now();
    for (std::size_t i = from; i < from + count; ++i) {
      std::memcpy(frame.data() + 30, destinations[i % destinations.size()].data(), 4);
      set_checksum(frame);
      if (write(tap->fd(), frame.data(), frame.size()) < 0)
        give_up(fmt::format("{}: write to the tap: {}", name, strerror(errno)));
    }
    took.push_back((cpu_now() - start) / static_cast<double>(count));
  }
};

void measure(std::vector<Contender>& contenders, const std::string& what,
             const std::vector<Address>& destinations, double budget, const Options& options) {
  const std::size_t count = options.quick ? 10000 : 30000;
  const int rounds = options.quick ? 7 : 15;
  for (Contender& one : contenders) one.took.clear();
  for (int round = 0; round < rounds; ++round)
    for (Contender& one : contenders)
      one.round(destinations, static_cast<std::size_t>(round) * count, count);
  const double base = undisturbed(contenders[0].took);
  const auto over = [&](const Contender& one) { return undisturbed(one.took) - base; };
  std::vector<Peer> peers{{"bare drop", base}};
  for (std::size_t i = 2; i < contenders.size(); ++i)
    peers.push_back({contenders[i].name + " +", over(contenders[i])});
  row(what, over(contenders[1]), budget, peers);
}

void one_size(std::size_t count, double budget, const Options& options) {
  const auto set = mixed_prefixes(count, 4);
  const auto pins = host_config("tcx").bpffs;
  const std::string suffix = std::to_string(count % 7);  // device names of this size
  std::vector<Contender> contenders;

  PeerPrograms peers;
  const HostConfig config = host_config("tcx");
  const auto plane = open_plane(config);
  contenders.emplace_back("bare drop", "drop" + suffix);
  const Fd drop = need(attach_tcx(contenders.back().tap->ifindex(), Hook::ingress,
                                  peers.bare_drop(), pins / ("drop" + suffix)),
                       "bare drop");

  contenders.emplace_back("sluice", "sluice" + suffix);
  const CompiledPolicy policy = must_compile(layer_of(set, Action::deny));
  AttachmentOptions silent;
  silent.tell = false;  // an answer is another packet, at most 1,000 a second; not part of this
  const PublishRequest request{.mode = Mode::allowlist, .options = silent, .policy = &policy};
  const auto attachment =
      need(plane->attach(InterfaceTarget{.ifindex = contenders.back().tap->ifindex()}, &request),
           "attach");

  std::string absent;
  if (have_tool("nft")) {
    contenders.emplace_back("nft", "nft" + suffix);
    write_nft_set(scratch() / "nft", "nft" + suffix, set);
    shell("nft -f " + (scratch() / "nft").string());
  } else {
    absent += " nft";
  }
  if (have_tool("ipset") && have_tool("iptables-legacy")) {
    contenders.emplace_back("ipset", "ipset" + suffix);
    write_ipset(scratch() / "ipset", "listed" + suffix, set);
    shell("ipset restore -f " + (scratch() / "ipset").string());
    const std::string table = "iptables-legacy -w -t raw -A PREROUTING -i ipset" + suffix;
    shell(table + " -m set --match-set listed" + suffix + " dst -j DROP");
    shell(table + " -j DROP");
  } else {
    absent += " ipset";
  }
  contenders.emplace_back("LPM_TRIE", "trie" + suffix);
  peers.set_trie(set, false);
  const Fd trie = need(attach_tcx(contenders.back().tap->ifindex(), Hook::ingress,
                                  peers.trie_filter(), pins / ("trie" + suffix)),
                       "LPM trie");

  measure(contenders, fmt::format("{} prefixes, to addresses they deny", count),
          inside(set, 1u << 18), budget, options);
  measure(contenders, fmt::format("{} prefixes, to addresses of none of them", count),
          outside(set, 1u << 18), budget, options);
  if (!absent.empty()) row_text("not installed:" + absent, "");
  need(plane->detach(attachment.slot), "detach");
  if (have_tool("nft")) shell("nft delete table netdev bench");
  if (have_tool("iptables-legacy")) shell("iptables-legacy -w -t raw -F; ipset destroy || true");
}

}  // namespace

void filter_cost(const Options& options) {
  heading("Whole filter, deny",
          "frames written to a tap, random destinations, cost over a bare TCX drop");
  one_size(1000, 150, options);
  one_size(options.quick ? 100000 : 1000000, options.quick ? 0 : 400, options);
}

}  // namespace sluice::bench
