#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dns/message.hpp"

#include <doctest/doctest.h>

#include "unit/dns/packets.hpp"

using namespace sluice::dns;
using namespace dns_test;
using namespace std::string_literals;
namespace type = sluice::dns::type;

namespace {

Build query(std::string_view asked = "www.example") {
  return Build(0x0100).question(asked, type::a);
}

std::string read_as(const Packet& packet) {
  const auto read = MessageView::parse(packet);
  return read ? "fine" : std::string(describe(read.error()));
}

std::string said(ParseError error) {
  return std::string(describe(error));
}

std::string judged(const Packet& packet) {
  const auto read = read_query(packet);
  if (read) return "query";
  if (!read.error().answer) return "drop";
  return "rcode " + std::to_string(static_cast<int>(read.error().rcode));
}

}  // namespace

TEST_CASE("the header, field by field") {
  const Packet zero(12, 0);
  struct Row {
    std::size_t byte;
    std::uint8_t bits;
    std::string name;
  };
  for (const Row& row :
       {Row{2, 0x80, "qr"}, Row{2, 0x04, "aa"}, Row{2, 0x02, "tc"}, Row{2, 0x01, "rd"},
        Row{3, 0x80, "ra"}, Row{3, 0x20, "ad"}, Row{3, 0x10, "cd"}}) {
    Packet packet = zero;
    packet[row.byte] = row.bits;
    const Header header(packet);
    CAPTURE(row.name);
    CHECK(header.response() == (row.name == "qr"));
    CHECK(header.authoritative() == (row.name == "aa"));
    CHECK(header.truncated() == (row.name == "tc"));
    CHECK(header.recursion_desired() == (row.name == "rd"));
    CHECK(header.recursion_available() == (row.name == "ra"));
    CHECK(header.authentic_data() == (row.name == "ad"));
    CHECK(header.checking_disabled() == (row.name == "cd"));
    CHECK(header.opcode() == 0);
    CHECK(header.rcode() == 0);
  }
  const Packet full = bytes("\xab\xcd\x2b\x35\1\2\3\4\5\6\7\10");
  const Header header(full);
  CHECK(header.id() == 0xabcd);
  CHECK(header.opcode() == 5);
  CHECK(header.rcode() == 5);
  CHECK(header.questions() == 0x0102);
  CHECK(header.answers() == 0x0304);
  CHECK(header.authorities() == 0x0506);
  CHECK(header.additionals() == 0x0708);
}

TEST_CASE("a whole response is walked record by record") {
  const Packet packet = Build()
                            .compress()
                            .question("WWW.Example", type::aaaa)
                            .link("WWW.Example", type::cname, 300, "cdn.Example")
                            .answer("cdn.Example", type::aaaa, 60, v6("2001:db8::1"))
                            .link("Example", type::ns, 5, "ns.Example", Section::authority)
                            .additional("ns.Example", type::a, 0x80000001, v4("192.0.2.53"))
                            .opt(4096, true, 0, 1, param(10, bytes("cookie12")))
                            .done();
  const auto message = view(packet);
  CHECK(message.question().name == name("www.example"));
  CHECK(message.question().type == type::aaaa);
  CHECK(message.question().klass == 1);
  CHECK(std::string(message.question().wire.begin(), message.question().wire.end()) ==
        "\3WWW\7Example\0\0\34\0\1"s);
  CHECK(message.question_end() == 12 + 17);
  CHECK(message.edns().present);
  CHECK(message.edns().version == 0);
  CHECK(message.edns().dnssec_ok);
  CHECK(message.edns().udp_size == 4096);
  CHECK(message.edns().extended_rcode == 1);
  CHECK(message.rcode() == 16);
  std::vector<std::string> seen;
  for (const Record& record : message.records()) {
    if (record.type == type::opt) {
      seen.push_back("opt");
      CHECK(record.end() == packet.size());
      continue;
    }
    seen.push_back(shown(message, record));
    CHECK(load32(packet.data() + record.ttl_offset) == record.ttl);
    CHECK(message.owner_is(record, message.owner(record)));
  }
  CHECK(seen == std::vector<std::string>{
                    "answer www.example 5 300 0363646ec010",
                    "answer cdn.example 28 60 20010db8000000000000000000000001",
                    "authority example 2 5 026e73c010",
                    "additional ns.example 1 2147483649 c0000235",
                    "opt",
                });
  CHECK(sane_ttl(0x80000001) == 0);
  CHECK(sane_ttl(0x7fffffff) == 0x7fffffff);
}

TEST_CASE("sections that are empty, in every combination") {
  for (int shape = 0; shape < 8; ++shape) {
    Build build;
    build.question("q.example", type::a);
    const auto question_end = build.size();
    std::size_t authority = 0, additional = 0;
    std::string wanted;
    for (int section = 0; section < 3; ++section) {
      if (section == 1) authority = build.size();
      if (section == 2) additional = build.size();
      if (!(shape >> section & 1)) continue;
      for (int i = 0; i <= section; ++i) {
        build.record(static_cast<Section>(section), "q.example", type::txt, 1, {});
        wanted += static_cast<char>('0' + section);
      }
    }
    const auto message = view(build.done());
    std::string seen;
    for (const Record& record : message.records())
      seen += static_cast<char>('0' + static_cast<int>(record.section));
    CAPTURE(shape);
    CHECK(seen == wanted);
    CHECK(message.question_end() == question_end);
    CHECK(message.authority_offset() == authority);
    CHECK(message.additional_offset() == additional);
    CHECK_FALSE(message.edns().present);
    CHECK(message.edns().udp_size == 512);
  }
}

TEST_CASE("malformed messages do not parse") {
  struct Row {
    std::string what;
    Packet packet;
    std::string wanted;
  };
  const auto add = [](Build build, std::string_view raw, std::size_t count_at, unsigned count) {
    return build.append(bytes(raw)).put16(count_at, count).done();
  };
  const std::string fixed = "\0\1\0\1\0\0\0\74"s;  // A, IN, 60
  for (const Row& row : {
           Row{"nothing", {}, said(ParseError::too_short)},
           Row{"eleven bytes", Packet(11, 0), said(ParseError::too_short)},
           Row{"a header", Packet(12, 0), said(ParseError::no_question)},
           Row{"QDCOUNT 2", query().question("b.example", type::a).done(),
               said(ParseError::many_questions)},
           Row{"QDCOUNT 65535", query().put16(4, 65535).done(), said(ParseError::many_questions)},
           Row{"QDCOUNT 1 and nothing", Build().put16(4, 1).done(), said(ParseError::question)},
           Row{"question without type", add(Build(), "\1a\0"s, 4, 1), said(ParseError::question)},
           Row{"question without class", add(Build(), "\1a\0\0\1\0"s, 4, 1),
               said(ParseError::question)},
           Row{"question points to itself", add(Build(), "\300\14\0\1\0\1"s, 4, 1),
               said(ParseError::question)},
           Row{"question points to the header", add(Build(), "\300\0\0\1\0\1"s, 4, 1),
               said(ParseError::question)},
           Row{"question by extended label", add(Build(), "\101\1\0\1\0\1"s, 4, 1),
               said(ParseError::question)},
           Row{"bytes behind", query().append({0}).done(), said(ParseError::trailing)},
           Row{"a record that is not counted",
               query().answer("a", type::a, 1, v4("192.0.2.1")).put16(6, 0).done(),
               said(ParseError::trailing)},
           Row{"a record too many counted", query().put16(6, 1).done(), said(ParseError::record)},
           Row{"65535 records counted", query().put16(10, 65535).done(), said(ParseError::record)},
           Row{"owner only", add(query(), "\300\14"s, 6, 1), said(ParseError::record)},
           Row{"no length", add(query(), "\300\14"s + fixed + "\0"s, 6, 1),
               said(ParseError::record)},
           Row{"data cut", add(query(), "\300\14"s + fixed + "\0\4\1\2\3"s, 6, 1),
               said(ParseError::record)},
           Row{"data of 65535", add(query(), "\300\14"s + fixed + "\377\377\1\2\3"s, 6, 1),
               said(ParseError::record)},
           Row{"owner points to itself", add(query(), "\300\35"s + fixed + "\0\0"s, 6, 1),
               said(ParseError::record)},
           Row{"owner points forward", add(query(), "\300\40"s + fixed + "\0\0"s, 6, 1),
               said(ParseError::record)},
           Row{"half a pointer", add(query(), "\300"s, 6, 1), said(ParseError::record)},
           Row{"two OPTs", query().opt(1232).opt(1232).done(), said(ParseError::two_opts)},
           Row{"OPT in the answer", query().answer(".", type::opt, 0, {}).done(),
               said(ParseError::misplaced_opt)},
           Row{"OPT in the authority", query().authority(".", type::opt, 0, {}).done(),
               said(ParseError::misplaced_opt)},
           Row{"OPT with an owner", query().additional("a", type::opt, 0, {}).done(),
               said(ParseError::misplaced_opt)},
           Row{"option cut", query().opt(1232, false, 0, 0, bytes("\0\12\0\10cookie"s)).done(),
               said(ParseError::bad_options)},
           Row{"three bytes of options", query().opt(1232, false, 0, 0, bytes("\0\12\0"s)).done(),
               said(ParseError::bad_options)},
           Row{"plain", query().done(), "fine"},
           Row{"empty option", query().opt(1232, false, 0, 0, bytes("\0\12\0\0"s)).done(), "fine"},
           Row{"root", query(".").done(), "fine"},
       }) {
    CAPTURE(row.what);
    CHECK(read_as(row.packet) == row.wanted);
  }
}

TEST_CASE("every prefix of a message is refused, and nothing behind its end is read") {
  const Packet whole = Build()
                           .compress()
                           .question("www.example", type::a)
                           .link("www.example", type::cname, 1, "x.example")
                           .answer("x.example", type::a, 1, v4("192.0.2.1"))
                           .opt(1232, false, 0, 0, param(3, bytes("id")))
                           .done();
  for (std::size_t size = 0; size < whole.size(); ++size) {
    // A heap block of exactly that size: the address sanitizer sees a byte too far.
    const Packet part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    CAPTURE(size);
    CHECK_FALSE(MessageView::parse(part));
  }
  CHECK(MessageView::parse(whole));
}

TEST_CASE("a message as large as they come") {
  Build build;
  build.compress().question("a.example", type::a);
  std::size_t wanted = 0;
  for (; build.size() + 2 + 10 + 4 <= 65535 - 11; ++wanted)
    build.answer("a.example", type::a, 60, v4("192.0.2.1"));
  build.additional(".", 65280, 0, Packet(65535 - build.size() - 11, 1));
  REQUIRE(build.size() == 65535);
  const auto message = view(build.done());
  std::size_t count = 0;
  for (const Record& record : message.records()) count += record.type == type::a;
  CHECK(count == wanted);
  CHECK(wanted > 4000);
}

TEST_CASE("what is done with a client's message") {
  struct Row {
    std::string what;
    Packet packet;
    std::string wanted;
  };
  for (const Row& row : {
           Row{"a query", query().done(), "query"},
           Row{"a query with EDNS", query().opt(1232).done(), "query"},
           Row{"a query of another class", Build(0x0100).question("a", type::a, 3).done(), "query"},
           Row{"with a TSIG", query().additional("key", type::tsig, 0, Packet(20)).done(), "query"},
           Row{"nothing", {}, "drop"},
           Row{"half a header", Packet(6), "drop"},
           Row{"a response", Build(0x8100).question("a", type::a).done(), "drop"},
           Row{"a response of opcode 5", Build(0xa800).question("a", type::a).done(), "drop"},
           Row{"IQUERY", Build(0x0800).question("a", type::a).done(), "rcode 4"},
           Row{"STATUS, header only", Build(0x1000).done(), "rcode 4"},
           Row{"NOTIFY", Build(0x2000).question("a", type::soa).done(), "rcode 4"},
           Row{"UPDATE", Build(0x2800).question("a", type::soa).done(), "rcode 4"},
           Row{"opcode 15", Build(0x7800).question("a", type::a).done(), "rcode 4"},
           Row{"QDCOUNT 0", Build(0x0100).done(), "rcode 1"},
           Row{"QDCOUNT 2", query().question("b", type::a).done(), "rcode 1"},
           Row{"an answer in a query", query().answer("a", type::a, 1, v4("192.0.2.1")).done(),
               "rcode 1"},
           Row{"an authority in a query",
               query().authority("a", type::a, 1, v4("192.0.2.1")).done(), "rcode 1"},
           Row{"five additionals", query().put16(10, 5).done(), "rcode 1"},
           Row{"garbage behind", query().append({1, 2, 3}).done(), "rcode 1"},
           Row{"two OPTs", query().opt(1232).opt(1232).done(), "rcode 1"},
           Row{"EDNS 1", query().opt(1232, false, 1).done(), "rcode 16"},
           Row{"EDNS 255", query().opt(1232, false, 255).done(), "rcode 16"},
       }) {
    CAPTURE(row.what);
    CHECK(judged(row.packet) == row.wanted);
  }
}

TEST_CASE("data of known types fills its length, in every section") {
  const auto sound = [](unsigned kind, const Packet& rdata) {
    std::string read;
    for (const Section section : {Section::answer, Section::authority, Section::additional}) {
      const Packet packet = Build()
                                .question("q.example", type::a)
                                .record(section, "q.example", kind, 1, rdata)
                                .done();
      const std::string once = read_as(packet);
      CHECK((read.empty() || read == once));
      read = once;
    }
    if (read != "fine") CHECK(read == said(ParseError::rdata));
    return read == "fine";
  };
  struct Row {
    std::string what;
    unsigned kind;
    Packet rdata;
    bool sound;
  };
  for (const Row& row : {
           Row{"A", type::a, Packet(4), true},
           Row{"A of 3", type::a, Packet(3), false},
           Row{"A of 5", type::a, Packet(5), false},
           Row{"A of 0", type::a, {}, false},
           Row{"AAAA", type::aaaa, Packet(16), true},
           Row{"AAAA of 4", type::aaaa, Packet(4), false},
           Row{"CNAME", type::cname, wire("a.b"), true},
           Row{"CNAME by pointer", type::cname, {0xc0, 12}, true},
           Row{"CNAME with more", type::cname, {0xc0, 12, 0}, false},
           Row{"CNAME empty", type::cname, {}, false},
           Row{"CNAME cut", type::cname, {3, 'a', 'b'}, false},
           Row{"CNAME to itself", type::cname, {0xc0, 39}, false},
           Row{"MX", type::mx, joined({two(5), wire("m")}), true},
           Row{"MX without name", type::mx, two(5), false},
           Row{"SOA", type::soa, soa("ns", 9), true},
           Row{"SOA short", type::soa, joined({wire("a"), wire("b"), Packet(19)}), false},
           Row{"NAPTR", 35, joined({Packet(4), {1, 'U', 0, 2, 'a', 'b'}, wire("n")}), true},
           Row{"NAPTR string cut", 35, joined({Packet(4), {9, 'U'}}), false},
           Row{"RRSIG", type::rrsig, rrsig(1, "example"), true},
           Row{"RRSIG short", type::rrsig, Packet(17), false},
           Row{"HTTPS", type::https, svc(1, "."), true},
           Row{"HTTPS with hints", type::https,
               svc(1, "t", joined({param(4, Packet(8)), param(6, Packet(32))})), true},
           Row{"HTTPS target by pointer", type::https, joined({two(1), {0xc0, 12}}), false},
           Row{"HTTPS without target", type::https, two(1), false},
           Row{"HTTPS target cut", type::https, joined({two(1), {9, 'a'}}), false},
           Row{"hint of 5", type::https, svc(1, ".", param(4, Packet(5))), false},
           Row{"empty hint", type::https, svc(1, ".", param(4, {})), false},
           Row{"ipv6 hint of 4", type::https, svc(1, ".", param(6, Packet(4))), false},
           Row{"keys not ascending", type::https,
               svc(1, ".", joined({param(6, Packet(16)), param(4, Packet(4))})), false},
           Row{"a key twice", type::https,
               svc(1, ".", joined({param(4, Packet(4)), param(4, Packet(4))})), false},
           Row{"parameter cut", type::svcb, svc(1, ".", {0, 4, 0, 9, 1}), false},
           Row{"parameter without length", type::svcb, svc(1, ".", {0, 4, 0}), false},
           Row{"mandatory", type::svcb,
               svc(1, ".", joined({param(0, two(4)), param(4, Packet(4))})), true},
           Row{"mandatory names itself", type::svcb, svc(1, ".", param(0, two(0))), false},
           Row{"mandatory not ascending", type::svcb,
               svc(1, ".", param(0, joined({two(4), two(3)}))), false},
           Row{"mandatory odd", type::svcb, svc(1, ".", param(0, {0, 4, 0})), false},
           Row{"unknown type", 65280, Packet(7), true},
           Row{"TXT is opaque here", type::txt, {9}, true},
       }) {
    CAPTURE(row.what);
    CHECK(sound(row.kind, row.rdata) == row.sound);
  }
}

TEST_CASE("a pointer goes to a name that has been read, and nowhere else") {
  // Question at 12, its name 13 bytes; the first record's name at 29, type 31, class 33, TTL 35,
  // length 39, data 41.
  const auto owner_at = [](unsigned target, const Packet& first_rdata = four(0),
                           unsigned first_type = type::a) {
    return read_as(
        Build()
            .compress()
            .question("www.example", type::a)
            .answer("www.example", first_type, 0, first_rdata)
            .append(joined({two(0xc000 | target), two(type::a), two(1), four(60), two(4), four(0)}))
            .put16(6, 2)
            .done());
  };
  for (unsigned target = 0; target < 60; ++target) {
    CAPTURE(target);
    // A TTL or an address of zeros would read as the root.
    const bool name_begins = target == 12 || target == 16 || target == 24 || target == 29;
    CHECK(owner_at(target) == (name_begins ? "fine" : said(ParseError::record)));
  }
  // Names in data count, where the type is known to hold one.
  CHECK(owner_at(41, wire("x.y"), type::cname) == "fine");
  CHECK(owner_at(43, wire("x.y"), type::cname) == "fine");
  CHECK(owner_at(42, wire("x.y"), type::cname) == said(ParseError::record));
  CHECK(owner_at(43, joined({two(5), wire("x")}), type::mx) == "fine");
  CHECK(owner_at(41, joined({two(5), wire("x")}), type::mx) == said(ParseError::record));
  CHECK(owner_at(43, svc(1, "x"), type::https) == "fine");
  CHECK(owner_at(41, wire("x.y"), 65280) == said(ParseError::record));
}
