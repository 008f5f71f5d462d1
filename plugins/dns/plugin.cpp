#include "dns/plugin.hpp"

#include <algorithm>
#include <cerrno>
#include <set>
#include <string>

#include "dns/reserved.hpp"
#include "names/name.hpp"

namespace sluice::dns {
namespace {

using namespace std::chrono_literals;
using std::chrono::nanoseconds;
using std::chrono::seconds;

// Timers.
constexpr std::uint64_t kUnruled = 1;   // attachments whose rules have not come have none
constexpr std::uint64_t kUnlisted = 2;  // what the resync did not bring again is gone
constexpr std::uint64_t kSweep = 3;

constexpr nanoseconds kRulesFollow = 20ms;  // the event of the rules comes right behind "added"
constexpr nanoseconds kResyncLasts = 10s;
constexpr nanoseconds kSweepEvery = 60s;
// A new attachment is blocked until its source has spoken. Questions of that moment are not
// answered: a "no such name" would be believed.
constexpr nanoseconds kSettling = 2s;

std::uint32_t number(const sdk::Config& config, std::string_view option, std::int64_t most) {
  const auto value = config.get<std::int64_t>(option);
  if (value < 1 || value > most)
    throw sdk::Error(EINVAL, std::string(option) + ": must be 1 to " + std::to_string(most));
  return static_cast<std::uint32_t>(value);
}

BudgetOptions limits_of(const sdk::Config& config) {
  constexpr std::int64_t kMany = 10'000'000;
  BudgetOptions limits;
  limits.in_flight = number(config, "limit.in_flight", 60'000);
  limits.rate = number(config, "limit.rate", kMany);
  limits.burst = number(config, "limit.burst", kMany);
  limits.connections = number(config, "limit.connections", 60'000);
  limits.upstream_rate = number(config, "limit.upstream_rate", kMany);
  limits.upstream_burst = number(config, "limit.upstream_burst", kMany);
  limits.names_per_wildcard = number(config, "limit.names_per_wildcard", 65'000);
  limits.names = number(config, "limit.names", 65'000);
  limits.window = std::chrono::floor<seconds>(config.get<nanoseconds>("limit.window"));
  if (limits.window < 1s || limits.window > 24h)
    throw sdk::Error(EINVAL, "limit.window: must be 1s to 24h");
  return limits;
}

bool same(const BudgetOptions& a, const BudgetOptions& b) {
  return a.in_flight == b.in_flight && a.rate == b.rate && a.burst == b.burst &&
         a.connections == b.connections && a.upstream_rate == b.upstream_rate &&
         a.upstream_burst == b.upstream_burst && a.names_per_wildcard == b.names_per_wildcard &&
         a.names == b.names && a.window == b.window;
}

AnswerCache::Settings cache_settings(const Settings& settings) {
  AnswerCache::Settings cache;
  cache.bytes = settings.cache_bytes;
  cache.longest_positive = seconds(settings.most_ttl);
  cache.longest_negative = seconds(settings.most_negative_ttl);
  return cache;
}

}  // namespace

DnsPlugin::DnsPlugin(const sdk::Config& config)
    : settings_(std::make_shared<const Settings>(Settings::read(config))),
      limits_(limits_of(config)),
      budgets_(limits_),
      cache_(cache_settings(*settings_)) {}

DnsPlugin::~DnsPlugin() = default;

void DnsPlugin::start() {
  own_.open();
  watch(own_.fd());
  open_sockets();
  std::vector<int> served;
  const auto add = [&](const Fd& fd) {
    if (fd) served.push_back(fd.get());
  };
  for (unsigned i = 0; i < sockets_.size(); ++i)
    workers_.push_back(
        std::make_unique<Worker>(i, Worker::Shared{*this, cache_, pushes_, own_.addresses()},
                                 settings_, sockets_[i].listeners()));
  // Workloads that stand side by side are served by different workers.
  for (unsigned lane = 0; lane < lanes_of_each(settings_->workers); ++lane)
    for (const auto& set : sockets_) {
      add(set.lanes[lane].udp4);
      add(set.lanes[lane].udp6);
      if (lane != 0) continue;
      add(set.tcp4);
      add(set.tcp6);
    }
  for (auto& worker : workers_) worker->start();
  serve(served);
  set_timer(kSweep, kSweepEvery);
}

// From an earlier life where the service manager kept them: then no question of the meantime is
// lost.
void DnsPlugin::open_sockets() {
  unsigned next = 1;
  bool kept = true;
  const unsigned lanes = lanes_of_each(settings_->workers);
  // It resolves without as well.
  const auto keep = [this](const std::string& name, int fd) {
    try {
      return keep_fd(name, fd);
    } catch (const sdk::Error& error) {
      log(sdk::LogLevel::warning,
          "questions that come while no daemon runs will be lost: " + std::string(error.what()));
      return false;
    }
  };
  const auto with_lanes = [](unsigned count) {
    ListenerSet set;
    set.lanes.resize(count);
    return set;
  };
  for (unsigned i = 0; i < settings_->workers; ++i) {
    auto set = with_lanes(lanes);
    bool whole = true;
    for (const auto& [name, place] : kept_places(set, i))
      if (const auto fd = kept_fd(name))
        *place = Fd(*fd);
      else
        whole = false;
    if (!whole) {
      set = {};  // half a set is of no use, and would be in the way of a new one
      set = open_listeners(next, lanes);
      for (const auto& [name, place] : kept_places(set, i))
        if (kept) kept = keep(name, place->get());
    }
    sockets_.push_back(std::move(set));
  }
  // Those of workers and lanes that there are no more.
  for (unsigned i = 0; kept && i < kLanes; ++i) {
    auto all = with_lanes(kLanes);
    auto used = with_lanes(i < settings_->workers ? lanes : 0);
    std::set<std::string> names;
    if (i < settings_->workers)
      for (const auto& [name, place] : kept_places(used, i)) names.insert(name);
    for (const auto& [name, place] : kept_places(all, i))
      if (!names.contains(name)) drop_fd(name);
  }
}

void DnsPlugin::stop() {
  for (auto& worker : workers_) worker->stop();
  workers_.clear();
  if (own_.fd() >= 0) unwatch(own_.fd());
  sockets_.clear();
}

void DnsPlugin::on_fd(int /*fd*/, std::uint32_t /*events*/) {
  const auto before = own_.addresses().version();
  own_.read();
  if (own_.addresses().version() == before) return;
  // What was good may now lead to this host.
  for (auto& [id, attachment] : attachments_) forget_pushes(attachment);
}

void DnsPlugin::on_timer(std::uint64_t id) {
  if (id == kUnruled) {
    for (auto& [attachment_id, attachment] : attachments_)
      if (!attachment.ruled) {
        attachment.ruled = true;
        publish(attachment);
      }
    return;
  }
  if (id == kUnlisted) {
    std::vector<sdk::AttachmentId> gone;
    for (const auto& [attachment_id, attachment] : attachments_)
      if (!attachment.listed) gone.push_back(attachment_id);
    for (const auto attachment_id : gone) forget(attachment_id);
    return;
  }
  budgets_.sweep(now());
  tell_counters();
  set_timer(kSweep, kSweepEvery);
}

// What has no query of its own to be reported with.
void DnsPlugin::tell_counters() {
  std::uint64_t queries = 0, unknown = 0, unsent = 0, foreign = 0, timed_out = 0;
  for (const auto& worker : workers_) {
    const auto counters = worker->counters();
    queries += counters.queries;
    unknown += counters.unknown_askers;
    unsent += counters.unsent;
    foreign += counters.upstream.foreign;
    timed_out += counters.upstream.timed_out;
  }
  if (queries == told_queries_ && unknown == told_unknown_) return;
  told_queries_ = queries;
  told_unknown_ = unknown;
  const auto cache = cache_.statistics();
  log(sdk::LogLevel::debug,
      std::to_string(queries) + " questions, " + std::to_string(cache.hits) + " from memory (" +
          std::to_string(cache.entries) + " answers, " + std::to_string(cache.bytes >> 10) +
          " KiB), " + std::to_string(unknown) + " from nobody known, " + std::to_string(unsent) +
          " answers not sent; upstreams: " + std::to_string(timed_out) + " unanswered, " +
          std::to_string(foreign) + " messages that answer no question of ours");
}

bool DnsPlugin::reconfigure(const sdk::Config& config) {
  auto next = std::make_shared<const Settings>(Settings::read(config));
  const auto limits = limits_of(config);
  // These are built in; a restart of the instance keeps the sockets.
  if (next->workers != settings_->workers || next->cache_bytes != settings_->cache_bytes ||
      next->most_ttl != settings_->most_ttl || !same(limits, limits_))
    return false;
  settings_ = std::move(next);
  for (auto& worker : workers_) worker->reconfigure(settings_);
  return true;
}

// ---- attachments --------------------------------------------------------------------------------

void DnsPlugin::publish(const Attachment& attachment) {
  for (auto& worker : workers_) worker->set_tenant(attachment.state);
}

// What was pushed so far needs a look by what is in force now. Published even where the state is
// the same: what a worker judged by the former one must not be remembered as judged by this.
void DnsPlugin::forget_pushes(Attachment& attachment) {
  const sdk::AttachmentId id{attachment.state.attachment};
  pushes_.clear(id);
  attachment.state.pushes = pushes_.ticket(id);
  if (attachment.ruled) publish(attachment);
}

void DnsPlugin::attachment_added(const sdk::AttachmentInfo& info) {
  const auto [at, is_new] = attachments_.try_emplace(info.id);
  auto& attachment = at->second;
  attachment.listed = true;
  attachment.state.attachment = info.id.value;
  attachment.state.mode = info.mode;
  attachment.state.audit = info.audit;
  if (is_new) {
    attachment.state.budget = budgets_.of(info.id);
    attachment.state.pushes = pushes_.ticket(info.id);
    attachment.state.settled = now() + kSettling;
  }
  if (attachment.ruled) return publish(attachment);
  set_timer(kUnruled, kRulesFollow);
}

void DnsPlugin::attachment_changed(const sdk::AttachmentInfo& info) {
  const auto known = attachments_.find(info.id);
  if (known == attachments_.end()) return attachment_added(info);
  known->second.state.mode = info.mode;
  known->second.state.audit = info.audit;
  // Where both are the same its wire may name another decider now: what the former one said does
  // not stand, and what that had opened has been closed.
  forget_pushes(known->second);
}

void DnsPlugin::attachment_removed(const sdk::AttachmentInfo& info, std::string_view /*reason*/) {
  forget(info.id);
}

void DnsPlugin::forget(sdk::AttachmentId id) {
  attachments_.erase(id);
  for (auto& worker : workers_) worker->remove_tenant(id.value);
  book_.remove(id);
  budgets_.forget(id);
  cache_.forget(id);
  pushes_.forget(id);
}

void DnsPlugin::domain_rules(sdk::AttachmentId id, const std::vector<sdk::Rule>& rules) {
  const auto known = attachments_.find(id);
  if (known == attachments_.end()) return;  // "added" comes first; it is gone already
  auto outcome = book_.assign(id, rules);
  for (const auto& complaint : outcome.complaints) Plugin::log(sdk::LogLevel::warning, complaint);
  auto ids = std::make_shared<std::vector<std::uint32_t>>();
  ids->reserve(rules.size());
  for (const auto& rule : rules) ids->push_back(rule.id.value);
  auto& attachment = known->second;
  attachment.state.rules = std::move(outcome.rules);
  attachment.state.ids = std::move(ids);
  attachment.ruled = true;
  // The host has taken out of the kernel what only a removed rule had opened.
  forget_pushes(attachment);
}

// Keeps serving by what it knows until the events that follow have told everything again.
void DnsPlugin::on_resync() {
  for (auto& [id, attachment] : attachments_) {
    attachment.listed = false;
    forget_pushes(attachment);
  }
  set_timer(kUnlisted, kResyncLasts);
}

// ---- others who decide and resolve --------------------------------------------------------------

void DnsPlugin::decided(std::uint64_t query_id, const sdk::Decision& decision) {
  const auto worker = Decisions::worker_of(query_id);
  if (worker >= workers_.size()) return;
  workers_[worker]->decided(query_id, std::make_shared<const sdk::Decision>(decision));
}

void DnsPlugin::answer_pushed(std::uint64_t push_id, const sdk::Answer& answer) {
  try {
    settle_pushed(push_id, answer);
  } catch (const sdk::Error& error) {
    pushed(push_id, error.code(), error.message());
  }
}

void DnsPlugin::settle_pushed(std::uint64_t push_id, const sdk::Answer& answer) {
  const auto known = attachments_.find(answer.attachment);
  if (known == attachments_.end()) throw sdk::Error(ENOENT, "there is no such attachment");
  const auto& state = known->second.state;
  const auto refuse = [](const std::string& why) { throw sdk::Error(EACCES, why); };
  const auto read = [](const std::string& text) {
    auto name = Name::from_text(text);
    if (!name)
      throw sdk::Error(EINVAL,
                       "\"" + text + "\" is no name: " + std::string(describe(name.error())));
    return *name;
  };

  const auto name = read(answer.name);
  std::vector<Name> chain;
  std::vector<std::string> names{std::string(name.text().view())};
  for (const auto& link : answer.chain) {
    chain.push_back(read(link));
    names.emplace_back(chain.back().text().view());
  }
  std::string why;
  Match match;
  if (state.mode == sdk::Mode::block_all) why = "everything is blocked";
  if (state.rules && why.empty()) {
    match = state.rules->match(name, now());
    if (match.verdict == Verdict::deny)
      why = answer.name + " is denied by " + std::string(state.rules->pattern(match.rules.front()));
    for (std::size_t i = 0; i < chain.size() && why.empty(); ++i) {
      const auto of_link = state.rules->match(chain[i], now());
      if (of_link.verdict == Verdict::deny)
        why = answer.name + " is an alias of " + answer.chain[i] + ", which is denied by " +
              std::string(state.rules->pattern(of_link.rules.front()));
    }
  }
  const bool passes_unruled =
      state.mode == sdk::Mode::denylist || state.mode == sdk::Mode::disabled;
  if (why.empty() && match.verdict == Verdict::none && !passes_unruled)
    why = "no rule allows " + answer.name;

  Reserved fault = Reserved::ordinary;
  if (why.empty() && match.verdict == Verdict::allow) {
    Published<AddressSet>::Reader own(own_.addresses());
    // Each TTL by itself: no address stays longer for another's sake.
    std::map<std::uint32_t, std::vector<sdk::Address>> by_ttl;
    for (const auto& record : answer.addresses)
      by_ttl[std::min(record.ttl >> 31 != 0 ? 0u : record.ttl, settings_->most_ttl)].push_back(
          record.address);
    for (const auto number : match.rules) {
      const auto& ranges = state.rules->rule(number).ranges;
      for (const auto& [ttl, addresses] : by_ttl)
        for (const auto& address : addresses)
          if (const auto verdict = vet(address, ranges, *own.get());
              verdict != Reserved::ordinary) {
            fault = verdict;
            why = address.text() + " is " + std::string(describe(verdict)) + ", which " +
                  std::string(state.rules->pattern(number)) + " does not open";
          }
    }
    if (why.empty()) {
      std::vector<sdk::Grant> grants;
      for (const auto number : match.rules)
        for (const auto& [ttl, addresses] : by_ttl) {
          const auto stay =
              std::max(std::uint64_t{ttl} * 1'000'000'000, settings_->floor) + settings_->grace;
          grants.push_back({.rule = (*state.ids)[number],
                            .addresses = addresses,
                            .ttl = nanoseconds(stay),
                            .grace = nanoseconds(settings_->live_flows)});
        }
      if (!grants.empty())
        Resolver::learn(answer.attachment,
                        std::vector<std::string_view>(names.begin(), names.end()), grants);
    }
  }

  sluice_query_report report{};
  report.size = sizeof report;
  report.attachment = answer.attachment.value;
  report.time = static_cast<std::uint64_t>(now().time_since_epoch().count());
  const auto text = name.text();
  report.name = {text.view().data(), text.view().size()};
  report.verdict = why.empty()                   ? SLUICE_QUERY_ALLOWED
                   : fault != Reserved::ordinary ? SLUICE_QUERY_FILTERED
                                                 : SLUICE_QUERY_DENIED;
  report.flags = SLUICE_QUERY_PUSHED;
  if (!why.empty() && state.audit) report.flags |= SLUICE_QUERY_AUDITED;
  report.extended_error = SLUICE_NO_EXTENDED_ERROR;
  report.count = 1;
  report.reason = {why.data(), why.size()};
  if (match.verdict != Verdict::none) {
    const auto pattern = state.rules->pattern(match.rules.front());
    report.rule = {pattern.data(), pattern.size()};
  }
  this->report(std::span(&report, 1));
  if (!why.empty() && !state.audit) refuse(why);
  pushed(push_id, 0);
}

// ---- HostSide -----------------------------------------------------------------------------------

std::uint64_t DnsPlugin::boot_now() const noexcept {
  return static_cast<std::uint64_t>(now().time_since_epoch().count());
}

std::uint64_t DnsPlugin::asker_of_mark(std::uint32_t mark) noexcept {
  try {
    const auto id = Resolver::asker_of_mark(mark);
    return id ? id->value : 0;
  } catch (const std::exception&) {
    return 0;  // the instance is being stopped
  }
}

std::uint64_t DnsPlugin::asker_of_stream(int accepted) noexcept {
  try {
    const auto asker = Resolver::asker_of_stream(accepted);
    return asker ? asker->attachment.value : 0;
  } catch (const std::exception&) {
    return 0;
  }
}

LearnResult DnsPlugin::learn(std::uint64_t attachment, std::span<const std::string_view> names,
                             std::span<const sdk::Grant> grants) noexcept {
  try {
    Resolver::learn({attachment}, names, grants);
    return {};
  } catch (const sdk::Error& error) {
    return {.error = error.code(), .address = error.rule_index()};
  } catch (const std::exception&) {
    return {.error = ENOMEM};
  }
}

AskResult DnsPlugin::ask(const sdk::Query& query, std::uint64_t deadline) noexcept {
  try {
    return Resolver::ask(query, sdk::Time(nanoseconds(deadline))) ? AskResult::asked
                                                                  : AskResult::no_decider;
  } catch (const std::exception&) {
    return AskResult::down;
  }
}

void DnsPlugin::report(std::span<const sluice_query_report> reports) noexcept {
  try {
    Resolver::report(reports);
  } catch (const std::exception&) {
    // Nobody listens any more.
  }
}

void DnsPlugin::say(sdk::LogLevel level, std::string_view text) noexcept {
  log(level, text);
}

void DnsPlugin::give_up(std::string_view why) noexcept {
  failed(why);
}

}  // namespace sluice::dns
