// The data plane on the real kernel. Owns the pinned tree, the programs, the maps and every link;
// see DESIGN section 5.
//
// What survives this process: links, filters and maps. open() adopts them: it loads this release's
// programs against the pinned maps and updates each link in place, so no packet goes unjudged and
// no policy is lost.
#pragma once

#include <deque>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/fd.hpp"
#include "config/config.hpp"
#include "dataplane/background.hpp"
#include "dataplane/data_plane.hpp"
#include "dataplane/learned_map.hpp"
#include "dataplane/link_facts.hpp"
#include "dataplane/pending_moves.hpp"
#include "dataplane/pinned_tree.hpp"
#include "dataplane/policy_store.hpp"
#include "dataplane/programs.hpp"
#include "dataplane/slot_table.hpp"
#include "dataplane/socket_sweep.hpp"

struct ring_buffer;

namespace sluice {

class KernelDataPlane final : public DataPlane {
 public:
  // Nothing is attached or changed when it fails. The caller holds PinnedTree::lock() on its bpffs.
  [[nodiscard]] static Result<std::unique_ptr<KernelDataPlane>> open(const HostConfig& config);
  // What an uninstall does: removes every filter and the pinned tree, under that lock.
  [[nodiscard]] static Status detach_all(const HostConfig& config);
  ~KernelDataPlane() override;

  [[nodiscard]] const KernelFeatures& features() const { return features_; }

  [[nodiscard]] std::vector<KernelAttachment> adopted() override;
  [[nodiscard]] Result<KernelAttachment> attach(const InterfaceTarget& target,
                                                const PublishRequest* initial) override;
  [[nodiscard]] Result<KernelAttachment> attach(const CgroupTarget& target,
                                                const PublishRequest* initial) override;
  Status detach(std::uint32_t slot) override;
  [[nodiscard]] Result<Generation> publish(const PublishRequest& request) override;
  [[nodiscard]] LearnedMap& learned() override { return learned_; }
  [[nodiscard]] Result<Counters> counters(std::uint32_t slot) override;
  [[nodiscard]] std::vector<std::uint64_t> reason_counters() override;
  [[nodiscard]] Status serve(std::uint32_t resolver, std::span<const int> sockets) override;
  [[nodiscard]] Status end_serving() override;
  [[nodiscard]] Result<Asker> asker_of_stream(int accepted) const override;
  [[nodiscard]] Status set_guards(const GuardSettings& guards) override;
  [[nodiscard]] std::vector<int> poll_fds() override;
  void poll(const DataPlaneEvents& events) override;

 private:
  // What the kernel has of one attachment, beside its slot.
  struct Live {
    std::string name;        // interface name or cgroup path
    std::string netns_path;  // interfaces in another namespace
    bool tcx = false, clsact = false;
    bool converting = false;  // a job attaches TCX links behind the clsact filters
    bool doubtful = false;    // the device may be another one than was attached
    std::uint32_t policy = 0;
  };

  KernelDataPlane(const HostConfig& config, KernelFeatures features, std::filesystem::path links,
                  Programs programs, SlotTable slots, const PolicyStore::Maps& policy_maps);

  [[nodiscard]] Status start();  // settings, adoption, events
  [[nodiscard]] Status adopt();
  [[nodiscard]] Status adopt_interface(std::uint32_t index, Live& live);
  [[nodiscard]] Status adopt_cgroup(std::uint32_t index, Live& live);
  void forget(std::uint32_t index);

  [[nodiscard]] Result<std::uint32_t> free_slot();
  [[nodiscard]] std::string pin(std::uint32_t index, const char* hook) const;
  [[nodiscard]] KernelAttachment describe(std::uint32_t index) const;
  [[nodiscard]] Status point_interface(std::uint32_t index, bool on);
  [[nodiscard]] Status filter_interface(std::uint32_t index, Live& live);
  void unfilter_interface(std::uint32_t index, const Live& live);
  [[nodiscard]] bool is_filtered(std::uint32_t index, const Live& live) const;
  void convert_to_tcx(std::uint32_t index);
  void convert_next();
  void watch_links();
  void read_link_events(const DataPlaneEvents& events);
  void audit(const DataPlaneEvents& events);
  void start_grace_period();
  void target_gone(std::uint32_t index, const std::string& reason, const DataPlaneEvents& events);
  int take_event(const sluice_event& event);
  void start_socket_sweep();
  [[nodiscard]] std::filesystem::path stop_pin() const { return links_ / "swept"; }
  void sever(std::uint32_t index);
  [[nodiscard]] bool redirectable(const sluice_slot& slot) const;
  [[nodiscard]] Status keep_dns_routes();
  [[nodiscard]] Status guard_uplink(const std::string& name);
  [[nodiscard]] bool is_guarded(const LinkFacts& uplink) const;
  void audit_guards();
  [[nodiscard]] Status guard_cgroup(const std::string& path);
  void drop_cgroup_guard(std::uint64_t id);
  void follow_guarded_cgroups();
  [[nodiscard]] Status trust(const std::vector<std::string>& names);

  HostConfig config_;
  KernelFeatures features_;
  std::filesystem::path links_;
  Programs programs_;
  SlotTable slots_;
  PolicyStore policies_;
  KernelLearnedMap learned_;
  std::map<std::uint32_t, Live> live_;
  std::set<std::uint32_t> adopted_;  // not claimed yet
  std::uint64_t own_netns_ = 0;
  std::uint32_t next_scope_ = 1;
  GuardSettings guards_;
  bool dns_routes_ = false;                // made, and to be kept
  std::set<std::string> guard_pins_;       // file names of the pins that the guards in force have
  std::set<std::uint32_t> clsact_guards_;  // ifindexes of uplinks whose guard is a clsact filter
  struct GuardedCgroup {
    std::filesystem::path directory;
    std::uint64_t id = 0;
  };
  std::map<std::string, GuardedCgroup> guarded_cgroups_;  // by path

  Fd link_events_;  // rtnetlink: devices that go, so that their ifindex is cleared before it is
                    // reused
  bool lost_link_events_ = false;    // since the last audit
  std::uint32_t audited_below_ = 0;  // slots that the audit under way has seen; 0: none is
  Fd task_attached_, task_forked_;
  ring_buffer* events_ = nullptr;
  const DataPlaneEvents* sink_ = nullptr;  // during poll()
  unsigned events_left_ = 0;               // of this turn's
  PendingMoves moves_;
  bool socket_sweep_running_ = false;
  Unsettled unsettled_;                   // with the sweep while one runs
  std::deque<std::uint32_t> to_convert_;  // slots on clsact that become TCX links when it is calm
  bool conversion_running_ = false;
  std::uint64_t last_attach_ = 0;
  bool grace_running_ = false;
  std::uint64_t last_audit_ = 0, last_sweep_ = 0, last_dns_check_ = 0, last_socket_sweep_ = 0;
  // Not what the map holds: the first look finds moves lost, as they were while no daemon ran.
  std::uint64_t lost_moves_ = ~std::uint64_t{0};
  Background background_;  // last: its jobs use what is above
};

[[nodiscard]] std::uint64_t random_incarnation();

}  // namespace sluice
