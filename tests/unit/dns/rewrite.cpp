#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dns/rewrite.hpp"

#include <doctest/doctest.h>

#include <algorithm>

#include "unit/dns/packets.hpp"

using namespace sluice::dns;
using namespace dns_test;
using namespace std::string_literals;
namespace type = sluice::dns::type;

namespace {

std::vector<Grant> storage(kMostGrants);

struct Outcome {
  Packet packet;
  std::size_t data_records = 0;
  std::vector<std::string> records;
};

// Rewrites with the addresses named refused, and reads the outcome back.
Outcome rewritten(const Packet& packet, std::initializer_list<std::string> refused,
                  std::size_t room_size = 65535) {
  Answer answer(storage);
  const auto message = view(packet);
  const auto read = answer.read(message);
  REQUIRE_MESSAGE(read, (read ? "" : describe(read.error())));
  for (Grant& grant : answer.grants())
    grant.refused = std::ranges::find(refused, grant.address.text()) != refused.end();
  Packet room(room_size);
  const Rewritten done = rewrite(message, answer, room);
  room.resize(done.size);
  if (done.size == 0) return {};
  Outcome outcome{.packet = room, .data_records = done.data_records, .records = {}};
  const auto again = view(outcome.packet);
  CHECK(again.header().id() == message.header().id());
  CHECK(again.question().name == message.question().name);
  CHECK(again.header().additionals() == 0);
  for (const Record& record : again.records()) outcome.records.push_back(shown(again, record));
  // What is left reads as an answer, and grants what was not refused.
  std::vector<Grant> second(kMostGrants);
  Answer once_more(second);
  REQUIRE(once_more.read(again));
  CHECK(std::ranges::equal(once_more.chain(), answer.chain()));
  CHECK_FALSE(once_more.has_foreign());
  std::vector<std::string> left, wanted;
  for (const Grant& grant : once_more.grants()) left.push_back(grant.address.text());
  for (const Grant& grant : answer.grants())
    if (!grant.refused) wanted.push_back(grant.address.text());
  CHECK(left == wanted);
  return outcome;
}

using Lines = std::vector<std::string>;

Build asked(unsigned kind = type::a, unsigned flags = 0x81a0) {
  return Build(flags).compress().question("Www.Example", kind);
}

const Packet kOne = v4("192.0.2.1");
const Packet kTwo = v4("10.0.0.1");

}  // namespace

TEST_CASE("refused addresses and foreign records are gone, the rest stays as it was") {
  const Packet packet = asked()
                            .link("Www.Example", type::cname, 300, "Cdn.Example")
                            .answer("Cdn.Example", type::a, 60, kTwo)
                            .answer("evil.Example", type::a, 60, kOne)
                            .answer("Cdn.Example", type::a, 61, kOne)
                            .link("Example", type::ns, 60, "ns.Example", Section::authority)
                            .additional("ns.Example", type::a, 60, kOne)
                            .opt(1232)
                            .done();
  const Outcome outcome = rewritten(packet, {"10.0.0.1"});
  CHECK(outcome.data_records == 1);
  CHECK(outcome.records == Lines{"answer www.example 5 300 0343646e074578616d706c6500",
                                 "answer cdn.example 1 61 c0000201"});
  CHECK_FALSE(view(outcome.packet).header().authentic_data());
  // Owners are pointers.
  CHECK(outcome.packet.size() == 29 + (12 + 13) + (12 + 4));

  CHECK(rewritten(packet, {"10.0.0.1", "192.0.2.1"}).data_records == 0);
  const Outcome all = rewritten(packet, {});
  CHECK(all.data_records == 2);
  CHECK(view(all.packet).header().authentic_data());
}

TEST_CASE("records out of order keep their names") {
  const Packet packet = asked()
                            .answer("c.Example", type::a, 60, kOne)
                            .link("b.Example", type::cname, 2, "c.Example")
                            .answer("x.Example", type::txt, 1, {0})
                            .link("Www.Example", type::cname, 1, "b.Example")
                            .done();
  CHECK(rewritten(packet, {}).records == Lines{
                                             "answer c.example 1 60 c0000201",
                                             "answer b.example 5 2 0163074578616d706c6500",
                                             "answer www.example 5 1 0162074578616d706c6500",
                                         });
}

TEST_CASE("a DNAME's owner points into the name that it redirects") {
  const Packet packet = Build()
                            .compress()
                            .question("a.b.Old.Example", type::a)
                            .link("Old.Example", type::dname, 300, "New.Example")
                            .answer("Old.Example", type::rrsig, 300, rrsig(type::dname, "example"))
                            .link("a.b.Old.Example", type::cname, 0, "a.b.New.Example")
                            .answer("a.b.New.Example", type::a, 60, kOne)
                            .answer("a.b.New.Example", type::a, 60, kTwo)
                            .done();
  const Outcome outcome = rewritten(packet, {"10.0.0.1"});
  REQUIRE(outcome.records.size() == 4);
  CHECK(outcome.records[0] == "answer old.example 39 300 034e6577074578616d706c6500");
  CHECK(outcome.records[1].starts_with("answer old.example 46 300 0027"));
  CHECK(outcome.records[3] == "answer a.b.new.example 1 60 c0000201");
  CHECK(load16(outcome.packet.data() + 12 + 21) == 0xc000 + 12 + 4);

  // Without the CNAME nothing has written the new name yet.
  const Packet bare = Build()
                          .question("a.Old", type::a)
                          .link("Old", type::dname, 300, "New")
                          .answer("a.New", type::a, 60, kOne)
                          .answer("a.New", type::a, 60, kTwo)
                          .answer("a.New", type::a, 61, kOne)
                          .done();
  CHECK(rewritten(bare, {"10.0.0.1"}).records == Lines{"answer old 39 300 034e657700",
                                                       "answer a.new 1 60 c0000201",
                                                       "answer a.new 1 61 c0000201"});
  const Packet root = Build()
                          .question("a.b", type::a)
                          .link("a.b", type::cname, 300, ".")
                          .answer(".", type::a, 1, kOne)
                          .done();
  CHECK(rewritten(root, {}).records == Lines{"answer a.b 5 300 00", "answer . 1 1 c0000201"});
}

TEST_CASE("signatures go with what they cover, and the chain's stay") {
  const Build build = asked()
                          .link("Www.Example", type::cname, 300, "b.Example")
                          .answer("Www.Example", type::rrsig, 300, rrsig(type::cname, "example"))
                          .answer("b.Example", type::a, 60, kOne)
                          .answer("b.Example", type::a, 60, kTwo)
                          .answer("b.Example", type::rrsig, 60, rrsig(type::a, "example"));
  CHECK(rewritten(build.done(), {}).records.size() == 5);
  const Outcome outcome = rewritten(build.done(), {"10.0.0.1"});
  REQUIRE(outcome.records.size() == 3);
  CHECK(outcome.records[1].starts_with("answer www.example 46 300 0005"));
  CHECK(outcome.records[2] == "answer b.example 1 60 c0000201");
}

TEST_CASE("hints lose what is refused, and mandatory what is gone") {
  const Packet hints4 = param(4, joined({kOne, kTwo}));
  const Packet hints6 = param(6, v6("2001:db8::1"));
  const Packet alpn = param(1, bytes("\2h2"));
  const Packet ech = param(5, bytes("key"));
  const auto https = [](const Packet& params) {
    return asked(type::https)
        .answer("Www.Example", type::https, 60, svc(1, "T.example", params))
        .done();
  };
  struct Row {
    std::string what;
    Packet params;
    std::initializer_list<std::string> refused;
    Packet wanted;
  };
  for (const Row& row : {
           Row{"nothing",
               joined({alpn, hints4, ech, hints6}),
               {},
               joined({alpn, hints4, ech, hints6})},
           Row{"one",
               joined({alpn, hints4, ech, hints6}),
               {"10.0.0.1"},
               joined({alpn, param(4, kOne), ech, hints6})},
           Row{"a whole parameter",
               joined({alpn, hints4, ech, hints6}),
               {"10.0.0.1", "192.0.2.1"},
               joined({alpn, ech, hints6})},
           Row{"all", joined({hints4, hints6}), {"10.0.0.1", "192.0.2.1", "2001:db8::1"}, {}},
           Row{"mandatory keeps what is there",
               joined({param(0, joined({two(1), two(4)})), alpn, hints4}),
               {"10.0.0.1"},
               joined({param(0, joined({two(1), two(4)})), alpn, param(4, kOne)})},
           Row{"mandatory loses what is gone",
               joined({param(0, joined({two(1), two(4), two(6)})), alpn, hints4, hints6}),
               {"10.0.0.1", "192.0.2.1"},
               joined({param(0, joined({two(1), two(6)})), alpn, hints6})},
           Row{"mandatory goes when empty",
               joined({param(0, joined({two(4), two(6)})), hints4, hints6}),
               {"10.0.0.1", "192.0.2.1", "2001:db8::1"},
               {}},
           Row{"empty parameters stay",
               joined({param(2, {}), hints6}),
               {"2001:db8::1"},
               param(2, {})},
       }) {
    CAPTURE(row.what);
    const Packet packet = https(row.params);
    const Outcome outcome = rewritten(packet, row.refused);
    CHECK(outcome.data_records == 1);
    const auto message = view(outcome.packet);
    const Record record = *message.records().begin();
    CHECK(Packet(record.rdata.begin(), record.rdata.end()) == svc(1, "T.example", row.wanted));
    CHECK(message.header().authentic_data() == (row.refused.size() == 0));
  }
  const Packet signed_one =
      asked(type::https)
          .answer("Www.Example", type::https, 60, svc(1, ".", hints4))
          .answer("Www.Example", type::rrsig, 60, rrsig(type::https, "example"))
          .done();
  CHECK(rewritten(signed_one, {"10.0.0.1"}).records.size() == 1);
  CHECK(rewritten(signed_one, {}).records.size() == 2);
}

TEST_CASE("ANY keeps each type's verdict apart") {
  const Packet packet =
      asked(type::any)
          .answer("Www.Example", type::a, 60, kTwo)
          .answer("Www.Example", type::https, 60, svc(1, ".", param(4, joined({kOne, kTwo}))))
          .answer("Www.Example", type::mx, 60, joined({two(5), {0xc0, 12}}))
          .answer("Www.Example", type::rrsig, 60, rrsig(type::a, "example"))
          .answer("Www.Example", type::rrsig, 60, rrsig(type::mx, "example"))
          .done();
  const Outcome outcome = rewritten(packet, {"10.0.0.1"});
  REQUIRE(outcome.records.size() == 3);
  CHECK(outcome.records[0] == "answer www.example 65 60 00010000040004c0000201");
  CHECK(outcome.records[1] == "answer www.example 15 60 0005035777770745"s + "78616d706c6500");
  CHECK(outcome.records[2].starts_with("answer www.example 46 60 000f"));
}

TEST_CASE("compressed names in data are written in full") {
  const Packet pointer{0xc0, 12};
  for (const auto& [kind, rdata] : std::initializer_list<std::pair<unsigned, Packet>>{
           {type::mx, joined({two(5), pointer})},
           {type::ns, pointer},
           {type::ptr, pointer},
           {type::srv, joined({two(1), two(2), two(3), pointer})},
           {type::soa, joined({pointer, pointer, Packet(20)})},
           {17, joined({pointer, pointer})},
           {26, joined({two(1), pointer, pointer})},
           {35, joined({two(1), two(2), {1, 'u', 0, 1, 'x'}, pointer})},
           {type::txt, {3, 0xc0, 12, 0}},
           {65280, {0xc0, 12}},
       }) {
    // The foreign record in front moves what is behind it.
    const Packet packet = asked(kind)
                              .answer("x.Example", type::txt, 1, {0})
                              .answer("Www.Example", kind, 60, rdata)
                              .done();
    const Outcome outcome = rewritten(packet, {});
    REQUIRE(outcome.records.size() == 1);
    Packet wanted;
    for (std::size_t i = 0; i < rdata.size(); ++i) {
      if (kind != type::txt && kind != 65280 && rdata[i] == 0xc0) {
        wanted = joined({wanted, wire("Www.Example")});
        ++i;
      } else {
        wanted.push_back(rdata[i]);
      }
    }
    CAPTURE(kind);
    const auto message = view(outcome.packet);
    const Record record = *message.records().begin();
    CHECK(Packet(record.rdata.begin(), record.rdata.end()) == wanted);
  }
}

TEST_CASE("the authority section stays where it says why there is nothing") {
  const Packet packet =
      asked(type::a, 0x8183)
          .link("Www.Example", type::cname, 300, "b.Example")
          .answer("x.Example", type::a, 60, kOne)
          .authority("Example", type::soa, 60, soa("ns.example", 300))
          .link("Example", type::ns, 60, "ns.Example", Section::authority)
          .authority("ns.Example", type::a, 60, kOne)
          .authority("Example", type::nsec, 60, joined({wire("z.example"), {0, 1, 0x40}}))
          .authority("hash.example", type::nsec3, 60, {1, 0, 0, 0, 0, 1, 7})
          .authority("Example", type::rrsig, 60, rrsig(type::soa, "example"))
          .done();
  const Outcome outcome = rewritten(packet, {});
  REQUIRE(outcome.records.size() == 5);
  CHECK(outcome.records[1].starts_with("authority example 6 60 "));
  CHECK(outcome.records[2].starts_with("authority example 47 60 "));
  CHECK(outcome.records[3].starts_with("authority hash.example 50 60 "));
  CHECK(outcome.records[4].starts_with("authority example 46 60 "));
  CHECK(view(outcome.packet).rcode() == 3);
  const auto message = view(outcome.packet);
  CHECK(negative_ttl(message, name("b.example")) == 60);
}

TEST_CASE("too little room gives nothing, at every size") {
  const Packet packet = asked()
                            .link("Www.Example", type::cname, 300, "b.Example")
                            .answer("b.Example", type::a, 60, kOne)
                            .answer("b.Example", type::a, 60, kTwo)
                            .done();
  const std::size_t enough = rewritten(packet, {"10.0.0.1"}).packet.size();
  for (std::size_t size = 0; size < enough; ++size)
    CHECK(rewritten(packet, {"10.0.0.1"}, size).packet.empty());
  CHECK(rewritten(packet, {"10.0.0.1"}, enough).packet.size() == enough);
  Answer unread(storage);
  Packet room(65535);
  CHECK(rewrite(view(packet), unread, room).size == 0);
}

TEST_CASE("a thousand addresses, each second one refused") {
  Build build = asked();
  for (unsigned i = 0; i < 1000; ++i)
    build.answer("Www.Example", type::a, 60, four((i % 2 ? 0x0a000000u : 0xc6120000u) + i));
  Answer answer(storage);
  const auto message = view(build.done());
  REQUIRE(answer.read(message));
  for (Grant& grant : answer.grants()) grant.refused = grant.address.bytes[0] == 10;
  Packet room(65535);
  const Rewritten done = rewrite(message, answer, room);
  CHECK(done.data_records == 500);
  CHECK(done.size == message.question_end() + 500 * 16);
}
