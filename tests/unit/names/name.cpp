#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "names/name.hpp"

#include <doctest/doctest.h>

#include <string>
#include <unordered_set>
#include <vector>

#include "unit/dns/packets.hpp"

using namespace sluice::dns;
using namespace std::string_literals;
using dns_test::bytes;
using dns_test::name;

namespace {

std::string shown(const Name& name) {
  return std::string(name.text().view());
}

// A message of 12 zero bytes with `rest` behind.
std::vector<std::uint8_t> message(std::string_view rest) {
  return bytes(std::string(12, '\0').append(rest));
}

}  // namespace

TEST_CASE("presentation form goes in and comes out escaped") {
  struct Row {
    std::string written, wire, shown;
  };
  const std::string label(63, 'a');
  const std::string longest = label + "." + label + "." + label + "." + std::string(61, 'b');
  for (const Row& row : {
           Row{".", "\0"s, "."},
           Row{"pypi.org", "\4pypi\3org\0"s, "pypi.org"},
           Row{"pypi.org.", "\4pypi\3org\0"s, "pypi.org"},
           Row{"PyPI.ORG", "\4pypi\3org\0"s, "pypi.org"},
           Row{"a\\.b.c", "\3a.b\1c\0"s, "a\\.b.c"},
           Row{"a\\\\b", "\3a\\b\0"s, "a\\\\b"},
           Row{"\\000\\255", "\2\0\377\0"s, "\\000\\255"},
           Row{"\\065b", "\2ab\0"s, "ab"},
           Row{"a b\"c'd`e", "\11a b\"c'd`e\0"s, "a\\032b\\034c\\039d\\096e"},
           Row{"x\x1b[0m\n", "\6x\x1b[0m\n\0"s, "x\\027[0m\\010"},
           Row{"[@Z", "\3[@z\0"s, "[\\@z"},
           Row{"\xc3\xbc", "\2\xc3\xbc\0"s, "\\195\\188"},
           Row{label, "\77"s + label + "\0"s, label},
           Row{longest,
               "\77"s + label + "\77" + label + "\77" + label + "\75" + std::string(61, 'b') +
                   "\0"s,
               longest},
       }) {
    CAPTURE(row.shown);
    const auto read = Name::from_text(row.written);
    REQUIRE(read);
    CHECK(std::string(read->wire().begin(), read->wire().end()) == row.wire);
    CHECK(shown(*read) == row.shown);
    CHECK(read->text().c_str() == row.shown);
    const auto again = Name::from_text(read->text().view());
    REQUIRE(again);
    CHECK(*again == *read);
    const auto wire = Name::from_wire(read->wire());
    REQUIRE(wire);
    CHECK(*wire == *read);
  }
}

TEST_CASE("what is no name is refused") {
  struct Row {
    std::string written;
    NameError error;
  };
  const std::string label(63, 'a');
  for (const Row& row : {
           Row{"", NameError::empty_label},
           Row{"..", NameError::empty_label},
           Row{".a", NameError::empty_label},
           Row{"a..b", NameError::empty_label},
           Row{label + "a", NameError::label_too_long},
           Row{label + "." + label + "." + label + "." + std::string(62, 'b'), NameError::too_long},
           Row{label + "." + label + "." + label + "." + std::string(61, 'b') + ".c",
               NameError::too_long},
           Row{"a\\", NameError::bad_escape},
           Row{"a\\1", NameError::bad_escape},
           Row{"a\\12x", NameError::bad_escape},
           Row{"a\\256", NameError::bad_escape},
       }) {
    CAPTURE(row.written);
    const auto read = Name::from_text(row.written);
    REQUIRE_FALSE(read);
    CHECK(describe(read.error()) == describe(row.error));
  }
  CHECK(Name::from_wire(bytes("\1a")).error() == NameError::cut_short);
  CHECK(Name::from_wire(bytes("\1a\0b"s)).error() == NameError::trailing);
  CHECK(Name::from_wire(bytes("\300\0"s)).error() == NameError::label_type);
  CHECK(Name::from_wire({}).error() == NameError::cut_short);
}

TEST_CASE("letters fold in every place of a word, and only letters do") {
  for (std::size_t before = 0; before < 20; ++before) {
    for (int byte = 0; byte < 256; ++byte) {
      std::string wire(1, static_cast<char>(before + 2));
      wire += std::string(before, 'Q') + static_cast<char>(byte) + "Z" + "\0"s;
      const auto read = Name::from_wire(bytes(wire));
      REQUIRE(read);
      const int folded = byte >= 'A' && byte <= 'Z' ? byte + 32 : byte;
      CHECK(read->wire()[before + 1] == folded);
      CHECK(read->wire()[before + 2] == 'z');
      if (before > 0) CHECK(read->wire()[before] == 'q');
      CHECK(name_at_is(message(wire), 12, *read));
    }
  }
}

TEST_CASE("below is by labels, not by bytes") {
  struct Row {
    std::string name, other;
    bool same_or_below, below;
  };
  for (const Row& row : {
           Row{"pypi.org", "pypi.org", true, false},
           Row{"a.pypi.org", "pypi.org", true, true},
           Row{"b.a.pypi.org", "PYPI.org", true, true},
           Row{"xpypi.org", "pypi.org", false, false},
           Row{"pypi.org", "a.pypi.org", false, false},
           Row{"pypi.org", ".", true, true},
           Row{".", ".", true, false},
           Row{".", "org", false, false},
           // The label's own bytes look like "4pypi 3org".
           Row{"x\\004pypi\\003org", "pypi.org", false, false},
       }) {
    CAPTURE(row.name);
    CAPTURE(row.other);
    CHECK(name(row.name).is_same_or_below(name(row.other)) == row.same_or_below);
    CHECK(name(row.name).is_below(name(row.other)) == row.below);
  }
}

TEST_CASE("labels, parents, starts") {
  const Name deep = name("a.bc.pypi.org");
  CHECK(deep.labels() == 4);
  CHECK(shown(deep.parent()) == "bc.pypi.org");
  CHECK(shown(name("org").parent()) == ".");
  CHECK(name(".").parent().is_root());
  CHECK(name(".").labels() == 0);
  std::array<std::uint8_t, kMostLabels> starts;
  REQUIRE(deep.label_starts(starts) == 4);
  CHECK(starts[0] == 0);
  CHECK(starts[3] == 10);
  CHECK(*Name::from_wire(deep.wire().subspan(starts[2])) == name("pypi.org"));
  CHECK(hash_wire(deep.wire().subspan(starts[2]), 7) == name("pypi.org").hash(7));
}

TEST_CASE("a DNAME replaces the suffix") {
  CHECK(*name("a.b.old.org").substituted(name("old.org"), name("new.example")) ==
        name("a.b.new.example"));
  CHECK(*name("a.org").substituted(name("."), name("x")) == name("a.org.x"));
  CHECK(*name("a.org").substituted(name("org"), name(".")) == name("a"));
  CHECK_FALSE(name("old.org").substituted(name("old.org"), name("new.org")));
  CHECK_FALSE(name("aold.org").substituted(name("old.org"), name("new.org")));
  const std::string label(63, 'a');
  const std::string wide = label + "." + label + "." + label;
  CHECK_FALSE(name(label + ".org").substituted(name("org"), name(wide)));
  CHECK(name(std::string(61, 'b') + ".org").substituted(name("org"), name(wide)));
}

TEST_CASE("hashes differ by name and by seed") {
  std::unordered_set<std::uint64_t> seen;
  for (int i = 0; i < 100000; ++i) seen.insert(name("n" + std::to_string(i) + ".example").hash(1));
  CHECK(seen.size() == 100000);
  CHECK(name("a").hash(1) != name("a").hash(2));
  CHECK(name("Pypi.org").hash(5) == name("pYPI.ORG").hash(5));
}

TEST_CASE("names in messages, compressed and malformed") {
  const std::string label = "\77"s + std::string(63, 'a');
  struct Row {
    std::string what, rest;
    std::size_t at;
    std::string shown;  // empty: refused
    std::size_t next;
    NameError error = NameError::pointer;
  };
  std::string chain = "\1a\0"s;  // each pointer to the one before: 12, 15, 17, ...
  for (int i = 0; i < 200; ++i) {
    const int target = i == 0 ? 12 : 15 + 2 * (i - 1);
    chain += static_cast<char>(0xc0 | target >> 8);
    chain += static_cast<char>(target & 0xff);
  }
  for (const Row& row : {
           Row{"plain", "\4PyPI\3org\0"s, 12, "pypi.org", 22},
           Row{"root", "\0"s, 12, ".", 13},
           Row{"pointer", "\3org\0\4pypi\300\14"s, 17, "pypi.org", 24},
           Row{"pointer alone", "\3org\0\300\14"s, 17, "org", 19},
           Row{"pointer into a name", "\4pypi\3org\0\300\21"s, 22, "org", 24},
           Row{"pointer to a pointer", "\3org\0\300\14\300\21"s, 19, "org", 21},
           Row{"127 pointers", chain, 15 + 2 * 126, "a", 15 + 2 * 127},
           Row{"128 pointers", chain, 15 + 2 * 127, "", 0, NameError::too_many_hops},
           Row{"to itself", "\300\14"s, 12, "", 0, NameError::pointer},
           Row{"to its own label", "\1a\300\14"s, 12, "", 0, NameError::pointer},
           Row{"forward", "\300\16\1a\0"s, 12, "", 0, NameError::pointer},
           Row{"two in a circle", "\1a\300\20\1b\300\14"s, 16, "", 0, NameError::pointer},
           Row{"into the header", "\3org\300\4"s, 12, "", 0, NameError::pointer},
           Row{"outside", "\377\377"s, 12, "", 0, NameError::pointer},
           Row{"half a pointer", "\3org\300"s, 12, "", 0, NameError::cut_short},
           Row{"no end", "\3org"s, 12, "", 0, NameError::cut_short},
           Row{"label over the end", "\77org\0"s, 12, "", 0, NameError::cut_short},
           Row{"nothing", "", 12, "", 0, NameError::cut_short},
           Row{"behind everything", "", 999, "", 0, NameError::cut_short},
           Row{"label type 01", "\101a\0"s, 12, "", 0, NameError::label_type},
           Row{"label type 10", "\201a\0"s, 12, "", 0, NameError::label_type},
           Row{"255 bytes", label + label + label + "\75" + std::string(61, 'b') + "\0"s, 12,
               std::string(63, 'a') + "." + std::string(63, 'a') + "." + std::string(63, 'a') +
                   "." + std::string(61, 'b'),
               12 + 255},
           Row{"256 bytes", label + label + label + "\76" + std::string(62, 'b') + "\0"s, 12, "", 0,
               NameError::too_long},
           Row{"256 bytes by pointer",
               label + label + label + "\0\76"s + std::string(62, 'b') + "\300\14", 12 + 193, "", 0,
               NameError::too_long},
       }) {
    CAPTURE(row.what);
    const auto packet = message(row.rest);
    Name read;
    const auto next = read_name(packet, row.at, read);
    const auto skipped = skip_name(packet, row.at);
    std::array<std::uint8_t, kLongestName> out;
    const auto expanded = expand_name(packet, row.at, out);
    if (row.shown.empty()) {
      REQUIRE_FALSE(next);
      CHECK(describe(next.error()) == describe(row.error));
      CHECK(read.is_root());
      CHECK_FALSE(skipped);
      CHECK_FALSE(expanded);
      continue;
    }
    REQUIRE_MESSAGE(next, (next ? "" : describe(next.error())));
    CHECK(*next == row.next);
    CHECK(shown(read) == row.shown);
    CHECK(*skipped == row.next);
    CHECK(name_at_is(packet, row.at, name(row.shown)));
    CHECK_FALSE(name_at_is(packet, row.at, name("another.example")));
    CHECK_FALSE(name_at_is(packet, row.at,
                           name("x." + (row.shown == "." ? "y" : row.shown.substr(0, 100)))));
    REQUIRE(expanded);
    CHECK(expanded->next == row.next);
    CHECK(*Name::from_wire(Bytes(out).first(expanded->size)) == read);
  }
}
