#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dns/respond.hpp"

#include <doctest/doctest.h>

#include "unit/dns/packets.hpp"

using namespace sluice::dns;
using namespace dns_test;
using namespace std::string_literals;
namespace type = sluice::dns::type;

namespace {

Packet made(std::size_t size, const Packet& room) {
  REQUIRE(size != 0);
  return Packet(room.begin(), room.begin() + static_cast<std::ptrdiff_t>(size));
}

Packet reply(const Packet& query, Rcode rcode, const ReplyOptions& options = {}) {
  Packet room(kReplyRoom);
  return made(make_reply(view(query), rcode, options, room), room);
}

Bytes opt_options(const Packet& packet) {
  const auto message = view(packet);
  for (const Record& record : message.records())
    if (record.type == type::opt) return record.rdata;
  return {};
}

}  // namespace

TEST_CASE("a denial echoes the question and has no record") {
  for (const Rcode rcode : {Rcode::nxdomain, Rcode::refused, Rcode::noerror, Rcode::servfail}) {
    const Packet query = Build(0x0110, 0xbeef).question("WwW.Example", type::aaaa).done();
    const Packet packet = reply(query, rcode);
    const auto message = view(packet);
    const Header header = message.header();
    CHECK(header.id() == 0xbeef);
    CHECK(header.response());
    CHECK(header.recursion_desired());
    CHECK(header.recursion_available());
    CHECK(header.checking_disabled());
    CHECK_FALSE(header.authoritative());
    CHECK_FALSE(header.authentic_data());
    CHECK_FALSE(header.truncated());
    CHECK(message.rcode() == static_cast<int>(rcode));
    CHECK(packet.size() == query.size());
    CHECK(std::equal(packet.begin() + 12, packet.end(), query.begin() + 12));
  }
}

TEST_CASE("flags follow the query and the options") {
  const Packet quiet = Build(0x0000).question("a", type::a).done();
  CHECK_FALSE(view(reply(quiet, Rcode::noerror)).header().recursion_desired());
  CHECK_FALSE(view(reply(quiet, Rcode::noerror)).header().checking_disabled());
  // AA, TC, AD, Z and rcode bits of a query mean nothing and are not echoed.
  const Packet loud = Build(0x077f).question("a", type::a).done();
  const Packet answered = reply(loud, Rcode::noerror);
  CHECK(answered[2] == 0x81);
  CHECK(answered[3] == 0x90);
  const Packet marked =
      reply(loud, Rcode::noerror,
            {.authoritative = true, .recursion_available = false, .truncated = true});
  CHECK(marked[2] == 0x87);
  CHECK(marked[3] == 0x10);
}

TEST_CASE("an OPT only for who sent one, DO copied, with the reason") {
  const ReplyOptions why{.ede = ExtendedError{ede::blocked, "no rule allows it"}};
  CHECK(view(reply(Build(0x0100).question("a", type::a).done(), Rcode::nxdomain, why))
            .edns()
            .present == false);
  for (const bool dnssec_ok : {false, true}) {
    const Packet query = Build(0x0100)
                             .question("a", type::a)
                             .opt(4000, dnssec_ok, 0, 0, param(10, bytes("8 bytes!")))
                             .done();
    const Packet packet = reply(query, Rcode::nxdomain, why);
    const auto message = view(packet);
    CHECK(message.edns().present);
    CHECK(message.edns().dnssec_ok == dnssec_ok);
    CHECK(message.edns().udp_size == kUdpPayload);
    CHECK(message.rcode() == 3);
    // The client's cookie is not echoed: we have none to give.
    CHECK(Packet(opt_options(packet).begin(), opt_options(packet).end()) ==
          param(15, joined({two(15), bytes("no rule allows it")})));
    CHECK(opt_options(reply(query, Rcode::nxdomain)).empty());
  }
}

TEST_CASE("the longest reply fits its room") {
  const std::string label(63, 'a');
  const std::string longest = label + "." + label + "." + label + "." + std::string(61, 'b');
  const Packet query = Build(0x0100).question(longest, type::a).opt(1232).done();
  const std::string text(5000, 'x');
  const Packet packet = reply(query, Rcode::refused, {.ede = ExtendedError{ede::prohibited, text}});
  CHECK(packet.size() <= kReplyRoom);
  CHECK(opt_options(packet).size() == 4 + 2 + kLongestEdeText);
  Packet small(packet.size() - 1);
  CHECK(make_reply(view(query), Rcode::refused, {.ede = ExtendedError{ede::prohibited, text}},
                   small) == 0);
  Packet tiny(20);
  CHECK(make_reply(view(query), Rcode::refused, {}, tiny) == 0);
}

TEST_CASE("faults get the answer that RFC 8906 wants") {
  struct Row {
    std::string what;
    Packet query;
    int rcode;  // -1: silence
    unsigned questions;
    bool edns;
  };
  const Build plain = Build(0x0100).question("a.example", type::a);
  const auto with = [](Build build, std::string_view raw) {
    return build.append(bytes(raw)).done();
  };
  for (const Row& row : {
           Row{"short", Packet(11), -1, 0, false},
           Row{"a response", Build(0x8100).question("a", type::a).done(), -1, 0, false},
           Row{"QDCOUNT 0", Build(0x0100).done(), 1, 0, false},
           Row{"QDCOUNT 2", Build(plain).question("b", type::a).done(), 1, 0, false},
           Row{"unreadable question", with(Build(0x0100).put16(4, 1), "\300\14\0\1\0\1"s), 1, 0,
               false},
           Row{"garbage behind a question", with(plain, "xyz"), 1, 1, false},
           Row{"two OPTs", Build(plain).opt(1232).opt(1232).done(), 1, 1, false},
           Row{"an answer in a query",
               Build(plain).answer("a", type::a, 1, Packet(4)).opt(1232).done(), 1, 1, true},
           Row{"UPDATE", Build(0x2800).question("a", type::soa).done(), 4, 1, false},
           Row{"opcode 9, header only", Build(0x4800).done(), 4, 0, false},
           Row{"EDNS 1", Build(plain).opt(1232, true, 1).done(), 16, 1, true},
       }) {
    CAPTURE(row.what);
    const auto read = read_query(row.query);
    REQUIRE_FALSE(read);
    Packet room(kReplyRoom);
    const std::size_t size = make_fault_reply(row.query, read.error(), room);
    if (row.rcode < 0) {
      CHECK(size == 0);
      continue;
    }
    const Packet packet = made(size, room);
    const Header header(packet);
    CHECK(header.response());
    CHECK(header.opcode() == Header(row.query).opcode());
    CHECK(header.id() == Header(row.query).id());
    CHECK(header.questions() == row.questions);
    CHECK(header.answers() + header.authorities() == 0);
    CHECK(header.rcode() == (row.rcode & 15));
    if (row.questions == 1) {
      CHECK(view(packet).rcode() == row.rcode);
      CHECK(view(packet).edns().present == row.edns);
      CHECK(view(packet).edns().version == 0);
    } else {
      CHECK(packet.size() == 12);
    }
  }
}

TEST_CASE("addresses of the family that was asked, and TC where they do not fit") {
  std::vector<Address> addresses;
  for (int i = 0; i < 60; ++i) {
    addresses.push_back(Address::parse("192.0.2." + std::to_string(i)));
    addresses.push_back(Address::parse("2001:db8::" + std::to_string(i)));
  }
  Packet room(65535);
  for (const unsigned kind : {unsigned{type::a}, unsigned{type::aaaa}}) {
    const Packet query = Build(0x0100).question("PyPI.org", kind).opt(1232, true).done();
    const Packet packet = made(make_address_reply(view(query), addresses, 77, room), room);
    const auto message = view(packet);
    CHECK(message.header().answers() == 60);
    CHECK(message.edns().dnssec_ok);
    std::size_t i = 0;
    for (const Record& record : message.records()) {
      if (record.type == type::opt) continue;
      CHECK(message.owner_is(record, name("pypi.org")));
      CHECK(record.type == kind);
      CHECK(record.ttl == 77);
      const auto& bytes_of = addresses[2 * i + (kind == type::a ? 0 : 1)].bytes;
      CHECK(std::equal(record.rdata.begin(), record.rdata.end(), bytes_of.begin()));
      ++i;
    }
    CHECK(i == 60);

    Packet small(packet.size() - 1);
    const Packet cut = made(make_address_reply(view(query), addresses, 77, small), small);
    CHECK(view(cut).header().truncated());
    CHECK(view(cut).header().answers() == 0);
    CHECK(view(cut).edns().present);
  }
  const Packet other = Build(0x0100).question("pypi.org", type::https).done();
  const Packet nodata = made(make_address_reply(view(other), addresses, 77, room), room);
  CHECK(view(nodata).header().answers() == 0);
  CHECK(view(nodata).rcode() == 0);
  Packet none(20);
  CHECK(make_address_reply(view(other), addresses, 77, none) == 0);
  const Packet large = Build(0x0100).question("pypi.org", type::a).done();
  const std::vector<Address> thousand(1000, addresses[0]);
  CHECK(view(made(make_address_reply(view(large), thousand, 0, room), room)).header().answers() ==
        1000);
  Packet udp(512);
  const Packet truncated = made(make_truncated_reply(view(large), udp), udp);
  CHECK(view(truncated).header().truncated());
}
