#include "dns/engine.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "dns/patch.hpp"
#include "dns/rewrite.hpp"

namespace sluice::dns {
namespace {

using std::chrono::nanoseconds;
using std::chrono::seconds;

constexpr std::uint64_t kSecond = 1'000'000'000;
constexpr seconds kNoDecider{1};                 // how long "this wire has none" is believed
constexpr std::uint64_t kOverdue = kSecond / 2;  // past its deadline, a decision will not come
constexpr std::size_t kMostHeld = 1024;          // questions, of a worker
constexpr int kMostHeldOfOne = 16;               // of an attachment: no budget is known yet
constexpr std::uint64_t kHold = 2 * kSecond;     // then an unknown attachment stays unknown
constexpr std::size_t kMostDecisions = 4096;     // kept of one attachment
constexpr std::size_t kMostWaiters = 65'536;     // of a worker
constexpr std::size_t kMostOffsets = 16'384;     // records of the largest message there can be
constexpr std::size_t kOptBytes = 11;

// The message is no use as a question about data.
bool is_meta(std::uint16_t type) {
  return type == 0 || type == type::opt || (type >= 249 && type < type::any);
}

std::string_view says(UpstreamFailure why) {
  switch (why) {
    case UpstreamFailure::timed_out:
      return "no upstream answered in time";
    case UpstreamFailure::refused:
      return "no upstream can be reached";
    case UpstreamFailure::overloaded:
      return "too many questions are in flight";
    case UpstreamFailure::garbled:
      return "the upstream's answer is cut short";
  }
  return "the upstream failed";
}

std::string_view says_rcode(std::uint16_t rcode) {
  switch (rcode) {
    case 1:
      return "the upstream answered FORMERR";
    case 2:
      return "the upstream answered SERVFAIL";
    case 4:
      return "the upstream answered NOTIMP";
    case 5:
      return "the upstream answered REFUSED";
    default:
      return "the upstream answered with an error";
  }
}

std::uint16_t limit_of(const Client& client, const Edns& edns) {
  if (client.by_stream) return 65'535;
  return edns.present ? std::min(edns.udp_size, kUdpPayload) : std::uint16_t{512};
}

}  // namespace

Engine::Engine(const Surroundings& around, SettingsPtr settings, std::uint64_t now)
    : around_(around),
      settings_(std::move(settings)),
      now_(now),
      upstream_(settings_->upstream, around.epoll, around.timers, *this, now),
      reports_(around.host),
      own_(around.own_addresses),
      seed_(upstream_.random().next64()),
      pending_by_key_(upstream_.random().next64()),
      grants_(kMostGrants),
      answer_(grants_),
      message_(65'536),
      offsets_(kMostOffsets) {}

Engine::~Engine() = default;

void Engine::set_time(std::uint64_t now, std::uint64_t boot) {
  now_ = now;
  boot_ = sdk::Time(nanoseconds(boot));
}

void Engine::flush() {
  upstream_.flush(now_);
  reports_.flush();
}

void Engine::reconfigure(SettingsPtr settings) {
  settings_ = std::move(settings);
  reports_.flush();  // they speak of the former servers
  upstream_.reconfigure(settings_->upstream, now_);
}

// ---- attachments --------------------------------------------------------------------------------

Tenant* Engine::tenant(std::uint64_t attachment) {
  const auto found = tenants_.find(attachment);
  return found == tenants_.end() ? nullptr : &found->second;
}

void Engine::set_tenant(const TenantState& state) {
  reports_.flush();  // they speak of the former rules' patterns
  auto& tenant = tenants_[state.attachment];
  // What a decider said was said beside the rules of that time.
  tenant =
      Tenant{.state = state, .decisions = {}, .no_decider_until = {}, .dropped = tenant.dropped};
  if (!held_.empty() && !is_unsettled(tenant)) let_go(state.attachment, now_);
}

void Engine::remove_tenant(std::uint64_t attachment) {
  reports_.flush();
  tenants_.erase(attachment);
}

// ---- a question comes in ------------------------------------------------------------------------

void Engine::ask(std::uint64_t attachment, const Client& client, Bytes message) {
  ++counters_.queries;
  auto* const tenant = this->tenant(attachment);
  if (tenant == nullptr || is_unsettled(*tenant)) return hold(attachment, client, message);
  AttachmentBudget::Place place;
  if (tenant->state.budget) {
    place = tenant->state.budget->admit(boot_);
    // A flood is dropped unread: answering it would be work as well.
    if (!place && place.cap() == Cap::rate) {
      count_dropped(*tenant);
      return around_.outlet.drop(client);
    }
  }

  const auto query = read_query(message);
  if (!query) {
    ++counters_.by_verdict[SLUICE_QUERY_INVALID];
    if (!query.error().answer) return around_.outlet.drop(client);
    const std::size_t size = make_fault_reply(message, query.error(), around_.outlet.room(client));
    return size == 0 ? around_.outlet.drop(client) : around_.outlet.send(client, size);
  }
  Asked asked{.query = *query, .client = client, .tenant = *tenant, .arrived = now_};
  if (tenant->state.budget && !place)
    return reply(asked, {.verdict = SLUICE_QUERY_LIMITED,
                         .rcode = Rcode::servfail,
                         .extended = ede::other,
                         .reason = describe(place.cap())});
  if (asked.question().klass != kClassIn)
    return reply(asked, {.verdict = SLUICE_QUERY_INVALID,
                         .rcode = Rcode::refused,
                         .extended = ede::not_supported,
                         .reason = "only class IN is served"});
  if (is_meta(asked.question().type))
    return reply(asked, {.verdict = SLUICE_QUERY_INVALID,
                         .rcode = asked.question().type == type::opt || asked.question().type == 0
                                      ? Rcode::formerr
                                      : Rcode::notimp,
                         .extended = ede::not_supported,
                         .reason = "no such type of question is served"});
  decide(asked, std::move(place));
}

// One report for all of a second: a flood is no flood of reports.
void Engine::count_dropped(Tenant& tenant) {
  ++counters_.by_verdict[SLUICE_QUERY_LIMITED];
  if (tenant.dropped++ != 0) return;
  around_.timers.add({.due = now_ + kSecond,
                      .kind = static_cast<std::uint32_t>(TimerKind::dropped),
                      .index = 0,
                      .generation = tenant.state.attachment});
}

void Engine::report_dropped(std::uint64_t attachment) {
  auto* const tenant = this->tenant(attachment);
  if (tenant == nullptr) return;
  auto& report = reports_.add(Name());
  report.attachment = attachment;
  report.time = static_cast<std::uint64_t>(boot_.time_since_epoch().count());
  report.verdict = SLUICE_QUERY_LIMITED;
  report.count = std::exchange(tenant->dropped, 0u);
  const auto why = describe(Cap::rate);
  report.reason = {why.data(), why.size()};
}

// No rules may mean that its source has not spoken yet: an answer would be a wrong one.
bool Engine::is_unsettled(const Tenant& tenant) const {
  return boot_ < tenant.state.settled && (!tenant.state.rules || tenant.state.rules->size() == 0);
}

void Engine::hold(std::uint64_t attachment, const Client& client, Bytes message) {
  if (held_.size() >= kMostHeld ||
      std::ranges::count(held_, attachment, &Held::attachment) >= kMostHeldOfOne)
    return around_.outlet.drop(client);
  held_.push_back({.attachment = attachment,
                   .arrived = now_,
                   .client = client,
                   .message = {message.begin(), message.end()}});
  around_.timers.add({.due = now_ + kHold,
                      .kind = static_cast<std::uint32_t>(TimerKind::held),
                      .index = 0,
                      .generation = now_});
}

void Engine::let_go(std::uint64_t attachment, std::uint64_t until) {
  std::vector<Held> now;
  std::erase_if(held_, [&](Held& held) {
    if ((attachment != 0 && held.attachment != attachment) || held.arrived > until) return false;
    now.push_back(std::move(held));
    return true;
  });
  for (const auto& held : now) {
    if (tenants_.contains(held.attachment))
      ask(held.attachment, held.client, held.message);
    else
      around_.outlet.drop(held.client);
  }
}

// ---- what the rules say -------------------------------------------------------------------------

Engine::Ruling Engine::rule_on(const Tenant& tenant, const Name& name,
                               const sdk::Decision* decision, bool may_ask) const {
  const auto& state = tenant.state;
  const auto denied = [&](std::string_view why, std::string_view rule = {}) {
    return Ruling{.kind = state.audit ? Ruling::audited : Ruling::deny, .why = why, .rule = rule};
  };
  if (state.mode == sdk::Mode::disabled) return {.kind = Ruling::pass};
  if (state.mode == sdk::Mode::block_all) return denied("everything is blocked");
  if (state.rules) {
    const auto match = state.rules->match(name, boot_);
    if (match.verdict != Verdict::none) {
      const auto pattern = state.rules->pattern(match.rules.front());
      if (match.verdict == Verdict::deny) return denied("a rule denies this name", pattern);
      return {.kind = Ruling::rules, .match = match, .rule = pattern};
    }
  }
  if (decision != nullptr) {
    if (decision->action == sdk::Decision::Action::allow) return {.kind = Ruling::decided};
    return denied(decision->reason.empty() ? std::string_view("denied by a decision")
                                           : std::string_view(decision->reason));
  }
  if (may_ask && boot_ >= tenant.no_decider_until) return {.kind = Ruling::ask};
  if (state.mode == sdk::Mode::denylist) return {.kind = Ruling::pass};
  return denied("no rule allows this name");
}

bool Engine::lets_type(const Tenant& tenant, const Ruling& ruling, std::uint16_t type) const {
  if (!ruling.grants()) return true;
  if (is_default_type(type) || std::ranges::binary_search(settings_->types, type)) return true;
  return ruling.kind == Ruling::rules && tenant.state.rules->allows_type(ruling.match, type);
}

std::uint64_t Engine::key_of(const Name& name, std::uint64_t more) const {
  return mix(name.hash(seed_) + more, seed_);
}

void Engine::decide(Asked& asked, AttachmentBudget::Place place) {
  auto ruling = rule_on(asked.tenant, asked.question().name, asked.decision.get(), true);
  if (ruling.kind == Ruling::ask) {
    const auto& question = asked.question();
    const auto kept = asked.tenant.decisions.find(key_of(question.name, question.type));
    if (kept == asked.tenant.decisions.end() || kept->second.until <= boot_ ||
        kept->second.type != question.type || !(kept->second.name == question.name))
      return ask_decider(asked, std::move(place));
    asked.decision = kept->second.decision;
    ruling = rule_on(asked.tenant, question.name, asked.decision.get(), false);
  }
  go_on(asked, ruling, std::move(place));
}

void Engine::go_on(Asked& asked, const Ruling& ruling, AttachmentBudget::Place place) {
  if (ruling.kind == Ruling::deny) return deny(asked, ruling.rule, ruling.why);
  if (!lets_type(asked.tenant, ruling, asked.question().type) && !asked.tenant.state.audit)
    return filter_type(asked, ruling);
  if (ruling.kind == Ruling::decided && !asked.decision->addresses.empty())
    return give_decided_addresses(asked, ruling);
  resolve(asked, ruling, std::move(place));
}

// ---- deciders -----------------------------------------------------------------------------------

void Engine::ask_decider(Asked& asked, AttachmentBudget::Place place) {
  const auto& question = asked.question();
  const auto attachment = asked.tenant.state.attachment;
  const std::uint64_t key = mix(key_of(question.name, question.type), attachment);
  if (const auto before = undecided_by_key_.find(key); before != undecided_by_key_.end()) {
    auto& open = undecided_.at(before->second);
    if (open.attachment == attachment && open.type == question.type && open.name == question.name) {
      ++counters_.merged;
      if (wait(open.line, asked, std::move(place)) == kNone)
        fail(asked, ede::other, "too many questions wait");
      return;
    }
  }
  const std::uint64_t id =
      static_cast<std::uint64_t>(around_.worker) << 56 | (next_query_++ & ((1ULL << 56) - 1));
  const auto text = question.name.text();
  const auto deadline = boot_ + nanoseconds(settings_->decider_deadline);
  switch (around_.host.ask({.id = id,
                            .attachment = {attachment},
                            .name = std::string(text.view()),
                            .type = question.type},
                           static_cast<std::uint64_t>(deadline.time_since_epoch().count()))) {
    case AskResult::no_decider:
      asked.tenant.no_decider_until = boot_ + kNoDecider;
      return go_on(asked, rule_on(asked.tenant, question.name, nullptr, false), std::move(place));
    case AskResult::down:
      return fail(asked, ede::not_ready, "the decider of this workload takes no question now");
    case AskResult::asked:
      break;
  }
  auto& open = undecided_[id];
  open.attachment = attachment;
  open.key = key;
  open.name = question.name;
  open.type = question.type;
  open.asked_at = now_;
  undecided_by_key_[key] = id;
  around_.timers.add({.due = now_ + settings_->decider_deadline + kOverdue,
                      .kind = static_cast<std::uint32_t>(TimerKind::decision),
                      .index = 0,
                      .generation = id});
  if (wait(open.line, asked, std::move(place)) == kNone)
    fail(asked, ede::other, "too many questions wait");
}

void Engine::decided(std::uint64_t query_id, DecisionPtr decision) {
  const auto found = undecided_.find(query_id);
  if (found == undecided_.end()) return;
  const auto open = std::move(found->second);
  undecided_.erase(found);
  if (const auto by_key = undecided_by_key_.find(open.key);
      by_key != undecided_by_key_.end() && by_key->second == query_id)
    undecided_by_key_.erase(by_key);

  const bool spoken = decision && decision->action != sdk::Decision::Action::none;
  if (auto* const tenant = this->tenant(open.attachment);
      tenant != nullptr && spoken && decision->ttl > nanoseconds::zero()) {
    if (tenant->decisions.size() >= kMostDecisions) tenant->decisions.clear();
    tenant->decisions.insert_or_assign(key_of(open.name, open.type),
                                       KeptDecision{.name = open.name,
                                                    .type = open.type,
                                                    .until = boot_ + decision->ttl,
                                                    .decision = decision});
  }
  serve(open.line, [&](Asked& asked, AttachmentBudget::Place place) {
    asked.decision_ns = now_ - open.asked_at;
    if (!spoken) {
      // Closed, but not for good: the asker may try again.
      return fail(asked, ede::not_ready,
                  decision && !decision->reason.empty() ? std::string_view(decision->reason)
                                                        : "no decision came in time");
    }
    asked.decision = decision;
    decide(asked, std::move(place));
  });
  reports_.flush();  // they may speak in the decision's words, which end with it
}

void Engine::give_decided_addresses(Asked& asked, const Ruling& ruling) {
  const auto& decision = *asked.decision;
  const auto wanted = asked.question().type;
  granted_.clear();
  refused_.clear();
  bool any = false;
  for (const auto& address : decision.addresses) {
    if (wanted != (address.family == 4 ? type::a : type::aaaa)) continue;
    any = true;
    if (vetted(asked.tenant, ruling, &decision, address) == Reserved::ordinary)
      granted_.push_back(address);
  }
  const auto ttl =
      std::min<std::uint64_t>(static_cast<std::uint64_t>(std::max<std::int64_t>(
                                  0, std::chrono::floor<seconds>(decision.address_ttl).count())),
                              settings_->most_ttl);
  if (!granted_.empty()) {
    const int error = push(asked, ruling, nullptr,
                           std::max(ttl * kSecond, settings_->floor) + settings_->grace, refused_);
    if (error != 0) return fail(asked, ede::other, "the addresses could not be opened");
  }
  if (granted_.empty() && any)
    return reply(asked, {.verdict = SLUICE_QUERY_FILTERED,
                         .rcode = Rcode::noerror,
                         .extended = ede::filtered,
                         .reason = "none of its addresses may be opened",
                         .flags = SLUICE_QUERY_DECIDED});
  const Room room = around_.outlet.room(asked.client);
  const std::size_t size = make_address_reply(
      asked.query, granted_, static_cast<std::uint32_t>(ttl),
      room.first(std::min<std::size_t>(room.size(), limit_of(asked.client, asked.query.edns()))));
  if (size == 0) return around_.outlet.drop(asked.client);
  around_.outlet.send(asked.client, size);
  report(asked, {.verdict = SLUICE_QUERY_ALLOWED,
                 .rcode = Rcode::noerror,
                 .reason = decision.reason,
                 .addresses = granted_,
                 .flags = SLUICE_QUERY_DECIDED});
}

// ---- memory and upstream ------------------------------------------------------------------------

void Engine::resolve(Asked& asked, const Ruling& ruling, AttachmentBudget::Place place) {
  const auto& question = asked.question();
  const bool dnssec_ok = asked.query.edns().dnssec_ok;
  const bool checking_disabled = asked.query.header().checking_disabled();
  const sdk::AttachmentId attachment{asked.tenant.state.attachment};
  const AnswerCache::Key cache_key{question.name, question.type, kClassIn, dnssec_ok,
                                   checking_disabled};
  if (const auto found = around_.cache.find(cache_key, attachment, boot_)) {
    ++counters_.from_cache;
    asked.cached = true;
    return conclude(asked, ruling, *found);
  }

  const std::uint64_t key =
      key_of(question.name, static_cast<std::uint64_t>(question.type) << 2 | (dnssec_ok ? 2u : 0u) |
                                (checking_disabled ? 1u : 0u));
  if (const auto* const index = pending_by_key_.find(key)) {
    auto& pending = pending_[*index];
    if (pending.name == question.name && pending.type == question.type &&
        pending.dnssec_ok == dnssec_ok && pending.checking_disabled == checking_disabled) {
      ++counters_.merged;
      if (wait(pending.line, asked, std::move(place)) == kNone)
        fail(asked, ede::other, "too many questions wait");
      return;
    }
  }

  const bool wildcard = ruling.kind != Ruling::rules || ruling.match.wildcard;
  if (asked.tenant.state.budget) {
    auto cap = asked.tenant.state.budget->ask_upstream(boot_);
    if (cap == Cap::none && ruling.kind == Ruling::rules && ruling.match.wildcard)
      cap = asked.tenant.state.budget->ask_name(asked.tenant.state.rules->base_key(ruling.match),
                                                question.name, boot_);
    if (cap != Cap::none)
      return reply(asked, {.verdict = SLUICE_QUERY_LIMITED,
                           .rcode = Rcode::servfail,
                           .extended = ede::other,
                           .rule = ruling.rule,
                           .reason = describe(cap)});
  }

  std::uint32_t index;
  if (free_pending_.empty()) {
    index = static_cast<std::uint32_t>(pending_.size());
    pending_.emplace_back();
  } else {
    index = free_pending_.back();
    free_pending_.pop_back();
  }
  std::array<std::uint8_t, kUpstreamQueryRoom> query;
  const std::size_t size = make_upstream_query({.name = question.name,
                                                .type = question.type,
                                                .checking_disabled = checking_disabled,
                                                .dnssec_ok = dnssec_ok},
                                               0, CaseBits{}, query);
  auto& pending = pending_[index];
  pending.line = {};
  if (wait(pending.line, asked, std::move(place)) == kNone ||
      !upstream_.ask(index, std::span(query).first(size), question.name.size() + 4, now_)) {
    free_pending_.push_back(index);
    if (pending.line.first == kNone) return fail(asked, ede::other, "too many questions wait");
    return serve(pending.line, [&](Asked& waiting, AttachmentBudget::Place) {
      fail(waiting, ede::other, says(UpstreamFailure::overloaded));
    });
  }
  pending.name = question.name;
  pending.type = question.type;
  pending.dnssec_ok = dnssec_ok;
  pending.checking_disabled = checking_disabled;
  pending.live = true;
  pending.key = key;
  pending.asked_at = now_;
  pending.origin = {.attachment = attachment, .by_wildcard = wildcard};
  pending_by_key_.put(key, index);
}

std::uint32_t Engine::wait(Line& line, Asked& asked, AttachmentBudget::Place place) {
  std::uint32_t index = free_waiter_;
  if (index != kNone) {
    free_waiter_ = waiters_[index].next;
  } else {
    if (waiters_.size() >= kMostWaiters) return kNone;
    index = static_cast<std::uint32_t>(waiters_.size());
    waiters_.emplace_back();
  }
  auto& waiter = waiters_[index];
  waiter.next = kNone;
  waiter.attachment = asked.tenant.state.attachment;
  waiter.client = asked.client;
  waiter.decision = asked.decision;
  waiter.budget = asked.tenant.state.budget;
  waiter.place = std::move(place);
  waiter.arrived = asked.arrived;
  waiter.decision_ns = asked.decision_ns;

  // Header, question and the OPT's gist: all that an answer depends on.
  const auto& view = asked.query;
  auto* out = waiter.query.data();
  std::memcpy(out, view.bytes().data(), 4);
  store16(out + 4, 1);
  store16(out + 6, 0);
  store16(out + 8, 0);
  store16(out + 10, view.edns().present ? 1 : 0);
  out += kHeaderSize;
  std::memcpy(out, view.question().wire.data(), view.question().wire.size());
  out += view.question().wire.size();
  if (view.edns().present) {
    *out++ = 0;
    store16(out, type::opt);
    store16(out + 2, view.edns().udp_size);
    store32(out + 4, view.edns().dnssec_ok ? 0x8000u : 0u);
    store16(out + 8, 0);
    out += 10;
  }
  waiter.query_size = static_cast<std::uint16_t>(out - waiter.query.data());

  if (line.first == kNone)
    line.first = index;
  else
    waiters_[line.last].next = index;
  line.last = index;
  return index;
}

// Calls `each(asked, place)` for all in the line, and ends it.
template <typename Each>
void Engine::serve(Line line, Each each) {
  for (std::uint32_t index = line.first; index != kNone;) {
    auto& waiter = waiters_[index];  // a deque: the place stays while others join
    const std::uint32_t next = waiter.next;
    auto* const tenant = this->tenant(waiter.attachment);
    const auto query = read_query(Bytes(waiter.query).first(waiter.query_size));
    if (tenant == nullptr || !query) {
      around_.outlet.drop(waiter.client);
    } else {
      Asked asked{.query = *query,
                  .client = waiter.client,
                  .tenant = *tenant,
                  .decision = std::move(waiter.decision),
                  .arrived = waiter.arrived,
                  .decision_ns = waiter.decision_ns};
      each(asked, std::move(waiter.place));
    }
    waiter.place.release();
    waiter.budget.reset();
    waiter.decision.reset();
    waiter.next = free_waiter_;
    free_waiter_ = index;
    index = next;
  }
}

void Engine::on_timer(const TimerWheel::Entry& entry) {
  switch (static_cast<TimerKind>(entry.kind)) {
    case TimerKind::exchange:
    case TimerKind::upstream_stream:
      return upstream_.on_timer(entry, now_);
    case TimerKind::decision:
      return decided(entry.generation, nullptr);
    case TimerKind::held:
      return let_go(0, entry.generation);
    case TimerKind::dropped:
      return report_dropped(entry.generation);
    default:
      return;
  }
}

void Engine::upstream_failed(std::uint32_t token, UpstreamFailure why) {
  settle_failed(
      token, why == UpstreamFailure::timed_out ? ede::no_reachable_authority : ede::network_error,
      says(why), {});
}

void Engine::upstream_answered(std::uint32_t token, std::span<const std::uint8_t> message,
                               std::string_view server) {
  std::string_view fault;
  const auto answer = understand(pending_[token], message, fault);
  if (!answer) return settle_failed(token, ede::invalid_data, fault, server);
  settle(token, *answer, server);
}

// What is worth keeping of a response; null and `fault` where it grants nothing and says nothing.
CachedAnswerPtr Engine::understand(const Pending& pending, Bytes message, std::string_view& fault) {
  const auto view = MessageView::parse(message);
  if (!view) {
    fault = describe(view.error());
    return nullptr;
  }
  if (view->rcode() != static_cast<std::uint16_t>(Rcode::noerror) &&
      view->rcode() != static_cast<std::uint16_t>(Rcode::nxdomain)) {
    fault = says_rcode(view->rcode());
    return nullptr;
  }
  if (const auto read = answer_.read(*view); !read) {
    fault = describe(read.error());
    return nullptr;
  }

  CachedAnswer kept;
  kept.kind =
      answer_.data_records() != 0 ? CachedAnswer::Kind::positive : CachedAnswer::Kind::negative;
  for (const auto& name : answer_.names()) kept.names.add(name);
  kept.chain = static_cast<std::uint16_t>(answer_.chain().size());
  kept.grants.assign(answer_.grants().begin(), answer_.grants().end());
  std::uint32_t ttl = answer_.least_ttl();
  if (kept.kind == CachedAnswer::Kind::negative)
    ttl = std::min({ttl, negative_ttl(*view, answer_.chain().back()).value_or(0),
                    settings_->most_negative_ttl});

  if (answer_.has_foreign()) {
    const auto rewritten = rewrite(*view, answer_, message_);
    if (rewritten.size == 0) {
      fault = "the upstream's answer does not read";
      return nullptr;
    }
    kept.message.assign(message_.begin(),
                        message_.begin() + static_cast<std::ptrdiff_t>(rewritten.size));
  } else {
    kept.message.assign(message.begin(), message.end());
    const auto copy = MessageView::parse(kept.message);
    const bool bare = kept.kind == CachedAnswer::Kind::positive && !pending.dnssec_ok;
    kept.message.resize(bare ? strip_to_answer(*copy, kept.message)
                             : strip_additional(*copy, kept.message));
  }
  const auto final_view = MessageView::parse(kept.message);
  const auto count = final_view ? find_ttls(*final_view, offsets_) : std::nullopt;
  if (!count) {
    fault = "the upstream's answer has too many records";
    return nullptr;
  }
  kept.ttl_offsets.assign(offsets_.begin(), offsets_.begin() + static_cast<std::ptrdiff_t>(*count));
  ttl = std::min({ttl, least_ttl(kept.message, kept.ttl_offsets, ttl), settings_->most_ttl});
  return around_.cache.store(
      {pending.name, pending.type, kClassIn, pending.dnssec_ok, pending.checking_disabled},
      std::move(kept), pending.origin, seconds(ttl), boot_);
}

void Engine::settle(std::uint32_t index, const CachedAnswer& answer, std::string_view server) {
  auto& pending = pending_[index];
  pending.live = false;
  pending_by_key_.erase(pending.key);
  const Line line = std::exchange(pending.line, {});
  const std::uint64_t took = now_ - pending.asked_at;
  free_pending_.push_back(index);
  serve(line, [&](Asked& asked, AttachmentBudget::Place) {
    asked.upstream_ns = took;
    asked.upstream = server;
    conclude(asked, answer);
  });
}

void Engine::settle_failed(std::uint32_t index, std::uint16_t extended, std::string_view why,
                           std::string_view server) {
  auto& pending = pending_[index];
  CachedAnswer failure;
  failure.kind = CachedAnswer::Kind::failure;
  // A good answer that is still valid outlives the failure of asking again.
  const auto kept = around_.cache.store_failure(
      {pending.name, pending.type, kClassIn, pending.dnssec_ok, pending.checking_disabled},
      std::move(failure), pending.origin, boot_);
  if (kept && kept->kind != CachedAnswer::Kind::failure) return settle(index, *kept, server);
  pending.live = false;
  pending_by_key_.erase(pending.key);
  const Line line = std::exchange(pending.line, {});
  const std::uint64_t took = now_ - pending.asked_at;
  free_pending_.push_back(index);
  serve(line, [&](Asked& asked, AttachmentBudget::Place) {
    asked.upstream_ns = took;
    asked.upstream = server;
    fail(asked, extended, why);
  });
}

// ---- vetting, pushing, giving -------------------------------------------------------------------

std::optional<std::string_view> Engine::denied_link(const Tenant& tenant,
                                                    const CachedAnswer& answer) const {
  std::optional<std::string_view> denied;
  if (!tenant.state.rules || answer.names.size() < 2) return denied;
  bool first = true;
  answer.names.for_each([&](const Name& name) {
    if (std::exchange(first, false)) return true;  // the question's: judged before
    const auto match = tenant.state.rules->match(name, boot_);
    if (match.verdict != Verdict::deny) return true;
    denied = tenant.state.rules->pattern(match.rules.front());
    return false;
  });
  return denied;
}

// Whether one of the rules that decided may grant the address.
Reserved Engine::vetted(const Tenant& tenant, const Ruling& ruling, const sdk::Decision* decision,
                        const sdk::Address& address) {
  const auto& own = *own_.get();
  if (ruling.kind == Ruling::decided) return vet(address, decision->ranges, own);
  Reserved verdict = Reserved::ordinary;
  for (const auto number : ruling.match.rules) {
    verdict = vet(address, tenant.state.rules->rule(number).ranges, own);
    if (verdict == Reserved::ordinary) break;
  }
  return verdict;
}

// `granted_` in, each vetted for at least one rule; out, sorted: what is in the kernel now. What
// explicit denies forbid goes to `refused`.
int Engine::push(Asked& asked, const Ruling& ruling, const CachedAnswer* answer,
                 std::uint64_t ttl_ns, std::vector<sdk::Address>& refused) {
  const auto began = around_.host.boot_now();
  if (granted_.size() > 1) {
    std::ranges::sort(granted_);
    const auto twice = std::ranges::unique(granted_);
    granted_.erase(twice.begin(), twice.end());
  }
  collect_batches(asked, ruling, ttl_ns);
  collect_names(asked, answer);
  const auto result = learn_batches(asked.tenant.state.attachment);
  asked.push_ns = around_.host.boot_now() - began;
  if (result.error != 0) return result.error;

  const auto batches = std::span(batches_).first(batch_count_);
  if (batches.size() == 1 && batches[0].addresses.size() == granted_.size()) return 0;
  std::vector<sdk::Address> taken;
  for (const auto& batch : batches)
    taken.insert(taken.end(), batch.addresses.begin(), batch.addresses.end());
  std::ranges::sort(taken);
  const auto twice = std::ranges::unique(taken);
  taken.erase(twice.begin(), twice.end());
  std::ranges::set_difference(granted_, taken, std::back_inserter(refused));
  granted_.swap(taken);
  return 0;
}

// Which of the granted addresses each rule that decided may open.
void Engine::collect_batches(const Asked& asked, const Ruling& ruling, std::uint64_t ttl_ns) {
  batch_count_ = 0;
  const auto add = [&](std::uint32_t rule) -> Batch& {
    if (batches_.size() == batch_count_) batches_.emplace_back();
    auto& batch = batches_[batch_count_++];
    batch.grant = {
        .rule = rule, .ttl = nanoseconds(ttl_ns), .grace = nanoseconds(settings_->live_flows)};
    batch.addresses.clear();
    return batch;
  };
  if (ruling.kind == Ruling::decided) {
    auto& batch = add(SLUICE_NO_RULE);
    batch.grant.ports = asked.decision->ports;
    batch.addresses = granted_;
    return;
  }
  const auto& state = asked.tenant.state;
  for (const auto number : ruling.match.rules) {
    auto& batch = add((*state.ids)[number]);
    const auto& ranges = state.rules->rule(number).ranges;
    std::ranges::copy_if(granted_, std::back_inserter(batch.addresses), [&](const auto& address) {
      return vet(address, ranges, *own_.get()) == Reserved::ordinary;
    });
  }
}

void Engine::collect_names(const Asked& asked, const CachedAnswer* answer) {
  name_texts_.clear();
  std::array<std::size_t, 1 + kMostLinks + kMostTargets> ends;
  std::size_t count = 0;
  const auto add = [&](const Name& name) {
    name_texts_ += name.text().view();
    ends[count++] = name_texts_.size();
    return count < ends.size();
  };
  if (answer == nullptr || answer->names.size() == 0)
    add(asked.question().name);
  else
    answer->names.for_each(add);
  names_.clear();
  for (std::size_t i = 0, begin = 0; i < count; begin = ends[i++])
    names_.push_back(std::string_view(name_texts_).substr(begin, ends[i] - begin));
}

// One push of all batches; again without what explicit denies forbid, until it is taken or refused
// whole.
LearnResult Engine::learn_batches(std::uint64_t attachment) {
  for (;;) {
    pushed_.clear();
    std::size_t count = 0;
    for (auto& batch : std::span(batches_).first(batch_count_)) {
      if (batch.addresses.empty()) continue;
      batch.grant.addresses = batch.addresses;
      pushed_.push_back(batch.grant);
      count += batch.addresses.size();
    }
    if (pushed_.empty()) return {};
    const auto result = around_.host.learn(attachment, names_, pushed_);
    ++counters_.pushes;
    if (result.error == 0) counters_.pushed_addresses += count;
    if (result.error != EACCES || result.address >= count) return result;
    std::size_t at = result.address;
    for (auto& batch : std::span(batches_).first(batch_count_)) {
      if (at < batch.addresses.size()) {
        batch.addresses.erase(batch.addresses.begin() + static_cast<std::ptrdiff_t>(at));
        break;
      }
      at -= batch.addresses.size();
    }
  }
}

// From the waiting line: by the rules of now.
void Engine::conclude(Asked& asked, const CachedAnswer& answer) {
  const auto ruling = rule_on(asked.tenant, asked.question().name, asked.decision.get(), false);
  if (ruling.kind == Ruling::deny) return deny(asked, ruling.rule, ruling.why);
  if (!lets_type(asked.tenant, ruling, asked.question().type) && !asked.tenant.state.audit)
    return filter_type(asked, ruling);
  conclude(asked, ruling, answer);
}

void Engine::conclude(Asked& asked, const Ruling& ruling, const CachedAnswer& answer) {
  if (answer.kind == CachedAnswer::Kind::failure)
    return fail(asked, ede::no_reachable_authority, "it could not be resolved a moment ago");
  const auto& state = asked.tenant.state;
  const sdk::AttachmentId attachment{state.attachment};
  const bool must_push = ruling.grants() && !answer.grants.empty();
  const bool by_rules = ruling.kind == Ruling::rules;

  const auto left = std::max(answer.expires - boot_, nanoseconds::zero());
  const auto sent_ns =
      static_cast<std::uint64_t>(std::chrono::floor<seconds>(left).count()) * kSecond;
  const auto stay = std::max(sent_ns, settings_->floor) + settings_->grace;
  const auto until = boot_ + nanoseconds(stay);
  // What stands in the kernel for long enough was judged under these rules: nothing more to do.
  if (must_push && by_rules && around_.pushes.suffices(attachment, answer.id, until))
    return give_whole(asked, ruling, answer);

  if (const auto link = denied_link(asked.tenant, answer)) {
    constexpr std::string_view kWhy = "a rule denies a name that it is an alias of";
    if (!state.audit) return deny(asked, *link, kWhy);
    return give_whole(asked, {.kind = Ruling::audited, .why = kWhy, .rule = *link}, answer);
  }
  if (!must_push) return give_whole(asked, ruling, answer);

  granted_.clear();
  refused_.clear();
  Reserved why = Reserved::ordinary;
  for (const auto& grant : answer.grants) {
    const auto verdict = vetted(asked.tenant, ruling, asked.decision.get(), grant.address);
    if (verdict == Reserved::ordinary) {
      granted_.push_back(grant.address);
    } else {
      refused_.push_back(grant.address);
      why = verdict;
    }
  }
  const bool denied_before = !refused_.empty();
  // With a short TTL the floor moves on with each answer; a little more at once spares most pushes.
  const std::uint64_t more = sent_ns < settings_->floor ? settings_->floor / 2 : 0;
  if (!granted_.empty()) {
    const int error = push(asked, ruling, &answer, stay + more, refused_);
    if (error == ESTALE) return fail(asked, ede::not_ready, "the rules are changing");
    if (error != 0) return fail(asked, ede::other, "the addresses could not be opened");
  }
  if (refused_.empty() || state.audit) {
    if (by_rules && refused_.empty()) {
      auto known = until + nanoseconds(more);
      for (const auto number : ruling.match.rules)
        if (const auto& ends = state.rules->rule(number).expires) known = std::min(known, *ends);
      around_.pushes.record(attachment, state.pushes, answer.id, known);
    }
    return give_whole(asked, ruling, answer);
  }
  std::ranges::sort(refused_);
  give_rewritten(asked, ruling, answer, refused_,
                 denied_before ? describe(why) : "an explicit rule denies its address");
}

void Engine::give_rewritten(Asked& asked, const Ruling& ruling, const CachedAnswer& answer,
                            std::span<const sdk::Address> refused, std::string_view why) {
  const auto filtered = [&] {
    reply(asked, {.verdict = SLUICE_QUERY_FILTERED,
                  .rcode = Rcode::noerror,
                  .extended = ede::filtered,
                  .rule = ruling.rule,
                  .reason = why});
  };
  if (granted_.empty() && asked.question().type != type::https &&
      asked.question().type != type::svcb)
    return filtered();
  const auto view = MessageView::parse(answer.message);
  if (!view || !answer_.read(*view))
    return fail(asked, ede::invalid_data, "the upstream's answer does not read");
  for (auto& grant : answer_.grants())
    grant.refused = std::ranges::binary_search(refused, grant.address);
  const auto rewritten = rewrite(*view, answer_, message_);
  if (rewritten.size == 0)
    return fail(asked, ede::invalid_data, "the upstream's answer does not read");
  if (rewritten.data_records == 0) return filtered();
  const Bytes bytes = Bytes(message_).first(rewritten.size);
  const auto rewritten_view = MessageView::parse(bytes);
  const auto count = rewritten_view ? find_ttls(*rewritten_view, offsets_) : std::nullopt;
  if (!count) return fail(asked, ede::invalid_data, "the upstream's answer does not read");
  give(asked, ruling, answer, bytes, std::span(offsets_).first(*count), refused);
}

// The last step: everything that the answer opens is in the kernel.
void Engine::give(Asked& asked, const Ruling& ruling, const CachedAnswer& answer, Bytes message,
                  std::span<const std::uint16_t> ttl_offsets,
                  std::span<const sdk::Address> refused) {
  const auto& edns = asked.query.edns();
  const std::size_t limit = limit_of(asked.client, edns);
  const Room room = around_.outlet.room(asked.client);
  std::size_t size = message.size() + (edns.present ? kOptBytes : 0);
  if (size > limit || size > room.size()) {
    size = make_truncated_reply(asked.query, room);
  } else {
    std::memcpy(room.data(), message.data(), message.size());
    const Room written = room.first(message.size());
    const auto query = asked.query.header();
    set_id(written, query.id());
    if (!set_question(written, asked.question().wire))
      return fail(asked, ede::other, "the question got lost");
    const bool authentic = Header(written).authentic_data();
    set_client_flags(written, query, authentic && (query.authentic_data() || edns.dnssec_ok));
    const auto whole_seconds = [](nanoseconds time) {
      return static_cast<std::uint32_t>(
          std::max<std::int64_t>(0, std::chrono::floor<seconds>(time).count()));
    };
    age_ttls(written, ttl_offsets, whole_seconds(boot_ - answer.stored),
             whole_seconds(answer.expires - boot_));
    size = message.size();
    if (edns.present) size = append_opt(room, size, {.dnssec_ok = edns.dnssec_ok});
  }
  if (size == 0) return around_.outlet.drop(asked.client);
  const auto rcode = Header(room).rcode();
  around_.outlet.send(asked.client, size);

  std::array<sdk::Address, 16> given;
  std::size_t count = 0;
  for (const auto& grant : answer.grants) {
    if (count == given.size()) break;
    if (!std::ranges::binary_search(refused, grant.address)) given[count++] = grant.address;
  }
  const bool audited = ruling.kind == Ruling::audited;
  report(asked, {.verdict = audited ? SLUICE_QUERY_DENIED : SLUICE_QUERY_ALLOWED,
                 .rcode = static_cast<Rcode>(rcode),
                 .rule = ruling.rule,
                 .reason = ruling.why,
                 .addresses = std::span(given).first(count),
                 .flags = static_cast<std::uint8_t>(
                     (audited ? SLUICE_QUERY_AUDITED : 0u) |
                     (ruling.kind == Ruling::decided ? SLUICE_QUERY_DECIDED : 0u))});
}

void Engine::filter_type(Asked& asked, const Ruling& ruling) {
  reply(asked, {.verdict = SLUICE_QUERY_FILTERED,
                .rcode = Rcode::noerror,
                .extended = ede::filtered,
                .rule = ruling.rule,
                .reason = "this type of record is not let through"});
}

void Engine::deny(Asked& asked, std::string_view rule, std::string_view why) {
  Rcode rcode = Rcode::nxdomain;
  if (settings_->denied == DeniedAnswer::refused) rcode = Rcode::refused;
  if (settings_->denied == DeniedAnswer::nodata) rcode = Rcode::noerror;
  reply(asked, {.verdict = SLUICE_QUERY_DENIED,
                .rcode = rcode,
                .extended = ede::blocked,
                .rule = rule,
                .reason = why,
                .flags = asked.decision ? std::uint8_t{SLUICE_QUERY_DECIDED} : std::uint8_t{0}});
}

void Engine::fail(Asked& asked, std::uint16_t extended, std::string_view why) {
  reply(asked, {.verdict = SLUICE_QUERY_FAILED,
                .rcode = Rcode::servfail,
                .extended = extended,
                .reason = why});
}

void Engine::reply(Asked& asked, const Told& told) {
  ReplyOptions options;
  if (told.extended != SLUICE_NO_EXTENDED_ERROR)
    options.ede = ExtendedError{.code = told.extended, .text = told.reason};
  const std::size_t size =
      make_reply(asked.query, told.rcode, options, around_.outlet.room(asked.client));
  if (size == 0)
    around_.outlet.drop(asked.client);
  else
    around_.outlet.send(asked.client, size);
  report(asked, told);
}

void Engine::report(const Asked& asked, const Told& told) {
  ++counters_.by_verdict[told.verdict];
  auto& report = reports_.add(asked.question().name);
  report.type = asked.question().type;
  report.response_code = static_cast<std::uint16_t>(told.rcode);
  report.attachment = asked.tenant.state.attachment;
  report.time = static_cast<std::uint64_t>(boot_.time_since_epoch().count());
  report.verdict = static_cast<std::uint8_t>(told.verdict);
  report.flags = static_cast<std::uint8_t>(told.flags | (asked.cached ? SLUICE_QUERY_CACHED : 0u) |
                                           (asked.client.by_stream ? SLUICE_QUERY_STREAM : 0u));
  report.extended_error = told.extended;
  report.rule = {told.rule.data(), told.rule.size()};
  report.reason = {told.reason.data(), told.reason.size()};
  report.upstream = {asked.upstream.data(), asked.upstream.size()};
  report.decision_ns = asked.decision_ns;
  report.upstream_ns = asked.upstream_ns;
  report.push_ns = asked.push_ns;
  if (!told.addresses.empty()) reports_.set_addresses(report, told.addresses);
  if (asked.decision) reports_.flush();  // the reason is the decision's, which may end now
}

}  // namespace sluice::dns
