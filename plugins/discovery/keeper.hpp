// Keeps the core's attachments equal to what a discovery wants: attaches, renames, relabels and
// detaches, a bounded number of calls a turn, and tries again what failed.
//
//   Keeper keeper(host);
//   keeper.want(7, {.kind = TargetKind::interface, .name = "tap0", .ifindex = 7}, labels);
//   keeper.listing_complete();       // listed() follows once everything has been tried
//   while (keeper.turn() > 0) {}     // a plugin lets its timer call turn() again instead
//
// A key is the identity of a thing for its life: an ifindex, a cgroup's inode number. What comes
// back under the same key after unwant() is another thing: the old attachment goes first.
//
// Single-threaded; all on the plugin's strand.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>

#include "discovery/label_rules.hpp"

namespace sluice::discovery {

enum class TargetKind : std::uint8_t { interface, cgroup };
enum class WorkloadSide : std::uint8_t { automatic, ingress, egress };

struct WantedTarget {
  TargetKind kind = TargetKind::interface;
  std::string name;           // interface name, or path below the cgroup2 mount
  std::uint32_t ifindex = 0;  // interfaces
  WorkloadSide side = WorkloadSide::automatic;
  std::uint64_t cgroup_id = 0;  // cgroups: inode number
  bool operator==(const WantedTarget&) const = default;
};

enum class LogLevel : std::uint8_t { debug = 1, info = 2, warning = 3, error = 4 };

// What the keeper needs of the host, so that its logic is tested without one.
class AttachmentHost {
 public:
  struct Answer {
    int code = 0;  // errno value; 0: done
    std::uint64_t id = 0;
    std::string message;  // of a failure
  };
  virtual ~AttachmentHost() = default;
  // Idempotent per target; replaces labels. Returns when the filter is in the kernel.
  virtual Answer attach(const WantedTarget& target, const Labels& labels) = 0;
  virtual Answer detach(std::uint64_t id, const std::string& reason) = 0;
  virtual Answer relabel(std::uint64_t id, const Labels& labels) = 0;
  virtual Answer listed() = 0;
  virtual void log(LogLevel level, const std::string& text) = 0;
  [[nodiscard]] virtual std::uint64_t now() = 0;  // nanoseconds
};

class Keeper {
 public:
  struct Settings {
    std::size_t calls_per_turn = 64;             // a TCX attach takes up to 13 ms
    std::uint64_t first_retry_ns = 250'000'000;  // doubles with each failure
    std::uint64_t longest_retry_ns = 60'000'000'000;
    std::uint32_t failures_before_listed = 6;  // see listing_complete()
    std::uint32_t contests_before_listed = 3;  // another discovery has it
  };

  explicit Keeper(AttachmentHost& host) : Keeper(host, Settings{}) {}
  Keeper(AttachmentHost& host, Settings settings) : host_(host), settings_(settings) {}

  // Nothing is called on the host before turn().
  void want(std::uint64_t key, WantedTarget target, Labels labels);
  void unwant(std::uint64_t key, std::string reason);
  // Asks the host again for everything wanted: after a listing that may have missed a target's
  // death, because attach() is idempotent where the filter stands and repairs where it does not.
  void reaffirm();
  // Everything that exists has been wanted. listed() is called once each target has been attached,
  // or is gone, or was refused for good, or has failed `failures_before_listed` times, or was found
  // with another discovery `contests_before_listed` times: it makes the core drop adopted filters
  // that nobody claimed, and a target that could not be claimed *yet* must not lose the filter it
  // has.
  void listing_complete();

  // Makes at most `calls_per_turn` calls. Returns after how many nanoseconds it has work again:
  // 0 at once, kIdle never.
  static constexpr std::uint64_t kIdle = UINT64_MAX;
  [[nodiscard]] std::uint64_t turn();

  // Attached now. For tests and log lines.
  [[nodiscard]] std::size_t attached() const { return attached_; }
  [[nodiscard]] std::size_t wanted() const { return entries_.size() - unwanted_; }
  [[nodiscard]] std::uint64_t attachment_of(std::uint64_t key) const;

 private:
  enum class Need : std::uint8_t { nothing, relabel, attach };
  struct Entry {
    WantedTarget target;
    Labels labels;
    bool wanted = false;
    Need need = Need::nothing;
    bool must_detach = false;  // `attachment` belongs to what was here before
    bool in_detach_line = false, in_attach_line = false;
    bool refused = false;    // the last failure was one that waiting does not cure
    bool contested = false;  // the last failure was that another discovery has it
    std::uint32_t failures = 0;
    std::uint64_t attachment = 0;
    std::uint64_t retry_at = 0;  // 0: not waiting
    std::string reason;          // of the detach
    std::string cause;           // key of causes_, empty: not failing
  };
  struct Cause {
    std::size_t targets = 0;
    std::size_t most = 0;
  };

  void line_up(std::uint64_t key, Entry& entry);
  void stop_waiting(std::uint64_t key, Entry& entry);
  void detach_now(std::uint64_t key);
  void attach_now(std::uint64_t key);
  void failed(std::uint64_t key, Entry& entry, const AttachmentHost::Answer& answer);
  void forget_cause(Entry& entry, bool solved);
  void wake_due();
  void tell_listed();
  [[nodiscard]] bool holds_listed(const Entry& entry) const;

  AttachmentHost& host_;
  Settings settings_;
  std::unordered_map<std::uint64_t, Entry> entries_;
  std::deque<std::uint64_t> to_detach_, to_attach_;
  std::set<std::pair<std::uint64_t, std::uint64_t>> waiting_;  // when, key
  std::map<std::string, Cause> causes_;
  std::size_t attached_ = 0, unwanted_ = 0;
  bool listed_due_ = false;
  bool shut_down_ = false;
};

}  // namespace sluice::discovery
