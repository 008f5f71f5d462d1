// Whatever a guest calls things, a record has the fields it was given and no others.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <optional>

#include "journal/event.hpp"

using namespace sluice;
using namespace sluice::journal;

namespace {

// As journald reads a datagram. Absent: it would refuse it.
std::optional<std::multimap<std::string, std::string>> fields_of(std::string_view datagram) {
  std::multimap<std::string, std::string> fields;
  while (!datagram.empty()) {
    const auto end = datagram.find('\n');
    if (end == std::string_view::npos) return std::nullopt;
    const auto line = datagram.substr(0, end);
    datagram.remove_prefix(end + 1);
    if (const auto equals = line.find('='); equals != std::string_view::npos) {
      fields.emplace(line.substr(0, equals), line.substr(equals + 1));
      continue;
    }
    if (datagram.size() < 8) return std::nullopt;
    std::uint64_t length = 0;
    for (int i = 7; i >= 0; --i) length = length << 8 | static_cast<unsigned char>(datagram[i]);
    datagram.remove_prefix(8);
    if (datagram.size() < length + 1 || datagram[length] != '\n') return std::nullopt;
    fields.emplace(line, datagram.substr(0, length));
    datagram.remove_prefix(length + 1);
  }
  return fields;
}

const std::string_view kHostile[] = {
    "a\nPRIORITY=0\nMESSAGE=root logged in.example",
    "a\r\n{\"event\":\"denial\"}",
    "\",\"verdict\":\"allowed\",\"x\":\"",
    "\\\",\\\"verdict\\\":\\\"allowed",
    std::string_view("nul\0byte", 8),
    "\x1b[2J\x1b]0;owned\x07",
    "\xe2\x80\xae"
    "txt.exe",           // right-to-left override
    "\xc0\xaf\xff\xfe",  // no UTF-8
    "\xe2\x80\xa8line separator",
    "=",
    "\n",
    "",
};

Clocks clocks() {
  return {Time(std::chrono::seconds(100)), WallTime(std::chrono::seconds(1'000'000'000))};
}

}  // namespace

TEST_CASE("text from outside is printable ASCII afterwards, and short") {
  CHECK(clean("pypi.org") == "pypi.org");
  CHECK(clean("a\nb") == "a\\x0ab");
  CHECK(clean("\xc3\xa4") == "\\xc3\\xa4");
  CHECK(clean("a\\.b") == "a\\.b");
  CHECK(clean("abcdef", 3) == "abc...");
  CHECK(clean("a\n\n", 6) == "a\\x0a...");
  for (const auto text : kHostile)
    for (const char c : clean(text)) CHECK((c >= 0x20 && c < 0x7f));
}

TEST_CASE("hostile text forges neither a line nor a field") {
  Labels labels{{"vm\nPRIORITY=0", "x\",\"y"}, {"tenant", "t\n"}};
  AttachmentInfo info;
  info.target = InterfaceTarget{.name = "tap0\nMESSAGE=x", .ifindex = 7};
  info.labels = labels;
  const auto workload = workload_of(info);
  for (const auto text : kHostile) {
    CAPTURE(clean(text));
    const QueryReport report{.attachment = {7},
                             .name = text,
                             .verdict = QueryVerdict::denied,
                             .rule = text,
                             .reason = text,
                             .upstream = text};
    const Denial denial{.attachment = {7},
                        .reason = std::string(text),
                        .source = Address::parse("10.0.0.2"),
                        .destination = Address::parse("10.0.0.1"),
                        .rule = std::string(text)};
    for (const auto& event : {Event::of(report, workload), Event::of(denial, workload)}) {
      const auto record = record_of(event, clocks());
      const auto line = json_line(record);
      for (const char c : line) REQUIRE((c >= 0x20 && c < 0x7f));
      // A string ends where an even number of backslashes stands before the quote.
      std::size_t quotes = 0;
      for (std::size_t i = 0, slashes = 0; i < line.size(); ++i) {
        if (line[i] == '"' && slashes % 2 == 0) ++quotes;
        slashes = line[i] == '\\' ? slashes + 1 : 0;
      }
      std::size_t strings = 2 * record.labels.size() + (record.labels.empty() ? 0 : 1);
      for (const auto& [key, value] : record.fields)
        strings += std::holds_alternative<std::string>(value) ? 2 : 1;
      CHECK(quotes == 2 * strings);

      const auto fields = fields_of(journald_datagram(record));
      REQUIRE(fields);
      CHECK(fields->size() == 4 + record.fields.size() + record.labels.size());
      CHECK(fields->count("PRIORITY") == 1);
      CHECK(fields->find("PRIORITY")->second == "5");
      CHECK(fields->count("MESSAGE") == 1);
      for (const auto& [name, value] : *fields)
        CHECK(std::ranges::all_of(name, [](char c) {
          return (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
        }));
    }
  }
}

TEST_CASE("a value that was not cleaned is held all the same") {
  Record record;
  record.message = "a\nPRIORITY=0";
  record.fields.emplace_back("name", std::string("x\"\n\xff"));
  CHECK(json_line(record) == "{\"name\":\"x\\\"\\u000a\\u00ff\"}");
  const auto fields = fields_of(journald_datagram(record));
  REQUIRE(fields);
  CHECK(fields->find("MESSAGE")->second == "a\nPRIORITY=0");
  CHECK(fields->count("PRIORITY") == 1);
}

TEST_CASE("a query says what became of it") {
  const std::array given{Address::parse("192.0.2.7"), Address::parse("2001:db8::7")};
  const QueryReport report{.attachment = {0x1a2b},
                           .time = Time(std::chrono::milliseconds(99'500)),
                           .name = "files.pypi.org",
                           .type = 28,
                           .verdict = QueryVerdict::allowed,
                           .cached = true,
                           .count = 2,
                           .rule = ".pypi.org",
                           .upstream = "192.0.2.53:53",
                           .addresses = given,
                           .push_time = std::chrono::microseconds(3)};
  AttachmentInfo info;
  info.target = CgroupTarget{.path = "/machine.slice/a.scope"};
  info.labels = {{"class", "container"}};
  const auto record = record_of(Event::of(report, workload_of(info)), clocks());
  CHECK(json_line(record) ==
        "{\"time\":\"2001-09-09T01:46:39.500Z\",\"last\":\"2001-09-09T01:46:39.500Z\","
        "\"event\":\"query\",\"attachment\":\"1a2b\",\"target\":\"/machine.slice/a.scope\","
        "\"count\":2,\"name\":\"files.pypi.org\",\"type\":\"AAAA\",\"verdict\":\"allowed\","
        "\"rcode\":\"NOERROR\",\"cached\":true,\"rule\":\".pypi.org\","
        "\"upstream\":\"192.0.2.53:53\",\"addresses\":[\"192.0.2.7\",\"2001:db8::7\"],"
        "\"push_us\":3,\"labels\":{\"class\":\"container\"}}");
  CHECK(record.message ==
        "/machine.slice/a.scope: allowed AAAA files.pypi.org [.pypi.org] (2 times)");
  CHECK(record.priority == Priority::info);
}

TEST_CASE("a denial says who wanted where and why not") {
  const Denial denial{.attachment = {7},
                      .time = Time(std::chrono::seconds(100)),
                      .reason = "explicit deny",
                      .protocol = 6,
                      .source_port = 40000,
                      .destination_port = 22,
                      .source = Address::parse("2001:db8::2"),
                      .destination = Address::parse("2001:db8::1"),
                      .rule = "deny 2001:db8::/64"};
  const auto record = record_of(Event::of(denial, nullptr), clocks());
  CHECK(record.message ==
        "guard: denied tcp 2001:db8::2 -> [2001:db8::1]:22: explicit deny: deny 2001:db8::/64");
  const auto line = json_line(record);
  CHECK(line.find("\"destination\":\"2001:db8::1\",\"port\":22") != std::string::npos);
  CHECK(line.find("target") == std::string::npos);

  Denial frame;
  frame.source.family = frame.destination.family = 0;
  frame.ethertype = 0x88cc;
  frame.audited = true;
  frame.reason = "EtherType";
  CHECK(record_of(Event::of(frame, nullptr), clocks()).message ==
        "guard: would deny frame of EtherType 0x88cc: EtherType");
}
