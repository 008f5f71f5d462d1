// The daemon: configuration, plugins, attachments and data plane brought together on one loop.
//
//   auto daemon = Daemon::start(std::move(config), kernel_parts());
//   if (!daemon) ...            // nothing was attached or changed
//   return (*daemon)->run();    // until request_stop(); filters stay in force
//
// A start goes: configuration and plugins checked, capabilities, state lock, data plane (its
// own lock, then adopts what is pinned), then plugins: sources before discoveries. Guards come
// last, when what exists has been attached: a host that is short of something keeps its network.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "attachments/attachment_manager.hpp"
#include "base/fd.hpp"
#include "daemon/check.hpp"
#include "daemon/denial_log.hpp"
#include "daemon/event_loop.hpp"
#include "daemon/fd_store.hpp"
#include "daemon/load.hpp"
#include "daemon/state_lock.hpp"
#include "plugins/plugin_host.hpp"

namespace sluice {

// What differs between the product and its tests.
struct DaemonParts {
  struct Plane {
    std::unique_ptr<DataPlane> plane;
    std::string description;  // "kernel 6.18, tcx"
    Fd lock = {};             // on what it has pinned; let go after the plane
  };
  std::function<Status()> check_privileges;
  std::function<Result<Plane>(const HostConfig&)> open_plane;
  // The sluiced that checks a configuration before it is reloaded.
  std::filesystem::path program = "/proc/self/exe";
  uid_t library_owner = 0;
  FdStore fds = {};  // what an earlier life has left with the service manager
};

class Daemon {
 public:
  // Errors are ready to print. Nothing is attached or changed when it fails.
  [[nodiscard]] static std::expected<std::unique_ptr<Daemon>, std::vector<std::string>> start(
      const std::filesystem::path& file, DaemonParts parts);
  ~Daemon();
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  // Exit status: 0 after request_stop(), 1 when a required plugin or a guard did not start.
  [[nodiscard]] int run();

  // [any]
  void request_reload();
  void request_stop();
  // [loop] Once, when what is configured runs and what exists is attached.
  void on_ready(std::function<void()> call) { on_ready_ = std::move(call); }
  // [loop] After each reload: empty, or why nothing, or not all of it, was changed.
  void on_reloaded(std::function<void(std::vector<std::string>)> call) {
    on_reloaded_ = std::move(call);
  }

  // [loop]
  [[nodiscard]] AttachmentManager& attachments() { return *manager_; }
  [[nodiscard]] EventLoop& loop() { return *loop_; }
  // True when a plugin was let go: its thread may still run, so the process must end without
  // destructors of static objects.
  [[nodiscard]] bool has_lost_threads() const { return lost_threads_; }

 private:
  class Tee;  // between attachments and plugins: observers, and denials into the log

  Daemon(LoadedConfig loaded, DaemonParts parts, StateLock lock, std::unique_ptr<EventLoop> loop,
         DaemonParts::Plane plane);

  void turn();
  void follow(const PluginStatus& status);
  void wait_until_listed();
  void become_ready();
  void give_up(const std::string& reason);
  void stop();
  void tell_status();
  void drop_descriptors_of_others();

  void reload();
  void reload_checked();
  void reload_applied(const Status& status, LoadedConfig& loaded);
  void reload_listed(std::vector<std::string> errors);
  // `applied`: past the point where nothing had been changed.
  void reload_done(std::vector<std::string> errors, bool applied = false);

  DaemonParts parts_;
  StateLock lock_;
  Config config_;
  PreparedPlugins prepared_;  // until run()
  std::unique_ptr<EventLoop> loop_;
  Fd plane_lock_;
  std::unique_ptr<DataPlane> plane_;
  std::string plane_description_;
  std::unique_ptr<AttachmentManager> manager_;
  std::unique_ptr<PluginHost> plugins_;
  std::unique_ptr<Tee> tee_;
  DataPlaneEvents plane_events_;
  std::unique_ptr<CheckRun> check_;
  std::size_t adopted_ = 0;
  EventLoop::Clock::time_point listing_until_{};
  bool ready_ = false, stopping_ = false, reloading_ = false, reload_again_ = false;
  bool lost_threads_ = false;
  int exit_status_ = 0;
  std::function<void()> on_ready_;
  std::function<void(std::vector<std::string>)> on_reloaded_;
};

}  // namespace sluice
