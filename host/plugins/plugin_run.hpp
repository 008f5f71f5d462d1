// One life of one plugin instance: from create() to destroy(), on a strand of its own. A restart
// is another run.
//
//   run = PluginRun::create(...);
//   run->begin();                 // create(), start(), then PluginOwner::on_started()
//   run->tell_added(info); ...    // queued; each becomes one call into the plugin
//   run->stop();                  // stop(), destroy(), then PluginOwner::on_stopped()
//   run->abandon();               // quarantine: its services answer -ESHUTDOWN from now
//
// Thread table:  begin, stop, abandon, tell_*: core loop. Services: strand, or any where the ABI
// says so. Everything the two share lies in the strand's mailbox or is atomic.
#pragma once

#include <sluice/plugin_abi.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "plugins/abi_values.hpp"
#include "plugins/core_gate.hpp"
#include "plugins/library.hpp"
#include "plugins/name_routes.hpp"
#include "plugins/strand.hpp"

namespace sluice {
class PluginRun;
}

// What a plugin holds of its host. Never freed: a thread that the plugin forgot may come back with
// it at any time. Small on purpose; one per run, and runs are bounded by the restart backoff.
struct sluice_host {
  std::mutex mutex;
  std::shared_ptr<sluice::PluginRun> run;  // under mutex; null after the run
};

namespace sluice {

// [core loop] Who is told how a run goes.
class PluginOwner {
 public:
  virtual ~PluginOwner() = default;
  virtual void on_started(PluginRun& run, Status status) = 0;
  virtual void on_failed(PluginRun& run, const std::string& reason) = 0;
  virtual void on_stopped(PluginRun& run) = 0;
  virtual void on_reconfigured(PluginRun& run, int result, const std::string& message) = 0;
  virtual void on_resync(PluginRun& run) = 0;  // a full mailbox: tell it all again
};

struct PluginRunSettings {
  std::string instance;
  std::string config_directory, state_directory;
  std::size_t mailbox_capacity = 4096, denial_capacity = 4096;
  std::function<void(std::uint32_t level, const std::string& line)> log;
  std::shared_ptr<NameRoutes> routes;
};

class PluginRun final : public StrandClient, public std::enable_shared_from_this<PluginRun> {
 public:
  // Attachments with, for resolvers, their domain rules.
  using Rules = std::shared_ptr<const std::vector<Rule>>;
  struct Snapshot {
    std::vector<AttachmentInfo> attachments;
    std::vector<std::pair<AttachmentId, Rules>> domain_rules;
  };

  [[nodiscard]] static Result<std::shared_ptr<PluginRun>> create(
      PluginRunSettings settings, std::shared_ptr<const Library> library,
      std::vector<OptionValue> values, std::shared_ptr<CoreGate> gate,
      std::weak_ptr<PluginOwner> owner);
  ~PluginRun() override;

  [[nodiscard]] Status begin();
  void stop();
  void abandon();
  // After on_stopped().
  void join();

  void tell_snapshot(Snapshot snapshot);
  void tell_added(const AttachmentInfo& info);
  void tell_changed(const AttachmentInfo& info);
  void tell_removed(const AttachmentInfo& info, const std::string& reason);
  void tell_domain_rules(AttachmentId id, Rules rules);
  void tell_denials(std::span<const Denial> denials);
  void tell_state(const std::string& instance, std::string_view state, const std::string& reason);
  void reconfigure(std::vector<OptionValue> values);

  // [any]
  void tell_decide(NameQuery query, DeliveryPtr delivery);
  void tell_decided(std::uint64_t query_id, std::shared_ptr<const NameDecision> decision);
  void tell_answer_pushed(std::uint64_t push_id, std::shared_ptr<const NameAnswer> answer,
                          DeliveryPtr delivery);
  void tell_queries(std::shared_ptr<const NameReports> reports);
  [[nodiscard]] bool takes_answers() const { return table().answer_pushed != nullptr; }

  [[nodiscard]] std::optional<Strand::Busy> busy() const { return strand_->busy(); }
  [[nodiscard]] std::uint64_t resyncs() const { return strand_->resyncs(); }
  [[nodiscard]] std::uint64_t denials_dropped() const { return denials_dropped_.load(); }
  [[nodiscard]] std::uint64_t reports_dropped() const { return reports_dropped_.load(); }
  [[nodiscard]] bool hears_of_attachments() const;

  // StrandClient
  void on_timer(std::uint64_t id) override;
  void on_fd(int fd, std::uint32_t events) override;
  void on_wake(std::uint64_t token) override;
  void on_resync() override;

  // ---- for the service tables ----

  [[nodiscard]] const std::string& instance() const { return settings_.instance; }
  void log(std::uint32_t level, std::string_view text) const;
  // 0, or why a [strand] service must not be served here and now.
  [[nodiscard]] int admit(const char* service);
  // The same for an [any] service.
  [[nodiscard]] int admit_any(const char* service);
  // [any] `work` on the core loop; its result, or -ESHUTDOWN where it cannot run.
  [[nodiscard]] int down(const std::function<int(Core&)>& work);
  // [any] `work` on the calling thread, for what the core marks [any]. Never to wait in.
  template <typename Work>
  [[nodiscard]] int direct(Work&& work) {
    int result = -ESHUTDOWN;
    (void)gate_->direct([&](Core& core) { result = work(core); });
    return result;
  }
  [[nodiscard]] Strand& strand() { return *strand_; }
  [[nodiscard]] NameRoutes& routes() { return *settings_.routes; }
  [[nodiscard]] int wake(std::uint64_t token);
  void failed(const std::string& reason);

 private:
  PluginRun(PluginRunSettings settings, std::shared_ptr<const Library> library,
            std::vector<OptionValue> values, std::shared_ptr<CoreGate> gate,
            std::weak_ptr<PluginOwner> owner)
      : settings_(std::move(settings)),
        library_(std::move(library)),
        values_(std::move(values)),
        gate_(std::move(gate)),
        owner_(std::move(owner)) {}
  void create_and_start();
  void stop_and_destroy();
  template <typename Call>
  void event(const char* name, Call&& call);
  void close_handle();
  void to_owner(std::function<void(PluginOwner&, PluginRun&)> tell);
  [[nodiscard]] const sluice_plugin& table() const { return library_->table(); }

  const PluginRunSettings settings_;
  const std::shared_ptr<const Library> library_;
  std::vector<OptionValue> values_;  // the strand's once it has begun
  const std::shared_ptr<CoreGate> gate_;
  const std::weak_ptr<PluginOwner> owner_;  // locked on the core loop only
  std::unique_ptr<Strand> strand_;
  sluice_host* const handle_ = new sluice_host;
  sluice_services services_{};

  std::atomic<bool> created_{false};
  std::atomic<bool> closed_{false};  // stopped or abandoned: services answer -ESHUTDOWN
  std::atomic<bool> failing_{false};
  std::atomic<bool> abandoned_{false};
  std::atomic<bool> wrong_thread_said_{false};
  std::atomic<std::uint64_t> denials_dropped_{0}, reports_dropped_{0};

  void* self_ = nullptr;  // the strand's
  bool started_ = false;  // the strand's

  std::mutex denials_mutex_;
  std::vector<Denial> denials_;
  bool denials_posted_ = false;

  std::mutex reports_mutex_;
  std::vector<std::shared_ptr<const NameReports>> reports_;
  std::size_t reports_waiting_ = 0;
  bool reports_posted_ = false;
};

// The tables of services for a run, with those of roles not in `roles` null.
[[nodiscard]] sluice_services services_for(sluice_host* host, std::uint32_t roles);

}  // namespace sluice
