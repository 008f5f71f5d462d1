// A host without a daemon: a core loop to turn by hand, a core that remembers what was asked of it,
// and plugin libraries installed into a directory of the test's own.
//
//   Stage stage;
//   stage.install("neighbour");
//   stage.start({{"next_door", "neighbour"}});
//   CHECK(stage.phase("next_door") == PluginPhase::running);
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <thread>

#include "attachments/core.hpp"
#include "plugins/plugin_host.hpp"

namespace sluice::testing {

// Long enough for a busy machine under a sanitizer; no test waits it out when all is well.
constexpr std::chrono::seconds kPatience{60};

class TestLoop final : public CoreLoop {
 public:
  using Clock = std::chrono::steady_clock;

  void post(Task task) override {
    const std::lock_guard lock(mutex_);
    posted_.push_back(std::move(task));
    changed_.notify_all();
  }
  TimerId after(Duration delay, Task task) override {
    timers_.emplace(++last_, Timer{Clock::now() + delay, std::move(task)});
    return last_;
  }
  void cancel(TimerId id) override { timers_.erase(id); }

  // Turns until `done`, at most `patience`. Returns whether it came.
  template <typename Done>
  bool run_until(Done&& done, Clock::duration patience = kPatience) {
    const auto end = Clock::now() + patience;
    while (!done()) {
      if (Clock::now() >= end) return false;
      turn(std::min(end, Clock::now() + std::chrono::milliseconds(20)));
    }
    return true;
  }

 private:
  struct Timer {
    Clock::time_point due;
    Task task;
  };
  void turn(Clock::time_point until) {
    for (const auto& [id, timer] : timers_) until = std::min(until, timer.due);
    std::vector<Task> tasks;
    {
      std::unique_lock lock(mutex_);
      changed_.wait_until(lock, std::chrono::system_clock::now() + (until - Clock::now()),
                          [&] { return !posted_.empty(); });
      tasks.swap(posted_);
    }
    for (auto& task : tasks) std::exchange(task, {})();
    for (;;) {
      const auto at = std::find_if(timers_.begin(), timers_.end(), [](const auto& entry) {
        return entry.second.due <= Clock::now();
      });
      if (at == timers_.end()) break;
      const auto task = std::move(at->second.task);
      timers_.erase(at);
      task();
    }
  }

  std::map<TimerId, Timer> timers_;
  TimerId last_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Task> posted_;
};

// Remembers the calls as lines; answers as the test set it up.
class FakeCore final : public Core {
 public:
  std::vector<std::string> calls;
  std::vector<AttachmentInfo> attachments;  // whose source every instance is
  std::map<std::uint64_t, Layer> layers;
  std::size_t listed_calls = 0;
  // What was learned, by any thread.
  struct Learning {
    std::vector<Address> learned, revoked;
    std::set<std::thread::id> threads;
  };
  [[nodiscard]] Learning learning() const {
    const std::lock_guard lock(mutex_);
    return learning_;
  }
  int refuse_layers = 0;  // errno value

  Result<AttachmentId> attach(const std::string& instance, const Target& target,
                              const Labels& labels) override {
    const auto* interface = std::get_if<InterfaceTarget>(&target);
    const auto name = interface != nullptr ? interface->name : std::get<CgroupTarget>(target).path;
    calls.push_back(instance + " attach " + name);
    if (interface != nullptr && interface->ifindex == 999)
      return fail_with(ENODEV, "{}: no such device; it went while it was attached", name);
    AttachmentInfo info;
    info.id = {attachments.size() + 1};
    info.target = target;
    info.labels = labels;
    info.discovered_by = instance;
    attachments.push_back(info);
    return info.id;
  }
  Status detach(const std::string& instance, AttachmentId id, const std::string& reason) override {
    calls.push_back(fmt::format("{} detach {} ({})", instance, id.value, reason));
    return {};
  }
  Status relabel(const std::string& instance, AttachmentId id, const Labels& labels) override {
    std::string text;
    for (const auto& [key, value] : labels) text += " " + key + "=" + value;
    calls.push_back(fmt::format("{} relabel {}{}", instance, id.value, text));
    return {};
  }
  Status listed(const std::string& instance) override {
    if (calls.empty() || calls.back() != instance + " listed")
      calls.push_back(instance + " listed");
    listed_calls += 1;
    return {};
  }
  Result<Applied> replace_layer(const std::string& instance, AttachmentId id,
                                Layer layer) override {
    calls.push_back(fmt::format("{} replace_layer {}", instance, id.value));
    if (refuse_layers != 0)
      return fail_with(refuse_layers, "the core has no room; ask again later");
    layers[id.value] = std::move(layer);
    return Applied{.generation = {++generation_}};
  }
  Result<Applied> update_layer(const std::string&, AttachmentId, Generation, std::vector<Rule>,
                               std::vector<Rule>) override {
    return Applied{.generation = {++generation_}};
  }
  Result<Applied> withdraw_layer(const std::string& instance, AttachmentId id) override {
    calls.push_back(fmt::format("{} withdraw_layer {}", instance, id.value));
    return Applied{.generation = {++generation_}};
  }
  Status replace_layers(const std::string&, std::vector<LayerChange> changes) override {
    for (auto& change : changes) layers[change.attachment.value] = std::move(change.layer);
    return {};
  }
  Status learn(const std::string&, AttachmentId, const NamePush& push) override {
    const std::lock_guard lock(mutex_);
    for (const auto& grant : push.grants)
      learning_.learned.insert(learning_.learned.end(), grant.addresses.begin(),
                               grant.addresses.end());
    learning_.threads.insert(std::this_thread::get_id());
    return {};
  }
  Status revoke(const std::string&, AttachmentId, std::span<const Address> addresses) override {
    const std::lock_guard lock(mutex_);
    learning_.revoked.insert(learning_.revoked.end(), addresses.begin(), addresses.end());
    return {};
  }
  Result<Counters> counters(AttachmentId) override { return Counters{.denied_packets = 17}; }
  std::vector<AttachmentInfo> list() override { return attachments; }
  std::vector<AttachmentInfo> attachments_of(const std::string&) override { return attachments; }

 private:
  std::uint64_t generation_ = 0;
  mutable std::mutex mutex_;
  Learning learning_;
};

inline AttachmentInfo attachment(std::uint64_t id, const std::string& interface = "tap0") {
  return {.id = {id},
          .incarnation = 100 + id,
          .generation = {3},
          .target = InterfaceTarget{.name = interface, .ifindex = static_cast<std::uint32_t>(id)},
          .labels = {{"class", "vm"}},
          .discovered_by = "taps",
          .state = "filtering"};
}

// A pipe that hanging villains read from: released at the latest when it goes out of scope.
class Leash {
 public:
  Leash() { REQUIRE(::pipe2(ends_, O_CLOEXEC) == 0); }
  ~Leash() {
    release();
    ::close(ends_[0]);
  }
  Leash(const Leash&) = delete;
  Leash& operator=(const Leash&) = delete;
  [[nodiscard]] int fd() const { return ends_[0]; }
  [[nodiscard]] int write_end() const { return ends_[1]; }
  void release() {
    if (ends_[1] >= 0) ::close(ends_[1]);
    ends_[1] = -1;
  }

 private:
  int ends_[2] = {-1, -1};
};

struct Line {
  std::uint32_t level;
  std::string text;
};

class Stage {
 public:
  FakeCore core;
  TestLoop loop;
  PluginHostSettings settings;
  std::unique_ptr<PluginHost> host;
  std::vector<std::string> phases;  // "taps running", in order

  Stage() {
    std::string pattern = std::filesystem::temp_directory_path() / "sluice-plugins-XXXXXX";
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    directory = pattern;
    ::chmod(directory.c_str(), 0755);
    settings.libraries = {.directories = {directory}, .owner = ::geteuid()};
    settings.config_directory = "/etc/sluice";
    settings.state_directory = directory / "state";
    settings.first_backoff = std::chrono::milliseconds(1);
    settings.longest_backoff = std::chrono::milliseconds(8);
    settings.log = [this](std::uint32_t level, const std::string& text) {
      const std::lock_guard lock(lines_mutex_);
      lines_.push_back({level, text});
    };
    settings.on_state = [this](const PluginStatus& status) {
      phases.push_back(status.instance + " " + std::string(to_string(status.phase)));
    };
    // The options' text is not TOML here: "key=value" lines, typed by the declaration.
    settings.check_options = [](const PluginConfig& config,
                                const std::vector<OptionDeclaration>& declared) {
      return options_of(config, declared);
    };
  }
  ~Stage() {
    if (host) stop();
    host.reset();
    std::filesystem::remove_all(directory);
  }

  std::filesystem::path directory;

  // Copies a villain into the plugin directory.
  std::filesystem::path install(const std::string& name) {
    const auto to = directory / (name + ".so");
    std::filesystem::copy_file(std::filesystem::path(SLUICE_VILLAINS) / (name + ".so"), to);
    ::chmod(to.c_str(), 0644);
    return to;
  }

  struct Wanted {
    std::string instance, library;
    std::string options{};  // "key=value\n..."
    bool required = true;
  };
  std::vector<PluginConfig> configs(const std::vector<Wanted>& wanted) {
    std::vector<PluginConfig> all;
    for (const auto& one : wanted)
      all.push_back({.instance = one.instance,
                     .library = one.library,
                     .required = one.required,
                     .toml_text = one.options,
                     .toml = nullptr,
                     .file = "sluice.toml",
                     .line = 1});
    return all;
  }
  PluginHost& make() {
    if (!host) host = std::make_unique<PluginHost>(core, loop, settings);
    return *host;
  }
  // The errors of prepare(), one line each; empty when all is well.
  std::vector<std::string> prepare_errors(const std::vector<Wanted>& wanted) {
    auto prepared = make().prepare(configs(wanted));
    std::vector<std::string> texts;
    if (!prepared)
      for (const auto& error : prepared.error()) texts.push_back(error.text);
    return texts;
  }
  // Applies and turns the loop until that is settled. The result's message, empty when all is well.
  std::string start(const std::vector<Wanted>& wanted) {
    for (const auto& one : wanted)
      if (!std::filesystem::exists(directory / (one.library + ".so"))) install(one.library);
    auto prepared = make().prepare(configs(wanted));
    REQUIRE_MESSAGE(prepared.has_value(), (prepared ? "" : prepared.error().front().text));
    std::optional<Status> result;
    host->apply(std::move(*prepared), [&](Status status) { result = std::move(status); });
    REQUIRE(loop.run_until([&] { return result.has_value(); }));
    return *result ? "" : result->error().message;
  }
  void stop() {
    bool stopped = false;
    host->stop([&] { stopped = true; });
    CHECK(loop.run_until([&] { return stopped; }));
  }

  PluginStatus status(const std::string& instance) const {
    for (auto& status : host->status())
      if (status.instance == instance) return status;
    FAIL("no instance " << instance);
    return {};
  }
  PluginPhase phase(const std::string& instance) const { return status(instance).phase; }
  bool reaches(const std::string& instance, PluginPhase wanted) {
    return loop.run_until([&] { return phase(instance) == wanted; });
  }

  // Lines at or above a level that contain `text`.
  std::vector<std::string> lines(std::uint32_t level = 0, const std::string& text = {}) const {
    const std::lock_guard lock(lines_mutex_);
    std::vector<std::string> found;
    for (const auto& line : lines_)
      if (line.level >= level && line.text.find(text) != std::string::npos)
        found.push_back(line.text);
    return found;
  }
  std::vector<std::string> complaints() const { return lines(3); }
  bool says(const std::string& text) {
    return loop.run_until([&] { return !lines(0, text).empty(); });
  }
  // The plugin next door is alive: it goes on being served.
  bool neighbour_lives() {
    const auto before = core.listed_calls;
    return loop.run_until([&] { return core.listed_calls >= before + 3; });
  }

 private:
  static std::expected<std::vector<OptionValue>, ConfigErrors> options_of(
      const PluginConfig& config, const std::vector<OptionDeclaration>& declared) {
    std::map<std::string, std::string> given;
    std::size_t at = 0;
    while (at < config.toml_text.size()) {
      auto end = config.toml_text.find('\n', at);
      if (end == std::string::npos) end = config.toml_text.size();
      const auto line = config.toml_text.substr(at, end - at);
      given[line.substr(0, line.find('='))] = line.substr(line.find('=') + 1);
      at = end + 1;
    }
    std::vector<OptionValue> values;
    for (const auto& option : declared) {
      OptionValue value{.path = option.path, .type = option.type};
      auto text = option.default_value;
      if (text.size() >= 2 && text.front() == '"') text = text.substr(1, text.size() - 2);
      if (const auto found = given.find(option.path); found != given.end()) {
        text = found->second;
        given.erase(found);
      }
      if (!text.empty()) {
        value.is_set = true;
        value.string = text;
        value.boolean = text == "true";
        if (option.type == OptionDeclaration::Type::integer) value.integer = std::stoll(text);
      }
      values.push_back(value);
    }
    if (!given.empty())
      return std::unexpected(ConfigErrors{
          {config.file, config.line, 1, "unknown option \"" + given.begin()->first + "\""}});
    return values;
  }

  mutable std::mutex lines_mutex_;
  std::vector<Line> lines_;
};

}  // namespace sluice::testing
