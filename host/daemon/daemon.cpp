#include "daemon/daemon.hpp"

#include <malloc.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <set>
#include <utility>

#include "daemon/logging.hpp"
#include "daemon/notify.hpp"

namespace sluice {
namespace {

using namespace std::chrono_literals;

// READY waits this long for discoveries to say that they have attached what exists.
constexpr auto kListingPatience = 5s;
constexpr auto kCheckPatience = 60s;

std::vector<std::string> lines_of(const ConfigErrors& errors) {
  std::vector<std::string> lines;
  for (const auto& error : errors) lines.push_back(error.message());
  return lines;
}

InstanceState state_of(PluginPhase phase) {
  switch (phase) {
    case PluginPhase::configured:
    case PluginPhase::starting:
      return InstanceState::starting;
    case PluginPhase::running:
      return InstanceState::running;
    default:
      return InstanceState::down;
  }
}

InstanceRoles roles_of(std::uint32_t roles) {
  return {.discovery = (roles & SLUICE_ROLE_DISCOVERY) != 0,
          .policy_source = (roles & SLUICE_ROLE_POLICY_SOURCE) != 0,
          .decider = (roles & SLUICE_ROLE_DECIDER) != 0,
          .resolver = (roles & SLUICE_ROLE_RESOLVER) != 0};
}

// Settings of [host] that only a start reads; the names of those that differ.
std::string start_settings_that_differ(const HostConfig& current, const HostConfig& next) {
  std::string names;
  const auto compare = [&](const char* name, bool same) {
    if (!same) names += fmt::format("{}{}", names.empty() ? "" : ", ", name);
  };
  compare("state_dir", current.state_dir == next.state_dir);
  compare("bpffs", current.bpffs == next.bpffs);
  compare("tc_mechanism", current.tc_mechanism == next.tc_mechanism);
  compare("max_attachments", current.max_attachments == next.max_attachments);
  compare("max_learned", current.max_learned == next.max_learned);
  compare("max_learned_per_workload",
          current.max_learned_per_workload == next.max_learned_per_workload);
  compare("max_flows", current.max_flows == next.max_flows);
  compare("heap_kib", current.heap_kib == next.heap_kib);
  compare("events_per_second", current.events_per_second == next.events_per_second);
  compare("events_burst", current.events_burst == next.events_burst);
  compare("dns_packets_per_second", current.dns_packets_per_second == next.dns_packets_per_second);
  return names;
}

bool same_guards(const GuardSettings& one, const GuardSettings& other) {
  return one.uplinks == other.uplinks && one.trusted == other.trusted &&
         one.parent_cgroups == other.parent_cgroups;
}

}  // namespace

class Daemon::Tee final : public PluginEvents {
 public:
  Tee(PluginHost& plugins, AttachmentManager& manager)
      : plugins_(plugins), log_([&manager](AttachmentId id) { return manager.name_of(id); }) {}

  void set_roles(const std::string& instance, std::uint32_t roles) {
    if ((roles & SLUICE_ROLE_OBSERVER) != 0) observers_.insert(instance);
  }
  void forget(const std::string& instance) { observers_.erase(instance); }

  [[nodiscard]] std::unique_lock<std::mutex> telling() override { return plugins_.telling(); }
  void attachment_added(const std::string& instance, const AttachmentInfo& info) override {
    each(instance, [&](const std::string& name) { plugins_.attachment_added(name, info); });
  }
  void attachment_changed(const std::string& instance, const AttachmentInfo& info) override {
    each(instance, [&](const std::string& name) { plugins_.attachment_changed(name, info); });
  }
  void attachment_removed(const std::string& instance, const AttachmentInfo& info,
                          const std::string& reason) override {
    each(instance,
         [&](const std::string& name) { plugins_.attachment_removed(name, info, reason); });
  }
  void domain_rules(const std::string& instance, AttachmentId id,
                    const std::vector<Rule>& rules) override {
    plugins_.domain_rules(instance, id, rules);
  }
  void denials(std::span<const Denial> denials) override {
    log_.write(denials);
    plugins_.denials(denials);
  }

 private:
  // An observer that is a source as well hears of all as an observer, and so once.
  template <typename Tell>
  void each(const std::string& instance, Tell&& tell) {
    if (instance.empty()) {
      for (const auto& observer : observers_) tell(observer);
    } else if (!observers_.contains(instance)) {
      tell(instance);
    }
  }

  PluginHost& plugins_;
  DenialLog log_;
  std::set<std::string> observers_;
};

std::expected<std::unique_ptr<Daemon>, std::vector<std::string>> Daemon::start(
    const std::filesystem::path& file, DaemonParts parts) {
  const auto refused = [](const Error& error) {
    return std::unexpected(std::vector<std::string>{error.message});
  };
  auto loaded = load_everything(file, parts.library_owner);
  if (!loaded) return std::unexpected(lines_of(loaded.error()));
  set_log_level(loaded->config.host.log_level);
  if (auto status = parts.check_privileges(); !status) return refused(status.error());
  auto lock = StateLock::take(loaded->config.host.state_dir);
  if (!lock) return refused(lock.error());
  auto loop = EventLoop::create();
  if (!loop) return refused(loop.error());
  auto plane = parts.open_plane(loaded->config.host);
  if (!plane) return refused(plane.error());
  return std::unique_ptr<Daemon>(new Daemon(std::move(*loaded), std::move(parts), std::move(*lock),
                                            std::move(*loop), std::move(*plane)));
}

Daemon::Daemon(LoadedConfig loaded, DaemonParts parts, StateLock lock,
               std::unique_ptr<EventLoop> loop, DaemonParts::Plane plane)
    : parts_(std::move(parts)),
      lock_(std::move(lock)),
      config_(std::move(loaded.config)),
      prepared_(std::move(loaded.plugins)),
      loop_(std::move(loop)),
      plane_lock_(std::move(plane.lock)),
      plane_(std::move(plane.plane)),
      plane_description_(std::move(plane.description)) {
  manager_ = std::make_unique<AttachmentManager>(*plane_, Wiring(config_));
  manager_->set_fd_keeper(parts_.fds);
  manager_->set_learned_share(config_.host.max_learned_per_workload);
  adopted_ = manager_->tally().attachments;
  for (const auto& plugin : prepared_) {
    manager_->instance(plugin.config.instance, roles_of(plugin.library->table().roles),
                       InstanceState::starting);
  }
  auto settings = plugin_settings(config_, parts_.library_owner);
  settings.on_state = [this](const PluginStatus& status) { follow(status); };
  settings.on_removed = [this](const std::string& instance) { manager_->release(instance); };
  plugins_ = std::make_unique<PluginHost>(*manager_, *loop_, std::move(settings));
  tee_ = std::make_unique<Tee>(*plugins_, *manager_);
  manager_->set_events(*tee_);
  plane_events_ = manager_->data_plane_events();
}

// Plugins go before what they call into; the loop goes before them, so that a strand that still
// waits for it learns that nobody will answer.
Daemon::~Daemon() {
  check_.reset();
  loop_->close();
  plugins_.reset();
}

int Daemon::run() {
  for (const int fd : plane_->poll_fds()) {
    if (auto status = loop_->watch(fd, [this] { turn(); }); !status) {
      spdlog::error("{}", status.error().message);
      return 1;
    }
  }
  loop_->every(DataPlane::poll_interval, [this] { turn(); });
  if (const auto interval = watchdog_interval()) {
    loop_->every(*interval, [] { notify_manager("WATCHDOG=1"); });
  }
  plugins_->apply(std::exchange(prepared_, {}), [this](const Status& status) {
    if (stopping_) return;
    if (!status) return give_up(status.error().message);
    listing_until_ = EventLoop::Clock::now() + kListingPatience;
    wait_until_listed();
  });
  loop_->run();
  loop_->close();
  return exit_status_;
}

void Daemon::turn() {
  plane_->poll(plane_events_);
  manager_->turn();
}

void Daemon::follow(const PluginStatus& status) {
  // Stopped for good is the reload's business, which knows whether the configuration names it.
  manager_->instance(status.instance, roles_of(status.roles), state_of(status.phase));
  tee_->set_roles(status.instance, status.roles);
  lost_threads_ |= status.phase == PluginPhase::quarantined;
  if (ready_ && !stopping_) tell_status();
}

void Daemon::wait_until_listed() {
  if (stopping_) return;
  if (!manager_->all_listed() && EventLoop::Clock::now() < listing_until_) {
    loop_->after(2ms, [this] { wait_until_listed(); });
    return;
  }
  if (!manager_->all_listed()) {
    spdlog::warn("not every discovery has listed what exists after {} s; going on",
                 std::chrono::seconds(kListingPatience).count());
  }
  become_ready();
}

void Daemon::become_ready() {
  if (auto status = plane_->set_guards(config_.guard); !status) {
    return give_up(status.error().message);
  }
  ready_ = true;
  manager_->started();
  drop_descriptors_of_others();
  const auto count = manager_->tally().attachments;
  spdlog::info("sluiced {} ready: {} plugins, {} attachments ({} adopted), {}", SLUICE_VERSION,
               plugins_->status().size(), count, adopted_, plane_description_);
  notify_manager("READY=1");
  tell_status();
  ::malloc_trim(0);  // loading programs and reading files took megabytes that are not needed again
  if (on_ready_) on_ready_();
  if (std::exchange(reload_again_, false)) reload();  // asked for while it started
}

// Of instances that the configuration no longer names.
void Daemon::drop_descriptors_of_others() {
  std::set<std::string> instances;
  for (const auto& plugin : config_.plugins) instances.insert(plugin.instance);
  parts_.fds.keep_only(instances);
}

void Daemon::tell_status() {
  std::string failed;
  const auto all = plugins_->status();
  for (const auto& plugin : all) {
    if (plugin.phase == PluginPhase::running) continue;
    failed += fmt::format("; {} {}{}{}", plugin.instance, to_string(plugin.phase),
                          plugin.reason.empty() ? "" : ": ", plugin.reason);
  }
  std::ranges::replace(failed, '\n', ' ');
  notify_manager(fmt::format("STATUS={} plugins, {} attachments{}", all.size(),
                             manager_->tally().attachments, failed));
}

void Daemon::give_up(const std::string& reason) {
  spdlog::error("{}", reason);
  exit_status_ = 1;
  stop();
}

void Daemon::request_stop() {
  loop_->post([this] { stop(); });
}

// Attachments, policies and guards stay in the kernel.
void Daemon::stop() {
  if (stopping_) return;
  stopping_ = true;
  notify_manager("STOPPING=1");
  check_.reset();
  spdlog::info("stopping; {} filters stay in force", manager_->tally().attachments);
  plugins_->stop([this] { loop_->stop(); });
}

// ---- reload -------------------------------------------------------------------------------------

void Daemon::request_reload() {
  loop_->post([this] { reload(); });
}

// First a child loads the file whole, with its plugins and the files they name. Only then is
// anything here looked at.
void Daemon::reload() {
  if (stopping_) return;
  if (!ready_ || reloading_) {
    reload_again_ = true;
    return;
  }
  reloading_ = true;
  notify_reloading();
  auto run = CheckRun::start(*loop_, parts_.program, config_.file, kCheckPatience,
                             [this](bool fine, std::vector<std::string> lines) {
                               // The callback runs inside what it is about to destroy.
                               loop_->post([this, fine, lines = std::move(lines)]() mutable {
                                 check_.reset();
                                 if (stopping_) return;
                                 if (!fine) return reload_done(std::move(lines));
                                 reload_checked();
                               });
                             });
  if (!run) return reload_done({run.error().message});
  check_ = std::move(*run);
}

void Daemon::reload_checked() {
  auto loaded = load_everything(config_.file, parts_.library_owner);
  if (!loaded) return reload_done(lines_of(loaded.error()));
  if (auto status = manager_->check_rewire(Wiring(loaded->config)); !status) {
    return reload_done({status.error().message});
  }
  const auto fixed = start_settings_that_differ(config_.host, loaded->config.host);
  if (!fixed.empty()) {
    spdlog::warn("{}: [host] {}: takes effect at the next start", config_.file.string(), fixed);
  }
  for (const auto& plugin : loaded->plugins) {
    const auto known = std::ranges::any_of(config_.plugins, [&](const PluginConfig& current) {
      return current.instance == plugin.config.instance;
    });
    if (!known) {
      manager_->instance(plugin.config.instance, roles_of(plugin.library->table().roles),
                         InstanceState::starting);
    }
  }
  manager_->begin_reload();
  auto shared = std::make_shared<LoadedConfig>(std::move(*loaded));
  auto plugins = std::exchange(shared->plugins, {});
  plugins_->apply(std::move(plugins), [this, shared](const Status& status) {
    if (!stopping_) reload_applied(status, *shared);
  });
}

// New sources run now, so that the new wiring finds them.
void Daemon::reload_applied(const Status& status, LoadedConfig& loaded) {
  auto& next = loaded.config;
  std::vector<std::string> errors;
  if (!status) errors.push_back(status.error().message);
  for (const auto& plugin : config_.plugins) {
    const auto stays = std::ranges::any_of(next.plugins, [&](const PluginConfig& candidate) {
      return candidate.instance == plugin.instance;
    });
    if (stays) continue;
    manager_->forget_instance(plugin.instance);
    tee_->forget(plugin.instance);
  }
  if (auto rewired = manager_->rewire(Wiring(next)); !rewired) {
    errors.push_back(rewired.error().message + "; the former wiring stays in force");
  }
  manager_->end_reload();
  if (!same_guards(config_.guard, next.guard)) {
    if (auto guarded = plane_->set_guards(next.guard); !guarded) {
      errors.push_back(guarded.error().message);
      next.guard = config_.guard;
    }
  }
  set_log_level(next.host.log_level);
  // What only a start reads is still what it was; plugins come from where they now are.
  auto host = config_.host;
  host.plugin_path = next.host.plugin_path;
  config_ = std::move(next);
  config_.host = std::move(host);
  drop_descriptors_of_others();
  listing_until_ = EventLoop::Clock::now() + kListingPatience;
  reload_listed(std::move(errors));
}

// Discoveries that began anew have yet to come to what exists: until then it has its former policy,
// and the reload is not done.
void Daemon::reload_listed(std::vector<std::string> errors) {
  if (stopping_) return;
  if (manager_->all_listed() || EventLoop::Clock::now() >= listing_until_) {
    for (const auto& [discovery, count] : manager_->left_to_rewire()) {
      errors.push_back(
          fmt::format("{}: has not listed what exists after {} s; its {} attachments keep their "
                      "former wire until it does, a minute at most",
                      discovery, std::chrono::seconds(kListingPatience).count(), count));
    }
    return reload_done(std::move(errors), true);
  }
  loop_->after(2ms,
               [this, errors = std::move(errors)]() mutable { reload_listed(std::move(errors)); });
}

void Daemon::reload_done(std::vector<std::string> errors, bool applied) {
  for (const auto& error : errors) spdlog::error("reload: {}", error);
  if (errors.empty()) {
    spdlog::info("reloaded: {} plugins, {} attachments", plugins_->status().size(),
                 manager_->tally().attachments);
  } else {
    spdlog::error("{} ({} errors)",
                  applied ? "reload done in part; where an error occurred the former settings stay"
                          : "reload refused; what was in force stays in force",
                  errors.size());
  }
  notify_manager("READY=1");
  tell_status();
  reloading_ = false;
  ::malloc_trim(0);
  if (on_reloaded_) on_reloaded_(std::move(errors));
  if (std::exchange(reload_again_, false)) reload();
}

}  // namespace sluice
