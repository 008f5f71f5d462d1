// What becomes of a question, from its bytes to the bytes of the answer. One worker's; no sockets
// of its own but the upstream's.
//
//   question -> read -> budget -> decide -> type -> memory or upstream -> vet -> learn -> answer
//
// The order of the last two is the promise of the whole plugin: an answer is written after
// HostSide::learn() has returned, on every path (UDP, TCP, from memory, decided by another plugin).
// When learn() refuses, the answer is SERVFAIL.
//
// | Same question   | asked upstream once, whoever waits for it; each asker is judged and opened
// for by  | |                 | itself, by the rules of the moment in which the answer comes | | No
// rule         | the wire's decider where there is one, else the mode: an allowlist denies, a | |
// | denylist answers and opens nothing                                                 | | Audit |
// what would be refused is answered as it came, opens nothing, and is reported       |
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "dns/answer.hpp"
#include "dns/cache.hpp"
#include "dns/client.hpp"
#include "dns/flat_map.hpp"
#include "dns/host_side.hpp"
#include "dns/message.hpp"
#include "dns/published.hpp"
#include "dns/push_memory.hpp"
#include "dns/report_batch.hpp"
#include "dns/reserved.hpp"
#include "dns/respond.hpp"
#include "dns/rule_book.hpp"
#include "dns/settings.hpp"
#include "dns/tenant.hpp"
#include "dns/upstream.hpp"
#include "dns/upstream_query.hpp"

namespace sluice::dns {

using SettingsPtr = std::shared_ptr<const Settings>;

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

  // The time of this turn of the loop: the monotonic and the boot clock, ns.
  void set_time(std::uint64_t now, std::uint64_t boot);

  // A message of an attachment. Answers through the outlet, now or later, or drops it.
  void ask(std::uint64_t attachment, const Client& client, Bytes message);
  // After a turn: what was collected leaves.
  void flush();

  void set_tenant(const TenantState& state);
  void remove_tenant(std::uint64_t attachment);
  [[nodiscard]] Tenant* tenant(std::uint64_t attachment);
  void decided(std::uint64_t query_id, DecisionPtr decision);
  // Which worker a query id of HostSide::ask() belongs to.
  [[nodiscard]] static unsigned worker_of(std::uint64_t query_id) {
    return static_cast<unsigned>(query_id >> 56);
  }
  void reconfigure(SettingsPtr settings);
  void on_timer(const TimerWheel::Entry& entry);
  [[nodiscard]] Upstream& upstream() { return upstream_; }

  struct Counters {
    std::uint64_t queries = 0, by_verdict[SLUICE_QUERY_INVALID + 1] = {};
    std::uint64_t from_cache = 0, merged = 0, pushes = 0, pushed_addresses = 0;
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }

 private:
  static constexpr std::uint32_t kNone = UINT32_MAX;
  // Header, question and an OPT: what is kept of a query while it waits.
  static constexpr std::size_t kKeptQuery = kHeaderSize + kLongestName + 4 + 11;

  // A question at hand.
  struct Asked {
    const MessageView& query;
    const Client& client;
    Tenant& tenant;
    DecisionPtr decision{};     // of a decider, for this question
    std::uint64_t arrived = 0;  // monotonic ns
    std::uint64_t decision_ns = 0, upstream_ns = 0, push_ns = 0;
    std::string_view upstream{};
    bool cached = false;

    [[nodiscard]] const Question& question() const { return query.question(); }
  };
  // Who waits for an answer or a decision.
  struct Waiter {
    std::uint32_t next = kNone;
    std::uint64_t attachment = 0;
    Client client;
    DecisionPtr decision;
    std::shared_ptr<AttachmentBudget> budget;  // outlives `place`
    AttachmentBudget::Place place;
    std::uint64_t arrived = 0, decision_ns = 0;
    std::uint16_t query_size = 0;
    std::array<std::uint8_t, kKeptQuery> query;
  };
  struct Line {  // of waiters, first come first served
    std::uint32_t first = kNone, last = kNone;
  };
  // A question that is out.
  struct Pending {
    Name name;
    std::uint16_t type = 0;
    bool dnssec_ok = false, checking_disabled = false, live = false;
    std::uint64_t key = 0, asked_at = 0;
    AnswerCache::Origin origin;
    Line line;
  };
  // A question that a decider has.
  struct Undecided {
    std::uint64_t attachment = 0, key = 0;
    Name name;
    std::uint16_t type = 0;
    std::uint64_t asked_at = 0;
    Line line;
  };

  // A question of an attachment that nothing is known of yet: a moment after its birth, or the
  // daemon's.
  struct Held {
    std::uint64_t attachment = 0, arrived = 0;
    Client client;
    std::vector<std::uint8_t> message;
  };

  // What the rules, a decision or the mode say of a name.
  struct Ruling {
    enum Kind : std::uint8_t {
      deny,
      ask,      // the decider
      pass,     // answered, opens nothing
      audited,  // would be denied, and passes
      rules,    // allowed by `match`
      decided,  // allowed by the decision
    } kind = deny;
    Match match{};
    std::string_view why{};   // of a denial
    std::string_view rule{};  // the pattern that decided
    [[nodiscard]] bool grants() const { return kind == rules || kind == decided; }
  };
  // `may_ask`: whether "ask the decider" is an answer; else the mode speaks.
  [[nodiscard]] Ruling rule_on(const Tenant& tenant, const Name& name,
                               const sdk::Decision* decision, bool may_ask) const;
  [[nodiscard]] bool lets_type(const Tenant& tenant, const Ruling& ruling,
                               std::uint16_t type) const;

  void count_dropped(Tenant& tenant);
  void report_dropped(std::uint64_t attachment);
  [[nodiscard]] bool is_unsettled(const Tenant& tenant) const;
  void hold(std::uint64_t attachment, const Client& client, Bytes message);
  // Asks again what was held for the attachment (0: for all) since before `until`, monotonic ns.
  void let_go(std::uint64_t attachment, std::uint64_t until);
  void decide(Asked& asked, AttachmentBudget::Place place);
  void ask_decider(Asked& asked, AttachmentBudget::Place place);
  void go_on(Asked& asked, const Ruling& ruling, AttachmentBudget::Place place);
  void resolve(Asked& asked, const Ruling& ruling, AttachmentBudget::Place place);
  void conclude(Asked& asked, const CachedAnswer& answer);
  void conclude(Asked& asked, const Ruling& ruling, const CachedAnswer& answer);
  void give_decided_addresses(Asked& asked, const Ruling& ruling);
  // Learns what `granted_` holds and shortens it to what the kernel took, all of it or nothing. The
  // error that ends it, or 0. `answer`: null where the name itself has the addresses.
  [[nodiscard]] int push(Asked& asked, const Ruling& ruling, const CachedAnswer* answer,
                         std::uint64_t ttl_ns, std::vector<sdk::Address>& refused);
  void collect_batches(const Asked& asked, const Ruling& ruling, std::uint64_t ttl_ns);
  void collect_names(const Asked& asked, const CachedAnswer* answer);
  [[nodiscard]] LearnResult learn_batches(std::uint64_t attachment);
  [[nodiscard]] Reserved vetted(const Tenant& tenant, const Ruling& ruling,
                                const sdk::Decision* decision, const sdk::Address& address);
  // Of the chain and the target names: the pattern of a deny rule that speaks of one.
  [[nodiscard]] std::optional<std::string_view> denied_link(const Tenant& tenant,
                                                            const CachedAnswer& answer) const;

  // `refused`, sorted, of its grants are not in `message`.
  void give(Asked& asked, const Ruling& ruling, const CachedAnswer& answer, Bytes message,
            std::span<const std::uint16_t> ttl_offsets, std::span<const sdk::Address> refused);
  void give_whole(Asked& asked, const Ruling& ruling, const CachedAnswer& answer) {
    give(asked, ruling, answer, answer.message, answer.ttl_offsets, {});
  }
  void give_rewritten(Asked& asked, const Ruling& ruling, const CachedAnswer& answer,
                      std::span<const sdk::Address> refused, std::string_view why);
  struct Told {
    sluice_query_verdict verdict = SLUICE_QUERY_FAILED;
    Rcode rcode = Rcode::servfail;
    std::uint16_t extended = SLUICE_NO_EXTENDED_ERROR;
    std::string_view rule{}, reason{};
    std::span<const sdk::Address> addresses{};
    std::uint8_t flags = 0;
  };
  // A reply without records, and its report.
  void reply(Asked& asked, const Told& told);
  void filter_type(Asked& asked, const Ruling& ruling);
  void deny(Asked& asked, std::string_view rule, std::string_view why);
  void fail(Asked& asked, std::uint16_t extended, std::string_view why);
  void report(const Asked& asked, const Told& told);

  void upstream_answered(std::uint32_t token, std::span<const std::uint8_t> message,
                         std::string_view server) override;
  void upstream_failed(std::uint32_t token, UpstreamFailure why) override;
  [[nodiscard]] CachedAnswerPtr understand(const Pending& pending, Bytes message,
                                           std::string_view& fault);
  void settle(std::uint32_t index, const CachedAnswer& answer, std::string_view server);
  void settle_failed(std::uint32_t index, std::uint16_t extended, std::string_view why,
                     std::string_view server);

  std::uint32_t wait(Line& line, Asked& asked, AttachmentBudget::Place place);
  template <typename Each>
  void serve(Line line, Each each);
  [[nodiscard]] std::uint64_t key_of(const Name& name, std::uint64_t more) const;

  Surroundings around_;
  SettingsPtr settings_;
  std::uint64_t now_ = 0;
  sdk::Time boot_{};
  Upstream upstream_;
  Counters counters_;
  ReportBatch reports_;
  Published<AddressSet>::Reader own_;
  std::uint64_t seed_;

  std::unordered_map<std::uint64_t, Tenant> tenants_;
  std::deque<Waiter> waiters_;
  std::uint32_t free_waiter_ = kNone;
  std::vector<Pending> pending_;
  std::vector<std::uint32_t> free_pending_;
  FlatMap<std::uint32_t> pending_by_key_;
  std::unordered_map<std::uint64_t, Undecided> undecided_;             // by query id
  std::unordered_map<std::uint64_t, std::uint64_t> undecided_by_key_;  // to query id
  std::uint64_t next_query_ = 1;
  std::vector<Held> held_;

  // Scratch of the question at hand.
  std::vector<Grant> grants_;
  Answer answer_;
  std::vector<sdk::Address> granted_, refused_;
  // Of a push: what each rule that decided opens.
  struct Batch {
    sdk::Grant grant;
    std::vector<sdk::Address> addresses;
  };
  std::vector<Batch> batches_;
  std::size_t batch_count_ = 0;
  std::vector<sdk::Grant> pushed_;
  std::string name_texts_;
  std::vector<std::string_view> names_;
  std::vector<std::uint8_t> message_;
  std::vector<std::uint16_t> offsets_;
};

}  // namespace sluice::dns
