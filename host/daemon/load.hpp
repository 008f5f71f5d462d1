// Everything that can be known of a configuration before anything is touched: the file, its
// plugins' libraries and options, its wires, its floor.
#pragma once

#include <sys/types.h>

#include <expected>
#include <filesystem>

#include "config/config.hpp"
#include "plugins/plugin_host.hpp"

namespace sluice {

struct LoadedConfig {
  Config config;
  PreparedPlugins plugins;
};

[[nodiscard]] PluginHostSettings plugin_settings(const Config& config, uid_t library_owner);

// What could be loaded beside every fault of the rest: for a check that looks further.
struct PartlyLoaded {
  LoadedConfig loaded;
  ConfigErrors errors;
};
// Fails only where nothing could be read. Libraries are loaded (and stay loaded).
[[nodiscard]] std::expected<PartlyLoaded, ConfigErrors> load_what_is_sound(
    const std::filesystem::path& file, uid_t library_owner);

// Every error, not the first one. Libraries are loaded (and stay loaded); no plugin is created.
[[nodiscard]] std::expected<LoadedConfig, ConfigErrors> load_everything(
    const std::filesystem::path& file, uid_t library_owner);

}  // namespace sluice
