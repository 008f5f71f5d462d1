#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dns/upstream_query.hpp"

#include <doctest/doctest.h>

#include "dns/respond.hpp"
#include "unit/dns/packets.hpp"

using namespace sluice::dns;
using namespace dns_test;
using namespace std::string_literals;
namespace type = sluice::dns::type;

namespace {

Packet sent(std::string_view asked, const CaseBits& letters, bool cd = false,
            bool dnssec_ok = false, unsigned kind = type::a) {
  std::array<std::uint8_t, kUpstreamQueryRoom> room;
  const Name asked_name = name(asked);
  const std::size_t size = make_upstream_query({.name = asked_name,
                                                .type = static_cast<std::uint16_t>(kind),
                                                .checking_disabled = cd,
                                                .dnssec_ok = dnssec_ok},
                                               0x4321, letters, room);
  return Packet(room.begin(), room.begin() + static_cast<std::ptrdiff_t>(size));
}

constexpr CaseBits kNone{};
constexpr CaseBits kAll{~0ull, ~0ull, ~0ull, ~0ull};

}  // namespace

TEST_CASE("the upstream's question carries what is the question's, and nothing of the client") {
  for (const bool cd : {false, true})
    for (const bool dnssec_ok : {false, true}) {
      const Packet packet = sent("www.example", kNone, cd, dnssec_ok, type::https);
      const auto message = view(packet);
      CHECK(message.header().id() == 0x4321);
      CHECK_FALSE(message.header().response());
      CHECK(message.header().recursion_desired());
      CHECK(message.header().checking_disabled() == cd);
      CHECK(message.question().name == name("www.example"));
      CHECK(message.question().type == type::https);
      CHECK(message.question().klass == 1);
      CHECK(message.edns().present);
      CHECK(message.edns().udp_size == 1232);
      CHECK(message.edns().dnssec_ok == dnssec_ok);
      CHECK(message.edns().version == 0);
      // Header, question, OPT without options.
      CHECK(packet.size() == 12 + 13 + 4 + 11);
    }
}

TEST_CASE("bits choose the case of letters, and of nothing else") {
  const Packet upper = sent("az-09_[{.\\200", kAll);
  CHECK(std::string(upper.begin() + 12, upper.begin() + 12 + 12) == "\10AZ-09_[{\1\310\0"s);
  const CaseBits second{1 << 2};
  const Packet one = sent("abc", second);
  CHECK(std::string(one.begin() + 12, one.begin() + 17) == "\3aBc\0"s);
  const std::string label(63, 'a');
  const std::string longest = label + "." + label + "." + label + "." + std::string(61, 'b');
  const Packet all = sent(longest, kAll);
  CHECK(std::count(all.begin(), all.end(), 'A') == 189);
  CHECK(std::count(all.begin(), all.end(), 'B') == 61);
  CHECK(all.size() == kUpstreamQueryRoom);
}

TEST_CASE("a response matches in id, QR, opcode, and the question byte for byte") {
  const CaseBits letters{0x5555555555555555, 0, 0, 0};
  const Packet query = sent("www.example", letters);
  const std::string spelled(query.begin() + 13, query.begin() + 24);
  const std::string asked = spelled.substr(0, 3) + "." + spelled.substr(4);
  const auto response = [&](unsigned flags = 0x8180) {
    return Build(flags, 0x4321).question(asked, type::a);
  };
  struct Row {
    std::string what;
    Packet packet;
    Mismatch wanted;
  };
  for (const Row& row : {
           Row{"it", response().done(), Mismatch::none},
           Row{"with an answer", response().answer("x", type::a, 1, Packet(4)).done(),
               Mismatch::none},
           Row{"SERVFAIL", response(0x8182).done(), Mismatch::none},
           Row{"nothing", {}, Mismatch::too_short},
           Row{"eleven bytes", Packet(11), Mismatch::too_short},
           Row{"another id", Build(0x8180, 0x4322).question(asked, type::a).done(), Mismatch::id},
           Row{"our own query", query, Mismatch::no_response},
           Row{"another opcode", response(0xa180).done(), Mismatch::opcode},
           Row{"another case", Build(0x8180, 0x4321).question("www.example", type::a).done(),
               Mismatch::question},
           Row{"another name", Build(0x8180, 0x4321).question("wwx.example", type::a).done(),
               Mismatch::question},
           Row{"a longer name", Build(0x8180, 0x4321).question(asked + ".org", type::a).done(),
               Mismatch::question},
           Row{"another type", Build(0x8180, 0x4321).question(asked, type::aaaa).done(),
               Mismatch::question},
           Row{"another class", Build(0x8180, 0x4321).question(asked, type::a, 3).done(),
               Mismatch::question},
           Row{"two questions", response().question("b", type::a).done(), Mismatch::questions},
           Row{"none", Build(0x8180, 0x4321).done(), Mismatch::questions},
           Row{"none, NXDOMAIN", Build(0x8183, 0x4321).done(), Mismatch::questions},
           Row{"none, and an answer",
               Build(0x8181, 0x4321).answer("x", type::a, 1, Packet(4)).done(),
               Mismatch::questions},
           Row{"FORMERR without a question", Build(0x8181, 0x4321).done(), Mismatch::refused_whole},
           Row{"REFUSED without a question", Build(0x8185, 0x4321).done(), Mismatch::refused_whole},
           Row{"question cut", Build(0x8180, 0x4321).put16(4, 1).append(bytes("\3ww")).done(),
               Mismatch::question},
       }) {
    CAPTURE(row.what);
    CHECK(describe(match_response(query, row.packet)) == describe(row.wanted));
  }
}
