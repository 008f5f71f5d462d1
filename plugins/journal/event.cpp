#include "journal/event.hpp"

#include <algorithm>
#include <ctime>

namespace sluice::journal {
namespace {

constexpr std::size_t kMostLabels = 32, kMostAddresses = 32, kLongestLabel = 128;

// One for each kind of record, made once: `journalctl MESSAGE_ID=...`.
constexpr const char* kDenialId = "6f3f5c1d9d8f4b6e8f0c0a5d1b7e42a1";
constexpr const char* kQueryId = "b1c8a7f2c9554f0a9c3b6a0f5e6d7719";
constexpr const char* kLeftOutId = "0d9a5b0e7a414c28a4c1f0f3a2c5e8d4";

struct NumberName {
  std::uint16_t number;
  const char* name;
};
template <std::size_t N>
std::string name_in(const std::array<NumberName, N>& table, std::uint16_t number,
                    const char* other) {
  const auto known = std::ranges::find(table, number, &NumberName::number);
  return known == table.end() ? other + std::to_string(number) : known->name;
}
constexpr std::array<NumberName, 20> kTypes{
    {{1, "A"},      {2, "NS"},     {5, "CNAME"},  {6, "SOA"},     {12, "PTR"},
     {15, "MX"},    {16, "TXT"},   {28, "AAAA"},  {33, "SRV"},    {35, "NAPTR"},
     {39, "DNAME"}, {43, "DS"},    {46, "RRSIG"}, {48, "DNSKEY"}, {52, "TLSA"},
     {64, "SVCB"},  {65, "HTTPS"}, {252, "AXFR"}, {255, "ANY"},   {257, "CAA"}}};
constexpr std::array<NumberName, 7> kResponseCodes{{{0, "NOERROR"},
                                                    {1, "FORMERR"},
                                                    {2, "SERVFAIL"},
                                                    {3, "NXDOMAIN"},
                                                    {4, "NOTIMP"},
                                                    {5, "REFUSED"},
                                                    {16, "BADVERS"}}};
constexpr std::array<NumberName, 8> kProtocols{{{1, "icmp"},
                                                {6, "tcp"},
                                                {17, "udp"},
                                                {33, "dccp"},
                                                {47, "gre"},
                                                {58, "icmpv6"},
                                                {132, "sctp"},
                                                {136, "udplite"}}};

std::string utc(WallTime time) {
  using namespace std::chrono;
  const auto since = duration_cast<milliseconds>(time.time_since_epoch()).count();
  const std::time_t seconds = since / 1000;
  std::tm parts{};
  ::gmtime_r(&seconds, &parts);
  char text[40];
  const auto length = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  char milli[8];
  std::snprintf(milli, sizeof milli, ".%03dZ", static_cast<int>(since % 1000));
  return std::string(text, length) + milli;
}

std::string times(std::uint64_t count) {
  return count == 1 ? "" : " (" + std::to_string(count) + " times)";
}

std::uint64_t microseconds(std::chrono::nanoseconds duration) {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(duration).count());
}

bool has_ports(std::uint8_t protocol) {
  return protocol == 6 || protocol == 17 || protocol == 33 || protocol == 132 || protocol == 136;
}

std::string endpoint(const Address& address, std::uint16_t port) {
  const auto text = address.text();
  if (port == 0) return text;
  return (address.family == 6 ? "[" + text + "]" : text) + ":" + std::to_string(port);
}

void add_common(Record& record, const Event& event, const char* kind, const Clocks& clocks) {
  auto& fields = record.fields;
  fields.emplace_back("time", utc(clocks(event.first)));
  if (event.count > 1) fields.emplace_back("last", utc(clocks(event.last)));
  fields.emplace_back("event", std::string(kind));
  if (event.attachment) {
    char text[17];
    std::snprintf(text, sizeof text, "%llx",
                  static_cast<unsigned long long>(event.attachment.value));
    fields.emplace_back("attachment", std::string(text));
  }
  if (event.workload) {
    fields.emplace_back("target", event.workload->target);
    record.labels = event.workload->labels;
  }
  fields.emplace_back("count", event.count);
}

std::string whose(const Event& event) {
  return event.workload ? event.workload->target : std::string("guard");
}

void add_denial(Record& record, const Event& event) {
  const auto& denial = event.denial;
  auto& fields = record.fields;
  const auto reason = clean(denial.reason), rule = clean(denial.rule);
  fields.emplace_back("audited", denial.audited);
  fields.emplace_back("reason", reason);
  std::string what;
  if (denial.source.family == 0) {
    char ethertype[8];
    std::snprintf(ethertype, sizeof ethertype, "0x%04x", denial.ethertype);
    fields.emplace_back("ethertype", std::string(ethertype));
    what = std::string("frame of EtherType ") + ethertype;
  } else {
    const auto protocol = name_in(kProtocols, denial.protocol, "proto/");
    const auto port = has_ports(denial.protocol) ? denial.destination_port : std::uint16_t{0};
    fields.emplace_back("protocol", protocol);
    fields.emplace_back("destination", denial.destination.text());
    if (port != 0) fields.emplace_back("port", std::uint64_t{port});
    fields.emplace_back("source", denial.source.text());
    what = protocol + " " + denial.source.text() + " -> " + endpoint(denial.destination, port);
  }
  if (!rule.empty()) fields.emplace_back("rule", rule);
  record.message = whose(event) + ": " + (denial.audited ? "would deny " : "denied ") + what +
                   ": " + reason + (rule.empty() ? "" : ": " + rule) + times(event.count);
  record.priority = Priority::notice;
}

void add_query(Record& record, const Event& event) {
  auto& fields = record.fields;
  const auto name = clean(event.name), rule = clean(event.rule), reason = clean(event.reason);
  const auto type = name_in(kTypes, event.type, "TYPE");
  const std::string verdict(to_string(event.verdict));
  fields.emplace_back("name", name);
  fields.emplace_back("type", type);
  fields.emplace_back("verdict", verdict);
  fields.emplace_back("rcode", name_in(kResponseCodes, event.response_code, ""));
  if (event.extended_error)
    fields.emplace_back("extended_error", std::uint64_t{*event.extended_error});
  for (const auto& [key, flag] :
       {std::pair("audited", event.audited), std::pair("cached", event.cached),
        std::pair("decided", event.decided), std::pair("pushed", event.pushed),
        std::pair("tcp", event.stream)})
    if (flag) fields.emplace_back(key, true);
  if (!rule.empty()) fields.emplace_back("rule", rule);
  if (!reason.empty()) fields.emplace_back("reason", reason);
  if (!event.upstream.empty()) fields.emplace_back("upstream", clean(event.upstream, 128));
  if (!event.addresses.empty()) {
    std::vector<std::string> texts;
    for (const auto& address : event.addresses) texts.push_back(address.text());
    fields.emplace_back("addresses", std::move(texts));
  }
  for (const auto& [key, duration] :
       {std::pair("decision_us", event.decision_time),
        std::pair("upstream_us", event.upstream_time), std::pair("push_us", event.push_time)})
    if (duration.count() > 0) fields.emplace_back(key, microseconds(duration));
  record.message = whose(event) + ": " + verdict + (event.audited ? " (audited) " : " ") + type +
                   " " + name + (reason.empty() ? "" : ": " + reason) +
                   (rule.empty() ? "" : " [" + rule + "]") + times(event.count);
  const bool passed = event.verdict == QueryVerdict::allowed && !event.audited;
  record.priority = passed ? Priority::info : Priority::notice;
}

}  // namespace

WorkloadPtr workload_of(const AttachmentInfo& info) {
  auto workload = std::make_shared<Workload>();
  if (const auto* interface = std::get_if<InterfaceTarget>(&info.target))
    workload->target = clean(interface->name, 256);
  else
    workload->target = clean(std::get<CgroupTarget>(info.target).path, 512);
  for (const auto& [key, value] : info.labels) {
    if (workload->labels.size() == kMostLabels) break;
    workload->labels.emplace_back(clean(key, kLongestLabel), clean(value, 2 * kLongestLabel));
  }
  return workload;
}

Event Event::of(const Denial& denial, WorkloadPtr workload) {
  Event event;
  event.kind = Kind::denial;
  event.attachment = denial.attachment;
  event.workload = std::move(workload);
  event.first = event.last = denial.time;
  event.denial = denial;
  return event;
}

Event Event::of(const QueryReport& report, WorkloadPtr workload) {
  Event event;
  event.kind = Kind::query;
  event.attachment = report.attachment;
  event.workload = std::move(workload);
  event.first = event.last = report.time;
  event.count = report.count;
  event.name = report.name;
  event.rule = report.rule;
  event.reason = report.reason;
  event.upstream = report.upstream;
  event.type = report.type;
  event.response_code = report.response_code;
  event.extended_error = report.extended_error;
  event.verdict = report.verdict;
  event.cached = report.cached;
  event.audited = report.audited;
  event.decided = report.decided;
  event.pushed = report.pushed;
  event.stream = report.stream;
  const auto shown = report.addresses.first(std::min(report.addresses.size(), kMostAddresses));
  event.addresses.assign(shown.begin(), shown.end());
  event.decision_time = report.decision_time;
  event.upstream_time = report.upstream_time;
  event.push_time = report.push_time;
  return event;
}

Record record_of(const Event& event, const Clocks& clocks) {
  Record record;
  const bool is_query = event.kind == Event::Kind::query || event.kind == Event::Kind::more_queries;
  record.message_id = is_query ? kQueryId : kDenialId;
  add_common(record, event, is_query ? "query" : "denial", clocks);
  switch (event.kind) {
    case Event::Kind::denial:
      add_denial(record, event);
      break;
    case Event::Kind::query:
      add_query(record, event);
      break;
    case Event::Kind::more_denials:
    case Event::Kind::more_queries:
      record.fields.emplace_back("further", true);
      if (is_query) record.fields.emplace_back("verdict", std::string(to_string(event.verdict)));
      record.message = whose(event) + ": " + std::to_string(event.count) + " further " +
                       (is_query ? std::string(to_string(event.verdict)) + " queries"
                                 : std::string("denied packets")) +
                       ", too various to be told one by one";
      record.priority = Priority::notice;
      break;
  }
  return record;
}

Record left_out(std::uint64_t records, std::uint64_t events, WallTime now) {
  Record record;
  record.priority = Priority::warning;
  record.message_id = kLeftOutId;
  record.message = std::to_string(records) + " records about " + std::to_string(events) +
                   " events were left out";
  record.fields.emplace_back("time", utc(now));
  record.fields.emplace_back("event", std::string("left_out"));
  record.fields.emplace_back("records", records);
  record.fields.emplace_back("count", events);
  return record;
}

}  // namespace sluice::journal
