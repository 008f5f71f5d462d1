// The attachments of this host: which targets are filtered, under which wire, with which layers,
// and what of that is in the kernel. Implements Core, which is what plugins may ask for.
//
// Everything here happens on the core loop's thread but learning addresses, which any thread may do
// (LearnedAddresses). A change is composed first (layers merged, policy compiled), then published,
// then remembered: what fails on the way changes nothing.
//
//   AttachmentManager manager(data_plane, Wiring(config));
//   manager.set_events(plugin_host);
//   ... on each turn: data_plane.poll(manager.data_plane_events()); manager.turn();
//
// Life of an attachment found pinned at start:
//
//   unclaimed --attach()--> held --its sources have spoken--> filtering
//       |                    '-- kept the kernel's policy until then
//       '-- nobody claims it and every discovery has listed: detached
//
// One that changes hands keeps its filter. A discovery that asks for what another one has is
// refused (EEXIST) and remembered: when the other lets go, by a listing without it, by its end or
// by a detach, the attachment becomes the asker's on the spot.
//
// It is spread over files by what it does:
//
//   attachment_state.hpp    what it remembers of each attachment and instance
//   attachment_manager.cpp  finding and reading them, what the kernel reports, what time brings
//   manager_discovery.cpp   attachments come, go and are claimed; instances start and fail
//   manager_policy.cpp      what sources say of their layers; another wiring or floor
//   manager_publish.cpp     from layers to what is in the kernel, whole or not at all
//   manager_names.cpp       domain rules, who decides, whose port 53 goes where
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "attachments/asker_table.hpp"
#include "attachments/core.hpp"
#include "attachments/learned_addresses.hpp"
#include "attachments/policy_cache.hpp"
#include "attachments/wiring.hpp"

namespace sluice {

struct AttachmentTiming {
  // How long a claimed attachment keeps the policy it was found with while sources are silent.
  std::chrono::nanoseconds hold = std::chrono::seconds{5};
  // How long a running discovery may take to say that it has listed everything.
  std::chrono::nanoseconds listing = std::chrono::seconds{60};
  // What one discovery detached and another had asked for is the other's, if it asks again in this
  // time; longer than any discovery waits between two attempts.
  std::chrono::nanoseconds confirmation = std::chrono::seconds{120};
  // Policies whose rules expire are compiled anew this long after, many at a time.
  std::chrono::nanoseconds recompile_delay = std::chrono::seconds{1};
};

enum class InstanceState : std::uint8_t {
  starting,  // configured, not running yet
  running,
  down,  // failed, waiting for its restart, or quarantined: what it said stays in force
};
struct InstanceRoles {
  bool discovery = false;
  bool policy_source = false;
  bool decider = false;
  bool resolver = false;
};

class AttachmentManager final : public Core {
 public:
  // Takes over what the data plane has adopted; nothing of it changes yet. `plane` outlives this.
  AttachmentManager(DataPlane& plane, Wiring wiring, AttachmentTiming timing = {},
                    std::function<BootTime()> clock = boot_now);
  ~AttachmentManager() override;
  AttachmentManager(const AttachmentManager&) = delete;
  AttachmentManager& operator=(const AttachmentManager&) = delete;

  // Whom to tell; before the first attach. Outlives this.
  void set_events(PluginEvents& events) { events_ = &events; }

  // Who keeps descriptors for plugins; nobody without it. Outlives this.
  void set_fd_keeper(FdKeeper& keeper) { fd_keeper_ = &keeper; }

  // A configured instance and what has become of it. Every discovery must be known (`starting`)
  // before started(), so that attachments are not dropped for want of one that is still to list.
  void instance(const std::string& name, InstanceRoles roles, InstanceState state);
  // It has stopped and will not start again: its attachments are whose who asks for them.
  void release(const std::string& name);
  // Gone from the configuration; releases as well.
  void forget_instance(const std::string& name);
  // Around the restarts of a reload and its rewire(). In between nothing is dropped for want of a
  // claim, and what changes hands keeps the wire that it has: the one that it will have does not
  // hold yet.
  void begin_reload() { reloading_ = true; }
  void end_reload();
  // Discoveries whose runs have not come yet to what the last rewire() left to them, and how many
  // attachments that is: they keep the wire that they had. After AttachmentTiming::listing they are
  // matched by what the former run said of them.
  [[nodiscard]] std::map<std::string, std::size_t> left_to_rewire() const;
  // All instances have been started once (or failed to): from now unclaimed attachments may go.
  void started();

  // Another wiring or floor: matches every attachment again and publishes what differs. All or
  // nothing; the error names the attachment.
  [[nodiscard]] Status rewire(Wiring wiring);
  // The same without the deed: would it compile?
  [[nodiscard]] Status check_rewire(const Wiring& wiring);

  [[nodiscard]] DataPlaneEvents data_plane_events();
  // After each DataPlane::poll() and at least every DataPlane::poll_interval: targets that went,
  // denials, deadlines, expiries.
  void turn();

  // Core
  Result<AttachmentId> attach(const std::string& instance, const Target& target,
                              const Labels& labels) override;
  Status detach(const std::string& instance, AttachmentId id, const std::string& reason) override;
  Status relabel(const std::string& instance, AttachmentId id, const Labels& labels) override;
  Status listed(const std::string& instance) override;
  Result<Applied> replace_layer(const std::string& instance, AttachmentId id, Layer layer) override;
  Result<Applied> update_layer(const std::string& instance, AttachmentId id, Generation base,
                               std::vector<Rule> add, std::vector<Rule> remove) override;
  Result<Applied> withdraw_layer(const std::string& instance, AttachmentId id) override;
  Status replace_layers(const std::string& instance, std::vector<LayerChange> changes) override;
  void set_learned_share(std::uint32_t most) { learned_.set_share(most); }
  Status learn(const std::string& instance, AttachmentId id, const NamePush& push) override {
    return learned_.learn(instance, id, push);
  }
  Status revoke(const std::string& instance, AttachmentId id,
                std::span<const Address> addresses) override {
    return learned_.revoke(instance, id, addresses);
  }
  Status serve(const std::string& instance, std::span<const int> sockets) override;
  Result<AttachmentId> asker_of_mark(const std::string& instance, std::uint32_t mark) override;
  Result<StreamAsker> asker_of_stream(const std::string& instance, int accepted) override;
  Status keep_fd(const std::string& instance, const std::string& name, int fd) override {
    return fd_keeper_ ? fd_keeper_->keep(instance, name, fd) : Core::keep_fd(instance, name, fd);
  }
  Result<int> kept_fd(const std::string& instance, const std::string& name) override {
    return fd_keeper_ ? fd_keeper_->kept(instance, name) : Core::kept_fd(instance, name);
  }
  Status drop_fd(const std::string& instance, const std::string& name) override {
    return fd_keeper_ ? fd_keeper_->drop(instance, name) : Core::drop_fd(instance, name);
  }
  Result<Counters> counters(AttachmentId id) override;
  std::vector<AttachmentInfo> list() override;
  std::vector<AttachmentInfo> attachments_of(const std::string& instance) override;

  struct Tally {
    std::size_t attachments = 0, unclaimed = 0, held = 0;
    std::uint64_t compiles = 0, publishes = 0;
  };
  [[nodiscard]] Tally tally() const;
  // Every discovery that runs has said that it has listed what exists; one that failed is not
  // waited for.
  [[nodiscard]] bool all_listed() const;
  // Interface name or cgroup path; the number where there is no such attachment any more.
  [[nodiscard]] std::string name_of(AttachmentId id) const;

 private:
  struct Attachment;
  struct Instance;
  struct Ask;
  struct Composed;
  struct Change;

  // attachment_manager.cpp
  [[nodiscard]] Attachment* find(AttachmentId id);
  [[nodiscard]] Attachment* find_target(const Target& target);
  [[nodiscard]] bool may_be_known(const Target& target) const;
  Attachment& insert(const KernelAttachment& kernel);
  void erase(Attachment& attachment, const std::string& reason);
  [[nodiscard]] AttachmentInfo info_of(const Attachment& attachment) const;
  [[nodiscard]] static Applied applied(const Attachment& attachment);
  [[nodiscard]] Status owned_by(const Attachment* attachment, const std::string& instance,
                                AttachmentId id) const;
  [[nodiscard]] Result<std::size_t> source_index(const Attachment* attachment,
                                                 const std::string& instance,
                                                 AttachmentId id) const;
  void on_denial(const sluice_event& event);
  void flush_denials();
  void remove_gone();
  void wake_at(BootTime when);
  void end_holds(BootTime now);
  void drop_unclaimed(BootTime now);
  void drop_unconfirmed(BootTime now);
  void rewire_late(BootTime now);
  void expire(BootTime now);
  void narrow_learned(BootTime now);

  // manager_discovery.cpp
  [[nodiscard]] Result<AttachmentId> claim(Attachment& attachment, const std::string& instance,
                                           const Target& target, const Labels& labels);
  [[nodiscard]] std::uint32_t run_of(const std::string& instance) const;
  void remember_ask(Attachment& attachment, Ask ask);
  [[nodiscard]] bool is_asked_for(const Attachment& attachment) const;
  void let_go(Attachment& attachment);
  void hand_over(Attachment& attachment);
  void confirm(Attachment& attachment);
  [[nodiscard]] bool may_change_hands(const Attachment& attachment, BootTime now) const;
  [[nodiscard]] bool is_left_to_rewire(const Attachment& attachment) const;
  void tell_rewired(const Attachment& attachment, const WirePtr& before, bool domains_changed,
                    bool is_new);
  void tell_policy(const Change& change, const std::string& speaker);
  void warn_unwired(const Attachment& attachment);
  void warn_unresolved(const Attachment& attachment);
  static void warn_unredirectable(const Attachment& attachment, const std::string* resolver,
                                  const std::string& domain);

  // manager_policy.cpp
  void tell_matched(const Change& change, const WirePtr& before);
  [[nodiscard]] Result<Applied> change_layer(const std::string& instance, AttachmentId id,
                                             std::optional<Layer> layer);

  // manager_publish.cpp
  [[nodiscard]] Result<Composed> compose(const Wiring& wiring, const WirePtr& wire,
                                         const std::vector<LayerPtr>& layers, BootTime now);
  [[nodiscard]] std::vector<LayerPtr> carry_over(const Attachment& attachment,
                                                 const WirePtr& wire) const;
  [[nodiscard]] bool still_held(const Attachment& attachment, const WirePtr& wire,
                                const std::vector<LayerPtr>& layers, BootTime now) const;
  [[nodiscard]] Status publish(Attachment& attachment, const Composed& next, bool narrowing);
  [[nodiscard]] Status transact(const Wiring& wiring, std::vector<Change>& changes);

  // manager_names.cpp
  [[nodiscard]] bool settle_domain_rules(Attachment& attachment, BootTime now);
  void settle_learned(Attachment& attachment);
  [[nodiscard]] std::string decider_of(const WirePtr& wire) const;
  void sever(Attachment& attachment);
  void tell_domain_rules(const Attachment& attachment);
  [[nodiscard]] const std::string* resolver_of(const WirePtr& wire) const;
  [[nodiscard]] std::optional<std::uint32_t> resolver_index(const std::string& instance);
  void note_asker(const Attachment& attachment);
  void redirect_anew();
  void end_serving_unless_needed();

  DataPlane& plane_;
  PluginEvents* events_ = nullptr;
  FdKeeper* fd_keeper_ = nullptr;
  Wiring wiring_;
  AttachmentTiming timing_;
  std::function<BootTime()> clock_;
  PolicyCache cache_;
  LearnedAddresses learned_;
  ImagePtr floor_only_;  // kept, so that a new attachment never compiles

  std::unordered_map<std::uint64_t, std::unique_ptr<Attachment>> attachments_;  // by id
  std::vector<Attachment*> by_slot_;
  AskerTable askers_;
  std::unordered_multimap<std::uint64_t, Attachment*> by_target_;  // by ifindex or cgroup id
  std::map<std::string, Instance, std::less<>> instances_;
  std::set<std::string, std::less<>> warned_unwired_;  // discoveries
  std::set<WirePtr> warned_unresolved_;
  std::vector<std::pair<std::uint32_t, std::string>> gone_;
  std::vector<Denial> denials_;
  bool started_ = false, reloading_ = false;
  bool redirections_stale_ = false;  // which resolvers serve has changed
  bool resolvers_needed_ = true;     // routes of an earlier life may be there
  std::size_t unclaimed_ = 0, held_ = 0, unconfirmed_ = 0;
  std::uint64_t publishes_ = 0;
  BootTime wake_;  // the earliest deadline; never: none
  BootTime forget_learned_at_;
};

}  // namespace sluice
