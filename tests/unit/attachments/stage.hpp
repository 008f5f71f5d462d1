// A manager over a kernel in memory, with a clock moved by hand and plugins that only listen.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "attachments/attachment_manager.hpp"
#include "dataplane/fake/fake_data_plane.hpp"

namespace sluice::test {

using namespace std::chrono_literals;

// Writes down every call as "added saas tap1".
class Listener final : public PluginEvents {
 public:
  [[nodiscard]] std::unique_lock<std::mutex> telling() override {
    return std::unique_lock(telling_mutex);
  }
  void attachment_added(const std::string& instance, const AttachmentInfo& info) override {
    note("added", instance, info);
  }
  void attachment_changed(const std::string& instance, const AttachmentInfo& info) override {
    note("changed", instance, info);
  }
  void attachment_removed(const std::string& instance, const AttachmentInfo& info,
                          const std::string&) override {
    note("removed", instance, info);
  }
  void domain_rules(const std::string& instance, AttachmentId,
                    const std::vector<Rule>& rules) override {
    std::string text = "domains " + instance;
    for (const auto& rule : rules) text += " " + rule.domain;
    heard.push_back(text);
    domains = rules;
  }
  void denials(std::span<const Denial> batch) override {
    denied.insert(denied.end(), batch.begin(), batch.end());
  }
  std::vector<std::string> take() { return std::exchange(heard, {}); }

  std::vector<std::string> heard, observed;
  AttachmentInfo last;        // as told last
  std::vector<Rule> domains;  // likewise
  std::vector<Denial> denied;
  std::mutex telling_mutex;
  std::function<void()> before_added = [] {};

 private:
  void note(const std::string& what, const std::string& instance, const AttachmentInfo& info) {
    if (what == "added") before_added();
    last = info;
    if (instance.empty()) {
      observed.push_back(what + " " + target_name(info.target));
    } else {
      heard.push_back(what + " " + instance + " " + target_name(info.target));
    }
  }
};

inline Rule rule(Action action, const std::string& prefix, std::vector<PortRange> ports = {}) {
  Rule made;
  made.action = action;
  made.prefix = Prefix::parse(prefix).value();
  made.ports = std::move(ports);
  made.name = prefix;
  return made;
}
inline Rule allow(const std::string& prefix, std::vector<PortRange> ports = {}) {
  return rule(Action::allow, prefix, std::move(ports));
}
inline Rule deny(const std::string& prefix, std::vector<PortRange> ports = {}) {
  return rule(Action::deny, prefix, std::move(ports));
}
inline Rule allow_name(const std::string& domain, std::vector<PortRange> ports = {}) {
  Rule made;
  made.action = Action::allow;
  made.domain = domain;
  made.ports = std::move(ports);
  return made;
}
inline PortRange port(const std::string& text) {
  return PortRange::parse(text).value();
}

inline Layer allowlist(std::vector<Rule> rules) {
  Layer layer;
  layer.mode = Mode::allowlist;
  layer.rules = std::move(rules);
  return layer;
}

inline Layer only(std::vector<Rule> rules) {
  Layer layer;
  layer.rules = std::move(rules);
  return layer;
}
inline Layer flagged(Layer layer, std::optional<bool> audit, std::optional<bool> replies) {
  layer.audit = audit;
  layer.replies = replies;
  return layer;
}

inline FakePacket to(const std::string& address, std::uint16_t port_number = 443,
                     std::uint8_t protocol = 6) {
  const auto prefix = Prefix::parse(address).value();
  return {.destination = prefix.address,
          .family = prefix.family,
          .protocol = protocol,
          .port = port_number};
}

// As the boundary carries addresses: 16 bytes, IPv4 mapped.
inline Address mapped(const std::string& address) {
  const auto prefix = Prefix::parse(address).value();
  if (prefix.family == 6) return prefix.address;
  Address result{};
  result[10] = result[11] = 0xff;
  std::copy_n(prefix.address.begin(), 4, result.begin() + 12);
  return result;
}

inline WireConfig wire(std::vector<std::string> sources, Labels labels = {}) {
  WireConfig made;
  made.sources = std::move(sources);
  made.labels = std::move(labels);
  return made;
}

inline Config config_of(std::vector<WireConfig> wires, std::vector<std::string> floor = {}) {
  Config config;
  config.wires = std::move(wires);
  config.floor.deny.clear();
  for (const auto& prefix : floor) config.floor.deny.push_back(Prefix::parse(prefix).value());
  return config;
}

inline Target tap(const std::string& name, std::uint32_t ifindex) {
  InterfaceTarget target;
  target.name = name;
  target.ifindex = ifindex;
  return target;
}
inline Target cgroup(const std::string& path, std::uint64_t id) {
  return CgroupTarget{path, id};
}

// One daemon's life. Another Stage over the same kernel is its successor.
struct Stage {
  explicit Stage(const Config& config, std::shared_ptr<FakeKernel> kernel_in_use = nullptr,
                 BootTime start = {1'000'000'000'000})
      : now(start),
        kernel(kernel_in_use ? std::move(kernel_in_use) : std::make_shared<FakeKernel>()),
        plane(kernel),
        manager(plane, Wiring(config), {}, [this] { return now; }) {
    manager.set_events(listener);
  }

  void pass_time(std::chrono::nanoseconds span) {
    now.nanoseconds += static_cast<std::uint64_t>(span.count());
    turn();
  }
  void turn() {
    plane.poll(manager.data_plane_events());
    manager.turn();
  }
  void run_discovery(const std::string& name = "taps") {
    manager.instance(name, {.discovery = true, .policy_source = false}, InstanceState::running);
  }
  void run_source(const std::string& name, InstanceState state = InstanceState::running) {
    manager.instance(name, {.discovery = false, .policy_source = true}, state);
  }
  AttachmentId attach(const Target& target, const Labels& labels = {},
                      const std::string& by = "taps") {
    return manager.attach(by, target, labels).value();
  }
  [[nodiscard]] std::uint32_t slot(AttachmentId id) const {
    return static_cast<std::uint32_t>(id.value & 0xffffff);
  }
  [[nodiscard]] const FakeKernel::Slot& in_kernel(AttachmentId id) const {
    return kernel->slots[slot(id)];
  }
  [[nodiscard]] std::map<Address, FakeKernel::Learned> learned(AttachmentId id) const {
    const std::lock_guard lock(kernel->learned_mutex);
    const auto found = kernel->learned.find(in_kernel(id).attachment.scope);
    return found == kernel->learned.end() ? std::map<Address, FakeKernel::Learned>{}
                                          : found->second;
  }
  // A push of one grant, for a name of the rule's pattern where none is given.
  Status learn(const std::string& instance, AttachmentId id, std::span<const Address> addresses,
               std::uint64_t ttl_ns, std::uint64_t grace_ns, std::uint32_t rule,
               std::string_view name = {}) {
    std::string under = "unknown.example";
    for (const auto& known : listener.domains)
      if (known.id.value == rule) under = known.domain;
    if (under.starts_with("*.")) under[0] = 'a';
    if (under.starts_with('.')) under.insert(0, 1, 'a');
    if (name.empty()) name = under;
    const NameGrant grant{
        .rule = rule, .addresses = addresses, .ttl_ns = ttl_ns, .grace_ns = grace_ns};
    return manager.learn(instance, id, {std::span(&name, 1), std::span(&grant, 1)});
  }
  [[nodiscard]] bool passes(AttachmentId id, const FakePacket& packet) const {
    return plane.passes(slot(id), packet, now);
  }
  [[nodiscard]] AttachmentInfo info(AttachmentId id) {
    for (auto& entry : manager.list()) {
      if (entry.id == id) return entry;
    }
    return {};
  }

  BootTime now;
  std::shared_ptr<FakeKernel> kernel;
  FakeDataPlane plane;
  Listener listener;
  AttachmentManager manager;
};

}  // namespace sluice::test
