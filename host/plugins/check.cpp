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

std::string place_of(const PluginConfig& config) {
  return fmt::format("{}:{}: [plugin.{}]", config.file, config.line, config.instance);
}

constexpr std::uint32_t kWarning = 3;  // as the ABI's log() counts

// What a plugin says while it is looked at, on the thread that looks: nothing that another thread
// of its says is waited for.
class Listener {
 public:
  Listener(PluginFindings& findings, const PluginConfig& config)
      : findings_(findings), config_(config) {
    listening_ = this;
  }
  ~Listener() { listening_ = nullptr; }
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  static void log(sluice_host*, std::uint32_t level, sluice_string message) noexcept {
    if (listening_ == nullptr || level < kWarning) return;
    try {
      listening_->findings_.warnings.push_back(
          fmt::format("{}: {}", place_of(listening_->config_), abi::view(message)));
    } catch (...) {  // out of memory, as above
    }
  }
  // A layer for no attachment: what the plugin would say to some. Looked at, never kept.
  static int replace_layer(sluice_host*, sluice_attachment, const sluice_layer* raw,
                           sluice_applied* applied) noexcept {
    if (listening_ == nullptr) return -ESHUTDOWN;
    try {
      const auto layer = abi::layer_from(raw);
      if (!layer) {
        abi::write_error(applied, layer.error());
        return -EINVAL;
      }
      for (const auto& rule : layer->rules)
        if (rule.action == Action::allow && !rule.domain.empty())
          listening_->findings_.names.emplace(listening_->config_.instance, rule.domain);
      abi::write_applied(applied, {});
      return 0;
    } catch (...) {
      return -ENOMEM;
    }
  }

 private:
  static inline thread_local Listener* listening_ = nullptr;
  PluginFindings& findings_;
  const PluginConfig& config_;
};

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
        errors.push_back({file.string(), wire.place.line, wire.place.column,
                          fmt::format("[[wire]] {}: source \"{}\" is no plugin; add [plugin.{}] or "
                                      "correct the name",
                                      number, source, source)});
      else if (!is_source(*plugin->library))
        errors.push_back({file.string(), wire.place.line, wire.place.column,
                          fmt::format("[[wire]] {}: source \"{}\" ({}) decides no policy; name a "
                                      "policy source, resolver, decider or answer source there",
                                      number, source, plugin->config.library)});
    }
    if (wire.discovered_by.empty()) continue;
    const auto* plugin = find(wire.discovered_by);
    if (plugin == nullptr || !plugin->library->has_role(SLUICE_ROLE_DISCOVERY))
      errors.push_back({file.string(), wire.place.line, wire.place.column,
                        fmt::format("[[wire]] {}: discovered_by \"{}\" is {}; name a discovery "
                                    "plugin there",
                                    number, wire.discovered_by,
                                    plugin == nullptr ? "no plugin" : "no discovery")});
  }
  return errors;
}

std::vector<std::string> doubts_of_wires(const PreparedPlugins& plugins,
                                         const std::map<std::string, std::string>& names,
                                         const Config& config) {
  std::vector<std::string> lines;
  const auto file = config.file.string();
  if (config.wires.empty() && !plugins.empty()) {
    lines.push_back(
        fmt::format("{}: there is no [[wire]], so no source has a say and every workload is "
                    "block-all; add one",
                    file));
    return lines;
  }
  const auto resolves = [&](const std::string& source) {
    return std::ranges::any_of(plugins, [&](const PreparedPlugin& plugin) {
      return plugin.config.instance == source && plugin.library->has_role(SLUICE_ROLE_RESOLVER);
    });
  };
  for (const auto& plugin : plugins) {
    const auto& name = plugin.config.instance;
    if (!is_source(*plugin.library)) continue;
    bool is_wired = false, is_resolved = false;
    for (const auto& wire : config.wires) {
      if (std::ranges::find(wire.sources, name) == wire.sources.end()) continue;
      is_wired = true;
      is_resolved = is_resolved || std::ranges::any_of(wire.sources, resolves);
    }
    const auto line = [&](std::string text) {
      lines.push_back(fmt::format("{}:{}: [plugin.{}]: {}", plugin.config.file, plugin.config.line,
                                  name, std::move(text)));
    };
    if (!is_wired)
      line("no [[wire]] names it among its sources, so it has no say; name it there or remove it");
    else if (const auto allowed = names.find(name); allowed != names.end() && !is_resolved)
      line(
          fmt::format("its policies allow names ({}), but no [[wire]] that names it names a "
                      "resolver, so they open nothing; add a [plugin.dns] and name it there too",
                      allowed->second));
  }
  return lines;
}

PluginFindings check_plugins(const PreparedPlugins& plugins, const PluginHostSettings& settings) {
  PluginFindings findings;
  // A handle without a run: every other service answers -ESHUTDOWN. Kept, as all handles are.
  static auto* const handle = new sluice_host;
  for (const auto& plugin : plugins) {
    const auto& table = plugin.library->table();
    const auto& name = plugin.config.instance;
    const Listener listener(findings, plugin.config);
    auto services = services_for(handle, table.roles);
    auto common = *services.common;
    common.log = &Listener::log;
    services.common = &common;
    sluice_policy_services policy{};
    if (services.policy != nullptr) {
      policy = *services.policy;
      policy.replace_layer = &Listener::replace_layer;
      services.policy = &policy;
    }
    const auto config_directory = settings.config_directory.string();
    const auto state_directory = (settings.state_directory / "plugins" / name).string();
    const abi::RawConfig config(name, plugin.values, config_directory, state_directory);
    std::array<char, 1024> message{};
    void* self = nullptr;
    const int result = table.create(&services, config.get(), &self, message.data(), message.size());
    if (result < 0) {
      const std::string text(message.data(), ::strnlen(message.data(), message.size()));
      findings.errors.push_back(
          fmt::format("{}: plugin {} cannot be created: {}", place_of(plugin.config),
                      plugin.library->path().filename().string(),
                      text.empty() ? std::string(std::strerror(-result)) : text));
      continue;
    }
    if (table.check != nullptr) {
      auto& lines = findings.errors;
      const auto report = [](void* context, sluice_string error) noexcept {
        try {
          static_cast<std::vector<std::string>*>(context)->emplace_back(abi::view(error));
        } catch (...) {  // out of memory: the process ends with the next allocation anyway
        }
      };
      const auto before = lines.size();
      const int checked = table.check(self, report, &lines);
      if (checked < 0 && lines.size() == before)
        lines.push_back(fmt::format("{}: its check failed: {}", place_of(plugin.config),
                                    std::strerror(-checked)));
    }
    table.destroy(self);
  }
  return findings;
}

}  // namespace sluice
