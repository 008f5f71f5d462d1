#include "dns/engine.hpp"

#include <array>
#include <chrono>
#include <span>
#include <utility>

#include "dns/upstream_query.hpp"

namespace sluice::dns {
namespace {

using std::chrono::nanoseconds;
using std::chrono::seconds;

constexpr std::uint64_t kSecond = 1'000'000'000;
constexpr std::uint64_t kHold = 2 * kSecond;  // then an unknown attachment stays unknown
// A client asks again after five; what waited for its attachment or for a decision has less left.
constexpr std::uint64_t kLastWord = 4'800'000'000;
constexpr std::string_view kTooManyWait = "too many questions wait";

// The message is no use as a question about data.
bool is_meta(std::uint16_t type) {
  return type == 0 || type == type::opt || (type >= 249 && type < type::any);
}

std::string_view says(UpstreamFailure why) {
  switch (why) {
    case UpstreamFailure::timed_out:
    case UpstreamFailure::cut_short:
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

}  // namespace

Engine::Engine(const Surroundings& around, SettingsPtr settings, std::uint64_t now)
    : around_(around),
      settings_(std::move(settings)),
      now_{.monotonic = now},
      upstream_(settings_->upstream, around.epoll, around.timers, *this, now),
      replies_(around.outlet, around.host, now_, settings_->denied),
      release_(around.host, around.pushes, around.own_addresses, trimmer_, replies_, now_,
               settings_),
      decisions_(around.host, around.timers, around.worker, upstream_.random()),
      in_flight_(upstream_.random()) {}

Engine::~Engine() = default;

void Engine::set_time(std::uint64_t now, std::uint64_t boot) {
  now_ = {.monotonic = now, .boot = sdk::Time(nanoseconds(boot))};
}

void Engine::flush() {
  upstream_.flush(now_.monotonic);
  replies_.flush();
}

void Engine::reconfigure(SettingsPtr settings) {
  const bool other_servers = settings->upstream.servers != settings_->upstream.servers;
  settings_ = std::move(settings);
  replies_.flush();  // the reports speak of the former servers
  upstream_.reconfigure(settings_->upstream, now_.monotonic);
  // What the former ones said, or could not say. Each worker does it when no answer of theirs can
  // come to it any more, so with the last of them all is gone.
  if (other_servers) around_.cache.clear();
  replies_.set_denied(settings_->denied);
  release_.reconfigure(settings_);
}

void Engine::on_timer(const TimerWheel::Entry& entry) {
  switch (static_cast<TimerKind>(entry.kind)) {
    case TimerKind::exchange:
    case TimerKind::upstream_stream:
      return upstream_.on_timer(entry, now_.monotonic);
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

// ---- attachments --------------------------------------------------------------------------------

Tenant* Engine::tenant(std::uint64_t attachment) {
  const auto found = tenants_.find(attachment);
  return found == tenants_.end() ? nullptr : &found->second;
}

void Engine::set_tenant(const TenantState& state) {
  replies_.flush();  // the reports speak of the former rules' patterns
  auto& tenant = tenants_[state.attachment];
  // What a decider said was said beside the rules of that time.
  tenant =
      Tenant{.state = state, .decisions = {}, .no_decider_until = {}, .dropped = tenant.dropped};
  if (!held_.empty() && !is_unsettled(tenant)) let_go(state.attachment, now_.monotonic);
}

void Engine::remove_tenant(std::uint64_t attachment) {
  replies_.flush();
  tenants_.erase(attachment);
}

// No rules may mean that its source has not spoken yet: an answer would be a wrong one.
bool Engine::is_unsettled(const Tenant& tenant) const {
  return now_.boot < tenant.state.settled &&
         (!tenant.state.rules || tenant.state.rules->size() == 0);
}

void Engine::hold(std::uint64_t attachment, const Client& client, Bytes message) {
  if (!held_.hold(attachment, client, message, now_.monotonic)) return around_.outlet.drop(client);
  around_.timers.add({.due = now_.monotonic + kHold,
                      .kind = static_cast<std::uint32_t>(TimerKind::held),
                      .index = 0,
                      .generation = now_.monotonic});
}

void Engine::let_go(std::uint64_t attachment, std::uint64_t until) {
  for (const auto& held : held_.take(attachment, until)) {
    if (tenants_.contains(held.attachment))
      ask(held.attachment, held.client, held.message, held.arrived);
    else
      around_.outlet.drop(held.client);
  }
}

// ---- a question comes in ------------------------------------------------------------------------

void Engine::ask(std::uint64_t attachment, const Client& client, Bytes message) {
  ask(attachment, client, message, now_.monotonic);
}

void Engine::ask(std::uint64_t attachment, const Client& client, Bytes message,
                 std::uint64_t arrived) {
  ++queries_;
  auto* const tenant = this->tenant(attachment);
  if (tenant == nullptr || is_unsettled(*tenant)) return hold(attachment, client, message);
  AttachmentBudget::Place place;
  if (tenant->state.budget) {
    place = tenant->state.budget->admit(now_.boot);
    if (!place && place.cap() == Cap::rate) return drop_unread(*tenant, client);
  }

  const auto query = read_query(message);
  if (!query) return replies_.refuse_message(client, message, query.error());
  Asked asked{.query = *query, .client = client, .tenant = *tenant, .arrived = arrived};
  if (tenant->state.budget && !place)
    return replies_.reply(asked, {.verdict = SLUICE_QUERY_LIMITED,
                                  .rcode = Rcode::servfail,
                                  .extended = ede::other,
                                  .reason = describe(place.cap())});
  const auto& question = asked.question();
  if (question.klass != kClassIn)
    return replies_.reply(asked, {.verdict = SLUICE_QUERY_INVALID,
                                  .rcode = Rcode::refused,
                                  .extended = ede::not_supported,
                                  .reason = "only class IN is served"});
  if (is_meta(question.type))
    return replies_.reply(
        asked,
        {.verdict = SLUICE_QUERY_INVALID,
         .rcode = question.type == type::opt || question.type == 0 ? Rcode::formerr : Rcode::notimp,
         .extended = ede::not_supported,
         .reason = "no such type of question is served"});
  decide(asked, std::move(place));
}

// A flood: answering it would be work as well. One report for all of a second, or it were a flood
// of reports.
void Engine::drop_unread(Tenant& tenant, const Client& client) {
  if (tenant.dropped++ == 0)
    around_.timers.add({.due = now_.monotonic + kSecond,
                        .kind = static_cast<std::uint32_t>(TimerKind::dropped),
                        .index = 0,
                        .generation = tenant.state.attachment});
  around_.outlet.drop(client);
}

void Engine::report_dropped(std::uint64_t attachment) {
  if (auto* const tenant = this->tenant(attachment))
    replies_.report_dropped(attachment, std::exchange(tenant->dropped, 0u));
}

// ---- what it may do -----------------------------------------------------------------------------

Ruling Engine::ruling_on(const Asked& asked, bool may_ask) const {
  return rule_on(asked.tenant, asked.question().name, asked.decision.get(), may_ask, now_.boot);
}

bool Engine::turned_away(Asked& asked, const Ruling& ruling) {
  if (ruling.kind == Ruling::deny) {
    replies_.deny(asked, ruling.rule, ruling.why);
    return true;
  }
  if (lets_type(asked.tenant, ruling, asked.question().type, settings_->types) ||
      asked.tenant.state.audit)
    return false;
  replies_.filter_type(asked, ruling);
  return true;
}

void Engine::decide(Asked& asked, AttachmentBudget::Place place) {
  auto ruling = ruling_on(asked, true);
  if (ruling.kind == Ruling::ask) {
    asked.decision = decisions_.kept(asked.tenant, asked.question(), now_.boot);
    if (!asked.decision) return ask_decider(asked, std::move(place));
    ruling = ruling_on(asked, false);
  }
  go_on(asked, ruling, std::move(place));
}

void Engine::go_on(Asked& asked, const Ruling& ruling, AttachmentBudget::Place place) {
  if (turned_away(asked, ruling)) return;
  if (ruling.kind == Ruling::decided && !asked.decision->addresses.empty())
    return release_.release_decided(asked, ruling);
  resolve(asked, ruling, std::move(place));
}

void Engine::ask_decider(Asked& asked, AttachmentBudget::Place place) {
  const auto last = asked.arrived + kLastWord;
  const auto left = last > now_.monotonic ? last - now_.monotonic : 0;
  const auto [result, line] =
      decisions_.ask(asked, std::min<std::uint64_t>(settings_->decider_deadline, left), now_);
  switch (result) {
    case AskResult::no_decider:
      return go_on(asked, ruling_on(asked, false), std::move(place));
    case AskResult::down:
      return replies_.fail(asked, ede::not_ready,
                           "the decider of this workload takes no question now");
    case AskResult::asked:
      return wait(*line, asked, std::move(place));
  }
}

void Engine::decided(std::uint64_t query_id, const DecisionPtr& decision) {
  const auto open = decisions_.close(query_id);
  if (!open) return;
  const bool spoken = decision && decision->action != sdk::Decision::Action::none;
  auto* const tenant = this->tenant(open->attachment);
  const bool stands = tenant != nullptr && tenant->state.pushes.stamp == open->stamp;
  if (stands && spoken) decisions_.keep(*tenant, *open, decision, now_.boot);
  serve(open->line, [&](Asked& asked, AttachmentBudget::Place place) {
    asked.decision_ns = now_.monotonic - open->asked_at;
    // Another may be asked by now. It has what is left of the time.
    if (!stands) return decide(asked, std::move(place));
    if (!spoken) {
      // Closed, but not for good: the asker may try again.
      return replies_.fail(asked, ede::not_ready,
                           decision && !decision->reason.empty()
                               ? std::string_view(decision->reason)
                               : "no decision came in time");
    }
    asked.decision = decision;
    decide(asked, std::move(place));
  });
  replies_.flush();  // the reports may speak in the decision's words, which end with it
}

// ---- memory and upstream ------------------------------------------------------------------------

void Engine::resolve(Asked& asked, const Ruling& ruling, AttachmentBudget::Place place) {
  const UpstreamQuestion question{.name = asked.question().name,
                                  .type = asked.question().type,
                                  .checking_disabled = asked.query.header().checking_disabled(),
                                  .dnssec_ok = asked.query.edns().dnssec_ok};
  if (const auto found = around_.cache.find(
          {question.name, question.type, kClassIn, question.dnssec_ok, question.checking_disabled},
          sdk::AttachmentId{asked.attachment()}, now_.boot)) {
    asked.cached = true;
    return release_.release(asked, ruling, *found);
  }
  const std::uint64_t key = in_flight_.key_of(question);
  if (auto* const same = in_flight_.find(key, question))
    return wait(same->line, asked, std::move(place));
  if (const Cap cap = charge(asked, ruling); cap != Cap::none)
    return replies_.reply(asked, {.verdict = SLUICE_QUERY_LIMITED,
                                  .rcode = Rcode::servfail,
                                  .extended = ede::other,
                                  .rule = ruling.rule,
                                  .reason = describe(cap)});
  ask_upstream(asked, ruling, question, key, std::move(place));
}

Cap Engine::charge(const Asked& asked, const Ruling& ruling) const {
  const auto& state = asked.tenant.state;
  if (!state.budget) return Cap::none;
  const Cap cap = state.budget->ask_upstream(now_.boot);
  if (cap != Cap::none || ruling.kind != Ruling::rules || !ruling.match.wildcard) return cap;
  return state.budget->ask_name(state.rules->base_key(ruling.match), asked.question().name,
                                now_.boot);
}

void Engine::ask_upstream(Asked& asked, const Ruling& ruling, const UpstreamQuestion& question,
                          std::uint64_t key, AttachmentBudget::Place place) {
  std::array<std::uint8_t, kUpstreamQueryRoom> query;
  const std::size_t size = make_upstream_query(question, 0, CaseBits{}, query);
  const std::uint32_t token = in_flight_.take();
  auto& line = in_flight_.at(token).line;
  if (!waiting_.join(line, asked, std::move(place))) {
    in_flight_.give_back(token);
    return replies_.fail(asked, ede::other, kTooManyWait);
  }
  if (!upstream_.ask(token, std::span(query).first(size), question.name.size() + 4, now_.monotonic,
                     asked.arrived + kLastWord)) {
    in_flight_.give_back(token);
    return serve(line, [&](Asked& waiting, AttachmentBudget::Place) {
      replies_.fail(waiting, ede::other, says(UpstreamFailure::overloaded));
    });
  }
  in_flight_.announce(token, key, question,
                      {.attachment = sdk::AttachmentId{asked.attachment()},
                       .by_wildcard = ruling.kind != Ruling::rules || ruling.match.wildcard},
                      now_.monotonic);
}

void Engine::upstream_failed(std::uint32_t token, UpstreamFailure why) {
  switch (why) {
    case UpstreamFailure::cut_short:
      return fail_line(token, ede::no_reachable_authority, says(why), {});
    case UpstreamFailure::timed_out:
      return settle_failed(token, AnswerCache::Failure::silence, ede::no_reachable_authority,
                           says(why), {});
    case UpstreamFailure::refused:
    case UpstreamFailure::overloaded:
      return settle_failed(token, AnswerCache::Failure::silence, ede::network_error, says(why), {});
    case UpstreamFailure::garbled:
      return settle_failed(token, AnswerCache::Failure::answer, ede::network_error, says(why), {});
  }
}

void Engine::upstream_answered(std::uint32_t token, std::span<const std::uint8_t> message,
                               std::string_view server) {
  const auto& out = in_flight_.at(token);
  auto kept = trimmer_.keep(
      message, out.dnssec_ok,
      {.most_ttl = settings_->most_ttl, .most_negative_ttl = settings_->most_negative_ttl});
  if (!kept)
    return settle_failed(token, AnswerCache::Failure::answer, ede::invalid_data, kept.error(),
                         server);
  const auto answer = around_.cache.store(out.cache_key(), std::move(kept->answer), out.origin,
                                          seconds(kept->ttl), now_.boot);
  settle(token, *answer, server);
}

void Engine::settle(std::uint32_t token, const CachedAnswer& answer, std::string_view server) {
  const auto [line, asked_at] = in_flight_.end(token);
  const std::uint64_t took = now_.monotonic - asked_at;
  serve(line, [&](Asked& asked, AttachmentBudget::Place place) {
    asked.upstream_ns = took;
    asked.upstream = server;
    const auto ruling = ruling_on(asked, asked.lapsed);
    if (ruling.kind == Ruling::ask) return decide(asked, std::move(place));
    if (!turned_away(asked, ruling)) release_.release(asked, ruling, answer);
  });
}

void Engine::settle_failed(std::uint32_t token, AnswerCache::Failure kind, std::uint16_t extended,
                           std::string_view why, std::string_view server) {
  const auto& out = in_flight_.at(token);
  CachedAnswer failure;
  failure.kind = CachedAnswer::Kind::failure;
  // A good answer that is still valid outlives the failure of asking again.
  const auto kept =
      around_.cache.store_failure(out.cache_key(), kind, std::move(failure), out.origin, now_.boot);
  if (kept && kept->kind != CachedAnswer::Kind::failure) return settle(token, *kept, server);
  fail_line(token, extended, why, server);
}

void Engine::fail_line(std::uint32_t token, std::uint16_t extended, std::string_view why,
                       std::string_view server) {
  const auto [line, asked_at] = in_flight_.end(token);
  const std::uint64_t took = now_.monotonic - asked_at;
  serve(line, [&](Asked& asked, AttachmentBudget::Place) {
    asked.upstream_ns = took;
    asked.upstream = server;
    replies_.fail(asked, extended, why);
  });
}

// ---- waiting ------------------------------------------------------------------------------------

void Engine::wait(Line& line, Asked& asked, AttachmentBudget::Place place) {
  if (!waiting_.join(line, asked, std::move(place))) replies_.fail(asked, ede::other, kTooManyWait);
}

template <typename Each>
void Engine::serve(Line line, Each each) {
  waiting_.serve(line, [&](WaitingRoom::Waiter& waiter) {
    auto* const tenant = this->tenant(waiter.attachment);
    const auto query = read_query(waiter.query());
    if (tenant == nullptr || !query) return around_.outlet.drop(waiter.client);
    auto decision = std::move(waiter.decision);
    const bool lapsed = decision && waiter.stamp != tenant->state.pushes.stamp;
    if (lapsed) decision.reset();
    Asked asked{.query = *query,
                .client = waiter.client,
                .tenant = *tenant,
                .decision = std::move(decision),
                .lapsed = lapsed,
                .arrived = waiter.arrived,
                .decision_ns = waiter.decision_ns};
    each(asked, std::move(waiter.place));
  });
}

}  // namespace sluice::dns
