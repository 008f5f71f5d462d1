#include "discovery/keeper.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace sluice::discovery {
namespace {

bool is_gone(int code) {
  return code == ENODEV || code == ENOENT;
}

// Trying again soon does not help; the operator or another discovery has to do something first.
bool is_refused(int code) {
  return code == EINVAL || code == EOPNOTSUPP || code == EPERM;
}

// The same fault on another target is the same cause.
std::string cause_of(const WantedTarget& target, const AttachmentHost::Answer& answer) {
  std::string text = answer.message;
  for (std::size_t at = 0;
       !target.name.empty() && (at = text.find(target.name, at)) != std::string::npos; at += 3)
    text.replace(at, target.name.size(), "...");
  return std::to_string(answer.code) + " " + text;
}

std::string text_of(const AttachmentHost::Answer& answer) {
  return answer.message.empty() ? std::strerror(answer.code) : answer.message;
}

}  // namespace

void Keeper::line_up(std::uint64_t key, Entry& entry) {
  if (entry.must_detach && !entry.in_detach_line) {
    entry.in_detach_line = true;
    to_detach_.push_back(key);
  }
  if (entry.wanted && !entry.in_attach_line) {
    entry.in_attach_line = true;
    to_attach_.push_back(key);
  }
}

void Keeper::stop_waiting(std::uint64_t key, Entry& entry) {
  if (entry.retry_at == 0) return;
  waiting_.erase({entry.retry_at, key});
  entry.retry_at = 0;
}

void Keeper::want(std::uint64_t key, WantedTarget target, Labels labels) {
  auto [at, is_new] = entries_.try_emplace(key);
  Entry& entry = at->second;
  if (!is_new && !entry.wanted) --unwanted_;
  const bool was_wanted = entry.wanted;
  entry.wanted = true;
  if (was_wanted && entry.target == target && entry.labels == labels) return;
  // attach() is idempotent and carries the new name; relabel() cannot.
  const bool same_target = was_wanted && entry.target == target;
  const bool stands = entry.attachment != 0 && !entry.must_detach;
  entry.need = same_target && stands && entry.need != Need::attach ? Need::relabel : Need::attach;
  entry.target = std::move(target);
  entry.labels = std::move(labels);
  entry.failures = 0;
  stop_waiting(key, entry);
  line_up(key, entry);
}

void Keeper::unwant(std::uint64_t key, std::string reason) {
  const auto at = entries_.find(key);
  if (at == entries_.end() || !at->second.wanted) return;
  Entry& entry = at->second;
  stop_waiting(key, entry);
  forget_cause(entry, false);
  entry.wanted = false;
  entry.need = Need::nothing;
  ++unwanted_;
  if (entry.attachment == 0) {
    entries_.erase(at);
    --unwanted_;
    return;
  }
  entry.reason = std::move(reason);
  entry.must_detach = true;
  line_up(key, entry);
}

void Keeper::reaffirm() {
  for (auto& [key, entry] : entries_) {
    if (!entry.wanted) continue;
    entry.need = Need::attach;
    stop_waiting(key, entry);
    line_up(key, entry);
  }
}

void Keeper::listing_complete() {
  listed_due_ = true;
}

std::uint64_t Keeper::attachment_of(std::uint64_t key) const {
  const auto at = entries_.find(key);
  return at == entries_.end() || at->second.must_detach ? 0 : at->second.attachment;
}

std::uint64_t Keeper::turn() {
  if (shut_down_) return kIdle;
  wake_due();
  std::size_t calls = 0;
  // Detaches first: what is gone must not stand beside what took its name.
  while (!to_detach_.empty() && calls < settings_.calls_per_turn && !shut_down_) {
    const std::uint64_t key = to_detach_.front();
    to_detach_.pop_front();
    detach_now(key);
    ++calls;
  }
  while (!to_attach_.empty() && calls < settings_.calls_per_turn && !shut_down_) {
    const std::uint64_t key = to_attach_.front();
    to_attach_.pop_front();
    attach_now(key);
    ++calls;
  }
  if (shut_down_) return kIdle;
  if (!to_detach_.empty() || !to_attach_.empty()) return 0;
  if (listed_due_) tell_listed();
  if (waiting_.empty()) return kIdle;
  const std::uint64_t now = host_.now(), due = waiting_.begin()->first;
  return due > now ? due - now : 0;
}

void Keeper::wake_due() {
  const std::uint64_t now = host_.now();
  while (!waiting_.empty() && waiting_.begin()->first <= now) {
    const std::uint64_t key = waiting_.begin()->second;
    waiting_.erase(waiting_.begin());
    Entry& entry = entries_.at(key);
    entry.retry_at = 0;
    line_up(key, entry);
  }
}

void Keeper::detach_now(std::uint64_t key) {
  const auto at = entries_.find(key);
  // In line, then forgotten and perhaps found again: the line may name it more than once.
  if (at == entries_.end() || !at->second.in_detach_line) return;
  Entry& entry = at->second;
  entry.in_detach_line = false;
  const auto answer = host_.detach(entry.attachment, entry.reason);
  if (answer.code == ESHUTDOWN) {
    shut_down_ = true;
    return;
  }
  // The core drops what died by itself, so an unknown attachment is as good as a detached one.
  if (answer.code != 0 && !is_gone(answer.code)) {
    failed(key, entry, answer);
    return;
  }
  host_.log(LogLevel::debug, entry.target.name + ": detached: " + entry.reason);
  forget_cause(entry, true);
  entry.must_detach = false;
  entry.attachment = 0;
  entry.failures = 0;
  --attached_;
  if (!entry.wanted) {
    entries_.erase(at);
    --unwanted_;
    return;
  }
  line_up(key, entry);
}

void Keeper::attach_now(std::uint64_t key) {
  const auto at = entries_.find(key);
  if (at == entries_.end() || !at->second.in_attach_line) return;
  Entry& entry = at->second;
  entry.in_attach_line = false;
  // A detach that failed waits for its own turn; the attach follows it.
  if (!entry.wanted || entry.must_detach || entry.need == Need::nothing) return;

  AttachmentHost::Answer answer;
  if (entry.need == Need::relabel) answer = host_.relabel(entry.attachment, entry.labels);
  // The core no longer knows the attachment: its target died and may have come back.
  if (is_gone(answer.code)) entry.need = Need::attach;
  if (entry.need == Need::attach)
    answer = host_.attach(entry.target, entry.labels);
  else
    answer.id = entry.attachment;

  if (answer.code == ESHUTDOWN) {
    shut_down_ = true;
    return;
  }
  if (answer.code != 0) {
    failed(key, entry, answer);
    return;
  }
  if (entry.attachment == 0) ++attached_;
  entry.attachment = answer.id;
  entry.need = Need::nothing;
  entry.failures = 0;
  entry.contested = false;
  forget_cause(entry, true);
}

void Keeper::failed(std::uint64_t key, Entry& entry, const AttachmentHost::Answer& answer) {
  stop_waiting(key, entry);
  ++entry.failures;
  std::uint64_t delay = settings_.first_retry_ns;
  for (std::uint32_t i = 1; i < entry.failures && delay < settings_.longest_retry_ns; ++i)
    delay *= 2;
  entry.refused = is_refused(answer.code);
  entry.contested = answer.code == EEXIST;
  if (entry.refused) delay = settings_.longest_retry_ns;
  entry.retry_at = host_.now() + std::min(delay, settings_.longest_retry_ns);
  waiting_.insert({entry.retry_at, key});

  // It went while we reached for it: discovery will say so itself in a moment.
  if (is_gone(answer.code)) {
    host_.log(LogLevel::debug,
              entry.target.name + ": gone before it was attached: " + text_of(answer));
    forget_cause(entry, false);
    return;
  }
  // While a configuration changes the other discovery lets go of it any moment: no news yet.
  if (entry.contested && entry.failures < settings_.contests_before_listed) return;
  const std::string cause = cause_of(entry.target, answer);
  if (entry.cause == cause) return;
  forget_cause(entry, false);
  entry.cause = cause;
  Cause& shared = causes_[cause];
  ++shared.targets;
  shared.most = std::max(shared.most, shared.targets);
  if (shared.targets > 1) return;
  // Names the target even where the host's own text does not.
  const std::string text = text_of(answer);
  const bool is_named = text.find(entry.target.name) != std::string::npos;
  host_.log(LogLevel::warning, (is_named ? "" : entry.target.name + ": ") + text +
                                   "; trying again after " + std::to_string(delay / 1'000'000) +
                                   " ms, later every " +
                                   std::to_string(settings_.longest_retry_ns / 1'000'000'000) +
                                   " s (said once for all targets with this cause)");
}

void Keeper::forget_cause(Entry& entry, bool solved) {
  if (entry.cause.empty()) return;
  const auto at = causes_.find(entry.cause);
  entry.cause.clear();
  if (--at->second.targets != 0) return;
  if (solved)
    host_.log(LogLevel::info, entry.target.name + ": attaching works again; up to " +
                                  std::to_string(at->second.most) + " targets had failed alike");
  causes_.erase(at);
}

bool Keeper::holds_listed(const Entry& entry) const {
  if (!entry.wanted) return false;
  if (entry.contested) return entry.failures < settings_.contests_before_listed;
  return !entry.cause.empty() && !entry.refused &&
         entry.failures < settings_.failures_before_listed;
}

void Keeper::tell_listed() {
  for (const auto& [key, entry] : entries_)
    if (holds_listed(entry)) return;
  listed_due_ = false;
  const auto answer = host_.listed();
  if (answer.code == ESHUTDOWN) shut_down_ = true;
  if (answer.code != 0 && answer.code != ESHUTDOWN)
    host_.log(LogLevel::error, "the listing could not be reported: " + text_of(answer) +
                                   "; filters that nobody claims stay until the next listing");
}

}  // namespace sluice::discovery
