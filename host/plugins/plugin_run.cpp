#include "plugins/plugin_run.hpp"

#include <array>
#include <cstring>
#include <deque>

namespace sluice {
namespace {

// The runs' handles for the life of the process (see sluice_host). A list that is never destroyed,
// so that leak checkers see them as reachable.
void keep_for_ever(sluice_host* handle) {
  static std::mutex mutex;
  static auto* all = new std::deque<sluice_host*>;
  const std::lock_guard lock(mutex);
  all->push_back(handle);
}

constexpr std::size_t kMessageCapacity = 1024;
using MessageBuffer = std::array<char, kMessageCapacity>;

std::string text_of(const MessageBuffer& buffer, int result) {
  const std::string text(buffer.data(), ::strnlen(buffer.data(), buffer.size()));
  return text.empty() ? std::string(std::strerror(-result)) : text;
}

}  // namespace

Result<std::shared_ptr<PluginRun>> PluginRun::create(PluginRunSettings settings,
                                                     std::shared_ptr<const Library> library,
                                                     std::vector<OptionValue> values,
                                                     std::shared_ptr<CoreGate> gate,
                                                     std::weak_ptr<PluginOwner> owner) {
  const auto capacity = settings.mailbox_capacity;
  std::shared_ptr<PluginRun> run(new PluginRun(std::move(settings), std::move(library),
                                               std::move(values), std::move(gate),
                                               std::move(owner)));
  keep_for_ever(run->handle_);
  auto strand = Strand::create(capacity, *run);
  if (!strand) return std::unexpected(strand.error());
  run->strand_ = std::move(*strand);
  run->services_ = services_for(run->handle_, run->table().roles);
  return run;
}

PluginRun::~PluginRun() = default;

Status PluginRun::begin() {
  {
    const std::lock_guard lock(handle_->mutex);
    handle_->run = shared_from_this();
  }
  auto status = strand_->begin(
      settings_.instance, [this] { create_and_start(); }, shared_from_this());
  if (!status) close_handle();
  return status;
}

void PluginRun::close_handle() {
  closed_.store(true);
  std::shared_ptr<PluginRun> released;  // beyond the lock: it may be the last
  const std::lock_guard lock(handle_->mutex);
  released.swap(handle_->run);
}

void PluginRun::to_owner(std::function<void(PluginOwner&, PluginRun&)> tell) {
  (void)gate_->post([self = shared_from_this(), tell = std::move(tell)] {
    if (const auto owner = self->owner_.lock()) tell(*owner, *self);
  });
}

// ---- on the strand ------------------------------------------------------------------------------

void PluginRun::create_and_start() {
  const abi::RawConfig config(settings_.instance, values_, settings_.config_directory,
                              settings_.state_directory);
  MessageBuffer message{};
  void* self = nullptr;
  int result = table().create(&services_, config.get(), &self, message.data(), message.size());
  if (result < 0) {
    const Error error{.message = "cannot be created: " + text_of(message, result), .code = -result};
    return to_owner([error](PluginOwner& owner, PluginRun& run) {
      owner.on_started(run, std::unexpected(error));
    });
  }
  self_ = self;
  created_.store(true);
  result = table().start(self_, message.data(), message.size());
  if (result < 0) {
    const Error error{.message = "cannot start: " + text_of(message, result), .code = -result};
    return to_owner([error](PluginOwner& owner, PluginRun& run) {
      owner.on_started(run, std::unexpected(error));
    });
  }
  started_ = true;
  to_owner([](PluginOwner& owner, PluginRun& run) { owner.on_started(run, {}); });
}

void PluginRun::stop_and_destroy() {
  if (self_ != nullptr) {
    if (started_) table().stop(self_);
    closed_.store(true);
    table().destroy(self_);
    self_ = nullptr;
  }
  close_handle();
  if (abandoned_.load())
    log(3, "has come back from where it hung and was ended; it stays out of service");
  to_owner([](PluginOwner& owner, PluginRun& run) { owner.on_stopped(run); });
}

template <typename Call>
void PluginRun::event(const char* name, Call&& call) {
  if (failing_.load() || closed_.load()) return;
  const int result = call();
  if (result >= 0) return;
  failed(std::string(name) + " returned " + std::to_string(result) + " (" + std::strerror(-result) +
         ")");
}

void PluginRun::on_timer(std::uint64_t id) {
  if (table().on_timer != nullptr) event("on_timer", [&] { return table().on_timer(self_, id); });
}
void PluginRun::on_fd(int fd, std::uint32_t events) {
  if (table().on_fd != nullptr) event("on_fd", [&] { return table().on_fd(self_, fd, events); });
}
void PluginRun::on_wake(std::uint64_t token) {
  if (table().on_wake != nullptr) event("on_wake", [&] { return table().on_wake(self_, token); });
}
void PluginRun::on_resync() {
  log(3, "was told more than it could take in; what was queued is dropped and it lists anew");
  if (table().on_resync != nullptr) event("on_resync", [&] { return table().on_resync(self_); });
  if (hears_of_attachments())
    to_owner([](PluginOwner& owner, PluginRun& run) { owner.on_resync(run); });
}

// ---- on the core loop ---------------------------------------------------------------------------

bool PluginRun::hears_of_attachments() const {
  return library_->has_role(SLUICE_ROLE_POLICY_SOURCE) ||
         library_->has_role(SLUICE_ROLE_RESOLVER) || library_->has_role(SLUICE_ROLE_OBSERVER) ||
         library_->has_role(SLUICE_ROLE_DECIDER) || library_->has_role(SLUICE_ROLE_ANSWER_SOURCE);
}

void PluginRun::stop() {
  strand_->finish([this] { stop_and_destroy(); });
}

void PluginRun::abandon() {
  abandoned_.store(true);
  close_handle();
  // Should it ever return, it is ended in good order on its own thread; nobody waits for it.
  stop();
  strand_->let_go();
}

void PluginRun::join() {
  strand_->join(std::chrono::seconds(1));
}

void PluginRun::tell_snapshot(Snapshot snapshot) {
  // What is queued of the core's state is older than the snapshot.
  strand_->drop_state_mail();
  strand_->post_control("attachment_added", [this, snapshot = std::move(snapshot)] {
    for (const auto& info : snapshot.attachments) {
      if (table().attachment_added == nullptr) break;
      strand_->now_doing("attachment_added");
      event("attachment_added",
            [&] { return table().attachment_added(self_, abi::RawInfo(info).get()); });
    }
    for (const auto& [id, rules] : snapshot.domain_rules) {
      if (table().domain_rules == nullptr) break;
      strand_->now_doing("domain_rules");
      const abi::RawRules raw(*rules);
      event("domain_rules",
            [&] { return table().domain_rules(self_, id.value, raw.data(), raw.size()); });
    }
  });
}

void PluginRun::tell_added(const AttachmentInfo& info) {
  if (table().attachment_added == nullptr) return;
  strand_->post("attachment_added", Strand::MailKind::state, [this, info] {
    event("attachment_added",
          [&] { return table().attachment_added(self_, abi::RawInfo(info).get()); });
  });
}

void PluginRun::tell_changed(const AttachmentInfo& info) {
  if (table().attachment_changed == nullptr) return;
  strand_->post("attachment_changed", Strand::MailKind::state, [this, info] {
    event("attachment_changed",
          [&] { return table().attachment_changed(self_, abi::RawInfo(info).get()); });
  });
}

void PluginRun::tell_removed(const AttachmentInfo& info, const std::string& reason) {
  if (table().attachment_removed == nullptr) return;
  strand_->post("attachment_removed", Strand::MailKind::state, [this, info, reason] {
    event("attachment_removed", [&] {
      return table().attachment_removed(self_, abi::RawInfo(info).get(), abi::raw(reason));
    });
  });
}

void PluginRun::tell_domain_rules(AttachmentId id, Rules rules) {
  if (table().domain_rules == nullptr) return;
  strand_->post("domain_rules", Strand::MailKind::state, [this, id, rules = std::move(rules)] {
    const abi::RawRules raw(*rules);
    event("domain_rules",
          [&] { return table().domain_rules(self_, id.value, raw.data(), raw.size()); });
  });
}

void PluginRun::tell_denials(std::span<const Denial> denials) {
  if (table().denials == nullptr) return;
  {
    const std::lock_guard lock(denials_mutex_);
    const auto room =
        settings_.denial_capacity - std::min(settings_.denial_capacity, denials_.size());
    const auto taken = std::min(room, denials.size());
    denials_.insert(denials_.end(), denials.begin(),
                    denials.begin() + static_cast<std::ptrdiff_t>(taken));
    denials_dropped_.fetch_add(denials.size() - taken);
    if (denials_posted_ || denials_.empty()) return;
    denials_posted_ = true;
  }
  // Not counted mail: it is bounded by itself, and a resync must not lose the flag above.
  strand_->post_control("denials", [this] {
    std::vector<Denial> batch;
    {
      const std::lock_guard lock(denials_mutex_);
      batch.swap(denials_);
      denials_posted_ = false;
    }
    const abi::RawDenials raw(batch);
    event("denials", [&] { return table().denials(self_, raw.data(), raw.size()); });
  });
}

// In the order of the mail: a decider hears of an attachment before it is asked about it, see
// PluginEvents::telling().
void PluginRun::tell_decide(NameQuery query, DeliveryPtr delivery) {
  if (table().decide == nullptr) return;
  strand_->post("decide", Strand::MailKind::other,
                [this, query = std::move(query), delivery = std::move(delivery)] {
                  delivery->arrived();
                  sluice_query raw{};
                  raw.size = sizeof raw;
                  raw.type = query.type;
                  raw.id = query.id;
                  raw.attachment = query.attachment.value;
                  raw.name = abi::raw(query.name);
                  event("decide", [&] { return table().decide(self_, &raw); });
                });
}

// Not counted mail: bounded by the questions, and none of them may stay without it.
void PluginRun::tell_decided(std::uint64_t query_id, std::shared_ptr<const NameDecision> decision) {
  if (table().decided == nullptr) return;
  strand_->post_control("decided", [this, query_id, decision = std::move(decision)] {
    event("decided", [&] { return table().decided(self_, query_id, decision->raw()); });
  });
}

void PluginRun::tell_answer_pushed(std::uint64_t push_id, std::shared_ptr<const NameAnswer> answer,
                                   DeliveryPtr delivery) {
  if (table().answer_pushed == nullptr) return;
  strand_->post("answer_pushed", Strand::MailKind::other,
                [this, push_id, answer = std::move(answer), delivery = std::move(delivery)] {
                  delivery->arrived();
                  event("answer_pushed",
                        [&] { return table().answer_pushed(self_, push_id, answer->raw()); });
                });
}

void PluginRun::tell_queries(std::shared_ptr<const NameReports> reports) {
  if (table().queries == nullptr) return;
  {
    const std::lock_guard lock(reports_mutex_);
    if (reports_waiting_ + reports->size() > settings_.denial_capacity) {
      reports_dropped_.fetch_add(reports->size());
      return;
    }
    reports_waiting_ += reports->size();
    reports_.push_back(std::move(reports));
    if (reports_posted_) return;
    reports_posted_ = true;
  }
  // As denials: bounded by itself.
  strand_->post_control("queries", [this] {
    std::vector<std::shared_ptr<const NameReports>> batches;
    {
      const std::lock_guard lock(reports_mutex_);
      batches.swap(reports_);
      reports_waiting_ = 0;
      reports_posted_ = false;
    }
    for (const auto& batch : batches) {
      strand_->now_doing("queries");
      event("queries", [&] { return table().queries(self_, batch->data(), batch->size()); });
    }
  });
}

void PluginRun::tell_state(const std::string& instance, std::string_view state,
                           const std::string& reason) {
  if (table().plugin_state == nullptr) return;
  strand_->post("plugin_state", Strand::MailKind::other,
                [this, instance, state = std::string(state), reason] {
                  const sluice_plugin_state raw{sizeof raw, 0, abi::raw(instance), abi::raw(state),
                                                abi::raw(reason)};
                  event("plugin_state", [&] { return table().plugin_state(self_, &raw); });
                });
}

void PluginRun::reconfigure(std::vector<OptionValue> values) {
  strand_->post_control("reconfigure", [this, values = std::move(values)] {
    MessageBuffer message{};
    int result = -ENOTSUP;
    if (table().reconfigure != nullptr) {
      const abi::RawConfig config(settings_.instance, values, settings_.config_directory,
                                  settings_.state_directory);
      result = table().reconfigure(self_, config.get(), message.data(), message.size());
    }
    to_owner([result, text = text_of(message, result)](PluginOwner& owner, PluginRun& run) {
      owner.on_reconfigured(run, result, text);
    });
  });
}

// ---- for the service tables ---------------------------------------------------------------------

void PluginRun::log(std::uint32_t level, std::string_view text) const {
  settings_.log(level, fmt::format("{}: {}", settings_.instance, text));
}

int PluginRun::admit(const char* service) {
  if (closed_.load()) return -ESHUTDOWN;
  const bool wrong_thread = !strand_->is_current();
  if (!wrong_thread && self_ != nullptr) return 0;
  // Once per run: a plugin that does this does it often.
  if (!wrong_thread_said_.exchange(true))
    log(4, wrong_thread
               ? fmt::format("{} was called from a thread that is not its strand and was refused; "
                             "let that thread call wake() and act in on_wake()",
                             service)
               : fmt::format("{} was called in the constructor and was refused; call it in start()",
                             service));
  return -EPERM;
}

int PluginRun::admit_any(const char* service) {
  if (closed_.load()) return -ESHUTDOWN;
  if (created_.load()) return 0;
  log(4,
      fmt::format("{} was called in the constructor and was refused; call it in start()", service));
  return -EPERM;
}

int PluginRun::down(const std::function<int(Core&)>& work) {
  int result = -ESHUTDOWN;
  const auto call = [&] {
    (void)gate_->call([&](Core& core) {
      if (!closed_.load()) result = work(core);
    });
  };
  if (strand_->is_current())
    strand_->waiting(call);
  else
    call();
  return result;
}

int PluginRun::wake(std::uint64_t token) {
  if (closed_.load()) return -ESHUTDOWN;
  return strand_->wake(token) ? 0 : -ESHUTDOWN;
}

void PluginRun::failed(const std::string& reason) {
  failing_.store(true);  // it gets no further event; the owner stops it
  to_owner([reason](PluginOwner& owner, PluginRun& run) { owner.on_failed(run, reason); });
}

}  // namespace sluice
