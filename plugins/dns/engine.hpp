// What becomes of a question, from its bytes to the bytes of the answer. One worker's; no sockets
// of its own but the upstream's.
//
//   question -> read -> budget -> decide -> type -> memory or upstream -> vet -> learn -> answer
//
// This is the order; each step is a unit of its own:
//
//   ruling.hpp        what the rules, a decision or the mode say of a name
//   decisions.hpp     questions to deciders
//   in_flight.hpp     questions that are out at the upstream, each asked once
//   upstream.hpp      the exchange with the upstream servers: retries, TCP, failover
//   waiting_room.hpp  who waits for an answer or a decision
//   trimmer.hpp       what is kept of a response
//   release.hpp       vet -> learn -> answer: the promise of the plugin
//   replies.hpp       answers as they leave, and their reports
//
// Who waits is judged anew, by the rules of the moment in which the answer comes.
#pragma once

#include <cstdint>
#include <string_view>
#include <unordered_map>

#include "dns/asked.hpp"
#include "dns/cache.hpp"
#include "dns/client.hpp"
#include "dns/decisions.hpp"
#include "dns/held_questions.hpp"
#include "dns/host_side.hpp"
#include "dns/in_flight.hpp"
#include "dns/message.hpp"
#include "dns/published.hpp"
#include "dns/push_memory.hpp"
#include "dns/release.hpp"
#include "dns/replies.hpp"
#include "dns/reserved.hpp"
#include "dns/ruling.hpp"
#include "dns/settings.hpp"
#include "dns/tenant.hpp"
#include "dns/trimmer.hpp"
#include "dns/upstream.hpp"
#include "dns/waiting_room.hpp"

namespace sluice::dns {

class Engine final : private UpstreamOwner {
 public:
  // What it works with; all of it outlives the engine. Memories are shared by all workers.
  struct Surroundings {
    unsigned worker = 0;  // below 256
    HostSide& host;
    Outlet& outlet;
    AnswerCache& cache;
    PushMemory& pushes;
    const Published<AddressSet>& own_addresses;
    int epoll;
    TimerWheel& timers;
  };
  Engine(const Surroundings& around, SettingsPtr settings, std::uint64_t now);
  ~Engine() override;
  Engine(const Engine&) = delete;  // its parts know each other by reference
  Engine& operator=(const Engine&) = delete;

  // The time of this turn of the loop: the monotonic and the boot clock, ns.
  void set_time(std::uint64_t now, std::uint64_t boot);

  // A message of an attachment. Answers through the outlet, now or later, or drops it.
  void ask(std::uint64_t attachment, const Client& client, Bytes message);
  // After a turn: what was collected leaves.
  void flush();

  void set_tenant(const TenantState& state);
  void remove_tenant(std::uint64_t attachment);
  [[nodiscard]] Tenant* tenant(std::uint64_t attachment);
  // Null: no decision will come.
  void decided(std::uint64_t query_id, const DecisionPtr& decision);
  void reconfigure(SettingsPtr settings);
  void on_timer(const TimerWheel::Entry& entry);
  [[nodiscard]] Upstream& upstream() { return upstream_; }

  // Messages so far, whatever became of them.
  [[nodiscard]] std::uint64_t queries() const { return queries_; }

 private:
  [[nodiscard]] bool is_unsettled(const Tenant& tenant) const;
  void hold(std::uint64_t attachment, const Client& client, Bytes message);
  // Asks again what was held for the attachment (0: for all) since before `until`, monotonic ns.
  void let_go(std::uint64_t attachment, std::uint64_t until);
  void ask(std::uint64_t attachment, const Client& client, Bytes message, std::uint64_t arrived);
  void drop_unread(Tenant& tenant, const Client& client);
  void report_dropped(std::uint64_t attachment);

  [[nodiscard]] Ruling ruling_on(const Asked& asked, bool may_ask) const;
  void decide(Asked& asked, AttachmentBudget::Place place);
  void ask_decider(Asked& asked, AttachmentBudget::Place place);
  void go_on(Asked& asked, const Ruling& ruling, AttachmentBudget::Place place);
  // Whether the ruling ends it, for its name or its type: then it is answered.
  [[nodiscard]] bool turned_away(Asked& asked, const Ruling& ruling);

  void resolve(Asked& asked, const Ruling& ruling, AttachmentBudget::Place place);
  // The first cap in the way of asking upstream; counts it where there is none.
  [[nodiscard]] Cap charge(const Asked& asked, const Ruling& ruling) const;
  void ask_upstream(Asked& asked, const Ruling& ruling, const UpstreamQuestion& question,
                    std::uint64_t key, AttachmentBudget::Place place);
  void upstream_answered(std::uint32_t token, std::span<const std::uint8_t> message,
                         std::string_view server) override;
  void upstream_failed(std::uint32_t token, UpstreamFailure why) override;
  void settle(std::uint32_t token, const CachedAnswer& answer, std::string_view server);
  // Remembers the failure, too.
  void settle_failed(std::uint32_t token, AnswerCache::Failure kind, std::uint16_t extended,
                     std::string_view why, std::string_view server);
  void fail_line(std::uint32_t token, std::uint16_t extended, std::string_view why,
                 std::string_view server);

  void wait(Line& line, Asked& asked, AttachmentBudget::Place place);
  // Calls `each(asked, place)` for all in the line that are still known, and ends it.
  template <typename Each>
  void serve(Line line, Each each);

  Surroundings around_;
  SettingsPtr settings_;
  Moment now_;
  Upstream upstream_;
  Replies replies_;
  Trimmer trimmer_;
  Release release_;
  Decisions decisions_;
  InFlight in_flight_;
  WaitingRoom waiting_;
  HeldQuestions held_;
  std::unordered_map<std::uint64_t, Tenant> tenants_;
  std::uint64_t queries_ = 0;
};

}  // namespace sluice::dns
