// SPDX-License-Identifier: Apache-2.0
// The roles a plugin may hold. Each is a base class: its virtual functions are what the host tells
// the plugin, its other functions are the services that only this role has. Derive from several to
// hold several.
//
// Threads: everything here is [strand] - called on the plugin's own thread, one call at a time; the
// services too. They are synchronous: when one returns, the kernel has it. When the host refuses,
// they throw Error and nothing changed. After stop, or in quarantine, they throw Error(ESHUTDOWN);
// from another thread Error(EPERM): hand the work to the strand with Plugin::wake().
#pragma once

#include <sluice/options.hpp>

#include <cstdio>
#include <span>

namespace sluice::sdk {

namespace detail {

// The services of the plugin that is being created on this thread: how the bases get them without
// each constructor passing them along.
struct Binding {
  const sluice_services* services = nullptr;
  explicit Binding(const sluice_services* of) : services(of), outer_(current) { current = this; }
  ~Binding() { current = outer_; }
  Binding(const Binding&) = delete;
  Binding& operator=(const Binding&) = delete;

  static inline thread_local Binding* current = nullptr;

 private:
  Binding* outer_;
};

inline const sluice_services& bound_services() {
  if (Binding::current == nullptr)
    throw Error(EINVAL, "a plugin object is made by its host; in a test, by FakeHost::create()");
  return *Binding::current->services;
}

// A table of services as this plugin knows it: a host that is older leaves the newer functions
// null.
template <typename T>
T services_of(const T* table) {
  if (table == nullptr)
    throw Error(EPROTO, "the host gave no services for a role that the plugin declares");
  return known_part(table);
}

inline void require(int result, const char* call) {
  if (result >= 0) return;
  throw Error(-result, std::string(call) + ": " + std::generic_category().message(-result));
}
inline void require(int result, const char* call, const sluice_applied& applied,
                    std::size_t layer = SIZE_MAX) {
  if (result >= 0) return;
  const std::string text(applied.message, strnlen(applied.message, sizeof applied.message));
  throw Error(
      -result,
      text.empty() ? std::string(call) + ": " + std::generic_category().message(-result) : text,
      applied.rule_index, layer);
}
inline sluice_applied empty_result() {
  sluice_applied applied{};
  applied.size = sizeof applied;
  applied.rule_index = UINT32_MAX;
  return applied;
}
inline Applied result_of(const sluice_applied& applied) {
  return {applied.generation, {applied.digest[0], applied.digest[1]}};
}

// ---- C++ values as ABI structs; each keeps what the raw structs point into
// -------------------------------------------

class RawLabels {
 public:
  explicit RawLabels(const Labels& labels) {
    raw_.reserve(labels.size());
    for (const auto& [key, value] : labels) raw_.push_back({abi(key), abi(value)});
  }
  [[nodiscard]] const sluice_label* data() const { return raw_.data(); }
  [[nodiscard]] std::size_t size() const { return raw_.size(); }

 private:
  std::vector<sluice_label> raw_;
};

inline sluice_target raw_target(const Target& target) {
  sluice_target raw{};
  raw.size = sizeof raw;
  if (const auto* interface = std::get_if<InterfaceTarget>(&target)) {
    raw.kind = SLUICE_TARGET_INTERFACE;
    raw.name = abi(interface->name);
    raw.ifindex = interface->ifindex;
    raw.side = static_cast<std::uint32_t>(interface->side);
    raw.netns_path = abi(interface->netns_path);
  } else {
    const auto& cgroup = std::get<CgroupTarget>(target);
    raw.kind = SLUICE_TARGET_CGROUP;
    raw.name = abi(cgroup.path);
    raw.cgroup_id = cgroup.cgroup_id;
  }
  return raw;
}

// Borrows from the rules it is made of.
class RawRules {
 public:
  explicit RawRules(std::span<const Rule> rules) {
    std::size_t port_count = 0;
    for (const auto& rule : rules) port_count += rule.ports.size();
    ports_.reserve(port_count);
    raw_.reserve(rules.size());
    for (const auto& rule : rules) add(rule);
  }
  [[nodiscard]] const sluice_rule* data() const { return raw_.data(); }
  [[nodiscard]] std::size_t size() const { return raw_.size(); }

 private:
  void add(const Rule& rule) {
    if (rule.prefix.has_value() == !rule.domain.empty())
      throw Error(
          EINVAL,
          "a rule needs either a prefix or a domain; rule \"" + rule.name + "\" has both or none",
          static_cast<std::uint32_t>(raw_.size()));
    sluice_rule raw{};
    raw.size = sizeof raw;
    raw.action = static_cast<std::uint8_t>(rule.action);
    if (rule.prefix) {
      raw.family = rule.prefix->address.family;
      raw.prefix_length = rule.prefix->length;
      std::memcpy(raw.address, rule.prefix->address.bytes.data(), sizeof raw.address);
    }
    raw.domain = abi(rule.domain);
    raw.ports = ports_.data() + ports_.size();
    raw.port_count = rule.ports.size();
    for (const auto& range : rule.ports)
      ports_.push_back(
          {range.protocol, static_cast<std::uint8_t>(range.any_port), range.first, range.last});
    raw.expires =
        rule.expires ? static_cast<std::uint64_t>(rule.expires->time_since_epoch().count()) : 0;
    // Zero says "never" on the boundary; a rule that ended at the epoch must not become eternal.
    if (rule.expires && raw.expires == 0) raw.expires = 1;
    raw.name = abi(rule.name);
    raw_.push_back(raw);
  }

  std::vector<sluice_port_range> ports_;  // reserved whole first: the rules point into it
  std::vector<sluice_rule> raw_;
};

class RawLayer {
 public:
  explicit RawLayer(const Layer& layer) : rules_(layer.rules) {
    raw_.size = sizeof raw_;
    raw_.mode =
        layer.mode ? static_cast<std::uint32_t>(*layer.mode) : std::uint32_t{SLUICE_POLICY_UNSET};
    raw_.audit = tristate(layer.audit);
    raw_.replies = tristate(layer.replies);
  }
  [[nodiscard]] sluice_layer raw() const {
    auto raw = raw_;
    raw.rules = rules_.data();
    raw.rule_count = rules_.size();
    return raw;
  }

 private:
  static std::uint32_t tristate(const std::optional<bool>& value) {
    return value ? (*value ? SLUICE_TRUE : SLUICE_FALSE) : SLUICE_UNSET;
  }
  RawRules rules_;
  sluice_layer raw_{};
};

inline std::vector<sluice_address> raw_addresses(std::span<const Address> addresses) {
  std::vector<sluice_address> raw(addresses.size());
  for (std::size_t i = 0; i < addresses.size(); ++i) {
    raw[i].family = addresses[i].family;
    std::memcpy(raw[i].bytes, addresses[i].bytes.data(), sizeof raw[i].bytes);
  }
  return raw;
}

// ---- ABI structs as C++ values
// ---------------------------------------------------------------------------------------

inline Labels labels_of(const sluice_label* labels, std::size_t count) {
  Labels result;
  for (std::size_t i = 0; i < count; ++i)
    result.insert_or_assign(copy(labels[i].key), copy(labels[i].value));
  return result;
}

inline Target target_of(const sluice_target* writers) {
  const auto raw = known_part(writers);
  if (raw.kind == SLUICE_TARGET_INTERFACE)
    return InterfaceTarget{copy(raw.name), raw.ifindex, static_cast<Side>(raw.side),
                           copy(raw.netns_path)};
  return CgroupTarget{copy(raw.name), raw.cgroup_id};
}

inline AttachmentInfo info_of(const sluice_attachment_info* writers) {
  const auto raw = known_part(writers);
  return {.id = {raw.id},
          .incarnation = raw.incarnation,
          .generation = raw.generation,
          .mode = static_cast<Mode>(raw.mode),
          .target = target_of(raw.target),
          .labels = labels_of(raw.labels, raw.label_count),
          .discovered_by = copy(raw.discovered_by),
          .state = copy(raw.state)};
}

inline Rule rule_of(const sluice_rule* writers) {
  const auto raw = known_part(writers);
  Rule rule{.action = static_cast<Action>(raw.action), .name = copy(raw.name)};
  if (raw.family == 0) {
    rule.domain = copy(raw.domain);
  } else {
    rule.prefix = Prefix{.address = {.family = raw.family}, .length = raw.prefix_length};
    std::memcpy(rule.prefix->address.bytes.data(), raw.address, sizeof raw.address);
  }
  for (std::size_t i = 0; i < raw.port_count; ++i)
    rule.ports.push_back(
        {raw.ports[i].protocol, raw.ports[i].any_port != 0, raw.ports[i].first, raw.ports[i].last});
  if (raw.expires != 0) rule.expires = Time(std::chrono::nanoseconds(raw.expires));
  return rule;
}

inline std::vector<Rule> rules_of(const sluice_rule* rules, std::size_t count) {
  std::vector<Rule> result;
  result.reserve(count);
  for (std::size_t i = 0; i < count; ++i) result.push_back(rule_of(element(rules, i)));
  return result;
}

inline Denial denial_of(const sluice_denial* writers) {
  const auto raw = known_part(writers);
  Denial denial{.attachment = {raw.attachment},
                .audited = raw.audited != 0,
                .time = Time(std::chrono::nanoseconds(raw.time)),
                .generation = static_cast<std::uint32_t>(raw.generation),
                .reason = copy(raw.reason),
                .protocol = raw.protocol,
                .icmp_type = raw.icmp_type,
                .icmp_code = raw.icmp_code,
                .source_port = raw.source_port,
                .destination_port = raw.destination_port,
                .ethertype = raw.ethertype,
                .length = raw.length,
                .source = {.family = raw.family},
                .destination = {.family = raw.family},
                .rule = copy(raw.rule)};
  std::memcpy(denial.source.bytes.data(), raw.source, sizeof raw.source);
  std::memcpy(denial.destination.bytes.data(), raw.destination, sizeof raw.destination);
  return denial;
}

}  // namespace detail

// What policy sources, resolvers and observers are told of attachments. A source or a resolver
// hears only of those whose wiring names it; an observer of all.
class AttachmentEvents {
 public:
  virtual ~AttachmentEvents() = default;
  // A policy source answers by speaking for it, or stays silent. Also comes for every attachment
  // that exists when the plugin starts and after each resync.
  virtual void attachment_added(const AttachmentInfo&) {}
  virtual void attachment_changed(const AttachmentInfo&) {}  // labels, target or mode
  virtual void attachment_removed(const AttachmentInfo&, std::string_view /*reason*/) {}

 protected:
  AttachmentEvents() = default;
};

// Finds workloads.
class Discovery {
 public:
  virtual ~Discovery() = default;

  // Returns when the filter is in the kernel. Idempotent per target; the labels of a known target
  // are replaced. Error ENODEV/ENOENT: the target is gone. EEXIST: another discovery owns it.
  AttachmentId attach(const Target& target, const Labels& labels) {
    const auto raw = detail::raw_target(target);
    const detail::RawLabels raw_labels(labels);
    auto applied = detail::empty_result();
    sluice_attachment id = 0;
    detail::require(
        services_.attach(host_, &raw, raw_labels.data(), raw_labels.size(), &id, &applied),
        "attach", applied);
    return {id};
  }
  // Returns when the filter is gone. Only its own attachments.
  void detach(AttachmentId id, std::string_view reason) {
    detail::require(services_.detach(host_, id.value, detail::abi(reason)), "detach");
  }
  // New labels; the wiring is matched again and policy follows.
  void relabel(AttachmentId id, const Labels& labels) {
    const detail::RawLabels raw(labels);
    detail::require(services_.relabel(host_, id.value, raw.data(), raw.size()), "relabel");
  }
  // Everything that exists has been attached: say so after start and after each resync. Filters
  // adopted from an earlier daemon that nobody claimed are then dropped.
  void listed() { detail::require(services_.listed(host_), "listed"); }

 protected:
  Discovery() = default;

 private:
  sluice_host* host_ = detail::bound_services().host;
  sluice_discovery_services services_ = detail::services_of(detail::bound_services().discovery);
};

// Decides the policy of attachments. Owns one layer of rules on each and can change no other.
class PolicySource : public virtual AttachmentEvents {
 public:
  // Each returns when the change is in the kernel, read back; a refused one changes nothing, and
  // Error::rule_index() tells the rule at fault.
  Applied replace_layer(AttachmentId id, const Layer& layer) {
    const detail::RawLayer keeper(layer);
    const auto raw = keeper.raw();
    auto applied = detail::empty_result();
    detail::require(services_.replace_layer(host_, id.value, &raw, &applied), "replace_layer",
                    applied);
    return detail::result_of(applied);
  }
  // Removes rules equal to those in `remove`, then adds `add`. `base`: the generation the delta was
  // made for (Error ESTALE when another is in force); 0: whatever is in force. In an Error,
  // rule_index counts `add` first, then `remove`.
  Applied update_layer(AttachmentId id, std::uint64_t base, std::span<const Rule> add,
                       std::span<const Rule> remove) {
    const detail::RawRules raw_add(add), raw_remove(remove);
    auto applied = detail::empty_result();
    detail::require(services_.update_layer(host_, id.value, base, raw_add.data(), raw_add.size(),
                                           raw_remove.data(), raw_remove.size(), &applied),
                    "update_layer", applied);
    return detail::result_of(applied);
  }
  // As if this source had never spoken.
  Applied withdraw_layer(AttachmentId id) {
    auto applied = detail::empty_result();
    detail::require(services_.withdraw_layer(host_, id.value, &applied), "withdraw_layer", applied);
    return detail::result_of(applied);
  }
  // All are checked first, none is touched when one is refused; Error::layer_index() tells which.
  void replace_layers(std::span<const LayerChange> changes) {
    std::vector<detail::RawLayer> keepers;
    std::vector<sluice_layer> layers;
    std::vector<sluice_attachment> ids;
    keepers.reserve(changes.size());
    for (const auto& change : changes) {
      layers.push_back(keepers.emplace_back(change.layer).raw());
      ids.push_back(change.attachment.value);
    }
    auto applied = detail::empty_result();
    std::size_t failed_index = SIZE_MAX;
    const int result = services_.replace_layers(host_, ids.data(), layers.data(), changes.size(),
                                                &failed_index, &applied);
    detail::require(result, "replace_layers", applied, failed_index);
  }

 protected:
  PolicySource() = default;

 private:
  sluice_host* host_ = detail::bound_services().host;
  sluice_policy_services services_ = detail::services_of(detail::bound_services().policy);
};

// Turns domain rules into addresses.
class Resolver : public virtual AttachmentEvents {
 public:
  // The domain rules of one attachment, united over its sources, whole, after each change.
  virtual void domain_rules(AttachmentId id, const std::vector<Rule>& rules) = 0;

  // Returns when the addresses are in the kernel; all or nothing. `ttl`: how long new connections
  // may use them; `grace`: how much longer live ones may. `rule`: index into what domain_rules()
  // last brought for the attachment.
  void learn(AttachmentId id, std::span<const Address> addresses, std::chrono::nanoseconds ttl,
             std::chrono::nanoseconds grace, std::uint32_t rule) {
    const auto raw = detail::raw_addresses(addresses);
    auto applied = detail::empty_result();
    detail::require(services_.learn(host_, id.value, raw.data(), raw.size(), nonnegative(ttl),
                                    nonnegative(grace), rule, &applied),
                    "learn", applied);
  }
  void revoke(AttachmentId id, std::span<const Address> addresses) {
    const auto raw = detail::raw_addresses(addresses);
    detail::require(services_.revoke(host_, id.value, raw.data(), raw.size()), "revoke");
  }

 protected:
  Resolver() = default;

 private:
  static std::uint64_t nonnegative(std::chrono::nanoseconds value) {
    return value.count() < 0 ? 0 : static_cast<std::uint64_t>(value.count());
  }
  sluice_host* host_ = detail::bound_services().host;
  sluice_resolver_services services_ = detail::services_of(detail::bound_services().resolver);
};

// Is told what happens.
class Observer : public virtual AttachmentEvents {
 public:
  virtual void denials(std::span<const Denial>) {}
  virtual void plugin_state(const PluginState&) {}

  [[nodiscard]] Counters counters(AttachmentId id) {
    sluice_counters_info raw{};
    raw.size = sizeof raw;
    detail::require(services_.counters(host_, id.value, &raw), "counters");
    return {raw.allowed_packets, raw.allowed_bytes,   raw.denied_packets,
            raw.denied_bytes,    raw.audited_packets, raw.events_lost};
  }
  [[nodiscard]] std::vector<AttachmentInfo> list() {
    struct Sink {
      std::vector<AttachmentInfo> all;
      std::exception_ptr error;
    } sink;
    // The host's frames lie between: nothing may be thrown through them.
    const auto each = [](void* context, const sluice_attachment_info* info) noexcept {
      auto& into = *static_cast<Sink*>(context);
      try {
        if (!into.error) into.all.push_back(detail::info_of(info));
      } catch (...) {
        into.error = std::current_exception();
      }
    };
    detail::require(services_.list(host_, each, &sink), "list");
    if (sink.error) std::rethrow_exception(sink.error);
    return std::move(sink.all);
  }

 protected:
  Observer() = default;

 private:
  sluice_host* host_ = detail::bound_services().host;
  sluice_observer_services services_ = detail::services_of(detail::bound_services().observer);
};

}  // namespace sluice::sdk
