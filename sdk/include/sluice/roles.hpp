// SPDX-License-Identifier: Apache-2.0
// The roles a plugin may hold. Each is a base class: its virtual functions are what the host tells
// the plugin, its other functions are the services that only this role has. Derive from several to
// hold several.
//
// Threads: what is not marked [any] is [strand] - called on the plugin's own thread, one call at a
// time; the services too. They are synchronous: when one returns, the kernel has it. When the host
// refuses, they throw Error and nothing changed. After stop, or in quarantine, they throw
// Error(ESHUTDOWN); from another thread Error(EPERM): hand the work to the strand with
// Plugin::wake().
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

// A function of a table that a host of an earlier minor leaves null.
template <typename Function>
Function known(Function function) {
  if (function == nullptr)
    throw Error(ENOSYS, "this host's plugin ABI is older than 1." +
                            std::to_string(SLUICE_ABI_MINOR) + "; it has no such service");
  return function;
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

inline sluice_prefix raw_prefix(const Prefix& prefix) {
  sluice_prefix raw{};
  raw.family = prefix.address.family;
  raw.length = prefix.length;
  std::memcpy(raw.address, prefix.address.bytes.data(), sizeof raw.address);
  return raw;
}
inline std::vector<sluice_port_range> raw_ports(std::span<const PortRange> ports) {
  std::vector<sluice_port_range> raw;
  raw.reserve(ports.size());
  for (const auto& range : ports)
    raw.push_back(
        {range.protocol, static_cast<std::uint8_t>(range.any_port), range.first, range.last});
  return raw;
}

// Borrows from the rules it is made of.
class RawRules {
 public:
  explicit RawRules(std::span<const Rule> rules) {
    std::size_t port_count = 0, range_count = 0;
    for (const auto& rule : rules) {
      port_count += rule.ports.size();
      range_count += rule.ranges.size();
    }
    ports_.reserve(port_count);
    ranges_.reserve(range_count);
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
    raw.ranges = ranges_.data() + ranges_.size();
    raw.range_count = rule.ranges.size();
    for (const auto& range : rule.ranges) ranges_.push_back(raw_prefix(range));
    raw.types = rule.types.data();
    raw.type_count = rule.types.size();
    raw.flags = rule.public_suffix ? SLUICE_RULE_PUBLIC_SUFFIX : 0u;
    raw.id = rule.id.value;
    raw_.push_back(raw);
  }

  // Reserved whole first: the rules point into them.
  std::vector<sluice_port_range> ports_;
  std::vector<sluice_prefix> ranges_;
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

inline std::uint64_t nonnegative(std::chrono::nanoseconds value) {
  return value.count() < 0 ? 0 : static_cast<std::uint64_t>(value.count());
}

// Borrows from the names it is made of.
class RawPush {
 public:
  RawPush(std::span<const std::string_view> names, std::span<const Grant> grants) {
    std::size_t addresses = 0, ports = 0;
    for (const auto& grant : grants) {
      addresses += grant.addresses.size();
      ports += grant.ports.size();
    }
    names_.reserve(names.size());
    for (const auto name : names) names_.push_back(abi(name));
    addresses_.resize(addresses);
    ports_.reserve(ports);
    grants_.reserve(grants.size());
    std::size_t at = 0;
    for (const auto& grant : grants) {
      sluice_grant raw{};
      raw.size = sizeof raw;
      raw.rule = grant.rule;
      raw.addresses = addresses_.data() + at;
      raw.address_count = grant.addresses.size();
      raw.ttl_ns = nonnegative(grant.ttl);
      raw.grace_ns = nonnegative(grant.grace);
      raw.ports = ports_.data() + ports_.size();
      raw.port_count = grant.ports.size();
      for (const auto& address : grant.addresses) {
        addresses_[at].family = address.family;
        std::memcpy(addresses_[at++].bytes, address.bytes.data(), sizeof addresses_[0].bytes);
      }
      for (const auto& range : grant.ports)
        ports_.push_back(
            {range.protocol, static_cast<std::uint8_t>(range.any_port), range.first, range.last});
      grants_.push_back(raw);
    }
    raw_.size = sizeof raw_;
    raw_.names = names_.data();
    raw_.name_count = names_.size();
    raw_.grants = grants_.data();
    raw_.grant_count = grants_.size();
  }
  RawPush(const RawPush&) = delete;
  RawPush& operator=(const RawPush&) = delete;
  [[nodiscard]] const sluice_push* get() const { return &raw_; }

 private:
  std::vector<sluice_string> names_;
  std::vector<sluice_address> addresses_;  // sized whole first: grants point into it
  std::vector<sluice_port_range> ports_;   // likewise, reserved
  std::vector<sluice_grant> grants_;
  sluice_push raw_{};
};
inline std::uint64_t raw_time(Time time) {
  return nonnegative(time.time_since_epoch());
}

inline sluice_query raw_query(const Query& query) {
  sluice_query raw{};
  raw.size = sizeof raw;
  raw.type = query.type;
  raw.id = query.id;
  raw.attachment = query.attachment.value;
  raw.name = abi(query.name);
  return raw;
}

class RawDecision {
 public:
  explicit RawDecision(const Decision& decision)
      : ports_(raw_ports(decision.ports)), addresses_(raw_addresses(decision.addresses)) {
    for (const auto& range : decision.ranges) ranges_.push_back(raw_prefix(range));
    raw_.size = sizeof raw_;
    raw_.action = static_cast<std::uint32_t>(decision.action);
    raw_.ttl_ns = nonnegative(decision.ttl);
    raw_.ports = ports_.data();
    raw_.port_count = ports_.size();
    raw_.addresses = addresses_.data();
    raw_.address_count = addresses_.size();
    raw_.address_ttl_ns = nonnegative(decision.address_ttl);
    raw_.ranges = ranges_.data();
    raw_.range_count = ranges_.size();
    raw_.reason = abi(decision.reason);
  }
  RawDecision(const RawDecision&) = delete;
  RawDecision& operator=(const RawDecision&) = delete;
  [[nodiscard]] const sluice_decision_made* get() const { return &raw_; }

 private:
  std::vector<sluice_port_range> ports_;
  std::vector<sluice_address> addresses_;
  std::vector<sluice_prefix> ranges_;
  sluice_decision_made raw_{};
};

class RawAnswer {
 public:
  explicit RawAnswer(const Answer& answer) {
    for (const auto& name : answer.chain) chain_.push_back(abi(name));
    for (const auto& record : answer.addresses) {
      auto& raw = addresses_.emplace_back();
      raw.family = record.address.family;
      raw.ttl = record.ttl;
      std::memcpy(raw.bytes, record.address.bytes.data(), sizeof raw.bytes);
    }
    raw_.size = sizeof raw_;
    raw_.attachment = answer.attachment.value;
    raw_.name = abi(answer.name);
    raw_.chain = chain_.data();
    raw_.chain_count = chain_.size();
    raw_.addresses = addresses_.data();
    raw_.address_count = addresses_.size();
  }
  RawAnswer(const RawAnswer&) = delete;
  RawAnswer& operator=(const RawAnswer&) = delete;
  [[nodiscard]] const sluice_answer* get() const { return &raw_; }

 private:
  std::vector<sluice_string> chain_;
  std::vector<sluice_answer_address> addresses_;
  sluice_answer raw_{};
};

class RawReports {
 public:
  explicit RawReports(std::span<const QueryReport> reports) {
    std::size_t address_count = 0;
    for (const auto& report : reports) address_count += report.addresses.size();
    addresses_.reserve(address_count);
    raw_.reserve(reports.size());
    for (const auto& report : reports) add(report);
  }
  [[nodiscard]] const sluice_query_report* data() const { return raw_.data(); }
  [[nodiscard]] std::size_t size() const { return raw_.size(); }

 private:
  void add(const QueryReport& report) {
    auto& raw = raw_.emplace_back();
    raw.size = sizeof raw;
    raw.type = report.type;
    raw.response_code = report.response_code;
    raw.attachment = report.attachment.value;
    raw.time = raw_time(report.time);
    raw.name = abi(report.name);
    raw.verdict = static_cast<std::uint8_t>(report.verdict);
    raw.flags = static_cast<std::uint8_t>(
        (report.cached ? SLUICE_QUERY_CACHED : 0u) | (report.audited ? SLUICE_QUERY_AUDITED : 0u) |
        (report.decided ? SLUICE_QUERY_DECIDED : 0u) | (report.pushed ? SLUICE_QUERY_PUSHED : 0u) |
        (report.stream ? SLUICE_QUERY_STREAM : 0u));
    raw.extended_error = report.extended_error.value_or(SLUICE_NO_EXTENDED_ERROR);
    raw.count = report.count;
    raw.rule = abi(report.rule);
    raw.reason = abi(report.reason);
    raw.upstream = abi(report.upstream);
    raw.addresses = addresses_.data() + addresses_.size();
    raw.address_count = report.addresses.size();
    for (const auto& address : report.addresses) {
      auto& copied = addresses_.emplace_back();
      copied.family = address.family;
      std::memcpy(copied.bytes, address.bytes.data(), sizeof copied.bytes);
    }
    raw.decision_ns = nonnegative(report.decision_time);
    raw.upstream_ns = nonnegative(report.upstream_time);
    raw.push_ns = nonnegative(report.push_time);
  }
  std::vector<sluice_address> addresses_;  // reserved whole first: the reports point into it
  std::vector<sluice_query_report> raw_;
};

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
          .state = copy(raw.state),
          .audit = raw.audit != 0,
          .redirected = raw.redirected != 0};
}

inline Prefix prefix_of(const sluice_prefix& raw) {
  Prefix prefix{.address = {.family = raw.family}, .length = raw.length};
  std::memcpy(prefix.address.bytes.data(), raw.address, sizeof raw.address);
  return prefix;
}
inline std::vector<Prefix> prefixes_of(const sluice_prefix* raw, std::size_t count) {
  std::vector<Prefix> prefixes;
  prefixes.reserve(count);
  for (std::size_t i = 0; i < count; ++i) prefixes.push_back(prefix_of(raw[i]));
  return prefixes;
}
inline std::vector<PortRange> ports_of(const sluice_port_range* raw, std::size_t count) {
  std::vector<PortRange> ports;
  ports.reserve(count);
  for (std::size_t i = 0; i < count; ++i)
    ports.push_back({raw[i].protocol, raw[i].any_port != 0, raw[i].first, raw[i].last});
  return ports;
}
inline std::vector<Address> addresses_of(const sluice_address* raw, std::size_t count) {
  std::vector<Address> addresses(count);
  for (std::size_t i = 0; i < count; ++i) {
    addresses[i].family = raw[i].family;
    std::memcpy(addresses[i].bytes.data(), raw[i].bytes, sizeof raw[i].bytes);
  }
  return addresses;
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
  rule.ports = ports_of(raw.ports, raw.port_count);
  rule.ranges = prefixes_of(raw.ranges, raw.range_count);
  if (raw.type_count > 0) rule.types.assign(raw.types, raw.types + raw.type_count);
  rule.public_suffix = (raw.flags & SLUICE_RULE_PUBLIC_SUFFIX) != 0;
  rule.id = {raw.id};
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

inline Query query_of(const sluice_query* writers) {
  const auto raw = known_part(writers);
  return {.id = raw.id, .attachment = {raw.attachment}, .name = copy(raw.name), .type = raw.type};
}

inline Decision decision_of(const sluice_decision_made* writers) {
  const auto raw = known_part(writers);
  return {.action = static_cast<Decision::Action>(raw.action),
          .ttl = std::chrono::nanoseconds(raw.ttl_ns),
          .ports = ports_of(raw.ports, raw.port_count),
          .addresses = addresses_of(raw.addresses, raw.address_count),
          .address_ttl = std::chrono::nanoseconds(raw.address_ttl_ns),
          .ranges = prefixes_of(raw.ranges, raw.range_count),
          .reason = copy(raw.reason)};
}

inline Answer answer_of(const sluice_answer* writers) {
  const auto raw = known_part(writers);
  Answer answer{.attachment = {raw.attachment}, .name = copy(raw.name)};
  for (std::size_t i = 0; i < raw.chain_count; ++i) answer.chain.push_back(copy(raw.chain[i]));
  for (std::size_t i = 0; i < raw.address_count; ++i) {
    auto& record = answer.addresses.emplace_back();
    record.address.family = raw.addresses[i].family;
    std::memcpy(record.address.bytes.data(), raw.addresses[i].bytes, sizeof raw.addresses[i].bytes);
    record.ttl = raw.addresses[i].ttl;
  }
  return answer;
}

// Keeps the addresses that its reports show.
class Reports {
 public:
  Reports(const sluice_query_report* first, std::size_t count) {
    std::size_t address_count = 0;
    for (std::size_t i = 0; i < count; ++i)
      address_count += known_part(element(first, i)).address_count;
    addresses_.reserve(address_count);
    reports_.reserve(count);
    for (std::size_t i = 0; i < count; ++i) add(known_part(element(first, i)));
  }
  Reports(const Reports&) = delete;
  Reports& operator=(const Reports&) = delete;
  [[nodiscard]] std::span<const QueryReport> get() const { return reports_; }

 private:
  void add(const sluice_query_report& raw) {
    auto& report = reports_.emplace_back();
    report.attachment = {raw.attachment};
    report.time = Time(std::chrono::nanoseconds(raw.time));
    report.name = view(raw.name);
    report.type = raw.type;
    report.verdict = static_cast<QueryVerdict>(raw.verdict);
    report.cached = (raw.flags & SLUICE_QUERY_CACHED) != 0;
    report.audited = (raw.flags & SLUICE_QUERY_AUDITED) != 0;
    report.decided = (raw.flags & SLUICE_QUERY_DECIDED) != 0;
    report.pushed = (raw.flags & SLUICE_QUERY_PUSHED) != 0;
    report.stream = (raw.flags & SLUICE_QUERY_STREAM) != 0;
    report.response_code = raw.response_code;
    if (raw.extended_error != SLUICE_NO_EXTENDED_ERROR) report.extended_error = raw.extended_error;
    report.count = raw.count == 0 ? 1 : raw.count;
    report.rule = view(raw.rule);
    report.reason = view(raw.reason);
    report.upstream = view(raw.upstream);
    const auto begin = addresses_.size();
    for (std::size_t i = 0; i < raw.address_count; ++i) {
      auto& address = addresses_.emplace_back();
      address.family = raw.addresses[i].family;
      std::memcpy(address.bytes.data(), raw.addresses[i].bytes, sizeof raw.addresses[i].bytes);
    }
    report.addresses = {addresses_.data() + begin, raw.address_count};
    report.decision_time = std::chrono::nanoseconds(raw.decision_ns);
    report.upstream_time = std::chrono::nanoseconds(raw.upstream_ns);
    report.push_time = std::chrono::nanoseconds(raw.push_ns);
  }
  std::vector<Address> addresses_;  // reserved whole first
  std::vector<QueryReport> reports_;
};

}  // namespace detail

// What all roles but discovery are told of attachments. An observer hears of all, the others of
// those whose wiring names them.
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

  // Returns when the filter is in the kernel. Idempotent per target: its labels are replaced. Error
  // ENODEV/ENOENT: the target is gone. EEXIST: another has it until it lets go; attach again soon.
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

// Turns domain rules into addresses. Its services marked [any] are for its worker threads.
class Resolver : public virtual AttachmentEvents {
 public:
  // The domain rules of one attachment, united over its sources, whole, after each change.
  virtual void domain_rules(AttachmentId id, const std::vector<Rule>& rules) = 0;
  // What became of an ask(), once for each. Action::none with a reason where the deadline passed or
  // the decider went.
  virtual void decided(std::uint64_t /*query_id*/, const Decision&) {}
  // Another DNS server has this answer and waits: judge it as if an upstream had given it, learn
  // its addresses, and call pushed(push_id), now or later, from any thread.
  virtual void answer_pushed(std::uint64_t push_id, const Answer&) {
    pushed(push_id, EOPNOTSUPP, "this resolver takes no answers from others");
  }

  // [any] Returns when all of the push is in the kernel; all or nothing, over all grants. An
  // address under several grants is opened for the ports of all of them. `names`: the question's,
  // then every name that led from it to an address, in the form of Query::name. Error ESTALE: a
  // grant names a rule that is not in force any more: judge again by the newest list, which may
  // still be on its way. EACCES: an explicit rule or the floor denies an address;
  // Error::rule_index() counts the addresses of all grants through. ENOSPC: no room.
  void learn(AttachmentId id, std::span<const std::string_view> names,
             std::span<const Grant> grants) {
    const detail::RawPush raw(names, grants);
    auto applied = detail::empty_result();
    detail::require(services_.learn(host_, id.value, raw.get(), &applied), "learn", applied);
  }
  // The same for one name and one grant.
  void learn(AttachmentId id, std::string_view name, const Grant& grant) {
    learn(id, std::span(&name, 1), std::span(&grant, 1));
  }
  // [any]
  void revoke(AttachmentId id, std::span<const Address> addresses) {
    const auto raw = detail::raw_addresses(addresses);
    detail::require(services_.revoke(host_, id.value, raw.data(), raw.size()), "revoke");
  }

  // The sockets that take port 53 of every attachment whose wire names this instance; replaces the
  // former set. UDP sockets and TCP listeners, bound, transparent, one of each {family, protocol}
  // per worker. They stay the plugin's: serve() without one before closing it.
  void serve(std::span<const int> sockets) {
    std::vector<sluice_listener> raw;
    raw.reserve(sockets.size());
    for (const int fd : sockets) raw.push_back({sizeof(sluice_listener), fd});
    detail::require(detail::known(services_.serve)(host_, raw.data(), raw.size()), "serve");
  }
  // [any] Whose datagram carries this mark (SO_RCVMARK). None: nobody's, drop it.
  [[nodiscard]] std::optional<AttachmentId> asker_of_mark(std::uint32_t mark) {
    sluice_attachment id = 0;
    const int result = detail::known(services_.asker_of_mark)(host_, mark, &id);
    if (result == -ENOENT) return std::nullopt;
    detail::require(result, "asker_of_mark");
    return AttachmentId{id};
  }
  // [any] Who is at the other end of a connection accepted on a listener. None: nobody known,
  // close it.
  [[nodiscard]] std::optional<StreamAsker> asker_of_stream(int accepted) {
    sluice_attachment id = 0;
    sluice_endpoint asked{};
    const int result = detail::known(services_.asker_of_stream)(host_, accepted, &id, &asked);
    if (result == -ENOENT) return std::nullopt;
    detail::require(result, "asker_of_stream");
    StreamAsker asker{{id}, {{.family = asked.family}, asked.port}};
    std::memcpy(asker.asked.address.bytes.data(), asked.address, sizeof asked.address);
    return asker;
  }

  // [any] Puts a question to the decider of the attachment's wire; decided(query.id) follows by
  // `deadline` at the latest. False: the wire has no decider. Error EHOSTDOWN: it has one that does
  // not run. EBUSY: too many are undecided. After false or an Error nothing follows.
  [[nodiscard]] bool ask(const Query& query, Time deadline) {
    const auto raw = detail::raw_query(query);
    const int result = detail::known(services_.ask)(host_, &raw, detail::raw_time(deadline));
    if (result == -ENOENT) return false;
    detail::require(result, "ask");
    return true;
  }
  // [any] Answers answer_pushed(). `code` 0: the addresses are in the kernel; else an errno and
  // why. False: nobody waits for it any more.
  bool pushed(std::uint64_t push_id, int code, std::string_view message = {}) {
    const int result = detail::known(services_.pushed)(host_, push_id, code > 0 ? -code : code,
                                                       detail::abi(message));
    if (result == -ENOENT) return false;
    detail::require(result, "pushed");
    return true;
  }
  // [any] Tells observers; never waits.
  void report(std::span<const QueryReport> reports) {
    const detail::RawReports raw(reports);
    report(std::span(raw.data(), raw.size()));
  }
  // The same without the conversion, for whoever makes them by the hundred thousand.
  void report(std::span<const sluice_query_report> reports) {
    detail::require(detail::known(services_.report)(host_, reports.data(), reports.size()),
                    "report");
  }

 protected:
  Resolver() = default;

 private:
  sluice_host* host_ = detail::bound_services().host;
  sluice_resolver_services services_ = detail::services_of(detail::bound_services().resolver);
};

// Decides single questions that no rule decides: a control plane's QueryDns, say.
class Decider : public virtual AttachmentEvents {
 public:
  // Say what you think by decided(query.id), now or later, from any thread; after its deadline
  // nobody listens.
  virtual void decide(const Query&) = 0;

  // [any] The first answer counts. False: there is no such query, or its deadline has passed.
  bool decided(std::uint64_t query_id, const Decision& decision) {
    const detail::RawDecision raw(decision);
    const int result = detail::known(services_.decided)(host_, query_id, raw.get());
    if (result == -ENOENT) return false;
    detail::require(result, "decided");
    return true;
  }

 protected:
  Decider() = default;

 private:
  sluice_host* host_ = detail::bound_services().host;
  sluice_decider_services services_ = detail::services_of(detail::bound_services().decider);
};

// Brings answers that another DNS server found, which may give them once they are in the kernel.
class AnswerSource : public virtual AttachmentEvents {
 public:
  // Returns when the resolver of the attachment's wire has judged the answer and its addresses are
  // in the kernel. Error ENOENT: no such attachment under a wire that names this source, or no
  // resolver there; EHOSTDOWN: it does not run; ETIMEDOUT: it has not answered by `deadline`; else
  // what it refused with.
  void push_answer(const Answer& answer, Time deadline) {
    const detail::RawAnswer raw(answer);
    auto applied = detail::empty_result();
    detail::require(detail::known(services_.push_answer)(host_, raw.get(),
                                                         detail::raw_time(deadline), &applied),
                    "push_answer", applied);
  }

 protected:
  AnswerSource() = default;

 private:
  sluice_host* host_ = detail::bound_services().host;
  sluice_answer_source_services services_ =
      detail::services_of(detail::bound_services().answer_source);
};

// Is told what happens.
class Observer : public virtual AttachmentEvents {
 public:
  virtual void denials(std::span<const Denial>) {}
  // What became of DNS queries. Borrowed: copy what is to last.
  virtual void queries(std::span<const QueryReport>) {}
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
