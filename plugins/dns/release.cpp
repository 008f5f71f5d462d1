#include "dns/release.hpp"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>

namespace sluice::dns {
namespace {

using std::chrono::nanoseconds;
using std::chrono::seconds;

// A question whose push looks at more addresses than this counts for as many questions as it is
// times this: one that opens 4,000 addresses is as much work as a flood.
constexpr std::size_t kAddressesPerQuery = 16;

}  // namespace

void Release::release(Asked& asked, const Ruling& ruling, const CachedAnswer& answer) {
  if (answer.kind == CachedAnswer::Kind::failure)
    return replies_.fail(asked, ede::no_reachable_authority,
                         "it could not be resolved a moment ago");
  const bool must_push = ruling.grants() && !answer.grants.empty();

  const auto left = std::max(answer.expires - now_.boot, nanoseconds::zero());
  const nanoseconds sent = std::chrono::floor<seconds>(left), floor{settings_->floor};
  const auto stay = std::max(sent, floor) + nanoseconds(settings_->grace);
  // What stands in the kernel for long enough was judged under these rules: nothing more to do.
  if (must_push && ruling.kind == Ruling::rules &&
      memory_.suffices(sdk::AttachmentId{asked.attachment()}, answer.id, now_.boot + stay))
    return replies_.give_whole(asked, ruling, answer);

  if (const auto link = denied_link(asked.tenant, answer, now_.boot)) {
    constexpr std::string_view kWhy = "a rule denies a name that it is an alias of";
    if (!asked.tenant.state.audit) return replies_.deny(asked, *link, kWhy);
    return replies_.give_whole(asked, {.kind = Ruling::audited, .why = kWhy, .rule = *link},
                               answer);
  }
  if (!must_push) return replies_.give_whole(asked, ruling, answer);
  // It will come again by TCP, and get the addresses there: opening them twice is work for nothing.
  if (!replies_.fits(asked, answer.message)) return replies_.give_truncated(asked, ruling);
  // With a short TTL the floor moves on with each answer; a little more at once spares most pushes.
  push_and_give(asked, ruling, answer, stay, sent < floor ? floor / 2 : nanoseconds::zero());
}

int Release::push(Asked& asked, const Ruling& ruling, const CachedAnswer* answer,
                  nanoseconds stay) {
  const int error = pusher_.push(asked, ruling, answer, stay, nanoseconds(settings_->live_flows));
  if (const auto& budget = asked.tenant.state.budget; budget)
    budget->spend(pusher_.looked_at() / kAddressesPerQuery, now_.boot);
  return error;
}

void Release::push_and_give(Asked& asked, const Ruling& ruling, const CachedAnswer& answer,
                            nanoseconds stay, nanoseconds more) {
  pusher_.begin();
  Reserved why = Reserved::ordinary;  // of the last that was refused
  for (const auto& grant : answer.grants)
    if (const auto verdict = pusher_.offer(asked, ruling, grant.address);
        verdict != Reserved::ordinary)
      why = verdict;
  if (!pusher_.granted().empty()) {
    const int error = push(asked, ruling, &answer, stay + more);
    if (error == ESTALE) return replies_.fail(asked, ede::not_ready, "the rules are changing");
    if (error != 0) return replies_.fail(asked, ede::other, "the addresses could not be opened");
  }
  if (!pusher_.any_refused()) {
    if (ruling.kind == Ruling::rules) remember(asked, ruling, answer, now_.boot + stay + more);
    return replies_.give_whole(asked, ruling, answer);
  }
  if (asked.tenant.state.audit) return replies_.give_whole(asked, ruling, answer);
  give_rest(asked, ruling, answer,
            why != Reserved::ordinary ? describe(why) : "an explicit rule denies its address");
}

// As long as each of the rules that decided stands.
void Release::remember(const Asked& asked, const Ruling& ruling, const CachedAnswer& answer,
                       sdk::Time until) {
  const auto& state = asked.tenant.state;
  for (const auto number : ruling.match.rules)
    if (const auto& ends = state.rules->rule(number).expires) until = std::min(until, *ends);
  memory_.record(sdk::AttachmentId{state.attachment}, state.pushes, answer.id, until);
}

void Release::give_rest(Asked& asked, const Ruling& ruling, const CachedAnswer& answer,
                        std::string_view why) {
  const auto filtered = [&] {
    replies_.reply(asked, {.verdict = SLUICE_QUERY_FILTERED,
                           .rcode = Rcode::noerror,
                           .extended = ede::filtered,
                           .rule = ruling.rule,
                           .reason = why});
  };
  // Records of these types may say something without an address.
  const auto asked_type = asked.question().type;
  if (pusher_.granted().empty() && asked_type != type::https && asked_type != type::svcb)
    return filtered();
  const auto refused = pusher_.sorted_refused();
  const auto rest = trimmer_.without(answer, refused);
  if (!rest) return replies_.fail(asked, ede::invalid_data, "the upstream's answer does not read");
  if (rest->data_records == 0) return filtered();
  replies_.give(asked, ruling, answer, rest->message, rest->ttl_offsets, refused);
}

void Release::release_decided(Asked& asked, const Ruling& ruling) {
  const auto& decision = *asked.decision;
  const auto wanted = asked.question().type;
  pusher_.begin();
  for (const auto& address : decision.addresses)
    if (wanted == (address.family == 4 ? type::a : type::aaaa))
      pusher_.offer(asked, ruling, address);
  const seconds ttl{
      std::min<std::uint64_t>(static_cast<std::uint64_t>(std::max<std::int64_t>(
                                  0, std::chrono::floor<seconds>(decision.address_ttl).count())),
                              settings_->most_ttl)};
  if (!pusher_.granted().empty()) {
    const auto stay = std::max<nanoseconds>(ttl, nanoseconds(settings_->floor));
    const int error = push(asked, ruling, nullptr, stay + nanoseconds(settings_->grace));
    if (error != 0) return replies_.fail(asked, ede::other, "the addresses could not be opened");
  }
  if (pusher_.granted().empty() && pusher_.any_refused())
    return replies_.reply(asked, {.verdict = SLUICE_QUERY_FILTERED,
                                  .rcode = Rcode::noerror,
                                  .extended = ede::filtered,
                                  .reason = "none of its addresses may be opened",
                                  .flags = SLUICE_QUERY_DECIDED});
  replies_.give_addresses(asked, pusher_.granted(), static_cast<std::uint32_t>(ttl.count()));
}

}  // namespace sluice::dns
