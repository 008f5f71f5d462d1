#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dns/answer.hpp"

#include <doctest/doctest.h>

#include "unit/dns/packets.hpp"

using namespace sluice::dns;
using namespace dns_test;
using namespace std::string_literals;
namespace type = sluice::dns::type;

namespace {

std::vector<Grant> storage(kMostGrants);

// "www.example > cdn.example: 192.0.2.1/60 x.example=192.0.2.2/60", hints with their name; "!" in
// front where something foreign is in the answer; or why it is refused.
std::string granted(const Packet& packet, std::size_t most = kMostGrants) {
  Answer answer(std::span<Grant>(storage).first(most));
  const auto message = view(packet);
  if (const auto read = answer.read(message); !read) {
    CHECK(answer.chain().empty());
    CHECK(answer.grants().empty());
    return std::string(describe(read.error()));
  }
  std::string text = answer.has_foreign() ? "!" : "";
  for (const Name& link : answer.chain()) {
    if (&link != answer.chain().data()) text += " > ";
    text += link.text().view();
  }
  text += ":";
  for (const Grant& grant : answer.grants()) {
    CHECK_FALSE(grant.refused);
    text += " ";
    if (grant.hint) text += std::string(answer.names()[grant.name].text().view()) + "=";
    if (!grant.hint) CHECK(grant.name == answer.chain().size() - 1);
    text += grant.address.text() + "/" + std::to_string(grant.ttl);
  }
  return text;
}

std::string said(AnswerFault fault) {
  return std::string(describe(fault));
}

struct Row {
  std::string what;
  Build build;
  std::string wanted;
};

void check(std::initializer_list<Row> rows) {
  for (const Row& row : rows) {
    CAPTURE(row.what);
    CHECK(granted(row.build.done()) == row.wanted);
  }
}

Build asked(unsigned kind = type::a, unsigned flags = 0x8180) {
  return Build(flags).compress().question("Www.Example", kind);
}

const Packet kOne = v4("192.0.2.1");
const Packet kTwo = v4("192.0.2.2");
const Packet kSix = v6("2001:db8::6");

}  // namespace

TEST_CASE("addresses of the name that was asked") {
  check({
      {"one", asked().answer("www.example", type::a, 60, kOne), "www.example: 192.0.2.1/60"},
      {"two",
       asked().answer("www.example", type::a, 60, kOne).answer("WWW.EXAMPLE", type::a, 61, kTwo),
       "www.example: 192.0.2.1/60 192.0.2.2/61"},
      {"AAAA", asked(type::aaaa).answer("www.example", type::aaaa, 0, kSix),
       "www.example: 2001:db8::6/0"},
      {"TTL 2^31", asked().answer("www.example", type::a, 0x80000000, kOne),
       "www.example: 192.0.2.1/0"},
      {"TTL 2^31-1", asked().answer("www.example", type::a, 0x7fffffff, kOne),
       "www.example: 192.0.2.1/2147483647"},
      {"none", asked(), "www.example:"},
      {"NXDOMAIN", asked(type::a, 0x8183), "www.example:"},
      {"with its signature",
       asked()
           .answer("www.example", type::a, 60, kOne)
           .answer("www.example", type::rrsig, 60, rrsig(1, "example")),
       "www.example: 192.0.2.1/60"},
      {"ANY",
       asked(type::any)
           .answer("www.example", type::a, 60, kOne)
           .answer("www.example", type::aaaa, 60, kSix)
           .answer("www.example", type::txt, 60, {1, 'x'}),
       "www.example: 192.0.2.1/60 2001:db8::6/60"},
      {"another type has no addresses",
       asked(type::mx).answer("www.example", type::mx, 60, joined({two(5), wire("mail")})),
       "www.example:"},
      {"the root", Build().question(".", type::a).answer(".", type::a, 1, kOne), ".: 192.0.2.1/1"},
  });
}

TEST_CASE("what is elsewhere grants nothing") {
  check({
      {"another owner", asked().answer("evil.example", type::a, 60, kOne), "!www.example:"},
      {"another owner beside ours",
       asked().answer("evil.example", type::a, 60, kTwo).answer("www.example", type::a, 60, kOne),
       "!www.example: 192.0.2.1/60"},
      {"the parent", asked().answer("example", type::a, 60, kOne), "!www.example:"},
      {"a child", asked().answer("x.www.example", type::a, 60, kOne), "!www.example:"},
      {"authority", asked().authority("www.example", type::a, 60, kOne), "www.example:"},
      {"additional", asked().additional("www.example", type::a, 60, kOne), "www.example:"},
      {"another family", asked().answer("www.example", type::aaaa, 60, kSix), "!www.example:"},
      {"addresses for HTTPS", asked(type::https).answer("www.example", type::a, 60, kOne),
       "!www.example:"},
      {"class CH", asked().answer("www.example", type::a, 60, kOne, 3), said(AnswerFault::not_in)},
      {"class CH, elsewhere", asked().answer("x.example", type::txt, 60, {0}, 3),
       said(AnswerFault::not_in)},
      {"question of class CH", Build().question("www.example", type::a, 3),
       said(AnswerFault::not_in)},
      {"truncated", asked(type::a, 0x8380).answer("www.example", type::a, 60, kOne),
       said(AnswerFault::truncated)},
      {"SERVFAIL", asked(type::a, 0x8182).answer("www.example", type::a, 60, kOne),
       said(AnswerFault::rcode)},
      {"REFUSED", asked(type::a, 0x8185), said(AnswerFault::rcode)},
      {"BADVERS", asked().opt(1232, false, 0, 1), said(AnswerFault::rcode)},
      {"extended NXDOMAIN is another rcode", asked(type::a, 0x8183).opt(1232, false, 0, 1),
       said(AnswerFault::rcode)},
      {"NXDOMAIN with data", asked(type::a, 0x8183).answer("www.example", type::a, 60, kOne),
       said(AnswerFault::contradiction)},
  });
}

TEST_CASE("one chain of CNAMEs, in any order of records") {
  const auto cname = [](Build build, std::string_view from, std::string_view to,
                        std::uint32_t ttl = 300) { return build.link(from, type::cname, ttl, to); };
  const Build start = asked();
  check({
      {"one link",
       cname(start, "www.example", "cdn.example").answer("cdn.example", type::a, 60, kOne),
       "www.example > cdn.example: 192.0.2.1/60"},
      {"two links",
       cname(cname(start, "www.example", "b.example"), "B.example", "c.example")
           .answer("c.Example", type::a, 60, kOne),
       "www.example > b.example > c.example: 192.0.2.1/60"},
      {"backwards",
       cname(cname(Build(start).answer("c.example", type::a, 60, kOne), "b.example", "c.example"),
             "www.example", "b.example"),
       "www.example > b.example > c.example: 192.0.2.1/60"},
      {"to nowhere", cname(start, "www.example", "b.example"), "www.example > b.example:"},
      {"NXDOMAIN at the end", cname(asked(type::a, 0x8183), "www.example", "b.example"),
       "www.example > b.example:"},
      {"the same twice",
       cname(cname(start, "www.example", "b.example"), "www.example", "B.EXAMPLE")
           .answer("b.example", type::a, 1, kOne),
       "!www.example > b.example: 192.0.2.1/1"},
      {"two targets", cname(cname(start, "www.example", "b.example"), "www.example", "c.example"),
       said(AnswerFault::cname_conflict)},
      {"two targets further on",
       cname(cname(cname(start, "www.example", "b.example"), "b.example", "c.example"), "b.example",
             "d.example"),
       said(AnswerFault::cname_conflict)},
      {"an address beside it",
       cname(start, "www.example", "b.example").answer("www.example", type::a, 60, kOne),
       said(AnswerFault::cname_and_data)},
      {"an address before it",
       cname(Build(start).answer("www.example", type::a, 60, kOne), "www.example", "b.example"),
       said(AnswerFault::cname_and_data)},
      {"other data beside it",
       cname(start, "www.example", "b.example").answer("www.example", type::txt, 60, {0}),
       said(AnswerFault::cname_and_data)},
      {"data beside a later link",
       cname(cname(start, "www.example", "b.example"), "b.example", "c.example")
           .answer("b.example", type::a, 60, kOne),
       said(AnswerFault::cname_and_data)},
      {"its signature beside it",
       cname(start, "www.example", "b.example")
           .answer("www.example", type::rrsig, 60, rrsig(5, "example")),
       "www.example > b.example:"},
      {"a signature over something else",
       cname(start, "www.example", "b.example")
           .answer("www.example", type::rrsig, 60, rrsig(1, "example")),
       "!www.example > b.example:"},
      {"a loop of one", cname(start, "www.example", "www.example"), said(AnswerFault::loop)},
      {"a loop of two", cname(cname(start, "www.example", "b.example"), "b.example", "WWW.example"),
       said(AnswerFault::loop)},
      {"a loop behind the start",
       cname(cname(cname(start, "www.example", "b.example"), "b.example", "c.example"), "c.example",
             "b.example"),
       said(AnswerFault::loop)},
      {"a chain that is not ours",
       cname(Build(start).answer("www.example", type::a, 60, kOne), "x.example", "y.example")
           .answer("y.example", type::a, 60, kTwo),
       "!www.example: 192.0.2.1/60"},
      {"a foreign chain into ours",
       cname(Build(start).answer("www.example", type::a, 60, kOne), "x.example", "www.example"),
       "!www.example: 192.0.2.1/60"},
      {"CNAME in the authority section",
       Build(start)
           .answer("b.example", type::a, 60, kOne)
           .link("www.example", type::cname, 60, "b.example", Section::authority),
       "!www.example:"},
      {"CNAME asked",
       cname(asked(type::cname), "www.example", "b.example").answer("b.example", type::a, 60, kOne),
       "!www.example:"},
      {"CNAME and ANY",
       cname(asked(type::any), "www.example", "b.example").answer("b.example", type::a, 60, kOne),
       "!www.example:"},
      {"CNAME to the root", cname(start, "www.example", ".").answer(".", type::a, 60, kOne),
       "www.example > .: 192.0.2.1/60"},
  });
}

TEST_CASE("a chain is followed for 16 links and not for 17") {
  const auto chained = [](int links) {
    Build build = asked();
    std::string from = "www.example";
    for (int i = 0; i < links; ++i) {
      const std::string to = "n" + std::to_string(i) + ".example";
      build.link(from, type::cname, 60, to);
      from = to;
    }
    return build.answer(from, type::a, 60, kOne).done();
  };
  CHECK(granted(chained(16)).ends_with("> n15.example: 192.0.2.1/60"));
  CHECK(granted(chained(17)) == said(AnswerFault::too_many_links));
  CHECK(granted(chained(1000)) == said(AnswerFault::too_many_links));
  Build many = asked();
  for (int i = 0; i < 65; ++i) many.link("x" + std::to_string(i), type::cname, 60, "y");
  CHECK(granted(many.done()) == said(AnswerFault::too_many_links));
}

TEST_CASE("DNAMEs lead on from below their owner, as their CNAME agrees") {
  const auto redirected = [](unsigned kind = type::a) {
    return Build()
        .compress()
        .question("a.old.example", kind)
        .link("old.example", type::dname, 300, "new.example");
  };
  const std::string label(63, 'a');
  const std::string wide = label + "." + label + "." + label + ".example";
  check({
      {"with its CNAME",
       redirected()
           .link("a.old.example", type::cname, 0, "a.new.example")
           .answer("a.new.example", type::a, 60, kOne),
       "a.old.example > a.new.example: 192.0.2.1/60"},
      {"without", redirected().answer("a.new.example", type::a, 60, kOne),
       "a.old.example > a.new.example: 192.0.2.1/60"},
      {"CNAME elsewhere",
       redirected()
           .link("a.old.example", type::cname, 0, "b.new.example")
           .answer("b.new.example", type::a, 60, kOne),
       said(AnswerFault::dname_conflict)},
      {"the same twice",
       redirected()
           .link("OLD.example", type::dname, 300, "NEW.example")
           .answer("a.new.example", type::a, 60, kOne),
       "!a.old.example > a.new.example: 192.0.2.1/60"},
      {"two targets", redirected().link("old.example", type::dname, 300, "x.example"),
       said(AnswerFault::dname_conflict)},
      {"two owners", redirected().link("example", type::dname, 300, "org"),
       said(AnswerFault::dname_conflict)},
      {"data beside what it redirects", redirected().answer("a.old.example", type::a, 60, kOne),
       "!a.old.example > a.new.example:"},
      {"at the name itself, not below",
       Build()
           .question("old.example", type::a)
           .link("old.example", type::dname, 300, "new.example")
           .answer("old.example", type::a, 60, kOne),
       "!old.example: 192.0.2.1/60"},
      {"at the name itself, with a CNAME",
       Build()
           .question("old.example", type::a)
           .link("old.example", type::dname, 300, "new.example")
           .link("old.example", type::cname, 300, "x.example"),
       said(AnswerFault::dname_conflict)},
      {"beside, not above",
       Build()
           .question("a.old.example", type::a)
           .link("d.example", type::dname, 300, "x")
           .answer("a.old.example", type::a, 60, kOne),
       "!a.old.example: 192.0.2.1/60"},
      {"too long",
       Build()
           .question(label + ".old.example", type::a)
           .link("old.example", type::dname, 300, wide),
       said(AnswerFault::name_too_long)},
      {"into itself",
       Build()
           .question("a.old.example", type::a)
           .link("old.example", type::dname, 300, "b.old.example"),
       said(AnswerFault::too_many_links)},
      {"round", redirected().link("new.example", type::dname, 300, "old.example"),
       said(AnswerFault::loop)},
      {"CNAME into a DNAME",
       Build()
           .compress()
           .question("www.example", type::a)
           .link("www.example", type::cname, 300, "x.old.example")
           .link("old.example", type::dname, 20, "new.example")
           .answer("x.new.example", type::a, 60, kOne),
       "www.example > x.old.example > x.new.example: 192.0.2.1/60"},
      {"DNAME asked",
       Build()
           .question("old.example", type::dname)
           .link("old.example", type::dname, 300, "new.example"),
       "old.example:"},
  });
}

TEST_CASE("hints are addresses of their target") {
  const auto https = [](const Packet& rdata) {
    return asked(type::https).answer("www.example", type::https, 60, rdata);
  };
  const Packet hints =
      joined({param(1, bytes("\2h2")), param(4, joined({kOne, kTwo})), param(6, kSix)});
  check({
      {"of the owner", https(svc(1, ".", hints)),
       "www.example: www.example=192.0.2.1/60 www.example=192.0.2.2/60 www.example=2001:db8::6/60"},
      {"of another", https(svc(1, "Svc.Example", hints)),
       "www.example: svc.example=192.0.2.1/60 svc.example=192.0.2.2/60 svc.example=2001:db8::6/60"},
      {"of the owner by name", https(svc(1, "www.example", param(4, kOne))),
       "www.example: www.example=192.0.2.1/60"},
      {"none", https(svc(1, ".")), "www.example:"},
      {"an alias", https(svc(0, "svc.example")), "www.example:"},
      {"an alias with hints all the same", https(svc(0, "svc.example", param(4, kOne))),
       "www.example: svc.example=192.0.2.1/60"},
      {"behind a CNAME",
       asked(type::https)
           .link("www.example", type::cname, 300, "b.example")
           .answer("b.example", type::https, 60, svc(1, ".", param(4, kOne))),
       "www.example > b.example: b.example=192.0.2.1/60"},
      {"elsewhere", asked(type::https).answer("x.example", type::https, 60, svc(1, ".", hints)),
       "!www.example:"},
      {"SVCB", asked(type::svcb).answer("www.example", type::svcb, 60, svc(1, "t", param(4, kOne))),
       "www.example: t=192.0.2.1/60"},
      {"SVCB where HTTPS was asked",
       asked(type::https).answer("www.example", type::svcb, 60, svc(1, "t", param(4, kOne))),
       "!www.example:"},
  });
  const auto targets = [&](int count) {
    Build build = asked(type::https);
    for (int i = 0; i < count; ++i)
      build.answer("www.example", type::https, 60, svc(1, "t" + std::to_string(i), param(4, kOne)));
    return granted(build.done());
  };
  CHECK(targets(16).ends_with("t15=192.0.2.1/60"));
  CHECK(targets(17) == said(AnswerFault::too_many_targets));
}

TEST_CASE("a thousand addresses, and as many as a message holds") {
  for (const int count : {1000, 1001, 4093}) {
    Build build = asked();
    for (int i = 0; i < count; ++i)
      build.answer("www.example", type::a, static_cast<std::uint32_t>(60 + i),
                   four(0xc6120000u + static_cast<unsigned>(i)));
    Answer answer(storage);
    const auto message = view(build.done());
    REQUIRE(answer.read(message));
    REQUIRE(answer.grants().size() == static_cast<std::size_t>(count));
    CHECK(answer.data_records() == static_cast<std::size_t>(count));
    CHECK(answer.least_ttl() == 60);
    CHECK(answer.grants()[999].address.text() == "198.18.3.231");
    CHECK(granted(build.done(), static_cast<std::size_t>(count)).size() > 15000);
    CHECK(granted(build.done(), static_cast<std::size_t>(count) - 1) ==
          said(AnswerFault::too_many_addresses));
  }
  Build hints = asked(type::https);
  hints.answer("www.example", type::https, 60, svc(1, ".", param(4, Packet(4 * 5000))));
  CHECK(granted(hints.done()) == said(AnswerFault::too_many_addresses));
}

TEST_CASE("an answer is read anew each time, and an error leaves nothing of the one before") {
  Answer answer(storage);
  const Packet good = asked()
                          .link("www.example", type::cname, 300, "b.example")
                          .answer("b.example", type::a, 60, kOne)
                          .done();
  const Packet bad = asked()
                         .answer("www.example", type::a, 60, kOne)
                         .answer("www.example", type::a, 60, kTwo, 3)
                         .done();
  const auto good_view = view(good);
  const auto bad_view = view(bad);
  REQUIRE(answer.read(good_view));
  CHECK(answer.grants().size() == 1);
  CHECK(answer.least_ttl() == 60);
  CHECK_FALSE(answer.read(bad_view));
  CHECK(answer.grants().empty());
  CHECK(answer.names().empty());
  CHECK(answer.data_records() == 0);
  REQUIRE(answer.read(good_view));
  CHECK(answer.chain().size() == 2);
  const Packet none = asked().done();
  const auto none_view = view(none);
  REQUIRE(answer.read(none_view));
  CHECK(answer.grants().empty());
  CHECK(answer.least_ttl() == UINT32_MAX);
}

TEST_CASE("the least TTL is over links and data, not over what is foreign") {
  struct Case {
    Build build;
    std::uint32_t wanted;
  };
  for (const Case& one : {
           Case{asked()
                    .link("www.example", type::cname, 5, "b.example")
                    .answer("b.example", type::a, 60, kOne),
                5},
           Case{asked()
                    .link("www.example", type::cname, 500, "b.example")
                    .answer("b.example", type::a, 60, kOne),
                60},
           Case{asked().answer("www.example", type::a, 60, kOne).answer("x", type::a, 1, kOne), 60},
           Case{asked().answer("www.example", type::a, 0x90000000, kOne), 0},
           Case{Build()
                    .question("a.old", type::a)
                    .link("old", type::dname, 7, "new")
                    .link("a.old", type::cname, 9, "a.new"),
                7},
       }) {
    Answer answer(storage);
    const auto message = view(one.build.done());
    REQUIRE(answer.read(message));
    CHECK(answer.least_ttl() == one.wanted);
  }
}

TEST_CASE("how long a negative answer holds") {
  struct Case {
    std::string what;
    Build build;
    std::optional<std::uint32_t> wanted;
  };
  for (const Case& one : {
           Case{"MINIMUM", asked().authority("example", type::soa, 3600, soa("ns", 300)), 300},
           Case{"TTL", asked().authority("example", type::soa, 60, soa("ns", 300)), 60},
           Case{"at the name", asked().authority("www.example", type::soa, 60, soa("ns", 300)), 60},
           Case{"at the root", asked().authority(".", type::soa, 60, soa("ns", 300)), 60},
           Case{"2^31", asked().authority("example", type::soa, 0x80000000, soa("ns", 300)), 0},
           Case{"none", asked(), std::nullopt},
           Case{"not above", asked().authority("other.example", type::soa, 60, soa("ns", 300)),
                std::nullopt},
           Case{"in the answer", asked().answer("example", type::soa, 60, soa("ns", 300)),
                std::nullopt},
           Case{"in the additional", asked().additional("example", type::soa, 60, soa("ns", 300)),
                std::nullopt},
       }) {
    CAPTURE(one.what);
    const auto message = view(one.build.done());
    CHECK(negative_ttl(message, name("www.example")) == one.wanted);
  }
}
