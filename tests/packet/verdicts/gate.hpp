// One attached interface, and the real programs over packets of our own by BPF_PROG_TEST_RUN: what
// passes, by which reason, and what the counters say of it.
//
//   Gate gate;
//   gate.publish({allowing("198.51.100.0/24")});
//   gate.check({{"what is listed passes", framed(ip4(...)), SLUICE_REASON_ALLOW_RULE}});
#pragma once

#include <bpf/bpf.h>
#include <doctest/doctest.h>
#include <linux/bpf.h>

#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "packet/dataplane/lab.hpp"
#include "packet/verdicts/packets.hpp"
#include "packet/verdicts/verdict_names.hpp"

namespace sluice::test {

constexpr int kPass = -1, kDrop = 2, kRedirect = 7;  // TCX_NEXT, TCX_DROP, TCX_REDIRECT

inline Rule rule(Action action, const char* prefix, std::initializer_list<const char*> ports = {},
                 BootTime expires = {}) {
  Rule made;
  made.action = action;
  made.prefix = Prefix::parse(prefix).value();
  for (const char* text : ports) made.ports.push_back(PortRange::parse(text).value());
  made.expires = expires;
  return made;
}
inline Rule allowing(const char* prefix, std::initializer_list<const char*> ports = {},
                     BootTime expires = {}) {
  return rule(Action::allow, prefix, ports, expires);
}
inline Rule denying(const char* prefix, std::initializer_list<const char*> ports = {},
                    BootTime expires = {}) {
  return rule(Action::deny, prefix, ports, expires);
}
inline BootTime from_now(std::int64_t seconds) {
  return {boot_now().nanoseconds + static_cast<std::uint64_t>(seconds * 1'000'000'000)};
}

// No answers to denied packets, so that a denial is a plain drop; everything else as by default.
inline AttachmentOptions plain() {
  AttachmentOptions options;
  options.tell = false;
  return options;
}

struct Case {
  std::string description;
  Bytes frame;
  sluice_reason reason;
};

struct Run {
  int verdict = 0;
  Bytes frame;  // as the program left it
  std::uint32_t mark = 0;
};

class Gate {
 public:
  explicit Gate(std::uint32_t events_burst = 100) : lab_(configured(events_burst)) {
    // Guests that say nothing of their own (router solicitations, listener reports): each packet
    // that is counted is the test's.
    lab_->run(
        "ip link add host1 type veth peer name guest1; "
        "sysctl -qw net.ipv6.conf.guest1.disable_ipv6=1; ip link set host1 up");
    lab_->in_guest("sysctl -qw net.ipv6.conf.guest0.disable_ipv6=1; ip addr flush dev guest0");
    plane_ = lab_->open();
    slot_ = attach("host0");
  }

  [[nodiscard]] KernelDataPlane& plane() { return *plane_; }
  [[nodiscard]] Lab& lab() { return *lab_; }
  [[nodiscard]] std::uint32_t slot() const { return slot_; }
  [[nodiscard]] std::uint32_t scope() const { return scope_; }
  [[nodiscard]] static std::uint32_t ifindex(const char* name = "host0") {
    return Lab::ifindex(name);
  }

  // Attaches a further interface; it stays block-all until published.
  std::uint32_t attach(const char* name, Side side = Side::automatic) {
    InterfaceTarget target;
    target.name = name;
    target.ifindex = ifindex(name);
    target.side = side;
    auto attached = plane_->attach(target, nullptr);
    REQUIRE_MESSAGE(attached, attached.error().message);
    if (scope_ == 0) scope_ = attached->scope;  // the first one's
    return attached->slot;
  }

  void publish(const std::vector<Rule>& rules, Mode mode = Mode::allowlist,
               const AttachmentOptions& options = plain(), const Floor& floor = {},
               bool overrules_floor = false) {
    publish_at(slot_, rules, mode, options, floor, overrules_floor);
  }
  void publish_at(std::uint32_t slot, const std::vector<Rule>& rules, Mode mode,
                  const AttachmentOptions& options = plain(), const Floor& floor = {},
                  bool overrules_floor = false, bool tightening = false) {
    Layer layer;
    layer.rules = rules;
    const LayerInput input{&layer, overrules_floor};
    auto policy = compile(std::span(&input, 1), floor, boot_now());
    REQUIRE_MESSAGE(policy, policy.error().message);
    auto published = plane_->publish({.slot = slot,
                                      .mode = mode,
                                      .options = options,
                                      .policy = &*policy,
                                      .tightening = tightening});
    REQUIRE_MESSAGE(published, published.error().message);
  }
  void learn(const std::string& text, BootTime active, BootTime grace,
             std::initializer_list<const char*> ports = {}) {
    LearnedAddress learned{mapped(text), active, grace};
    std::vector<PortRange> ranges;
    for (const char* port : ports) ranges.push_back(PortRange::parse(port).value());
    REQUIRE(plane_->learned().learn(scope_, std::span(&learned, 1), ranges));
  }

  // What the workload sends.
  [[nodiscard]] Run from(const Bytes& frame, const char* at = "host0") {
    return run(program("from"), frame, ifindex(at), 0, 0);
  }
  // What is sent to the workload; `came_by` is the interface it entered the host by (0: made here).
  [[nodiscard]] Run to(const Bytes& frame, std::uint32_t came_by = 0, const char* at = "host0") {
    return run(program("to"), frame, ifindex(at), came_by, 0);
  }

  [[nodiscard]] static Run run(int program, const Bytes& frame, std::uint32_t ifindex,
                               std::uint32_t came_by, std::uint32_t mark) {
    __sk_buff context{}, context_out{};
    context.ifindex = ifindex;
    context.ingress_ifindex = came_by;
    context.mark = mark;
    Bytes out(frame.size() + 256);
    bpf_test_run_opts options{};
    options.sz = sizeof(options);
    options.data_in = frame.data();
    options.data_size_in = static_cast<std::uint32_t>(frame.size());
    options.data_out = out.data();
    options.data_size_out = static_cast<std::uint32_t>(out.size());
    options.ctx_in = &context;
    options.ctx_size_in = sizeof(context);
    options.ctx_out = &context_out;
    options.ctx_size_out = sizeof(context_out);
    options.repeat = 1;
    const int done = bpf_prog_test_run_opts(program, &options);
    REQUIRE_MESSAGE(done == 0, "BPF_PROG_TEST_RUN: ", strerror(errno));
    out.resize(options.data_size_out);
    return {static_cast<int>(options.retval), out, context_out.mark};
  }

  // The program behind a pinned link of the attachment ("from", "to") or a guard ("uplink-3").
  [[nodiscard]] int program(const std::string& hook) {
    auto& known = programs_[hook];
    if (!known) {
      const std::string name =
          hook == "from" || hook == "to" ? fmt::format("{}-{}", slot_, hook) : hook;
      const Fd link(bpf_obj_get((lab_->config.bpffs / "links" / name).c_str()));
      REQUIRE(link);
      bpf_link_info info{};
      std::uint32_t length = sizeof(info);
      REQUIRE(bpf_obj_get_info_by_fd(link.get(), &info, &length) == 0);
      known = Fd(bpf_prog_get_fd_by_id(info.prog_id));
      REQUIRE(known);
    }
    return known.get();
  }
  // A learned address, written as the clock would have it later on.
  void put_learned(const sluice_learned_key& key, sluice_learned value) {
    const Fd learned = map("learned"), slots = map("slots");
    sluice_slot slot{};
    REQUIRE(bpf_map_lookup_elem(slots.get(), &slot_, &slot) == 0);
    std::uint64_t halves[2];
    std::memcpy(halves, key.address, sizeof(halves));
    const std::uint32_t bit = sluice_learned_bit(halves[0], halves[1]);
    slot.learned[bit / 64] |= std::uint64_t{1} << bit % 64;
    REQUIRE(bpf_map_update_elem(slots.get(), &slot_, &slot, BPF_ANY) == 0);
    value.check = sluice_learned_key_check(&key);
    REQUIRE(bpf_map_update_elem(learned.get(), &key, &value, BPF_ANY) == 0);
  }
  // A flow as tc_to would have noted it.
  void put_flow(const sluice_flow_key& key, const sluice_flow& flow) {
    const Fd flows = map("flows"), slots = map("slots");
    sluice_slot slot{};
    REQUIRE(bpf_map_lookup_elem(slots.get(), &slot_, &slot) == 0);
    const std::uint32_t bit = sluice_inbound_bit(key.protocol, key.workload_port_be);
    slot.inbound[bit / 64] |= std::uint64_t{1} << bit % 64;
    REQUIRE(bpf_map_update_elem(slots.get(), &slot_, &slot, BPF_ANY) == 0);
    REQUIRE(bpf_map_update_elem(flows.get(), &key, &flow, BPF_ANY) == 0);
  }
  // The daemon ends; `meanwhile` is given the directory of its pinned maps; another one starts.
  template <typename Meanwhile>
  void reopen(Meanwhile&& meanwhile) {
    plane_.reset();
    programs_.clear();
    for (const auto& entry : std::filesystem::directory_iterator(lab_->config.bpffs))
      if (entry.path().filename().string().starts_with("maps-")) meanwhile(entry.path());
    plane_ = lab_->open();
  }
  // A pinned map by its name.
  [[nodiscard]] Fd map(const std::string& name) {
    for (const auto& entry : std::filesystem::directory_iterator(lab_->config.bpffs))
      if (entry.path().filename().string().starts_with("maps-"))
        return Fd(bpf_obj_get((entry.path() / name).c_str()));
    return {};
  }

  // What the workload sends, each with its verdict, its reason and its counters.
  void check(const std::vector<Case>& cases) {
    for (const Case& one : cases) {
      CAPTURE(one.description);
      const auto reasons = plane_->reason_counters();
      const Counters before = plane_->counters(slot_).value();
      const Run run = from(one.frame);
      const Counters after = plane_->counters(slot_).value();
      CHECK(reason_since(reasons) == reason_name(one.reason));
      const bool allowed = one.reason < SLUICE_REASON_DENY_NO_ATTACHMENT;
      CHECK(run.verdict == (allowed ? kPass : kDrop));
      CHECK(after.allowed_packets - before.allowed_packets == (allowed ? 1 : 0));
      CHECK(after.denied_packets - before.denied_packets == (allowed ? 0 : 1));
      CHECK(after.allowed_bytes - before.allowed_bytes == (allowed ? one.frame.size() : 0));
      CHECK(after.denied_bytes - before.denied_bytes == (allowed ? 0 : one.frame.size()));
    }
  }
  // The one reason counted since, or what was counted instead.
  [[nodiscard]] std::string reason_since(const std::vector<std::uint64_t>& before) {
    const auto now = plane_->reason_counters();
    std::string names;
    for (std::uint32_t i = 0; i < SLUICE_REASON_COUNT; ++i)
      for (std::uint64_t n = before[i]; n < now[i]; ++n)
        names += (names.empty() ? "" : " ") + std::string(reason_name(i));
    return names.empty() ? "nothing counted" : names;
  }
  // The reason for one packet from the workload.
  [[nodiscard]] std::string reason_of(const Bytes& frame) {
    const auto before = plane_->reason_counters();
    (void)from(frame);
    return reason_since(before);
  }

 private:
  static std::unique_ptr<Lab> configured(std::uint32_t events_burst) {
    auto lab = std::make_unique<Lab>();
    lab->config.tc_mechanism = "tcx";
    lab->config.events_burst = events_burst;
    return lab;
  }

  std::unique_ptr<Lab> lab_;
  std::unique_ptr<KernelDataPlane> plane_;
  std::uint32_t slot_ = 0, scope_ = 0;
  std::map<std::string, Fd> programs_;
};

}  // namespace sluice::test
