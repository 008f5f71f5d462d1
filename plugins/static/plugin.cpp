#include "static/plugin.hpp"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <system_error>
#include <utility>

namespace sluice::static_policy {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr std::uint64_t kSettled = 1, kPoll = 2, kSpeakAgain = 3;
// Editors and deployments write several files; the last event within this is waited for, but not
// for longer than the limit.
constexpr std::chrono::milliseconds kQuiet = 200ms, kLongestWait = 2s;
// Without a watch.
constexpr std::chrono::seconds kPollInterval = 5s;
// What was refused may pass then: memory and room in the kernel's maps come and go.
constexpr std::chrono::seconds kRetryInterval = 30s;
// Other changes wait so long for a file that is being written.
constexpr std::chrono::seconds kLongestHold = 30s;
// The SDK's form of a rule takes some 250 bytes for each attachment, so many attachments are served
// in several calls. What one policy holds is never split.
constexpr std::size_t kBatchRules = 200'000;

Sources sources_of(const sdk::Config& config) {
  using Strings = std::vector<std::string>;
  return resolve(config.get<Strings>("policies"), config.get<Strings>("presets_path"),
                 config.config_directory());
}

std::string name_of(const sdk::Target& target) {
  if (const auto* interface = std::get_if<sdk::InterfaceTarget>(&target)) return interface->name;
  return std::get<sdk::CgroupTarget>(target).path;
}

std::string names_of(const std::vector<PolicyPtr>& policies) {
  std::vector<std::string_view> names;
  names.reserve(policies.size());
  for (const auto& policy : policies) names.push_back(policy->name);
  return fmt::format("{}", fmt::join(names, ", "));
}

std::size_t rule_count(const std::vector<PolicyPtr>& policies) {
  std::size_t count = 0;
  for (const auto& policy : policies) count += policy->rule_count();
  return count;
}

// A file, if any, that was written to so short a time ago that its writer may not be done.
std::optional<fs::path> written_within(std::chrono::seconds time, const std::set<fs::path>& paths) {
  const auto now = fs::file_time_type::clock::now();
  const auto file = std::ranges::find_if(paths, [&](const auto& path) {
    std::error_code error;
    const auto written = fs::last_write_time(path, error);
    return !error && written > now - time && written <= now;
  });
  return file == paths.end() ? std::nullopt : std::optional(*file);
}

bool is_gone(const sdk::Error& error) {
  return error.code() == ENOENT || error.code() == ENODEV;
}

}  // namespace

StaticPlugin::StaticPlugin(const sdk::Config& config)
    : beginnings_file_(config.state_directory() / "ttl-beginnings"), loader_(sources_of(config)) {}

Moment StaticPlugin::moment() const {
  return {.boot = now(), .wall_seconds = std::time(nullptr)};
}

void StaticPlugin::start() {
  beginnings_ = Beginnings::load(beginnings_file_);
  // As the files stand: nobody waits at start. Who is writing one now is seen from here on.
  load(loader_);
  watch_.emplace();
  watch_paths();
}

void StaticPlugin::stop() {
  if (watch_ && watch_->fd() >= 0) unwatch(watch_->fd());
  watch_.reset();
}

// ---- files --------------------------------------------------------------------------------------

std::optional<PolicySet> StaticPlugin::read(PolicyLoader& loader) {
  if (watch_) watch_->drain();  // of no interest: it is read now
  auto result = loader.load(set_, beginnings_, moment());
  touched_ = std::move(result.touched);
  watch_paths();
  if (is_held()) return std::nullopt;
  // Once each: a directory that stays empty is looked at again with every event.
  for (const auto& warning : result.warnings)
    if (std::ranges::find(warned_, warning) == warned_.end()) log(sdk::LogLevel::warning, warning);
  warned_ = result.warnings;
  for (const auto& error : result.errors) say_once(error.message());
  if (!result.set)
    throw sdk::Error(
        EINVAL,
        fmt::format(
            "{} in the policy files, so nothing of them is taken; {}{}",
            result.errors.size() == 1 ? std::string("an error")
                                      : fmt::format("{} errors", result.errors.size()),
            result.errors.size() == 1 ? "" : "the first: ", result.errors.front().message()));
  return std::move(result.set);
}

void StaticPlugin::take(PolicySet set) {
  apply(set);
  set_ = std::move(set);
  said_.clear();
  remember_beginnings();
}

void StaticPlugin::load(PolicyLoader& loader) {
  if (auto set = read(loader)) take(*std::move(set));
}

void StaticPlugin::reload() {
  bool is_sound = false;
  try {
    auto set = read(loader_);
    if (!set) return;
    is_sound = true;
    take(*std::move(set));
  } catch (const sdk::Error& error) {
    // The files will not get better by themselves; what the host lacks may come. A change that was
    // seen meanwhile is sooner.
    if (is_sound && !first_event_) set_timer(kSettled, kRetryInterval);
    say_once(fmt::format(
        "policies are not reloaded, the ones in force stay: {}{}", error.message(),
        is_sound ? fmt::format("; tried again every {} s", kRetryInterval.count()) : ""));
  }
}

// Files that are polled are found faulty with every look.
void StaticPlugin::say_once(const std::string& fault) {
  if (said_.insert(fault).second) log(sdk::LogLevel::error, fault);
}

// A file that is still being written is none yet: a list that is cut anywhere is a list too.
bool StaticPlugin::is_held() {
  if (!watch_) return false;
  // Also what happened while the files were read.
  if (watch_->drain()) arm();
  auto file = watch_->being_written(touched_);
  if (!file && is_polled_) file = written_within(kPollInterval, touched_);
  if (file && !held_since_) held_since_ = now();
  const auto left = file ? *held_since_ + kLongestHold - now() : 0ns;
  if (left > 0ns) {
    if (!first_event_) set_timer(kSettled, left);
    return true;
  }
  held_since_.reset();
  if (file)
    log(sdk::LogLevel::warning,
        fmt::format("{} is still being written after {} s, so it is taken as it stands, for other "
                    "changes wait; write to another name and rename",
                    file->string(), kLongestHold.count()));
  return false;
}

void StaticPlugin::watch_paths() {
  if (!watch_) return;
  const bool had_fd = watch_->fd() >= 0;
  // What appeared between the reading and the watch would be missed.
  if (watch_->watch(touched_)) arm();
  if (!had_fd && watch_->fd() >= 0) watch(watch_->fd());

  const auto& unwatched = watch_->unwatched();
  const bool is_polled = !unwatched.empty();
  if (is_polled) set_timer(kPoll, kPollInterval);
  if (std::exchange(is_polled_, is_polled) == is_polled) return;
  if (is_polled)
    log(sdk::LogLevel::error,
        fmt::format("{} directories of policy files cannot be watched, the first is {}: {}. Until "
                    "then the files are read again every {} s, so a change counts that much later",
                    unwatched.size(), unwatched.begin()->string(), watch_->reason(),
                    kPollInterval.count()));
  else
    log(sdk::LogLevel::info, "all policy files are watched again");
}

void StaticPlugin::arm() {
  said_.clear();
  const auto time = now();
  if (!first_event_) first_event_ = time;
  const auto left = *first_event_ + kLongestWait - time;
  set_timer(kSettled, std::clamp<std::chrono::nanoseconds>(left, 0ns, kQuiet));
}

void StaticPlugin::on_fd(int /*fd*/, std::uint32_t /*events*/) {
  if (!watch_) return;
  if (watch_->drain()) arm();
}

void StaticPlugin::on_timer(std::uint64_t id) {
  if (id == kSpeakAgain) return speak_again();
  if (id == kPoll && !is_polled_) return;
  if (id == kSettled) first_event_.reset();
  reload();
}

bool StaticPlugin::reconfigure(const sdk::Config& config) {
  auto sources = sources_of(config);
  if (sources == loader_.sources()) return true;
  PolicyLoader next(std::move(sources));
  try {
    load(next);
  } catch (const sdk::Error&) {
    arm();  // the old files are not watched any more; the reload sees to that
    throw;
  }
  loader_ = std::move(next);
  return true;
}

void StaticPlugin::check(const Report& report) {
  const auto result = PolicyLoader(loader_.sources()).load({}, {}, {.boot = {}, .wall_seconds = 0});
  for (const auto& error : result.errors) report(error.message());
  for (const auto& warning : result.warnings) log(sdk::LogLevel::warning, warning);
  if (result.set) show_a_name(*result.set);
}

// One is enough for the host to know that a resolver is wanted.
void StaticPlugin::show_a_name(const PolicySet& set) {
  for (const auto& policy : set.policies)
    for (const auto& group : policy->groups) {
      if (group.action != Action::allow || group.domains.empty()) continue;
      try {
        replace_layer({}, {.rules = {{.action = sdk::Action::allow,
                                      .domain = group.domains.front(),
                                      .name = group.name}}});
      } catch (const sdk::Error&) {  // an older host
      }
      return;
    }
}

void StaticPlugin::remember_beginnings() {
  auto current = beginnings_of(set_, moment());
  // The wall clock is read in seconds and corrected while it runs; that is no news.
  for (auto& [digest, seconds] : current.by_digest)
    if (const auto before = beginnings_.by_digest.find(digest);
        before != beginnings_.by_digest.end())
      seconds = before->second;
  if (current == beginnings_) return;
  try {
    fs::create_directories(beginnings_file_.parent_path());
    current.save(beginnings_file_);
  } catch (const std::system_error& error) {
    log(sdk::LogLevel::warning,
        fmt::format("{}: {}; the TTLs of policies begin anew when the daemon restarts",
                    beginnings_file_.string(), error.what()));
  }
  beginnings_ = std::move(current);
}

// ---- attachments --------------------------------------------------------------------------------

void StaticPlugin::attachment_added(const sdk::AttachmentInfo& info) {
  auto& attachment = attachments_[info.id];
  attachment.name = name_of(info.target);
  attachment.labels = info.labels;
  speak_for(info.id, attachment);
}

void StaticPlugin::attachment_changed(const sdk::AttachmentInfo& info) {
  const auto known = attachments_.find(info.id);
  if (known == attachments_.end()) return attachment_added(info);
  auto& attachment = known->second;
  attachment.name = name_of(info.target);
  attachment.labels = info.labels;
  if (!attachment.refusal.empty() || select(set_.policies, attachment.labels) != attachment.applied)
    speak_for(info.id, attachment);
}

void StaticPlugin::attachment_removed(const sdk::AttachmentInfo& info,
                                      std::string_view /*reason*/) {
  attachments_.erase(info.id);
}

void StaticPlugin::on_resync() {
  attachments_.clear();
}

void StaticPlugin::speak_for(sdk::AttachmentId id, Attachment& attachment) {
  auto policies = select(set_.policies, attachment.labels);
  try {
    // Also where this instance has said nothing yet: one before it may have, from a file that is
    // gone by now.
    if (policies.empty()) {
      withdraw_layer(id);
    } else {
      const auto applied = replace_layer(id, unite(policies));
      log(sdk::LogLevel::debug, fmt::format("{}: policy {}, generation {}", attachment.name,
                                            names_of(policies), applied.generation));
    }
    attachment.applied = std::move(policies);
    if (!std::exchange(attachment.refusal, {}).empty())
      log(sdk::LogLevel::info, attachment.name + ": what was refused is in force now");
  } catch (const sdk::Error& error) {
    note_refusal(attachment, error,
                 policies.empty() ? "its policy is not withdrawn"
                                  : fmt::format("policy {} is refused, what is in force stays",
                                                names_of(policies)));
  }
}

void StaticPlugin::note_refusal(Attachment& attachment, const sdk::Error& error,
                                const std::string& what) {
  if (is_gone(error)) return attachment.refusal.clear();  // the event that says so is under way
  if (!std::exchange(is_speaking_again_, true)) set_timer(kSpeakAgain, kRetryInterval);
  auto refusal = fmt::format("{}: {}: {}", attachment.name, what, error.message());
  if (refusal != attachment.refusal)
    log(sdk::LogLevel::error,
        fmt::format("{}; tried again every {} s", refusal, kRetryInterval.count()));
  attachment.refusal = std::move(refusal);
}

void StaticPlugin::speak_again() {
  is_speaking_again_ = false;
  for (auto& [id, attachment] : attachments_)
    if (!attachment.refusal.empty()) speak_for(id, attachment);
}

void StaticPlugin::apply(const PolicySet& set) {
  std::vector<Change> changes;
  std::vector<sdk::AttachmentId> withdrawn;
  for (const auto& [id, attachment] : attachments_) {
    auto policies = select(set.policies, attachment.labels);
    if (policies == attachment.applied) continue;
    if (policies.empty())
      withdrawn.push_back(id);
    else
      changes.push_back({id, std::move(policies)});
  }
  const std::size_t replaced = apply_batches(std::move(changes));
  for (const auto id : withdrawn) withdraw(id, attachments_.at(id));
  const bool is_news = set.policies != set_.policies;
  log(is_news ? sdk::LogLevel::info : sdk::LogLevel::debug,
      fmt::format("{} policies, {} rules in force; {} attachments changed, {} left without policy",
                  set.policies.size(), rule_count(set.policies), replaced, withdrawn.size()));
}

std::size_t StaticPlugin::apply_batches(std::vector<Change> changes) {
  std::vector<Change> done;
  std::vector<Change> batch;
  std::size_t rules = 0;
  const auto flush = [&] {
    try {
      replace(batch);
    } catch (const sdk::Error&) {
      roll_back(done);
      throw;
    }
    std::ranges::move(batch, std::back_inserter(done));
    batch.clear();
    rules = 0;
  };
  for (auto& change : changes) {
    const std::size_t more = rule_count(change.policies);
    if (!batch.empty() && rules + more > kBatchRules) flush();
    rules += more;
    batch.push_back(std::move(change));
  }
  if (!batch.empty()) flush();
  for (auto& change : done) {
    auto& attachment = attachments_.at(change.id);
    attachment.applied = std::move(change.policies);
    attachment.refusal.clear();
  }
  return done.size();
}

// One call. Attachments that have gone meanwhile drop out.
void StaticPlugin::replace(std::vector<Change>& batch) {
  std::vector<sdk::LayerChange> layers;
  layers.reserve(batch.size());
  for (const auto& change : batch) layers.push_back({change.id, unite(change.policies)});
  while (!layers.empty()) {
    try {
      return replace_layers(layers);
    } catch (const sdk::Error& error) {
      const auto at = error.layer_index();
      if (at >= batch.size()) throw;
      if (!is_gone(error))
        throw sdk::Error(error.code(),
                         fmt::format("{}: policy {}: {}", attachments_.at(batch[at].id).name,
                                     names_of(batch[at].policies), error.message()));
      layers.erase(layers.begin() + static_cast<std::ptrdiff_t>(at));
      batch.erase(batch.begin() + static_cast<std::ptrdiff_t>(at));
    }
  }
}

// What earlier batches put into force is taken back: a set is whole or it is not there.
void StaticPlugin::roll_back(const std::vector<Change>& done) {
  for (const auto& change : done) {
    auto& attachment = attachments_.at(change.id);
    try {
      if (attachment.applied.empty())
        withdraw_layer(change.id);
      else
        replace_layer(change.id, unite(attachment.applied));
    } catch (const sdk::Error& error) {
      note_refusal(attachment, error,
                   fmt::format("could not go back to policy {}, {} is in force",
                               names_of(attachment.applied), names_of(change.policies)));
    }
  }
}

void StaticPlugin::withdraw(sdk::AttachmentId id, Attachment& attachment) {
  try {
    withdraw_layer(id);
    attachment.applied.clear();
    attachment.refusal.clear();
  } catch (const sdk::Error& error) {
    note_refusal(attachment, error,
                 fmt::format("policy {} is not withdrawn", names_of(attachment.applied)));
  }
}

}  // namespace sluice::static_policy
