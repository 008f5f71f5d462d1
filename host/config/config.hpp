// The configuration as checked: sluice.toml turned into values, with every error found in one go.
//
//   auto config = load_config("/etc/sluice/sluice.toml");
//   if (!config) print(config.error());   // "sluice.toml:12:9: ...", one for each fault
//
// Plugin tables are kept as TOML until the plugin's declared options are known (check_options()).
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "config/errors.hpp"
#include "dataplane/data_plane.hpp"
#include "policy/model.hpp"

namespace sluice {

struct HostConfig {
  std::vector<std::filesystem::path> plugin_path{"/usr/lib/sluice/plugins"};  // read: as installed
  std::filesystem::path state_dir{"/var/lib/sluice"};
  std::filesystem::path bpffs{"/sys/fs/bpf/sluice"};
  std::string log_level = "info";     // trace, debug, info, warning, error
  std::string tc_mechanism = "auto";  // auto, tcx, clsact
  std::uint32_t max_attachments = 8192;
  std::uint32_t max_learned = 1u << 20;
  std::uint32_t max_learned_per_workload = 1u << 14;  // counted for each name that opened it
  std::uint32_t max_flows = 65536;
  std::uint32_t heap_kib = 16384;        // the policy heap; larger policies become blobs
  std::uint32_t events_per_second = 20;  // denial events, per attachment and CPU
  std::uint32_t events_burst = 100;
  // What a workload may send to its resolver, per attachment and CPU; a quarter of it at once.
  std::uint32_t dns_packets_per_second = 4000;
  bool operator==(const HostConfig&) const = default;
};

// One [plugin.NAME] table. Keys every plugin has: library, required, overrides_floor. The rest are
// the plugin's options.
struct PluginConfig {
  std::string instance;
  std::string library;   // "interfaces" -> interfaces.so on the plugin path
  bool required = true;  // --config fails when it does not start; else the host goes on without it
  bool overrides_floor =
      false;  // its explicit CIDR allows may overrule the floor: the operator's own TOML
  std::string
      toml_text;  // canonical text of the remaining options: equal text, nothing to reconfigure
  std::shared_ptr<const void> toml;  // the parsed table with positions; opaque outside host/config
  std::string file;
  std::uint32_t line = 0;
};

// One [[wire]]: which attachments, which sources in which order, and what holds until a source has
// spoken.
struct WireConfig {
  // Where it is written: for messages. A wire that moved in the file is the same wire.
  struct Place {
    std::uint32_t line = 0, column = 0;
    bool operator==(const Place&) const { return true; }
  };

  std::string discovered_by;                  // empty: any discovery
  std::map<std::string, std::string> labels;  // all must match; values are globs
  std::string name;                           // glob on interface name or cgroup path; empty: any
  std::vector<std::string> sources;  // plugin instances, in order of precedence for the mode
  Mode mode = Mode::block_all;
  AttachmentOptions options;  // audit, replies, housekeeping, ethertypes, vlans...
  Place place = {};
  bool operator==(const WireConfig&) const = default;
};

struct Config {
  std::filesystem::path file;
  HostConfig host;
  Floor floor;  // the default cloud metadata addresses unless [floor] says otherwise
  GuardSettings guard;
  std::vector<PluginConfig> plugins;  // in file order
  std::vector<WireConfig> wires;
};

// What could be read of a file, and every fault of it: for a caller that looks for more faults
// beyond the file itself.
struct ConfigReading {
  Config config;
  ConfigErrors errors;
};
// Fails only where nothing could be read: no file, no TOML.
[[nodiscard]] std::expected<ConfigReading, ConfigErrors> read_config(
    const std::filesystem::path& file);
// Every error, not the first one. A file that cannot be read is one error too.
[[nodiscard]] std::expected<Config, ConfigErrors> load_config(const std::filesystem::path& file);

// What a plugin declares, copied out of the ABI struct.
struct OptionDeclaration {
  enum class Type : std::uint8_t {
    string = 1,
    integer,
    boolean,
    string_list,
    string_table,
    duration
  };
  std::string path{};
  Type type = Type::string;
  bool required = false;
  std::string default_value{};  // TOML text, empty: none
  std::string help{};
};
struct OptionValue {
  std::string path{};
  OptionDeclaration::Type type = OptionDeclaration::Type::string;
  bool is_set = false;
  bool boolean = false;
  std::int64_t integer = 0;  // duration: nanoseconds
  std::string string{};
  std::vector<std::string> items{};  // string_table: key, value, key, value...
};

// Checks the plugin's table against its declared options: unknown keys (with the nearest known
// one), wrong types, missing required ones, each with file, line and column.
[[nodiscard]] std::expected<std::vector<OptionValue>, ConfigErrors> check_options(
    const PluginConfig& plugin, const std::vector<OptionDeclaration>& declared);

}  // namespace sluice
