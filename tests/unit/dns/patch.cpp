#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dns/patch.hpp"

#include <doctest/doctest.h>

#include "unit/dns/packets.hpp"

using namespace sluice::dns;
using namespace dns_test;
using namespace std::string_literals;
namespace type = sluice::dns::type;

namespace {

Packet answer() {
  return Build(0x85a0)
      .compress()
      .question("WWW.Example", type::a)
      .link("WWW.Example", type::cname, 300, "cdn.Example")
      .answer("cdn.Example", type::a, 60, v4("192.0.2.1"))
      .link("Example", type::ns, 0x80000000, "ns.Example", Section::authority)
      .additional("ns.Example", type::a, 0, v4("192.0.2.53"))
      .opt(4096, true)
      .done();
}

std::vector<std::uint32_t> ttls(const Packet& packet) {
  std::vector<std::uint32_t> all;
  const auto message = view(packet);
  for (const Record& record : message.records())
    if (record.type != type::opt) all.push_back(record.ttl);
  return all;
}

std::vector<std::uint16_t> ttl_offsets(const Packet& packet) {
  std::vector<std::uint16_t> offsets(100);
  offsets.resize(find_ttls(view(packet), offsets).value());
  return offsets;
}

// Offsets where the two differ.
std::vector<std::size_t> changed(const Packet& a, const Packet& b) {
  REQUIRE(a.size() == b.size());
  std::vector<std::size_t> all;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (a[i] != b[i]) all.push_back(i);
  return all;
}

}  // namespace

TEST_CASE("the id, and nothing else") {
  Packet packet = answer();
  set_id(packet, 0xfffe);
  CHECK(view(packet).header().id() == 0xfffe);
  CHECK(changed(packet, answer()) == std::vector<std::size_t>{0, 1});
}

TEST_CASE("the client's spelling goes over the question, where it is the same question") {
  struct Row {
    std::string what;
    Packet wire;
    bool same;
  };
  const auto asked = [](std::string_view name_of, unsigned kind, unsigned klass = 1) {
    return joined({wire(name_of), two(kind), two(klass)});
  };
  for (const Row& row : {
           Row{"its own case", asked("WWW.Example", type::a), true},
           Row{"another case", asked("wWw.eXaMpLe", type::a), true},
           Row{"another name", asked("wwx.example", type::a), false},
           // '[' and '{' differ in the bit that letters fold by.
           Row{"not a letter", asked("ww\x17.example", type::a), false},
           Row{"another type", asked("www.example", type::aaaa), false},
           Row{"type that folds alike", asked("www.example", 0x21), false},
           Row{"another class", asked("www.example", type::a, 3), false},
           Row{"shorter", asked("www", type::a), false},
           Row{"longer", asked("www.example.org", type::a), false},
           Row{"nothing", {}, false},
       }) {
    CAPTURE(row.what);
    Packet packet = answer();
    CHECK(set_question(packet, row.wire) == row.same);
    if (!row.same) {
      CHECK(packet == answer());
      continue;
    }
    CHECK(std::equal(row.wire.begin(), row.wire.end(), packet.begin() + 12));
    for (const std::size_t at : changed(packet, answer())) CHECK((at >= 12 && at < 25));
  }
  Packet header(12);
  CHECK_FALSE(set_question(header, asked("www.example", type::a)));
}

TEST_CASE("flags follow the client") {
  struct Row {
    unsigned client;
    bool authentic;
    unsigned wanted;
  };
  for (const Row& row :
       {Row{0x0100, false, 0x8180}, Row{0x0000, false, 0x8080}, Row{0x0110, true, 0x81b0}}) {
    Packet packet = answer();
    const Packet client = Build(row.client).done();
    set_client_flags(packet, Header(client), row.authentic);
    CHECK(load16(packet.data() + 2) == row.wanted);
  }
  Packet failed = Build(0x8783).question("a", type::a).done();
  set_client_flags(failed, Header(Build(0x0100).done()), false);
  CHECK(load16(failed.data() + 2) == 0x8383);
}

TEST_CASE("TTLs sink with time, not below zero, and not over the most") {
  struct Row {
    std::uint32_t elapsed, most;
    std::vector<std::uint32_t> wanted;
  };
  for (const Row& row : {
           Row{0, UINT32_MAX, {300, 60, 0, 0}},
           Row{1, UINT32_MAX, {299, 59, 0, 0}},
           Row{60, UINT32_MAX, {240, 0, 0, 0}},
           Row{100000, UINT32_MAX, {0, 0, 0, 0}},
           Row{10, 60, {60, 50, 0, 0}},
           Row{0, 0, {0, 0, 0, 0}},
       }) {
    Packet packet = answer();
    const auto offsets = ttl_offsets(packet);
    CHECK(offsets.size() == 4);
    age_ttls(packet, offsets, row.elapsed, row.most);
    CHECK(ttls(packet) == row.wanted);
    // The OPT's "TTL" is flags.
    CHECK(view(packet).edns().dnssec_ok);
    for (const std::size_t at : changed(packet, answer())) {
      bool in_ttl = false;
      for (const std::uint16_t offset : offsets) in_ttl |= at >= offset && at < offset + 4u;
      CHECK(in_ttl);
    }
  }
  std::vector<std::uint16_t> few(3);
  const Packet packet = answer();
  CHECK_FALSE(find_ttls(view(packet), few));
  CHECK(least_ttl(packet, ttl_offsets(packet), 7) == 0);
  const auto offsets = ttl_offsets(packet);
  CHECK(least_ttl(packet, std::span(offsets).first(2), 7) == 60);
  CHECK(least_ttl(packet, {}, 7) == 7);
}

TEST_CASE("the tail is cut, and our OPT goes on") {
  Packet packet = answer();
  const std::size_t cut = strip_additional(view(packet), packet);
  packet.resize(cut);
  CHECK(view(packet).header().additionals() == 0);
  CHECK(ttls(packet) == std::vector<std::uint32_t>{300, 60, 0x80000000});
  CHECK_FALSE(view(packet).edns().present);

  packet.resize(cut + 200);
  const std::size_t size =
      append_opt(packet, cut, {.dnssec_ok = true, .ede = ExtendedError{ede::stale_answer, "old"}});
  CHECK(size == cut + 11 + 4 + 2 + 3);
  packet.resize(size);
  CHECK(view(packet).edns().dnssec_ok);
  CHECK(view(packet).edns().udp_size == 1232);
  CHECK(view(packet).header().additionals() == 1);

  Packet bare = answer();
  bare.resize(strip_to_answer(view(bare), bare));
  CHECK(ttls(bare) == std::vector<std::uint32_t>{300, 60});
  const Packet before = bare;
  CHECK(append_opt(bare, bare.size(), {}) == 0);
  bare.resize(before.size() + 10);
  CHECK(append_opt(bare, before.size(), {}) == 0);
  CHECK(Packet(bare.begin(), bare.begin() + static_cast<std::ptrdiff_t>(before.size())) == before);
  bare.resize(before.size() + 11);
  CHECK(append_opt(bare, before.size(), {}) == before.size() + 11);

  Packet none = Build().question("a", type::a).done();
  CHECK(strip_additional(view(none), none) == none.size());
  CHECK(strip_to_answer(view(none), none) == none.size());
}
