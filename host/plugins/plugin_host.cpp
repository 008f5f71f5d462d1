#include "plugins/plugin_host.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <set>

#include "plugins/plugin_run.hpp"

namespace sluice {

std::string_view to_string(PluginPhase phase) {
  switch (phase) {
    case PluginPhase::configured:
      return "configured";
    case PluginPhase::starting:
      return "starting";
    case PluginPhase::running:
      return "running";
    case PluginPhase::stopping:
      return "stopping";
    case PluginPhase::stopped:
      return "stopped";
    case PluginPhase::failed:
      return "failed";
    case PluginPhase::quarantined:
      return "quarantined";
  }
  return "unknown";
}

namespace {

using std::chrono::milliseconds;

void log_by_spdlog(std::uint32_t level, const std::string& line) {
  static constexpr spdlog::level::level_enum kLevels[] = {spdlog::level::trace,
                                                          spdlog::level::debug, spdlog::level::info,
                                                          spdlog::level::warn, spdlog::level::err};
  spdlog::log(kLevels[std::min(level, 4u)], "{}", line);
}
constexpr std::uint32_t kInfo = 2, kError = 4;

std::string text_of(std::chrono::nanoseconds duration) {
  const auto ms = std::chrono::duration_cast<milliseconds>(duration).count();
  return ms % 1000 == 0 ? fmt::format("{} s", ms / 1000) : fmt::format("{} ms", ms);
}

// Sources have their say before a discovery can attach anything: they start first and stop last.
constexpr int kPhases = 3;
int start_phase(const Library& library) {
  if (!library.has_role(SLUICE_ROLE_DISCOVERY)) return 0;
  const bool has_a_say =
      library.has_role(SLUICE_ROLE_POLICY_SOURCE) || library.has_role(SLUICE_ROLE_RESOLVER) ||
      library.has_role(SLUICE_ROLE_DECIDER) || library.has_role(SLUICE_ROLE_ANSWER_SOURCE);
  return has_a_say ? 1 : 2;
}

}  // namespace

class PluginHost::Impl final : public PluginOwner,
                               public std::enable_shared_from_this<PluginHost::Impl> {
 public:
  Impl(Core& core, CoreLoop& loop, PluginHostSettings settings)
      : core_(core),
        loop_(loop),
        settings_(std::move(settings)),
        gate_(std::make_shared<CoreGate>(core, loop)),
        routes_(std::make_shared<NameRoutes>(gate_, loop)) {
    if (!settings_.log) settings_.log = log_by_spdlog;
    if (!settings_.check_options) settings_.check_options = check_options;
  }

  std::expected<PreparedPlugins, ConfigErrors> prepare(const std::vector<PluginConfig>& plugins);
  void apply(PreparedPlugins plugins, std::function<void(Status)> done);
  void stop(std::function<void()> done);
  void shut_down();
  [[nodiscard]] std::vector<PluginStatus> status() const;

  // The run of an instance that can take events; null: it hears of it by a snapshot when it runs.
  [[nodiscard]] PluginRun* running(const std::string& name);
  template <typename Tell>
  void to_observers(Tell&& tell);
  [[nodiscard]] NameRoutes& routes() { return *routes_; }
  void remember_rules(const std::string& name, AttachmentId id, PluginRun::Rules rules);
  void forget_rules(const std::string& name, AttachmentId id);

  // PluginOwner
  void on_started(PluginRun& run, Status status) override;
  void on_failed(PluginRun& run, const std::string& reason) override;
  void on_stopped(PluginRun& run) override;
  void on_reconfigured(PluginRun& run, int result, const std::string& message) override;
  void on_resync(PluginRun& run) override;

 private:
  struct Instance {
    PreparedPlugin plugin;
    PluginPhase phase = PluginPhase::configured;
    std::string reason;
    std::shared_ptr<PluginRun> run;
    CoreLoop::TimerId deadline = 0, backoff = 0, stable = 0;
    std::uint32_t failures = 0;  // in a row
    std::uint32_t restarts = 0;
    std::uint64_t resyncs = 0, denials_dropped = 0, reports_dropped = 0;  // of earlier runs
    // What follows once it has stopped.
    enum class Next : std::uint8_t { nothing, retry, start } next = Next::nothing;
    bool stop_wanted = false;  // while starting
    bool reconfiguring = false;
    std::optional<PreparedPlugin> offered;  // the configuration it is being reconfigured to
  };

  // Work in stages; a stage begins when all that the one before touched has settled.
  struct Operation {
    std::vector<std::function<void()>> stages;
    std::size_t next = 0;
    std::set<std::string> touched;
    std::vector<std::string> problems;
    std::function<void(Operation&)> done;
  };

  Instance* find(const PluginRun& run);
  void enter(Instance& instance, PluginPhase phase, std::string reason = {});
  void begin(Instance& instance);
  void end(Instance& instance, Instance::Next next);
  void ended(Instance& instance);
  void quarantine(Instance& instance, const std::string& what);
  void cancel(CoreLoop::TimerId& timer);
  void arm(CoreLoop::TimerId& timer, milliseconds delay, const std::string& name,
           void (Impl::*then)(Instance&));
  void start_deadline_passed(Instance& instance);
  void stop_deadline_passed(Instance& instance);
  void backoff_over(Instance& instance);
  void proved_stable(Instance& instance);
  void watch_events();
  void settle_reconfiguration(Instance& instance, bool accepted);
  void run_operation(Operation operation);
  void advance();
  [[nodiscard]] bool settled(const Instance& instance) const;
  [[nodiscard]] PluginRun::Snapshot snapshot_for(const Instance& instance);
  [[nodiscard]] milliseconds backoff_of(const Instance& instance) const;
  [[nodiscard]] std::string title(const Instance& instance) const;
  [[nodiscard]] PluginStatus status_of(const Instance& instance) const;

  Core& core_;
  CoreLoop& loop_;
  PluginHostSettings settings_;
  std::shared_ptr<CoreGate> gate_;
  std::shared_ptr<NameRoutes> routes_;
  // By pointer, so that a reference outlives changes to the map.
  std::map<std::string, std::unique_ptr<Instance>> instances_;
  std::vector<std::string> order_;                                         // as configured
  std::map<std::string, std::map<AttachmentId, PluginRun::Rules>> rules_;  // newest, by instance
  std::optional<Operation> operation_;
  bool advancing_ = false, advance_again_ = false;
  CoreLoop::TimerId event_watch_ = 0;
};

// ---- configuration ------------------------------------------------------------------------------

std::expected<PreparedPlugins, ConfigErrors> PluginHost::Impl::prepare(
    const std::vector<PluginConfig>& plugins) {
  PreparedPlugins prepared;
  ConfigErrors errors;
  std::map<std::string, Result<std::shared_ptr<const Library>>> libraries;
  for (const auto& config : plugins) {
    auto at = libraries.find(config.library);
    // One library, one error, however many instances it has.
    if (at == libraries.end()) {
      at = libraries.emplace(config.library, Library::load(settings_.libraries, config.library))
               .first;
      if (!at->second)
        errors.push_back(
            {config.file, config.line, 0,
             fmt::format("[plugin.{}]: {}", config.instance, at->second.error().message)});
    }
    if (!at->second) continue;
    const auto& library = *at->second;
    auto values = settings_.check_options(config, abi::declarations_of(library->table()));
    if (!values) {
      errors.insert(errors.end(), values.error().begin(), values.error().end());
      continue;
    }
    prepared.push_back({config, library, std::move(*values)});
  }
  if (!errors.empty()) return std::unexpected(std::move(errors));
  return prepared;
}

void PluginHost::Impl::apply(PreparedPlugins plugins, std::function<void(Status)> done) {
  if (operation_) {
    done(fail_with(EBUSY,
                   "plugins are being started or stopped already; try again when that has "
                   "come to its end"));
    return;
  }
  auto wanted = std::make_shared<std::map<std::string, PreparedPlugin>>();
  std::vector<std::string> order;
  for (auto& plugin : plugins) {
    order.push_back(plugin.config.instance);
    wanted->insert_or_assign(plugin.config.instance, std::move(plugin));
  }
  order_ = order;
  const auto exchanged = [wanted](const Instance& instance) {
    const auto at = wanted->find(instance.plugin.config.instance);
    return at == wanted->end() || at->second.library->path() != instance.plugin.library->path();
  };

  Operation operation;
  // Away with what is gone or becomes another plugin, discovery first.
  for (int phase = kPhases - 1; phase >= 0; --phase)
    operation.stages.emplace_back([this, phase, exchanged] {
      for (auto& [name, instance] : instances_)
        if (start_phase(*instance->plugin.library) == phase && exchanged(*instance))
          end(*instance, Instance::Next::nothing);
    });
  operation.stages.emplace_back([this, wanted, exchanged] {
    for (auto at = instances_.begin(); at != instances_.end();) {
      if (!exchanged(*at->second)) {
        ++at;
        continue;
      }
      if (!wanted->contains(at->first)) {
        rules_.erase(at->first);
        if (settings_.on_removed) settings_.on_removed(at->first);
      }
      routes_->forget_instance(at->first);
      at = instances_.erase(at);
    }
  });
  // New options for what runs.
  operation.stages.emplace_back([this, wanted] {
    for (auto& [name, instance] : instances_) {
      auto& offered = wanted->at(name);
      const bool same = offered.config.toml_text == instance->plugin.config.toml_text;
      if (same || instance->phase != PluginPhase::running) {
        const bool outdated = !same && instance->phase == PluginPhase::starting;
        instance->plugin = offered;
        if (outdated) end(*instance, Instance::Next::nothing);  // and begun anew below
        continue;
      }
      instance->offered = offered;
      instance->reconfiguring = true;
      operation_->touched.insert(name);
      arm(instance->deadline, settings_.start_deadline, name, &Impl::start_deadline_passed);
      instance->run->reconfigure(offered.values);
    }
  });
  // What is new, what waits for its backoff (it may have been cured), what is quarantined.
  for (int phase = 0; phase < kPhases; ++phase)
    operation.stages.emplace_back([this, wanted, phase] {
      for (const auto& name : order_) {
        const auto& plugin = wanted->at(name);
        if (start_phase(*plugin.library) != phase) continue;
        auto& instance = instances_[name];
        if (!instance) {
          instance = std::make_unique<Instance>();
          instance->plugin = plugin;
        }
        if (instance->phase == PluginPhase::running) continue;
        operation_->touched.insert(name);
        if (settled(*instance)) begin(*instance);
      }
    });
  operation.done = [this, done = std::move(done)](Operation& finished) {
    for (const auto& [name, instance] : instances_)
      if (instance->plugin.config.required && instance->phase != PluginPhase::running)
        finished.problems.push_back(fmt::format("required plugin \"{}\" is {}: {}", name,
                                                to_string(instance->phase), instance->reason));
    if (finished.problems.empty()) return done({});
    std::string text;
    for (const auto& problem : finished.problems) text += (text.empty() ? "" : "; ") + problem;
    done(fail("{}", text));
  };
  watch_events();
  run_operation(std::move(operation));
}

void PluginHost::Impl::stop(std::function<void()> done) {
  if (operation_) {
    auto interrupted = std::move(*operation_);
    operation_.reset();
    interrupted.problems.emplace_back("the daemon stops");
    if (interrupted.done) interrupted.done(interrupted);
  }
  Operation operation;
  for (int phase = kPhases - 1; phase >= 0; --phase)
    operation.stages.emplace_back([this, phase] {
      for (auto& [name, instance] : instances_)
        if (start_phase(*instance->plugin.library) == phase)
          end(*instance, Instance::Next::nothing);
    });
  operation.done = [this, done = std::move(done)](Operation&) {
    cancel(event_watch_);
    done();
  };
  run_operation(std::move(operation));
}

void PluginHost::Impl::shut_down() {
  operation_.reset();
  routes_->shut();
  gate_->shut();
  cancel(event_watch_);
  for (auto& [name, instance] : instances_) {
    cancel(instance->deadline);
    cancel(instance->backoff);
    cancel(instance->stable);
    if (instance->run) instance->run->abandon();
  }
}

void PluginHost::Impl::run_operation(Operation operation) {
  operation_ = std::move(operation);
  advance();
}

// Runs stages until one is left waiting. Stages may settle at once and call back: hence the loop
// instead of recursion.
void PluginHost::Impl::advance() {
  if (advancing_) {
    advance_again_ = true;
    return;
  }
  advancing_ = true;
  do {
    advance_again_ = false;
    while (operation_) {
      const bool waiting = std::ranges::any_of(operation_->touched, [&](const auto& name) {
        const auto at = instances_.find(name);
        return at != instances_.end() && !settled(*at->second);
      });
      if (waiting) break;
      operation_->touched.clear();
      if (operation_->next < operation_->stages.size()) {
        const auto stage = operation_->stages[operation_->next++];
        stage();
        continue;
      }
      auto finished = std::move(*operation_);
      operation_.reset();
      finished.done(finished);
    }
  } while (advance_again_);
  advancing_ = false;
}

bool PluginHost::Impl::settled(const Instance& instance) const {
  return instance.phase != PluginPhase::starting && instance.phase != PluginPhase::stopping &&
         !instance.reconfiguring;
}

// ---- life of an instance ------------------------------------------------------------------------

void PluginHost::Impl::enter(Instance& instance, PluginPhase phase, std::string reason) {
  instance.phase = phase;
  instance.reason = std::move(reason);
  routes_->instance(instance.plugin.config.instance, instance.plugin.library->table().roles,
                    phase == PluginPhase::running ? instance.run : nullptr);
  if (settings_.on_state) settings_.on_state(status_of(instance));
  to_observers([&](PluginRun& observer) {
    observer.tell_state(instance.plugin.config.instance, to_string(phase), instance.reason);
  });
}

void PluginHost::Impl::begin(Instance& instance) {
  const auto& name = instance.plugin.config.instance;
  cancel(instance.backoff);
  instance.next = Instance::Next::nothing;
  instance.stop_wanted = false;
  enter(instance, PluginPhase::starting);
  auto run =
      PluginRun::create({.instance = name,
                         .config_directory = settings_.config_directory.string(),
                         .state_directory = (settings_.state_directory / "plugins" / name).string(),
                         .mailbox_capacity = settings_.mailbox_capacity,
                         .denial_capacity = settings_.denial_capacity,
                         .log = settings_.log,
                         .routes = routes_},
                        instance.plugin.library, instance.plugin.values, gate_, weak_from_this());
  Status status = run ? Status{} : std::unexpected(run.error());
  if (status) {
    instance.run = std::move(*run);
    status = instance.run->begin();
  }
  if (status) {
    arm(instance.deadline, settings_.start_deadline, name, &Impl::start_deadline_passed);
    return;
  }
  instance.run.reset();
  instance.reason = status.error().message;
  instance.next = Instance::Next::retry;
  ended(instance);
}

void PluginHost::Impl::on_started(PluginRun& run, Status status) {
  auto* instance = find(run);
  if (instance == nullptr || instance->phase != PluginPhase::starting) return;
  cancel(instance->deadline);
  if (!status) {
    instance->reason = status.error().message;
    return end(*instance, instance->stop_wanted ? Instance::Next::nothing : Instance::Next::retry);
  }
  if (instance->stop_wanted) return end(*instance, Instance::Next::nothing);
  if (run.hears_of_attachments()) run.tell_snapshot(snapshot_for(*instance));
  arm(instance->stable, settings_.stable_after, instance->plugin.config.instance,
      &Impl::proved_stable);
  settings_.log(kInfo, title(*instance) + " is running");
  enter(*instance, PluginPhase::running);
  advance();
}

void PluginHost::Impl::on_failed(PluginRun& run, const std::string& reason) {
  auto* instance = find(run);
  if (instance == nullptr) return;
  if (instance->phase != PluginPhase::running && instance->phase != PluginPhase::starting) return;
  // failed() from within start(): its result, or its deadline, is still to come.
  if (instance->phase == PluginPhase::starting) cancel(instance->deadline);
  end(*instance, Instance::Next::retry);
  instance->reason = reason;
}

void PluginHost::Impl::end(Instance& instance, Instance::Next next) {
  if (operation_) operation_->touched.insert(instance.plugin.config.instance);
  cancel(instance.backoff);
  switch (instance.phase) {
    case PluginPhase::configured:
    case PluginPhase::stopped:
    case PluginPhase::quarantined:
      return;
    case PluginPhase::failed:
      enter(instance, PluginPhase::stopped);
      return;
    case PluginPhase::stopping:
      if (next == Instance::Next::nothing) instance.next = next;
      return;
    case PluginPhase::starting:
      // start() cannot be interrupted; its deadline is running.
      if (next == Instance::Next::nothing && instance.deadline != 0) {
        instance.stop_wanted = true;
        return;
      }
      break;
    case PluginPhase::running:
      break;
  }
  cancel(instance.stable);
  cancel(instance.deadline);
  instance.next = next;
  // Its answer will not come. The new options are what is configured, and so what it starts with.
  if (instance.reconfiguring) settle_reconfiguration(instance, true);
  auto reason = std::move(instance.reason);
  enter(instance, PluginPhase::stopping, std::move(reason));
  arm(instance.deadline, settings_.stop_deadline, instance.plugin.config.instance,
      &Impl::stop_deadline_passed);
  instance.run->stop();
}

void PluginHost::Impl::on_stopped(PluginRun& run) {
  auto* instance = find(run);
  if (instance == nullptr || instance->phase != PluginPhase::stopping) return;
  cancel(instance->deadline);
  instance->run->join();
  instance->resyncs += run.resyncs();
  instance->denials_dropped += run.denials_dropped();
  instance->reports_dropped += run.reports_dropped();
  instance->run.reset();
  ended(*instance);
}

void PluginHost::Impl::ended(Instance& instance) {
  const auto next = std::exchange(instance.next, Instance::Next::nothing);
  auto reason = std::move(instance.reason);
  switch (next) {
    case Instance::Next::nothing:
      enter(instance, PluginPhase::stopped);
      break;
    case Instance::Next::start:
      begin(instance);
      break;
    case Instance::Next::retry:
      instance.failures += 1;
      settings_.log(kError, fmt::format("{} {}; next try in {}", title(instance), reason,
                                        text_of(backoff_of(instance))));
      enter(instance, PluginPhase::failed, std::move(reason));
      arm(instance.backoff, backoff_of(instance), instance.plugin.config.instance,
          &Impl::backoff_over);
      break;
  }
  advance();
}

milliseconds PluginHost::Impl::backoff_of(const Instance& instance) const {
  const auto doublings = std::min(instance.failures == 0 ? 0u : instance.failures - 1, 20u);
  return std::min(settings_.first_backoff * (1u << doublings), settings_.longest_backoff);
}

void PluginHost::Impl::backoff_over(Instance& instance) {
  instance.backoff = 0;
  if (instance.phase != PluginPhase::failed) return;
  instance.restarts += 1;
  begin(instance);
}

void PluginHost::Impl::proved_stable(Instance& instance) {
  instance.stable = 0;
  instance.failures = 0;
}

void PluginHost::Impl::quarantine(Instance& instance, const std::string& what) {
  cancel(instance.deadline);
  cancel(instance.stable);
  instance.resyncs += instance.run->resyncs();
  instance.denials_dropped += instance.run->denials_dropped();
  instance.reports_dropped += instance.run->reports_dropped();
  instance.run->abandon();
  instance.run.reset();
  instance.next = Instance::Next::nothing;
  settings_.log(kError, fmt::format("{} {}; quarantined: its services are shut, its thread is let "
                                    "go, its attachments keep their policy; mend the plugin, then "
                                    "restart sluiced",
                                    title(instance), what));
  enter(instance, PluginPhase::quarantined, what);
  if (instance.reconfiguring) settle_reconfiguration(instance, true);
  advance();
}

void PluginHost::Impl::start_deadline_passed(Instance& instance) {
  instance.deadline = 0;
  if (!instance.run) return;
  const auto busy = instance.run->busy();
  quarantine(instance,
             fmt::format("has not returned from {}() within {}",
                         instance.reconfiguring ? (busy ? busy->what : "reconfigure") : "start",
                         text_of(settings_.start_deadline)));
}

void PluginHost::Impl::stop_deadline_passed(Instance& instance) {
  instance.deadline = 0;
  if (!instance.run) return;
  const auto busy = instance.run->busy();
  quarantine(instance, fmt::format("has not returned from {}() within {} of being stopped",
                                   busy ? busy->what : "stop", text_of(settings_.stop_deadline)));
}

// Looks at what each strand is doing, twice per deadline: an event that hangs is found within one
// and a half, and a daemon at rest wakes up for it every few seconds only.
void PluginHost::Impl::watch_events() {
  cancel(event_watch_);
  event_watch_ = loop_.after(settings_.event_deadline / 2, [this] {
    event_watch_ = 0;
    std::vector<std::pair<Instance*, std::string>> stuck;
    for (auto& [name, instance] : instances_) {
      // Starting and stopping have deadlines of their own, reconfiguring as well.
      if (instance->phase != PluginPhase::running || instance->reconfiguring) continue;
      const auto busy = instance->run->busy();
      if (busy && busy->elapsed >= settings_.event_deadline)
        stuck.emplace_back(instance.get(),
                           fmt::format("has not returned from {}() within {}", busy->what,
                                       text_of(settings_.event_deadline)));
    }
    watch_events();
    for (auto& [instance, what] : stuck) quarantine(*instance, what);
  });
}

// ---- reconfiguration ----------------------------------------------------------------------------

void PluginHost::Impl::on_reconfigured(PluginRun& run, int result, const std::string& message) {
  auto* instance = find(run);
  if (instance == nullptr || !instance->reconfiguring) return;
  cancel(instance->deadline);
  if (result == -ENOTSUP) {
    settle_reconfiguration(*instance, true);
    end(*instance, Instance::Next::start);
  } else if (result < 0) {
    const auto text =
        fmt::format("{} refuses its new options and keeps the old: {}", title(*instance), message);
    if (operation_) operation_->problems.push_back(text);
    settings_.log(kError, text);
    settle_reconfiguration(*instance, false);
  } else {
    settle_reconfiguration(*instance, true);
    settings_.log(kInfo, title(*instance) + " has its new options");
  }
  advance();
}

void PluginHost::Impl::settle_reconfiguration(Instance& instance, bool accepted) {
  instance.reconfiguring = false;
  if (!instance.offered) return;
  if (accepted) instance.plugin = std::move(*instance.offered);
  instance.offered.reset();
}

// ---- events -------------------------------------------------------------------------------------

PluginRun::Snapshot PluginHost::Impl::snapshot_for(const Instance& instance) {
  const auto& name = instance.plugin.config.instance;
  PluginRun::Snapshot snapshot;
  snapshot.attachments = instance.plugin.library->has_role(SLUICE_ROLE_OBSERVER)
                             ? core_.list()
                             : core_.attachments_of(name);
  if (instance.plugin.library->has_role(SLUICE_ROLE_RESOLVER)) {
    if (const auto at = rules_.find(name); at != rules_.end())
      snapshot.domain_rules.assign(at->second.begin(), at->second.end());
  }
  return snapshot;
}

void PluginHost::Impl::on_resync(PluginRun& run) {
  auto* instance = find(run);
  if (instance == nullptr || instance->phase != PluginPhase::running) return;
  run.tell_snapshot(snapshot_for(*instance));
}

PluginRun* PluginHost::Impl::running(const std::string& name) {
  const auto at = instances_.find(name);
  if (at == instances_.end() || at->second->phase != PluginPhase::running) return nullptr;
  return at->second->run.get();
}

template <typename Tell>
void PluginHost::Impl::to_observers(Tell&& tell) {
  for (auto& [name, instance] : instances_)
    if (instance->phase == PluginPhase::running &&
        instance->plugin.library->has_role(SLUICE_ROLE_OBSERVER))
      tell(*instance->run);
}

void PluginHost::Impl::remember_rules(const std::string& name, AttachmentId id,
                                      PluginRun::Rules rules) {
  rules_[name].insert_or_assign(id, std::move(rules));
}

void PluginHost::Impl::forget_rules(const std::string& name, AttachmentId id) {
  const auto at = rules_.find(name);
  if (at != rules_.end()) at->second.erase(id);
}

// ---- small things -------------------------------------------------------------------------------

PluginHost::Impl::Instance* PluginHost::Impl::find(const PluginRun& run) {
  const auto at = instances_.find(run.instance());
  return at == instances_.end() || at->second->run.get() != &run ? nullptr : at->second.get();
}

void PluginHost::Impl::cancel(CoreLoop::TimerId& timer) {
  if (timer != 0) loop_.cancel(timer);
  timer = 0;
}

void PluginHost::Impl::arm(CoreLoop::TimerId& timer, milliseconds delay, const std::string& name,
                           void (Impl::*then)(Instance&)) {
  cancel(timer);
  timer = loop_.after(delay, [this, name, then] {
    if (const auto at = instances_.find(name); at != instances_.end()) (this->*then)(*at->second);
  });
}

std::string PluginHost::Impl::title(const Instance& instance) const {
  return fmt::format("plugin {} ({})", instance.plugin.config.instance,
                     instance.plugin.library->path().filename().string());
}

PluginStatus PluginHost::Impl::status_of(const Instance& instance) const {
  const auto& table = instance.plugin.library->table();
  return {.instance = instance.plugin.config.instance,
          .library = instance.plugin.library->path().string(),
          .name = std::string(abi::view(table.name)),
          .version = std::string(abi::view(table.version)),
          .roles = table.roles,
          .required = instance.plugin.config.required,
          .phase = instance.phase,
          .reason = instance.reason,
          .restarts = instance.restarts,
          .resyncs = instance.resyncs + (instance.run ? instance.run->resyncs() : 0),
          .denials_dropped =
              instance.denials_dropped + (instance.run ? instance.run->denials_dropped() : 0),
          .reports_dropped =
              instance.reports_dropped + (instance.run ? instance.run->reports_dropped() : 0)};
}

std::vector<PluginStatus> PluginHost::Impl::status() const {
  std::vector<PluginStatus> all;
  for (const auto& name : order_)
    if (const auto at = instances_.find(name); at != instances_.end())
      all.push_back(status_of(*at->second));
  return all;
}

// ---- PluginHost ---------------------------------------------------------------------------------

PluginHost::PluginHost(Core& core, CoreLoop& loop, PluginHostSettings settings)
    : impl_(std::make_shared<Impl>(core, loop, std::move(settings))) {}
PluginHost::~PluginHost() {
  impl_->shut_down();
}

std::expected<PreparedPlugins, ConfigErrors> PluginHost::prepare(
    const std::vector<PluginConfig>& plugins) {
  return impl_->prepare(plugins);
}
void PluginHost::apply(PreparedPlugins plugins, std::function<void(Status)> done) {
  impl_->apply(std::move(plugins), std::move(done));
}
void PluginHost::stop(std::function<void()> done) {
  impl_->stop(std::move(done));
}
std::vector<PluginStatus> PluginHost::status() const {
  return impl_->status();
}

std::unique_lock<std::mutex> PluginHost::telling() {
  return impl_->routes().telling();
}
void PluginHost::attachment_added(const std::string& instance, const AttachmentInfo& info) {
  impl_->routes().wired(info.id, info.sources);
  if (auto* run = impl_->running(instance)) run->tell_added(info);
}
void PluginHost::attachment_changed(const std::string& instance, const AttachmentInfo& info) {
  impl_->routes().wired(info.id, info.sources);
  if (auto* run = impl_->running(instance)) run->tell_changed(info);
}
void PluginHost::attachment_removed(const std::string& instance, const AttachmentInfo& info,
                                    const std::string& reason) {
  impl_->routes().wired(info.id, info.sources);
  impl_->forget_rules(instance, info.id);
  if (auto* run = impl_->running(instance)) run->tell_removed(info, reason);
}
void PluginHost::domain_rules(const std::string& instance, AttachmentId id,
                              const std::vector<Rule>& rules) {
  auto shared = std::make_shared<const std::vector<Rule>>(rules);
  impl_->remember_rules(instance, id, shared);
  if (auto* run = impl_->running(instance)) run->tell_domain_rules(id, std::move(shared));
}
void PluginHost::denials(std::span<const Denial> denials) {
  impl_->to_observers([&](PluginRun& run) { run.tell_denials(denials); });
}

}  // namespace sluice
