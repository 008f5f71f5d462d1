#include "config/config.hpp"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <utility>

#include "base/install_paths.hpp"
#include "config/table_reader.hpp"
#include "config/toml_document.hpp"

namespace sluice {
namespace {

namespace fs = std::filesystem;

// Cloud metadata services: AWS, Azure, GCP and others; AWS over IPv6; Alibaba; Azure's wire server.
constexpr std::array<std::string_view, 4> kDefaultFloor{"169.254.169.254/32", "fd00:ec2::254/128",
                                                        "100.100.100.200/32", "168.63.129.16/32"};

constexpr std::size_t kLongestInterfaceName = 15;  // IFNAMSIZ - 1

// Instance and library names become file and directory names.
bool is_plain_name(std::string_view name) {
  return !name.empty() && name.size() <= 64 && std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
  });
}

class Reader {
 public:
  Reader(const fs::path& file, ErrorList& errors) : errors_(errors) {
    config_.file = file;
    config_.host.plugin_path = {kInstalledPlugins};
    std::error_code error;
    directory_ = fs::absolute(file, error).parent_path();
    for (const auto prefix : kDefaultFloor)
      config_.floor.deny.push_back(Prefix::parse(prefix).value());
  }

  [[nodiscard]] Config read(const TomlNode& root) && {
    if (root.entries.empty())
      errors_.add({.line = 1, .column = 1},
                  "nothing is configured here; write at least a [plugin.NAME] and a [[wire]]");
    TableReader top(root, "the top level", errors_);
    if (const auto* node = top.table("host")) read_host(*node);
    if (const auto* node = top.table("floor")) read_floor(*node);
    if (const auto* node = top.table("guard")) read_guard(*node);
    if (const auto* node = top.table("plugin")) read_plugins(*node);
    for (const auto* node : top.tables("wire")) read_wire(*node);
    top.finish();
    return std::move(config_);
  }

 private:
  [[nodiscard]] fs::path resolved(const std::string& path) const {
    return (directory_ / path).lexically_normal();
  }

  // Parses each item, and refuses one that is there twice.
  template <typename Parse, typename Value>
  void read_list(TableReader& table, std::string_view key, const Parse& parse,
                 std::vector<Value>& out) {
    const auto items = table.strings(key);
    if (!items) return;
    out.clear();
    std::vector<TextPosition> places;
    for (const auto& item : *items) {
      auto value = parse(item.value);
      if (!value) {
        errors_.add(item.position, fmt::format("{}: {}", key, value.error().message));
        continue;
      }
      const auto same = std::ranges::find(out, *value);
      if (same != out.end()) {
        errors_.add(item.position,
                    fmt::format("{}: {} stands here twice, first on line {}; remove one", key,
                                in_quotes(item.value),
                                places[static_cast<std::size_t>(same - out.begin())].line));
        continue;
      }
      out.push_back(*std::move(value));
      places.push_back(item.position);
    }
  }

  void read_host(const TomlNode& node) {
    auto& host = config_.host;
    TableReader table(node, "[host]", errors_);
    const auto directory = [this](const std::string& text) -> Result<fs::path> {
      if (text.empty()) return fail("an empty path; name a directory");
      return resolved(text);
    };
    read_list(table, "plugin_path", directory, host.plugin_path);
    if (const auto path = table.string("state_dir")) {
      if (path->value.empty()) errors_.add(path->position, "state_dir is empty; name a directory");
      host.state_dir = resolved(path->value);
    }
    if (const auto path = table.string("bpffs")) {
      host.bpffs = fs::path(path->value).lexically_normal();
      if (!host.bpffs.is_absolute())
        errors_.add(path->position,
                    fmt::format("bpffs is {}; it takes an absolute path on a mounted bpffs, such "
                                "as /sys/fs/bpf/sluice",
                                in_quotes(path->value)));
    }
    if (auto level = table.choice("log_level", {"trace", "debug", "info", "warning", "error"}))
      host.log_level = *std::move(level);
    if (auto mechanism = table.choice("tc_mechanism", {"auto", "tcx", "clsact"}))
      host.tc_mechanism = *std::move(mechanism);
    read_number(table, "max_attachments", 1, 1u << 20, host.max_attachments);
    read_number(table, "max_learned", 1024, 1u << 26, host.max_learned);
    read_number(table, "max_learned_per_workload", 16, 1u << 26, host.max_learned_per_workload);
    read_number(table, "max_flows", 1024, 1u << 24, host.max_flows);
    read_number(table, "heap_kib", 64, 4u << 20, host.heap_kib);
    read_number(table, "events_per_second", 0, 1'000'000, host.events_per_second);
    read_number(table, "events_burst", 1, 1'000'000, host.events_burst);
    read_number(table, "dns_packets_per_second", 1, 1'000'000, host.dns_packets_per_second);
    table.finish();
  }

  static void read_number(TableReader& table, std::string_view key, std::int64_t lowest,
                          std::int64_t highest, std::uint32_t& out) {
    if (const auto number = table.integer(key, lowest, highest))
      out = static_cast<std::uint32_t>(*number);
  }

  void read_floor(const TomlNode& node) {
    TableReader table(node, "[floor]", errors_);
    read_list(table, "deny", &Prefix::parse, config_.floor.deny);
    table.finish();
  }

  static Result<std::string> interface_name(const std::string& text) {
    const bool is_good = !text.empty() && text.size() <= kLongestInterfaceName && text != "." &&
                         text != ".." && std::ranges::all_of(text, [](char c) {
                           return c > ' ' && c < 0x7f && c != '/' && c != ':';
                         });
    if (is_good) return text;
    return fail("{} is no interface name; write one as `ip link` shows it (1 to {} characters)",
                in_quotes(text), kLongestInterfaceName);
  }

  static Result<std::string> cgroup_path(const std::string& text) {
    const fs::path path(text);
    const auto normal = path.lexically_normal().string();
    if (!text.starts_with('/') || normal != text || (text.size() > 1 && text.ends_with('/')))
      return fail(
          "{} is no cgroup path; write the path below the cgroup2 mount, such as /machine.slice",
          in_quotes(text));
    return text;
  }

  void read_guard(const TomlNode& node) {
    auto& guard = config_.guard;
    TableReader table(node, "[guard]", errors_);
    read_list(table, "uplinks", &interface_name, guard.uplinks);
    read_list(table, "trusted", &interface_name, guard.trusted);
    read_list(table, "cgroups", &cgroup_path, guard.parent_cgroups);
    for (const auto& name : guard.uplinks)
      if (std::ranges::find(guard.trusted, name) != guard.trusted.end())
        table.error(fmt::format(
            "{} is named in uplinks and in trusted; an uplink is guarded, so remove it from one",
            in_quotes(name)));
    table.finish();
  }

  void read_plugins(const TomlNode& node) {
    for (const auto& entry : node.entries) {
      if (entry.value.kind != TomlNode::Kind::table) {
        errors_.add(entry.position, wrong_type("plugin." + entry.key, entry.value,
                                               "a table: [plugin." + entry.key + "]"));
        continue;
      }
      if (!is_plain_name(entry.key)) {
        errors_.add(entry.position,
                    fmt::format("plugin name {}: use 1 to 64 letters, digits, '_' and '-'; it "
                                "becomes the name of a state directory",
                                in_quotes(entry.key)));
        continue;
      }
      read_plugin(entry);
    }
    // The tree is sorted by name; the operator's order is the one in the file.
    std::ranges::stable_sort(config_.plugins, {}, &PluginConfig::line);
  }

  void read_plugin(const TomlEntry& entry) {
    PluginConfig plugin{.instance = entry.key,
                        .library = {},
                        .toml_text = {},
                        .toml = {},
                        .file = errors_.file(),
                        .line = entry.value.position.line};
    TableReader table(entry.value, fmt::format("[plugin.{}]", entry.key), errors_);
    const auto library = table.string("library");
    if (!library && !table.has("library"))
      table.error("key \"library\" is missing; name the plugin, such as library = \"interfaces\"");
    if (library && !is_plain_name(library->value))
      errors_.add(library->position,
                  fmt::format("library is {}; it takes the bare name of a plugin, such as "
                              "\"interfaces\" for interfaces.so on the plugin path",
                              in_quotes(library->value)));
    if (library) plugin.library = library->value;
    plugin.required = table.boolean("required").value_or(plugin.required);
    plugin.overrides_floor = table.boolean("overrides_floor").value_or(plugin.overrides_floor);

    auto options = std::make_shared<TomlNode>(entry.value);
    std::erase_if(options->entries, [](const TomlEntry& option) {
      return option.key == "library" || option.key == "required" || option.key == "overrides_floor";
    });
    plugin.toml_text = canonical_toml(*options);
    plugin.toml = std::move(options);
    config_.plugins.push_back(std::move(plugin));
  }

  [[nodiscard]] std::vector<std::string_view> instances() const {
    std::vector<std::string_view> names;
    names.reserve(config_.plugins.size());
    for (const auto& plugin : config_.plugins) names.push_back(plugin.instance);
    return names;
  }

  void check_instance(std::string_view key, const Located<std::string>& name) {
    const auto known = instances();
    if (std::ranges::find(known, name.value) != known.end()) return;
    errors_.add(name.position,
                fmt::format("{}: no [plugin.{}] is configured{}", key,
                            is_plain_name(name.value) ? name.value : in_quotes(name.value),
                            known.empty() ? "" : "; " + suggestion(name.value, known)));
  }

  void read_wire(const TomlNode& node) {
    WireConfig wire;
    wire.place = {node.position.line, node.position.column};
    TableReader table(node, "[[wire]]", errors_);
    if (const auto* targets = table.table("targets")) read_targets(*targets, wire);
    if (const auto sources = table.strings("sources")) {
      for (const auto& source : *sources) {
        check_instance("sources", source);
        if (std::ranges::find(wire.sources, source.value) != wire.sources.end())
          errors_.add(source.position, fmt::format("sources: {} stands here twice; remove one",
                                                   in_quotes(source.value)));
        else
          wire.sources.push_back(source.value);
      }
    }
    if (const auto mode = table.choice("mode", {"block-all", "allowlist", "denylist", "disabled"}))
      wire.mode = parse_mode(*mode).value();
    read_options(table, wire.options);
    table.finish();

    const auto same = std::ranges::find_if(config_.wires, [&wire](const WireConfig& other) {
      return other.discovered_by == wire.discovered_by && other.labels == wire.labels &&
             other.name == wire.name;
    });
    if (same != config_.wires.end())
      table.error(fmt::format(
          "the same targets as the [[wire]] on line {}, which comes first and so always matches; "
          "remove one",
          same->place.line));
    config_.wires.push_back(std::move(wire));
  }

  void read_targets(const TomlNode& node, WireConfig& wire) {
    TableReader table(node, "targets", errors_);
    if (auto name = table.string("discovered_by")) {
      check_instance("discovered_by", *name);
      wire.discovered_by = std::move(name->value);
    }
    if (auto labels = table.string_table("labels")) wire.labels = *std::move(labels);
    if (auto name = table.string("name")) wire.name = std::move(name->value);
    table.finish();
  }

  void read_options(TableReader& table, AttachmentOptions& options) {
    options.audit = table.boolean("audit").value_or(options.audit);
    options.replies = table.boolean("replies").value_or(options.replies);
    options.arp = table.boolean("arp").value_or(options.arp);
    options.nd = table.boolean("nd").value_or(options.nd);
    options.dhcp = table.boolean("dhcp").value_or(options.dhcp);
    options.tell = table.boolean("tell").value_or(options.tell);
    options.loopback = table.boolean("loopback").value_or(options.loopback);
    if (const auto servers = table.strings("dhcp_servers"))
      for (const auto& server : *servers) read_dhcp_server(server, options);
    if (const auto types = table.integers("ethertypes", 0x0600, 0xffff)) {
      for (const auto& type : *types) read_ethertype(type, options.ethertypes);
      check_count("ethertypes", options.ethertypes.size(), SLUICE_MAX_EXTRA_ETHERTYPES, *types);
    }
    if (const auto ids = table.integers("vlans", 1, 4094)) {
      for (const auto& id : *ids)
        add_number("vlans", id, fmt::format("{}", id.value), options.vlans);
      check_count("vlans", options.vlans.size(), SLUICE_MAX_VLANS, *ids);
    }
  }

  void check_count(std::string_view key, std::size_t count, std::size_t most,
                   const std::vector<Located<std::int64_t>>& items) {
    if (count > most)
      errors_.add(items[most].position,
                  fmt::format("{} has {} items; the filter has room for {}", key, count, most));
  }

  // `written`: the number as an operator writes it.
  void add_number(std::string_view key, const Located<std::int64_t>& number,
                  const std::string& written, std::vector<std::uint16_t>& out) {
    const auto value = static_cast<std::uint16_t>(number.value);
    if (std::ranges::find(out, value) != out.end())
      errors_.add(number.position,
                  fmt::format("{}: {} stands here twice; remove one", key, written));
    else
      out.push_back(value);
  }

  void read_ethertype(const Located<std::int64_t>& type, std::vector<std::uint16_t>& out) {
    const auto refuse = [&](std::string_view why) {
      errors_.add(type.position, fmt::format("ethertypes: 0x{:04x} {}", type.value, why));
    };
    switch (type.value) {
      case 0x0800:
      case 0x86dd:
        return refuse("is IP, which policy judges; it would pass unread, so remove it");
      case 0x0806:
        return refuse("is ARP; the switch for it is arp = true");
      case 0x8100:
      case 0x88a8:
      case 0x9100:
        return refuse("is a VLAN tag, which can hide anything; name the VLANs with vlans = [...]");
      default:
        add_number("ethertypes", type, fmt::format("0x{:04x}", type.value), out);
    }
  }

  void read_dhcp_server(const Located<std::string>& server, AttachmentOptions& options) {
    const auto prefix = Prefix::parse(server.value);
    const auto refuse = [&](std::string_view why) {
      errors_.add(server.position,
                  fmt::format("dhcp_servers: {} {}", in_quotes(server.value), why));
    };
    if (!prefix || server.value.find('/') != std::string::npos)
      return refuse("is not an address; write one such as 192.0.2.1");
    if (prefix->family == 4) {
      if (options.dhcp4_server) return refuse("is a second IPv4 server; one is supported");
      options.dhcp4_server.emplace();
      std::copy_n(prefix->address.begin(), 4, options.dhcp4_server->begin());
    } else {
      if (options.dhcp6_server) return refuse("is a second IPv6 server; one is supported");
      options.dhcp6_server = prefix->address;
    }
  }

  ErrorList& errors_;
  fs::path directory_;
  Config config_;
};

}  // namespace

std::expected<ConfigReading, ConfigErrors> read_config(const fs::path& file) {
  const TomlLimits limits{.bytes = std::size_t{4} << 20, .values = 50'000};
  const auto text = read_text_file(file, limits.bytes);
  if (!text) return std::unexpected(text.error());
  const auto root = parse_toml(*text, file.string(), limits);
  if (!root) return std::unexpected(root.error());
  ErrorList errors(file.string());
  auto config = Reader(file, errors).read(*root);
  return ConfigReading{std::move(config), errors.empty() ? ConfigErrors{} : errors.take()};
}

std::expected<Config, ConfigErrors> load_config(const fs::path& file) {
  auto reading = read_config(file);
  if (!reading) return std::unexpected(std::move(reading.error()));
  if (!reading->errors.empty()) return std::unexpected(std::move(reading->errors));
  return std::move(reading->config);
}

}  // namespace sluice
