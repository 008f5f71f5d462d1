// The plugins of this daemon: found, verified, loaded, started, watched, restarted, stopped.
//
//   PluginHost plugins(core, loop, settings);
//   manager.set_events(plugins);
//   auto prepared = plugins.prepare(config.plugins);          // every error, nothing has run yet
//   plugins.apply(std::move(*prepared), [&](Status status) { ready(status); });
//   ... a reload: prepare() and apply() again; only what differs is touched
//   plugins.stop([&] { loop.stop(); });                       // discovery first, sources last
//
// Life of an instance, and which thread does what:
//
//   found, verified, loaded, configured  prepare(), core loop; the library's static constructors
//   starting    its strand: create(), start(), within the start deadline
//   running     its strand: timers, fds, wakes, events; each within the event deadline
//   stopping    its strand: stop(), destroy(), within the stop deadline
//   stopped     joined
//   failed      stopped, restarted after a backoff that doubles
//   quarantined a deadline passed: its services answer -ESHUTDOWN, its thread is let go, its
//               attachments stay; only a reload or another daemon starts it again
//
// The core loop never waits for a strand. A strand waits for the core loop whenever it calls down.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "attachments/core.hpp"
#include "config/config.hpp"
#include "plugins/core_loop.hpp"
#include "plugins/library.hpp"

namespace sluice {

enum class PluginPhase : std::uint8_t {
  configured,
  starting,
  running,
  stopping,
  stopped,
  failed,
  quarantined,
};
[[nodiscard]] std::string_view to_string(PluginPhase phase);

struct PluginStatus {
  std::string instance;
  std::string library;        // path
  std::string name, version;  // as the plugin says
  std::uint32_t roles = 0;    // SLUICE_ROLE_*
  bool required = true;
  PluginPhase phase = PluginPhase::configured;
  std::string reason;  // of failed, quarantined
  std::uint32_t restarts = 0;
  std::uint64_t resyncs = 0;          // how often its mailbox was full
  std::uint64_t denials_dropped = 0;  // denial events that found no room; observers
  std::uint64_t reports_dropped = 0;  // reports on queries likewise
};

struct PluginHostSettings {
  LibraryRules libraries;                  // where they may be, whose they must be
  std::filesystem::path config_directory;  // base of relative paths in options
  std::filesystem::path state_directory;   // each instance gets plugins/INSTANCE below it

  std::chrono::milliseconds start_deadline{10'000};
  std::chrono::milliseconds stop_deadline{5'000};
  // Of one event, not counting the time it waited for the core.
  std::chrono::milliseconds event_deadline{10'000};
  std::chrono::milliseconds first_backoff{1'000};  // doubles with each failure
  std::chrono::milliseconds longest_backoff{300'000};
  // Running this long forgives earlier failures.
  std::chrono::milliseconds stable_after{60'000};
  std::size_t mailbox_capacity = 4096;  // events and wakes; beyond: one resync
  std::size_t denial_capacity = 4096;   // denials, reports on queries; beyond: dropped and counted

  // Levels as the ABI's: 0 trace ... 4 error. [any] Default: spdlog's default logger.
  std::function<void(std::uint32_t level, const std::string& line)> log;
  // [core loop] Each change of phase, so that the core knows whether a discovery is still to list.
  std::function<void(const PluginStatus&)> on_state;
  // [core loop] An instance that the configuration no longer names has stopped, or was let go.
  // Nothing new has started yet: what it had may be taken over.
  std::function<void(const std::string& instance)> on_removed;
  // Default: sluice::check_options.
  std::function<std::expected<std::vector<OptionValue>, ConfigErrors>(
      const PluginConfig&, const std::vector<OptionDeclaration>&)>
      check_options;
};

// One [plugin.NAME] table with its library loaded and its options checked.
struct PreparedPlugin {
  PluginConfig config;
  std::shared_ptr<const Library> library;
  std::vector<OptionValue> values;
};
using PreparedPlugins = std::vector<PreparedPlugin>;

// Sources of wires that have no say in what may leave, discovered_by that is no discovery.
[[nodiscard]] ConfigErrors check_wires(const PreparedPlugins& plugins,
                                       const std::vector<WireConfig>& wires,
                                       const std::filesystem::path& file);

// What a look at plugins brought to light; lines are ready to print.
struct PluginFindings {
  std::vector<std::string> errors;
  std::vector<std::string> warnings;         // what the plugins logged as such, or worse
  std::map<std::string, std::string> names;  // instance -> one of the names that its rules allow
};
// `--check`, in a throwaway process: creates each plugin without starting it, lets it look at the
// files that its options name, destroys it. A plugin that hangs or crashes takes the process along:
// that is what the process is for. One call at a time on a thread.
[[nodiscard]] PluginFindings check_plugins(const PreparedPlugins& plugins,
                                           const PluginHostSettings& settings);

// What is no fault and yet hardly meant: plugins that no wire listens to, names that nobody
// resolves. `names` as in PluginFindings. Ready to print.
[[nodiscard]] std::vector<std::string> doubts_of_wires(
    const PreparedPlugins& plugins, const std::map<std::string, std::string>& names,
    const Config& config);

class PluginHost final : public PluginEvents {
 public:
  // `core` and `loop` outlive this. All member functions: [core loop].
  PluginHost(Core& core, CoreLoop& loop, PluginHostSettings settings);
  ~PluginHost() override;  // without stop(): strands are let go, their services answer -ESHUTDOWN
  PluginHost(const PluginHost&) = delete;
  PluginHost& operator=(const PluginHost&) = delete;

  // Finds, verifies and loads the libraries and checks the options. Every error at once; starts
  // and changes nothing.
  [[nodiscard]] std::expected<PreparedPlugins, ConfigErrors> prepare(
      const std::vector<PluginConfig>& plugins);

  // Makes the running instances those of `plugins`: stops what is gone, starts what is new
  // (policy sources and resolvers first, discovery last), reconfigures or restarts what changed,
  // restarts what is quarantined. `done` comes once all of it is settled, with an error where a
  // required instance did not start or an instance refused its new options (and keeps the old).
  // One at a time: -EBUSY while another apply() or stop() is under way.
  void apply(PreparedPlugins plugins, std::function<void(Status)> done);

  // Stops all, discovery first. `done` comes within the stop deadlines.
  void stop(std::function<void()> done);

  [[nodiscard]] std::vector<PluginStatus> status() const;

  // PluginEvents
  [[nodiscard]] std::unique_lock<std::mutex> telling() override;
  void attachment_added(const std::string& instance, const AttachmentInfo& info) override;
  void attachment_changed(const std::string& instance, const AttachmentInfo& info) override;
  void attachment_removed(const std::string& instance, const AttachmentInfo& info,
                          const std::string& reason) override;
  void domain_rules(const std::string& instance, AttachmentId id,
                    const std::vector<Rule>& rules) override;
  void denials(std::span<const Denial> denials) override;

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace sluice
