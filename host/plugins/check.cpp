// `--check`: plugins looked at without being started.
#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "plugins/plugin_host.hpp"
#include "plugins/plugin_run.hpp"

namespace sluice {
namespace {

// Who has a say in what an attachment may do.
bool is_source(const Library& library) {
  return std::ranges::any_of(std::array{SLUICE_ROLE_POLICY_SOURCE, SLUICE_ROLE_RESOLVER,
                                        SLUICE_ROLE_DECIDER, SLUICE_ROLE_ANSWER_SOURCE},
                             [&](std::uint32_t role) { return library.has_role(role); });
}

}  // namespace

ConfigErrors check_wires(const PreparedPlugins& plugins, const std::vector<WireConfig>& wires,
                         const std::filesystem::path& file) {
  const auto find = [&](const std::string& instance) -> const PreparedPlugin* {
    const auto at = std::ranges::find(
        plugins, instance, [](const PreparedPlugin& plugin) { return plugin.config.instance; });
    return at == plugins.end() ? nullptr : &*at;
  };
  ConfigErrors errors;
  std::size_t number = 0;
  for (const auto& wire : wires) {
    number += 1;
    for (const auto& source : wire.sources) {
      const auto* plugin = find(source);
      if (plugin == nullptr)
        errors.push_back({file.string(), 0, 0,
                          fmt::format("[[wire]] {}: source \"{}\" is no plugin; add [plugin.{}] or "
                                      "correct the name",
                                      number, source, source)});
      else if (!is_source(*plugin->library))
        errors.push_back({file.string(), 0, 0,
                          fmt::format("[[wire]] {}: source \"{}\" ({}) decides no policy; name a "
                                      "policy source, resolver, decider or answer source there",
                                      number, source, plugin->config.library)});
    }
    if (wire.discovered_by.empty()) continue;
    const auto* plugin = find(wire.discovered_by);
    if (plugin == nullptr || !plugin->library->has_role(SLUICE_ROLE_DISCOVERY))
      errors.push_back({file.string(), 0, 0,
                        fmt::format("[[wire]] {}: discovered_by \"{}\" is {}; name a discovery "
                                    "plugin there",
                                    number, wire.discovered_by,
                                    plugin == nullptr ? "no plugin" : "no discovery")});
  }
  return errors;
}

std::vector<std::string> check_plugins(const PreparedPlugins& plugins,
                                       const PluginHostSettings& settings) {
  std::vector<std::string> lines;
  // A handle without a run: every service answers -ESHUTDOWN. Kept, as all handles are.
  static auto* const handle = new sluice_host;
  for (const auto& plugin : plugins) {
    const auto& table = plugin.library->table();
    const auto& name = plugin.config.instance;
    const auto services = services_for(handle, table.roles);
    const auto config_directory = settings.config_directory.string();
    const auto state_directory = (settings.state_directory / "plugins" / name).string();
    const abi::RawConfig config(name, plugin.values, config_directory, state_directory);
    std::array<char, 1024> message{};
    void* self = nullptr;
    const int result = table.create(&services, config.get(), &self, message.data(), message.size());
    if (result < 0) {
      const std::string text(message.data(), ::strnlen(message.data(), message.size()));
      lines.push_back(fmt::format("{}:{}: [plugin.{}]: plugin {} cannot be created: {}",
                                  plugin.config.file, plugin.config.line, name,
                                  plugin.library->path().filename().string(),
                                  text.empty() ? std::string(std::strerror(-result)) : text));
      continue;
    }
    if (table.check != nullptr) {
      const auto report = [](void* context, sluice_string error) noexcept {
        try {
          static_cast<std::vector<std::string>*>(context)->emplace_back(abi::view(error));
        } catch (...) {  // out of memory: the process ends with the next allocation anyway
        }
      };
      const auto before = lines.size();
      const int checked = table.check(self, report, &lines);
      if (checked < 0 && lines.size() == before)
        lines.push_back(fmt::format("{}:{}: [plugin.{}]: its check failed: {}", plugin.config.file,
                                    plugin.config.line, name, std::strerror(-checked)));
    }
    table.destroy(self);
  }
  return lines;
}

}  // namespace sluice
