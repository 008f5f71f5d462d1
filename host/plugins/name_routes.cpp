#include "plugins/name_routes.hpp"

#include <algorithm>
#include <cerrno>

#include "plugins/plugin_run.hpp"

namespace sluice {
namespace {

// Undecided questions of all resolvers together. A decider that is so far behind is of no help to
// whoever asks next.
constexpr std::size_t kMostUndecided = 16384;
// However long a source is willing to wait: its strand must come back to be stopped.
constexpr std::chrono::seconds kLongestPush{30};

std::chrono::nanoseconds until(BootTime when) {
  const auto now = boot_now();
  if (when <= now) return {};
  constexpr std::uint64_t kHour = 3'600'000'000'000;
  return std::chrono::nanoseconds(std::min(when.nanoseconds - now.nanoseconds, kHour));
}

}  // namespace

// ---- [core loop] --------------------------------------------------------------------------------

void NameRoutes::wired(AttachmentId id, Sources sources) {
  const std::lock_guard lock(mutex_);
  if (sources)
    wires_[id.value] = std::move(sources);
  else
    wires_.erase(id.value);
}

void NameRoutes::instance(const std::string& name, std::uint32_t roles,
                          std::shared_ptr<PluginRun> run) {
  Settled settled;
  std::shared_ptr<PluginRun> before;  // released beyond the lock: it may be the last
  {
    const std::lock_guard lock(mutex_);
    auto& known = instances_[name];
    before = known.run;
    known.roles = roles;
    known.run = std::move(run);
    observers_.store(
        static_cast<std::size_t>(std::ranges::count_if(instances_, [](const auto& entry) {
          return entry.second.run && (entry.second.roles & SLUICE_ROLE_OBSERVER) != 0;
        })));
    if (before && before != known.run) {
      for (auto at = asked_.begin(); at != asked_.end();) {
        const auto next = std::next(at);
        if (at->second.decider == before.get())
          settled.emplace_back(take(at), "decider down: " + name + " stopped before it answered");
        at = next;
      }
      for (auto& [id, push] : pushes_) {
        if (push->resolver == before.get())
          finish(*push, EHOSTDOWN, "the resolver " + name + " stopped before it answered");
        if (push->source == before.get()) finish(*push, ESHUTDOWN, "it is being stopped");
      }
    }
  }
  tell(settled);
}

void NameRoutes::forget_instance(const std::string& name) {
  instance(name, 0, nullptr);
  const std::lock_guard lock(mutex_);
  instances_.erase(name);
}

void NameRoutes::shut() {
  if (timer_ != 0) loop_.cancel(timer_);
  timer_ = 0;
  std::map<std::string, Instance, std::less<>> released;
  const std::lock_guard lock(mutex_);
  open_ = false;
  released.swap(instances_);
  observers_.store(0);
  asked_.clear();
  deadlines_.clear();
  for (auto& [id, push] : pushes_) finish(*push, ESHUTDOWN, "the daemon stops");
}

void NameRoutes::rearm() {
  BootTime when;
  {
    const std::lock_guard lock(mutex_);
    if (!open_) return;
    if (!deadlines_.empty()) when = deadlines_.begin()->first;
    armed_for_ = when;
  }
  if (timer_ != 0) loop_.cancel(timer_);
  timer_ = when.never() ? 0 : loop_.after(until(when), [self = weak_from_this()] {
    if (const auto routes = self.lock()) routes->sweep();
  });
}

void NameRoutes::sweep() {
  timer_ = 0;
  Settled settled;
  {
    const std::lock_guard lock(mutex_);
    const auto now = boot_now();
    while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
      const auto at = asked_.find(deadlines_.begin()->second);
      auto reason = "deadline: " + at->second.decider_name + " has not answered in time";
      settled.emplace_back(take(at), std::move(reason));
    }
  }
  tell(settled);
  rearm();
}

// ---- [any] --------------------------------------------------------------------------------------

// The first of the wire's sources that holds `role`. `speaker` must be one of them itself.
Result<std::pair<std::string, std::shared_ptr<PluginRun>>> NameRoutes::find(
    AttachmentId id, const std::string& speaker, std::uint32_t role, const char* what) const {
  if (!open_) return fail_with(ESHUTDOWN, "the daemon stops");
  const auto wire = wires_.find(id.value);
  if (wire == wires_.end() || !std::ranges::count(*wire->second, speaker))
    return fail_with(ENOENT, "attachment {:x}: there is none under a wire that names {}", id.value,
                     speaker);
  for (const auto& source : *wire->second) {
    const auto at = instances_.find(source);
    if (at == instances_.end() || (at->second.roles & role) == 0) continue;
    if (!at->second.run)
      return fail_with(EHOSTDOWN, "the {} {} does not run; see why in `sluiced`'s log", what,
                       source);
    return std::pair(source, at->second.run);
  }
  return fail_with(ENOENT, "the wire of attachment {:x} names no {}; add one to its sources",
                   id.value, what);
}

NameRoutes::Asked NameRoutes::take(std::map<std::uint64_t, Asked>::iterator at) {
  auto asked = std::move(at->second);
  deadlines_.erase({asked.deadline, at->first});
  asked_.erase(at);
  return asked;
}

void NameRoutes::finish(Push& push, int code, std::string message) {
  if (push.finished) return;
  push.finished = true;
  push.code = code;
  push.message = std::move(message);
  push.changed.notify_all();
}

void NameRoutes::tell(const Settled& settled) {
  for (const auto& [asked, reason] : settled)
    if (const auto asker = asked.asker.lock())
      asker->tell_decided(asked.askers_id, NameDecision::none(reason));
}

Status NameRoutes::ask(const std::shared_ptr<PluginRun>& asker, NameQuery query,
                       BootTime deadline) {
  std::shared_ptr<PluginRun> decider;
  std::uint64_t id = 0;
  bool earlier = false;
  {
    const auto told = telling();
    const std::lock_guard lock(mutex_);
    auto found = find(query.attachment, asker->instance(), SLUICE_ROLE_DECIDER, "decider");
    if (!found) return std::unexpected(found.error());
    if (asked_.size() >= kMostUndecided)
      return fail_with(EBUSY, "{} questions are undecided already", asked_.size());
    decider = std::move(found->second);
    id = ++last_id_;
    // Zero would be "never": such a question would stay for ever.
    const BootTime ends{std::max<std::uint64_t>(deadline.nanoseconds, 1)};
    asked_.emplace(id, Asked{asker, decider.get(), std::move(found->first), query.id, ends});
    deadlines_.emplace(ends, id);
    earlier = armed_for_.never() || ends < armed_for_;
    if (earlier) armed_for_ = ends;
  }
  // The core loop is bothered only when its timer is too late: with equal patience, once.
  if (earlier) (void)gate_->post([self = shared_from_this()] { self->rearm(); });
  query.id = id;
  auto delivery = std::make_shared<Delivery>([self = weak_from_this(), gate = gate_, id] {
    (void)gate->post([self, id] {
      if (const auto routes = self.lock()) routes->lost_question(id);
    });
  });
  decider->tell_decide(std::move(query), std::move(delivery));
  return {};
}

void NameRoutes::lost_question(std::uint64_t id) {
  Settled settled;
  {
    const std::lock_guard lock(mutex_);
    const auto at = asked_.find(id);
    if (at == asked_.end()) return;
    auto reason = "decider down: " + at->second.decider_name + " is told more than it takes in";
    settled.emplace_back(take(at), std::move(reason));
  }
  tell(settled);
}

Status NameRoutes::decided(const PluginRun& decider, std::uint64_t id,
                           std::shared_ptr<const NameDecision> decision) {
  Asked asked;
  {
    const std::lock_guard lock(mutex_);
    const auto at = asked_.find(id);
    if (at == asked_.end() || at->second.decider != &decider)
      return fail_with(ENOENT, "query {}: nobody waits for this decision", id);
    asked = take(at);
  }
  if (const auto asker = asked.asker.lock())
    asker->tell_decided(asked.askers_id, std::move(decision));
  return {};
}

Status NameRoutes::push(const PluginRun& source, std::shared_ptr<const NameAnswer> answer,
                        BootTime deadline) {
  auto told = telling();
  std::unique_lock lock(mutex_);
  auto found = find(answer->attachment(), source.instance(), SLUICE_ROLE_RESOLVER, "resolver");
  told.unlock();
  if (!found) return std::unexpected(found.error());
  const auto [name, resolver] = std::move(*found);
  if (resolver.get() == &source)
    return fail_with(EDEADLK, "{} is the resolver itself: it would wait for itself; learn() then",
                     name);
  if (!resolver->takes_answers())
    return fail_with(EOPNOTSUPP, "the resolver {} takes no answers from others", name);
  const auto id = ++last_id_;
  const auto push = std::make_shared<Push>();
  push->source = &source;
  push->resolver = resolver.get();
  pushes_.emplace(id, push);
  lock.unlock();
  auto delivery = std::make_shared<Delivery>([self = weak_from_this(), gate = gate_, id] {
    (void)gate->post([self, id] {
      if (const auto routes = self.lock()) routes->lost_answer(id);
    });
  });
  resolver->tell_answer_pushed(id, std::move(answer), std::move(delivery));
  lock.lock();
  const auto patience = std::min<std::chrono::nanoseconds>(until(deadline), kLongestPush);
  const bool came = push->changed.wait_for(lock, patience, [&] { return push->finished; });
  pushes_.erase(id);
  if (!came) return fail_with(ETIMEDOUT, "the resolver {} has not answered in time", name);
  if (push->code == 0) return {};
  return fail_with(push->code, "{}", push->message);
}

void NameRoutes::lost_answer(std::uint64_t id) {
  const std::lock_guard lock(mutex_);
  if (const auto at = pushes_.find(id); at != pushes_.end())
    finish(*at->second, EBUSY, "the resolver is told more than it takes in");
}

Status NameRoutes::pushed(const PluginRun& resolver, std::uint64_t id, int code,
                          std::string message) {
  const std::lock_guard lock(mutex_);
  const auto at = pushes_.find(id);
  if (at == pushes_.end() || at->second->finished || at->second->resolver != &resolver)
    return fail_with(ENOENT, "push {}: nobody waits for it", id);
  finish(*at->second, code, std::move(message));
  return {};
}

Status NameRoutes::report(const sluice_query_report* raw, std::size_t count) {
  if (observers_.load(std::memory_order_relaxed) == 0 || count == 0) return {};
  auto reports = NameReports::from(raw, count);
  if (!reports) return std::unexpected(reports.error());
  std::vector<std::shared_ptr<PluginRun>> observers;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [name, instance] : instances_)
      if (instance.run && (instance.roles & SLUICE_ROLE_OBSERVER) != 0)
        observers.push_back(instance.run);
  }
  for (const auto& observer : observers) observer->tell_queries(*reports);
  return {};
}

}  // namespace sluice
