#include "plugins/abi_values.hpp"

#include <cstddef>
#include <cstdio>

namespace sluice::abi {
namespace {

constexpr std::array<std::uint8_t, 12> kMapped{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

// A plugin cannot be trusted with lengths either: what no honest caller sends is refused before it
// is read.
constexpr std::size_t kMostLabels = 1024;
constexpr std::size_t kLongestText = 1 << 16;
constexpr std::size_t kMostRanges = 1024;       // of one rule
constexpr std::size_t kMostTypes = 256;         // likewise
constexpr std::size_t kLongestNameText = 1024;  // 255 octets, each as \DDD
constexpr std::size_t kMostPushNames = 64;      // of one push
constexpr std::size_t kMostGrants = 4096;       // likewise
constexpr std::size_t kMostPushed = 1 << 16;    // addresses over all grants

Result<std::string> text_from(const sluice_string& raw, const char* what) {
  if (raw.length > kLongestText)
    return fail_with(E2BIG, "{} has {} bytes; at most {} are taken", what, raw.length,
                     kLongestText);
  if (raw.length > 0 && raw.data == nullptr)
    return fail("{} has a length of {} and no data", what, raw.length);
  return std::string(view(raw));
}

Result<Prefix> prefix_from(const sluice_prefix& raw) {
  Prefix prefix;
  prefix.family = raw.family;
  prefix.length = raw.length;
  std::memcpy(prefix.address.data(), raw.address, sizeof raw.address);
  if (auto status = prefix.check(); !status) return std::unexpected(status.error());
  return prefix;
}

Status read_attributes(const sluice_rule& raw, Rule& rule) {
  auto ranges = prefixes_from(raw.ranges, raw.range_count);
  if (!ranges) return std::unexpected(ranges.error());
  rule.ranges = std::move(*ranges);
  if (raw.type_count > kMostTypes)
    return fail_with(E2BIG, "{} types; at most {} are taken", raw.type_count, kMostTypes);
  if (raw.type_count > 0 && raw.types == nullptr) return fail("its types have no data");
  rule.types.assign(raw.types, raw.types + raw.type_count);
  rule.public_suffix = (raw.flags & SLUICE_RULE_PUBLIC_SUFFIX) != 0;
  return {};
}

Result<Rule> rule_from(const sluice_rule& raw) {
  Rule rule;
  if (raw.action == SLUICE_RULE_ALLOW)
    rule.action = Action::allow;
  else if (raw.action == SLUICE_RULE_DENY)
    rule.action = Action::deny;
  else
    return fail("action {} is neither allow (1) nor deny (2)", raw.action);

  auto name = text_from(raw.name, "the rule's name");
  if (!name) return std::unexpected(name.error());
  rule.name = std::move(*name);

  if (raw.family == 0) {
    auto domain = text_from(raw.domain, "the domain pattern");
    if (!domain) return std::unexpected(domain.error());
    if (domain->empty()) return fail("has neither a prefix nor a domain; set one");
    rule.domain = std::move(*domain);
  } else {
    if (raw.domain.length != 0) return fail("has a prefix and a domain; make it two rules");
    Prefix prefix;
    prefix.family = raw.family;
    prefix.length = raw.prefix_length;
    std::memcpy(prefix.address.data(), raw.address, sizeof raw.address);
    if (auto status = prefix.check(); !status) return std::unexpected(status.error());
    rule.prefix = prefix;
  }
  auto ports = ports_from(raw.ports, raw.port_count);
  if (!ports) return std::unexpected(ports.error());
  rule.ports = std::move(*ports);
  if (auto status = read_attributes(raw, rule); !status) return std::unexpected(status.error());
  rule.expires = BootTime{raw.expires};
  return rule;
}

Result<std::optional<bool>> tristate_from(std::uint32_t value, const char* what) {
  switch (value) {
    case SLUICE_FALSE:
      return std::optional<bool>(false);
    case SLUICE_TRUE:
      return std::optional<bool>(true);
    case SLUICE_UNSET:
      return std::optional<bool>();
    default:
      return fail("{} is {}; it must be 0, 1 or 2 (unset)", what, value);
  }
}

// True where the caller's struct has the field.
template <typename Struct, typename Field>
bool has(const Struct* into, Field Struct::*field) {
  static const Struct sample{};
  const auto end = reinterpret_cast<const char*>(&(sample.*field)) -
                   reinterpret_cast<const char*>(&sample) + sizeof(Field);
  return into->size >= static_cast<std::size_t>(end);
}

void demap(const std::uint8_t (&address)[16], std::uint8_t family, std::uint8_t (&into)[16]) {
  std::memset(into, 0, sizeof into);
  if (family == 4)
    std::memcpy(into, address + 12, 4);
  else
    std::memcpy(into, address, 16);
}

}  // namespace

Result<Target> target_from(const sluice_target* writers) {
  if (writers == nullptr) return fail("attach: no target was given");
  const auto raw = known_part(writers);
  auto name = text_from(raw.name, "the target's name");
  if (!name) return std::unexpected(name.error());
  auto netns_path = text_from(raw.netns_path, "the target's netns_path");
  if (!netns_path) return std::unexpected(netns_path.error());
  if (raw.kind == SLUICE_TARGET_INTERFACE) {
    if (raw.ifindex == 0) return fail("interface \"{}\": attach needs its ifindex", *name);
    if (raw.side > SLUICE_SIDE_WORKLOAD_EGRESS)
      return fail("interface \"{}\": side {} is none of 0, 1, 2", *name, raw.side);
    return InterfaceTarget{.name = std::move(*name),
                           .ifindex = raw.ifindex,
                           .netns_path = std::move(*netns_path),
                           .side = static_cast<Side>(raw.side)};
  }
  if (raw.kind == SLUICE_TARGET_CGROUP) {
    if (name->empty() || name->front() != '/')
      return fail("cgroup \"{}\": write its path below the cgroup2 mount, from \"/\"", *name);
    return CgroupTarget{.path = std::move(*name), .cgroup_id = raw.cgroup_id};
  }
  return fail("target \"{}\": kind {} is neither an interface (1) nor a cgroup (2)", *name,
              raw.kind);
}

Result<Labels> labels_from(const sluice_label* raw, std::size_t count) {
  if (count > kMostLabels)
    return fail_with(E2BIG, "{} labels; at most {} are taken", count, kMostLabels);
  if (count > 0 && raw == nullptr) return fail("{} labels and no list of them", count);
  Labels labels;
  for (std::size_t i = 0; i < count; ++i) {
    auto key = text_from(raw[i].key, "a label's key");
    if (!key) return std::unexpected(key.error());
    auto value = text_from(raw[i].value, "a label's value");
    if (!value) return std::unexpected(value.error());
    if (key->empty()) return fail("label {} has no key; give it one", i);
    labels.insert_or_assign(std::move(*key), std::move(*value));
  }
  return labels;
}

Result<std::vector<Rule>> rules_from(const sluice_rule* raw, std::size_t count) {
  std::vector<Rule> rules;
  if (count == 0) return rules;
  if (raw == nullptr) return fail("{} rules and no list of them", count);
  if (raw->size < offsetof(sluice_rule, name) + sizeof(sluice_rule::name))
    return fail("rules of {} bytes each; ABI {}.0 has {}", raw->size, SLUICE_ABI_MAJOR,
                offsetof(sluice_rule, name) + sizeof(sluice_rule::name));
  rules.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto* writers = element(raw, i);
    auto rule = writers->size == raw->size
                    ? rule_from(known_part(writers))
                    : Result<Rule>(fail("has another size than the first one"));
    if (!rule) {
      auto error = rule.error();
      error.rule_index = static_cast<std::uint32_t>(i);
      error.message = fmt::format("rule {}: {}", i, error.message);
      return std::unexpected(std::move(error));
    }
    rules.push_back(std::move(*rule));
  }
  return rules;
}

Result<Layer> layer_from(const sluice_layer* writers) {
  if (writers == nullptr) return fail("no layer was given");
  const auto raw = known_part(writers);
  Layer layer;
  if (raw.mode != SLUICE_POLICY_UNSET) {
    if (raw.mode > SLUICE_POLICY_DISABLED)
      return fail("the layer's mode is {}; it must be 0 to 3 or 255 (unset)", raw.mode);
    layer.mode = static_cast<Mode>(raw.mode);
  }
  auto audit = tristate_from(raw.audit, "the layer's audit");
  if (!audit) return std::unexpected(audit.error());
  auto replies = tristate_from(raw.replies, "the layer's replies");
  if (!replies) return std::unexpected(replies.error());
  layer.audit = *audit;
  layer.replies = *replies;
  auto rules = rules_from(raw.rules, raw.rule_count);
  if (!rules) return std::unexpected(rules.error());
  layer.rules = std::move(*rules);
  return layer;
}

namespace {

// Of presentation form: what else a label holds is escaped in it.
bool is_name_text(char c) {
  return c > 0x20 && c < 0x7f && (c < 'A' || c > 'Z');
}

Status address_from(const sluice_address& raw, std::size_t index,
                    std::array<std::uint8_t, 16>& address) {
  if (raw.family == 4) {
    std::copy(kMapped.begin(), kMapped.end(), address.begin());
    std::copy_n(raw.bytes, 4, address.begin() + 12);
  } else if (raw.family == 6) {
    std::copy_n(raw.bytes, 16, address.begin());
  } else {
    return fail("address {}: family {} is neither 4 nor 6", index, raw.family);
  }
  return {};
}

}  // namespace

Result<std::vector<std::array<std::uint8_t, 16>>> addresses_from(const sluice_address* raw,
                                                                 std::size_t count) {
  if (count > 0 && raw == nullptr) return fail("{} addresses and no list of them", count);
  std::vector<std::array<std::uint8_t, 16>> addresses(count);
  for (std::size_t i = 0; i < count; ++i) {
    if (auto status = address_from(raw[i], i, addresses[i]); !status)
      return std::unexpected(status.error());
  }
  return addresses;
}

Status PushFrom::read(const sluice_push* writers) {
  if (writers == nullptr) return fail("no push was given");
  const auto raw = known_part(writers);
  if (raw.name_count == 0 || raw.names == nullptr)
    return fail("a push without the name that was asked for");
  if (raw.name_count > kMostPushNames)
    return fail_with(E2BIG, "{} names; at most {} are taken", raw.name_count, kMostPushNames);
  if (raw.grant_count > 0 && raw.grants == nullptr)
    return fail("{} grants and no list of them", raw.grant_count);
  if (raw.grant_count > kMostGrants)
    return fail_with(E2BIG, "{} grants; at most {} are taken", raw.grant_count, kMostGrants);
  names_.reserve(raw.name_count);
  for (std::size_t i = 0; i < raw.name_count; ++i) {
    const auto name = names_.emplace_back(view(raw.names[i]));
    if (name.empty() || name.size() > kLongestNameText)
      return fail("name {} of a push has {} bytes, where 1 to {} are taken", i, name.size(),
                  kLongestNameText);
    if (!std::ranges::all_of(name, is_name_text))
      return fail("name {} of a push is not lower-case ASCII with escapes", i);
  }
  std::size_t count = 0;
  for (std::size_t i = 0; i < raw.grant_count; ++i) {
    const auto grant = known_part(element(raw.grants, i));
    if (grant.address_count > 0 && grant.addresses == nullptr)
      return fail("grant {}: {} addresses and no list of them", i, grant.address_count);
    if (grant.address_count > kMostPushed - count)
      return fail_with(E2BIG, "more than {} addresses in one push", kMostPushed);
    count += grant.address_count;
  }
  addresses_.resize(count);
  ports_.reserve(raw.grant_count);
  grants_.reserve(raw.grant_count);
  std::size_t at = 0;
  for (std::size_t i = 0; i < raw.grant_count; ++i) {
    const auto grant = known_part(element(raw.grants, i));
    auto ports = ports_from(grant.ports, grant.port_count);
    if (!ports) return std::unexpected(ports.error());
    if (!ports->empty() && grant.rule != SLUICE_NO_RULE)
      return fail("grant {}: under a rule the ports are the rule's", i);
    ports_.push_back(std::move(*ports));
    const auto begin = at;
    for (std::size_t k = 0; k < grant.address_count; ++k, ++at) {
      if (auto status = address_from(grant.addresses[k], k, addresses_[at]); !status) return status;
    }
    grants_.push_back({.rule = grant.rule,
                       .addresses = std::span(addresses_).subspan(begin, at - begin),
                       .ttl_ns = grant.ttl_ns,
                       .grace_ns = grant.grace_ns,
                       .ports = ports_.back()});
  }
  return {};
}

Result<std::vector<PortRange>> ports_from(const sluice_port_range* raw, std::size_t count) {
  if (count > 0 && raw == nullptr) return fail("its ports have no data");
  std::vector<PortRange> all;
  for (std::size_t i = 0; i < count; ++i) {
    PortRange ports;
    ports.protocol = raw[i].protocol;
    ports.any_port = raw[i].any_port != 0;
    if (!ports.any_port) {
      ports.first = raw[i].first;
      ports.last = raw[i].last;
    }
    if (auto status = ports.check(); !status) return std::unexpected(status.error());
    all.push_back(ports);
  }
  return all;
}

Result<std::vector<Prefix>> prefixes_from(const sluice_prefix* raw, std::size_t count) {
  if (count > kMostRanges)
    return fail_with(E2BIG, "{} ranges; at most {} are taken", count, kMostRanges);
  if (count > 0 && raw == nullptr) return fail("its ranges have no data");
  std::vector<Prefix> prefixes;
  for (std::size_t i = 0; i < count; ++i) {
    auto prefix = prefix_from(raw[i]);
    if (!prefix) return std::unexpected(prefix.error());
    prefixes.push_back(*prefix);
  }
  return prefixes;
}

Result<std::string> fd_name_from(const sluice_string& raw) {
  const auto name = view(raw);
  const auto allowed = [](unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  if (name.empty() || name.size() > 64 || !std::ranges::all_of(name, allowed))
    return fail("a kept descriptor is named by 1 to 64 of a-z, A-Z, 0-9, '.', '_' and '-'");
  return std::string(name);
}

std::vector<OptionDeclaration> declarations_of(const sluice_plugin& table) {
  std::vector<OptionDeclaration> declarations;
  for (std::uint32_t i = 0; i < table.option_count; ++i) {
    const auto raw = known_part(element(table.options, i));
    declarations.push_back({.path = std::string(view(raw.path)),
                            .type = static_cast<OptionDeclaration::Type>(raw.type),
                            .required = (raw.flags & SLUICE_OPTION_REQUIRED) != 0,
                            .default_value = std::string(view(raw.default_value)),
                            .help = std::string(view(raw.help))});
  }
  return declarations;
}

void write_applied(sluice_applied* into, const Applied& applied) {
  if (into == nullptr) return;
  if (has(into, &sluice_applied::rule_index)) into->rule_index = UINT32_MAX;
  if (has(into, &sluice_applied::generation)) into->generation = applied.generation.value;
  if (has(into, &sluice_applied::digest)) {
    into->digest[0] = applied.digest[0];
    into->digest[1] = applied.digest[1];
  }
  if (has(into, &sluice_applied::message)) into->message[0] = '\0';
}

void write_error(sluice_applied* into, const Error& error) {
  if (into == nullptr) return;
  if (has(into, &sluice_applied::rule_index)) into->rule_index = error.rule_index;
  if (!has(into, &sluice_applied::message)) return;
  constexpr std::size_t room = sizeof into->message - 1;
  auto length = std::min(error.message.size(), room);
  // Never half a character.
  while (length > 0 && length < error.message.size() &&
         (static_cast<unsigned char>(error.message[length]) & 0xc0u) == 0x80u)
    --length;
  std::memcpy(into->message, error.message.data(), length);
  into->message[length] = '\0';
}

void write_endpoint(sluice_endpoint* into, const Endpoint& endpoint) {
  if (into == nullptr) return;
  *into = {};
  const bool is_ip4 = std::equal(kMapped.begin(), kMapped.end(), endpoint.address.begin());
  into->family = is_ip4 ? 4 : 6;
  into->port = endpoint.port;
  if (is_ip4)
    std::copy_n(endpoint.address.begin() + 12, 4, into->address);
  else
    std::copy_n(endpoint.address.begin(), 16, into->address);
}

void write_counters(sluice_counters_info* into, const Counters& counters) {
  if (into == nullptr) return;
  sluice_counters_info mine{};
  mine.allowed_packets = counters.allowed_packets;
  mine.allowed_bytes = counters.allowed_bytes;
  mine.denied_packets = counters.denied_packets;
  mine.denied_bytes = counters.denied_bytes;
  mine.audited_packets = counters.audited_packets;
  mine.events_lost = counters.events_lost;
  mine.size = into->size;
  std::memcpy(into, &mine, std::min<std::size_t>(into->size, sizeof mine));
}

RawInfo::RawInfo(const AttachmentInfo& info) {
  for (const auto& [key, value] : info.labels) labels_.push_back({raw(key), raw(value)});
  raw_.size = sizeof raw_;
  raw_.mode = static_cast<std::uint32_t>(info.mode);
  raw_.id = info.id.value;
  raw_.incarnation = info.incarnation;
  raw_.generation = info.generation.value;
  target_.size = sizeof target_;
  if (const auto* interface = std::get_if<InterfaceTarget>(&info.target)) {
    target_.kind = SLUICE_TARGET_INTERFACE;
    target_.name = raw(interface->name);
    target_.ifindex = interface->ifindex;
    target_.side = static_cast<std::uint32_t>(interface->side);
    target_.netns_path = raw(interface->netns_path);
  } else {
    const auto& cgroup = std::get<CgroupTarget>(info.target);
    target_.kind = SLUICE_TARGET_CGROUP;
    target_.name = raw(cgroup.path);
    target_.cgroup_id = cgroup.cgroup_id;
  }
  raw_.target = &target_;
  raw_.labels = labels_.data();
  raw_.label_count = labels_.size();
  raw_.discovered_by = raw(info.discovered_by);
  raw_.state = raw(info.state);
  raw_.audit = info.audit;
  raw_.redirected = info.redirected;
}

RawRules::RawRules(const std::vector<Rule>& rules) {
  raw_.reserve(rules.size());
  for (const auto& rule : rules) {
    auto& ports = ports_.emplace_back();
    for (const auto& range : rule.ports)
      ports.push_back(
          {range.protocol, static_cast<std::uint8_t>(range.any_port), range.first, range.last});
    sluice_rule one{};
    one.size = sizeof one;
    one.action = rule.action == Action::allow ? SLUICE_RULE_ALLOW : SLUICE_RULE_DENY;
    if (rule.prefix) {
      one.family = rule.prefix->family;
      one.prefix_length = rule.prefix->length;
      std::copy_n(rule.prefix->address.begin(), sizeof one.address, one.address);
    }
    one.domain = raw(rule.domain);
    one.ports = ports.data();
    one.port_count = ports.size();
    one.expires = rule.expires.nanoseconds;
    one.name = raw(rule.name);
    auto& ranges = ranges_.emplace_back();
    for (const auto& range : rule.ranges) {
      auto& copied = ranges.emplace_back();
      copied.family = range.family;
      copied.length = range.length;
      std::copy_n(range.address.begin(), sizeof copied.address, copied.address);
    }
    one.ranges = ranges.data();
    one.range_count = ranges.size();
    one.types = rule.types.data();
    one.type_count = rule.types.size();
    one.flags = rule.public_suffix ? SLUICE_RULE_PUBLIC_SUFFIX : 0u;
    one.id = rule.id.value;
    raw_.push_back(one);
  }
}

RawDenials::RawDenials(std::span<const Denial> denials) {
  raw_.reserve(denials.size());
  for (const auto& denial : denials) {
    const auto& event = denial.event;
    sluice_denial one{};
    one.size = sizeof one;
    one.audited = event.audited;
    one.attachment = denial.attachment.value;
    one.time = event.time;
    one.generation = event.generation;
    one.reason = raw(denial.reason);
    one.family = event.family;
    one.protocol = event.protocol;
    one.icmp_type = event.icmp_type;
    one.icmp_code = event.icmp_code;
    one.source_port = __builtin_bswap16(event.source_port_be);
    one.destination_port = __builtin_bswap16(event.destination_port_be);
    one.ethertype = event.ethertype;
    one.length = event.length;
    demap(event.source, event.family, one.source);
    demap(event.destination, event.family, one.destination);
    one.rule = raw(denial.rule);
    raw_.push_back(one);
  }
}

RawConfig::RawConfig(const std::string& instance, const std::vector<OptionValue>& values,
                     const std::string& config_directory, const std::string& state_directory) {
  for (const auto& value : values) {
    auto& items = items_.emplace_back();
    for (const auto& item : value.items) items.push_back(raw(item));
    sluice_option_value one{};
    one.size = sizeof one;
    one.type = static_cast<std::uint32_t>(value.type);
    one.path = raw(value.path);
    one.is_set = value.is_set;
    one.boolean = value.boolean;
    one.integer = value.integer;
    one.string = raw(value.string);
    one.items = items.data();
    one.item_count = items.size();
    values_.push_back(one);
  }
  raw_.size = sizeof raw_;
  raw_.instance = raw(instance);
  raw_.values = values_.data();
  raw_.value_count = values_.size();
  raw_.config_directory = raw(config_directory);
  raw_.state_directory = raw(state_directory);
}

}  // namespace sluice::abi
