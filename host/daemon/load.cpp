#include "daemon/load.hpp"

#include "daemon/closed_core.hpp"
#include "daemon/event_loop.hpp"
#include "policy/compiler.hpp"

namespace sluice {

PluginHostSettings plugin_settings(const Config& config, uid_t library_owner) {
  PluginHostSettings settings;
  settings.libraries.directories = config.host.plugin_path;
  settings.libraries.owner = library_owner;
  settings.config_directory = config.file.parent_path();
  settings.state_directory = config.host.state_dir;
  settings.check_options = check_options;
  return settings;
}

std::expected<LoadedConfig, ConfigErrors> load_everything(const std::filesystem::path& file,
                                                          uid_t library_owner) {
  auto reading = read_config(file);
  if (!reading) return std::unexpected(std::move(reading.error()));
  // A fault in the file does not hide those in the plugins' own options.
  Config* const config = &reading->config;
  ConfigErrors errors = std::move(reading->errors);
  const bool file_is_sound = errors.empty();
  const auto fault = [&](const Error& error) {
    errors.push_back({.file = config->file.string(), .text = error.message});
  };
  if (auto floor = compile({}, config->floor, boot_now()); !floor) fault(floor.error());

  auto loop = EventLoop::create();
  if (!loop) {
    fault(loop.error());
    return std::unexpected(std::move(errors));
  }
  ClosedCore nothing_to_ask;
  PluginHost host(nothing_to_ask, **loop, plugin_settings(*config, library_owner));
  auto plugins = host.prepare(config->plugins);
  if (!plugins) {
    errors.insert(errors.end(), plugins.error().begin(), plugins.error().end());
    return std::unexpected(std::move(errors));
  }
  if (file_is_sound) {
    const auto wires = check_wires(*plugins, config->wires, config->file);
    errors.insert(errors.end(), wires.begin(), wires.end());
  }
  if (!errors.empty()) return std::unexpected(std::move(errors));
  return LoadedConfig{std::move(*config), std::move(*plugins)};
}

}  // namespace sluice
