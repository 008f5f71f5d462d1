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

std::expected<PartlyLoaded, ConfigErrors> load_what_is_sound(const std::filesystem::path& file,
                                                             uid_t library_owner) {
  auto reading = read_config(file);
  if (!reading) return std::unexpected(std::move(reading.error()));
  // A fault in the file does not hide those in the plugins' own options, nor the other way round.
  PartlyLoaded result{.loaded = {.config = std::move(reading->config), .plugins = {}},
                      .errors = std::move(reading->errors)};
  const Config& config = result.loaded.config;
  auto& errors = result.errors;
  const bool file_is_sound = errors.empty();
  const auto fault = [&](const Error& error) {
    errors.push_back({.file = config.file.string(), .text = error.message});
  };
  if (auto floor = compile({}, config.floor, boot_now()); !floor) fault(floor.error());

  auto loop = EventLoop::create();
  if (!loop) {
    fault(loop.error());
    return result;
  }
  ClosedCore nothing_to_ask;
  PluginHost host(nothing_to_ask, **loop, plugin_settings(config, library_owner));
  auto plugins = host.prepare(config.plugins);
  if (!plugins) {
    errors.insert(errors.end(), plugins.error().begin(), plugins.error().end());
    for (const auto& plugin : config.plugins) {
      auto one = host.prepare({plugin});
      if (one) result.loaded.plugins.push_back(std::move(one->front()));
    }
    return result;
  }
  result.loaded.plugins = std::move(*plugins);
  if (file_is_sound) {
    const auto wires = check_wires(result.loaded.plugins, config.wires, config.file);
    errors.insert(errors.end(), wires.begin(), wires.end());
  }
  return result;
}

std::expected<LoadedConfig, ConfigErrors> load_everything(const std::filesystem::path& file,
                                                          uid_t library_owner) {
  auto result = load_what_is_sound(file, library_owner);
  if (!result) return std::unexpected(std::move(result.error()));
  if (!result->errors.empty()) return std::unexpected(std::move(result->errors));
  return std::move(result->loaded);
}

}  // namespace sluice
