#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "unit/dns/oracle.hpp"

#include <doctest/doctest.h>

#include "unit/dns/random_message.hpp"

using namespace dns_test;

namespace {

std::string hex(const Packet& packet) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const std::uint8_t byte : packet) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

}  // namespace

TEST_CASE("100,000 messages, and libldns reads each as we do") {
  Seen seen;
  for (std::uint64_t seed = 0; seed < 100000; ++seed) {
    Chance chance(seed);
    const Packet packet = RandomMessage(chance).make();
    try {
      check_message(packet, seen);
    } catch (const Disagreement& difference) {
      FAIL_CHECK(("seed " + std::to_string(seed) + ": " + difference.what() + ": " + hex(packet)));
    }
  }
  MESSAGE("parsed " << seen.parsed << ", queries " << seen.queries << ", answers read "
                    << seen.answers << " with " << seen.links << " links and " << seen.grants
                    << " addresses, refused " << seen.refused);
  // The generator makes enough of each for the comparison to mean something.
  CHECK(seen.parsed > 50000);
  CHECK(seen.queries > 3000);
  CHECK(seen.answers > 20000);
  CHECK(seen.links > 5000);
  CHECK(seen.grants > 20000);
  CHECK(seen.refused > 5000);
}

TEST_CASE("names: text and wire as libldns has them") {
  Chance chance(1);
  for (int round = 0; round < 100000; ++round) {
    Packet wire_of;
    for (unsigned left = chance.below(8); left > 0; --left) {
      const unsigned size = 1 + chance.below(chance.below(4) == 0 ? 63 : 8);
      wire_of.push_back(static_cast<std::uint8_t>(size));
      for (unsigned i = 0; i < size; ++i)
        wire_of.push_back(static_cast<std::uint8_t>(chance.below(256)));
    }
    wire_of.push_back(0);
    const auto name_of = Name::from_wire(wire_of);
    CHECK(name_of.has_value() == (wire_of.size() <= 255));
    if (!name_of) continue;
    CHECK((exactly(name_of->wire()) == lower(wire_of)));
    const auto text = name_of->text();
    for (const char c : text.view()) CHECK((c > ' ' && c < 0x7f && c != '"' && c != '\''));
    const auto again = Name::from_text(text.view());
    REQUIRE(again);
    CHECK(*again == *name_of);
    ldns_rdf* theirs = ldns_dname_new_frm_str(text.c_str());
    REQUIRE(theirs);
    CHECK((ldns_data(theirs) == exactly(name_of->wire())));
    CHECK(ldns_dname_label_count(theirs) == name_of->labels());
    ldns_rdf_deep_free(theirs);
  }
}
