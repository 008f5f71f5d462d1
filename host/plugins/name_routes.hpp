// Who tells whom about names: questions of resolvers to deciders, answers of other servers to
// resolvers, reports to observers. It knows the wires, so that nobody speaks of an attachment that
// is not his.
//
//   resolver       ask()  --------> decide()         decider
//                  decided() <----- decided()        exactly one for each ask() that was taken
//   answer source  push_answer() -> answer_pushed()  resolver
//                  returns <------- pushed()         or the deadline
//   resolver       report() ------> queries()        observers; dropped and counted without room
//
// Apart from the core loop, because resolvers ask from threads of their own. Locks: `telling_`,
// then `mutex_`; mail is posted to strands without the second. Mail that a strand drops is heard of
// through the core loop, never under the strand's lock (two strands that drop mail to each other
// would wait for each other).
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "attachments/core.hpp"
#include "plugins/core_gate.hpp"
#include "plugins/name_values.hpp"

namespace sluice {

class PluginRun;

// Of mail that must be heard of when it is dropped unread.
class Delivery {
 public:
  explicit Delivery(std::function<void()> lost) : lost_(std::move(lost)) {}
  ~Delivery() {
    if (lost_) lost_();
  }
  Delivery(const Delivery&) = delete;
  Delivery& operator=(const Delivery&) = delete;
  void arrived() { lost_ = nullptr; }

 private:
  std::function<void()> lost_;
};
using DeliveryPtr = std::shared_ptr<Delivery>;

class NameRoutes final : public std::enable_shared_from_this<NameRoutes> {
 public:
  using Sources = std::shared_ptr<const std::vector<std::string>>;

  NameRoutes(std::shared_ptr<CoreGate> gate, CoreLoop& loop)
      : gate_(std::move(gate)), loop_(loop) {}

  // ---- [core loop] ----

  // While it is held, ask() and push() wait to look up who is asked.
  [[nodiscard]] std::unique_lock<std::mutex> telling() { return std::unique_lock(telling_); }
  // The sources of an attachment's wire, in order. Null: it is gone.
  void wired(AttachmentId id, Sources sources);
  // A configured instance, with its run where it can take events.
  void instance(const std::string& name, std::uint32_t roles, std::shared_ptr<PluginRun> run);
  void forget_instance(const std::string& name);
  // Whoever waits is let go. Nothing is routed any more.
  void shut();

  // ---- [any] ----

  [[nodiscard]] Status ask(const std::shared_ptr<PluginRun>& asker, NameQuery query,
                           BootTime deadline);
  [[nodiscard]] Status decided(const PluginRun& decider, std::uint64_t id,
                               std::shared_ptr<const NameDecision> decision);
  // Waits for pushed() or the deadline.
  [[nodiscard]] Status push(const PluginRun& source, std::shared_ptr<const NameAnswer> answer,
                            BootTime deadline);
  // `code`: 0 or a positive errno.
  [[nodiscard]] Status pushed(const PluginRun& resolver, std::uint64_t id, int code,
                              std::string message);
  [[nodiscard]] Status report(const sluice_query_report* raw, std::size_t count);

 private:
  struct Instance {
    std::uint32_t roles = 0;
    std::shared_ptr<PluginRun> run;  // null: does not run
  };
  struct Asked {
    std::weak_ptr<PluginRun> asker;
    const PluginRun* decider = nullptr;  // to compare with; settled before it goes
    std::string decider_name;
    std::uint64_t askers_id = 0;
    BootTime deadline;
  };
  struct Push {
    const PluginRun* source = nullptr;
    const PluginRun* resolver = nullptr;
    bool finished = false;
    int code = 0;
    std::string message;
    std::condition_variable changed;
  };
  using Settled = std::vector<std::pair<Asked, std::string>>;  // with the reason

  // Under mutex_.
  [[nodiscard]] Result<std::pair<std::string, std::shared_ptr<PluginRun>>> find(
      AttachmentId id, const std::string& speaker, std::uint32_t role, const char* what) const;
  [[nodiscard]] Asked take(std::map<std::uint64_t, Asked>::iterator at);
  void finish(Push& push, int code, std::string message);

  static void tell(const Settled& settled);
  void lost_question(std::uint64_t id);
  void lost_answer(std::uint64_t id);
  void rearm();
  void sweep();

  const std::shared_ptr<CoreGate> gate_;
  CoreLoop& loop_;
  CoreLoop::TimerId timer_ = 0;  // the core loop's

  std::mutex telling_;
  std::mutex mutex_;
  bool open_ = true;
  std::unordered_map<std::uint64_t, Sources> wires_;
  std::map<std::string, Instance, std::less<>> instances_;
  std::map<std::uint64_t, Asked> asked_;
  std::set<std::pair<BootTime, std::uint64_t>> deadlines_;  // of asked_
  BootTime armed_for_;                                      // never: nothing is
  std::map<std::uint64_t, std::shared_ptr<Push>> pushes_;
  std::uint64_t last_id_ = 0;
  std::atomic<std::size_t> observers_{0};  // running ones
};

}  // namespace sluice
