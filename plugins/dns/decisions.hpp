// Questions to the deciders of workloads: who waits for one, and what was said while it stands. The
// same question of one attachment is asked once, in each of its states: another one may have
// another decider.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>

#include "dns/asked.hpp"
#include "dns/host_side.hpp"
#include "dns/random.hpp"
#include "dns/tenant.hpp"
#include "dns/timer_wheel.hpp"
#include "dns/waiting_room.hpp"

namespace sluice::dns {

class Decisions {
 public:
  // `worker`: below 256. `host` and `timers` outlive it.
  Decisions(HostSide& host, TimerWheel& timers, unsigned worker, Random& random)
      : host_(host), timers_(timers), worker_(worker), seed_(random.next64()) {}

  // Which worker a query id of HostSide::ask() belongs to.
  [[nodiscard]] static unsigned worker_of(std::uint64_t query_id) {
    return static_cast<unsigned>(query_id >> 56);
  }

  // What was decided of the question before and still stands; null: nothing.
  [[nodiscard]] DecisionPtr kept(const Tenant& tenant, const Question& question,
                                 sdk::Time now) const;

  struct Asking {
    AskResult result = AskResult::down;
    Line* line = nullptr;  // asked: to be joined; lives until the decision comes
  };
  // Has the decider asked, unless it is being asked already. `deadline`: ns from now. Without a
  // word from it a timer of TimerKind::decision comes a little later, with the query's id as its
  // generation. Where the wire has none, that is believed for a moment: Tenant::no_decider_until.
  [[nodiscard]] Asking ask(const Asked& asked, std::uint64_t deadline, const Moment& now);

  struct Open {
    std::uint64_t attachment = 0, key = 0;
    Name name;
    std::uint16_t type = 0;
    std::uint64_t stamp = 0;     // of the state in which it was asked
    std::uint64_t asked_at = 0;  // monotonic ns
    Line line;
  };
  // The question is decided, or not going to be. Nothing: it was before.
  [[nodiscard]] std::optional<Open> close(std::uint64_t query_id);
  // Remembers what was said of it for as long as it stands.
  void keep(Tenant& tenant, const Open& open, const DecisionPtr& decision, sdk::Time now) const;

 private:
  [[nodiscard]] std::uint64_t key_of(const Name& name, std::uint16_t type) const;

  HostSide& host_;
  TimerWheel& timers_;
  unsigned worker_;
  std::uint64_t seed_;
  std::uint64_t next_query_ = 1;
  std::unordered_map<std::uint64_t, Open> open_;             // by query id
  std::unordered_map<std::uint64_t, std::uint64_t> by_key_;  // to query id
};

}  // namespace sluice::dns
