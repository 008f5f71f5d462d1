#include "dns/replies.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>

#include "dns/patch.hpp"

namespace sluice::dns {
namespace {

using std::chrono::seconds;

std::uint32_t whole_seconds(std::chrono::nanoseconds time) {
  return static_cast<std::uint32_t>(
      std::max<std::int64_t>(0, std::chrono::floor<seconds>(time).count()));
}

// Bytes that the asker takes.
std::uint16_t limit_of(const Asked& asked) {
  if (asked.client.by_stream) return 65'535;
  const auto& edns = asked.query.edns();
  return edns.present ? std::min(edns.udp_size, kUdpPayload) : std::uint16_t{512};
}

}  // namespace

bool Replies::fits(const Asked& asked, Bytes message) const {
  return message.size() + (asked.query.edns().present ? kOptSize : 0) <= limit_of(asked);
}

void Replies::give_truncated(Asked& asked, const Ruling& ruling) {
  const Room room = outlet_.room(asked.client);
  const std::size_t size = make_truncated_reply(asked.query, room);
  if (size == 0) return outlet_.drop(asked.client);
  report_given(asked, ruling, static_cast<std::uint8_t>(Header(room).rcode()), {});
  send(asked, size);
}

void Replies::send(const Asked& asked, std::size_t size) {
  if (size == 0)
    outlet_.drop(asked.client);
  else
    outlet_.send(asked.client, size);
  if (asked.decision) reports_.flush();  // their reason is the decision's, which may end now
}

// Sending comes last: on a stream it may take the next question in, and what was looked at here is
// that one's then.
void Replies::give(Asked& asked, const Ruling& ruling, const CachedAnswer& answer, Bytes message,
                   std::span<const std::uint16_t> ttl_offsets,
                   std::span<const sdk::Address> refused) {
  const auto& edns = asked.query.edns();
  const Room room = outlet_.room(asked.client);
  std::size_t size = message.size() + (edns.present ? kOptSize : 0);
  if (!fits(asked, message) || size > room.size()) {
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
    // Never longer than a rule keeps the addresses open.
    const auto ends = std::min(answer.expires, end_of(asked.tenant, ruling));
    age_ttls(written, ttl_offsets, whole_seconds(now_.boot - answer.stored),
             whole_seconds(ends - now_.boot));
    size = message.size();
    if (edns.present) size = append_opt(room, size, {.dnssec_ok = edns.dnssec_ok});
  }
  if (size == 0) return outlet_.drop(asked.client);

  std::array<sdk::Address, 16> given;
  std::size_t count = 0;
  for (const auto& grant : answer.grants) {
    if (count == given.size()) break;
    if (!std::ranges::binary_search(refused, grant.address)) given[count++] = grant.address;
  }
  report_given(asked, ruling, static_cast<std::uint8_t>(Header(room).rcode()),
               std::span(given).first(count));
  send(asked, size);
}

void Replies::report_given(const Asked& asked, const Ruling& ruling, std::uint8_t rcode,
                           std::span<const sdk::Address> addresses) {
  const bool audited = ruling.kind == Ruling::audited;
  report(asked, {.verdict = audited ? SLUICE_QUERY_DENIED : SLUICE_QUERY_ALLOWED,
                 .rcode = static_cast<Rcode>(rcode),
                 .rule = ruling.rule,
                 .reason = ruling.why,
                 .addresses = addresses,
                 .flags = static_cast<std::uint8_t>(
                     (audited ? SLUICE_QUERY_AUDITED : 0u) |
                     (ruling.kind == Ruling::decided ? SLUICE_QUERY_DECIDED : 0u))});
}

void Replies::give_addresses(Asked& asked, std::span<const sdk::Address> addresses,
                             std::uint32_t ttl) {
  const Room room = outlet_.room(asked.client);
  const std::size_t size = make_address_reply(
      asked.query, addresses, ttl, room.first(std::min<std::size_t>(room.size(), limit_of(asked))));
  if (size == 0) return outlet_.drop(asked.client);
  report(asked, {.verdict = SLUICE_QUERY_ALLOWED,
                 .rcode = Rcode::noerror,
                 .reason = asked.decision->reason,
                 .addresses = addresses,
                 .flags = SLUICE_QUERY_DECIDED});
  send(asked, size);
}

void Replies::reply(Asked& asked, const Told& told) {
  ReplyOptions options;
  if (told.extended != SLUICE_NO_EXTENDED_ERROR)
    options.ede = ExtendedError{.code = told.extended, .text = told.reason};
  const std::size_t size = make_reply(asked.query, told.rcode, options, outlet_.room(asked.client));
  report(asked, told);
  send(asked, size);
}

void Replies::deny(Asked& asked, std::string_view rule, std::string_view why) {
  Rcode rcode = Rcode::nxdomain;
  if (denied_ == DeniedAnswer::refused) rcode = Rcode::refused;
  if (denied_ == DeniedAnswer::nodata) rcode = Rcode::noerror;
  reply(asked, {.verdict = SLUICE_QUERY_DENIED,
                .rcode = rcode,
                .extended = ede::blocked,
                .rule = rule,
                .reason = why,
                .flags = asked.decision ? std::uint8_t{SLUICE_QUERY_DECIDED} : std::uint8_t{0}});
}

void Replies::filter_type(Asked& asked, const Ruling& ruling) {
  reply(asked, {.verdict = SLUICE_QUERY_FILTERED,
                .rcode = Rcode::noerror,
                .extended = ede::filtered,
                .rule = ruling.rule,
                .reason = "this type of record is not let through"});
}

void Replies::fail(Asked& asked, std::uint16_t extended, std::string_view why) {
  reply(asked, {.verdict = SLUICE_QUERY_FAILED,
                .rcode = Rcode::servfail,
                .extended = extended,
                .reason = why});
}

void Replies::refuse_message(const Client& client, Bytes message, QueryFault fault) {
  if (!fault.answer) return outlet_.drop(client);
  const std::size_t size = make_fault_reply(message, fault, outlet_.room(client));
  if (size == 0)
    outlet_.drop(client);
  else
    outlet_.send(client, size);
}

void Replies::report(const Asked& asked, const Told& told) {
  auto& report = reports_.add(asked.question().name);
  report.type = asked.question().type;
  report.response_code = static_cast<std::uint16_t>(told.rcode);
  report.attachment = asked.attachment();
  report.time = static_cast<std::uint64_t>(now_.boot.time_since_epoch().count());
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
}

void Replies::report_dropped(std::uint64_t attachment, std::uint32_t count) {
  auto& report = reports_.add(Name());
  report.attachment = attachment;
  report.time = static_cast<std::uint64_t>(now_.boot.time_since_epoch().count());
  report.verdict = SLUICE_QUERY_LIMITED;
  report.count = count;
  const auto why = describe(Cap::rate);
  report.reason = {why.data(), why.size()};
}

}  // namespace sluice::dns
