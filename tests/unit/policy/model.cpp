// Prefixes, port ranges and modes as text: what is read, what is refused and with which advice.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "policy/model.hpp"

#include <doctest/doctest.h>

#include <string>

namespace sluice {
namespace {

TEST_CASE("a prefix reads back as it was written, in canonical form") {
  struct Row {
    const char* text;
    const char* canonical;
    int family;
    int length;
  };
  for (const Row& row : {Row{"0.0.0.0/0", "0.0.0.0/0", 4, 0},
                         {"10.0.0.0/8", "10.0.0.0/8", 4, 8},
                         {"10.1.2.3", "10.1.2.3/32", 4, 32},
                         {"10.1.2.3/32", "10.1.2.3/32", 4, 32},
                         {"255.255.255.254/31", "255.255.255.254/31", 4, 31},
                         {"::/0", "::/0", 6, 0},
                         {"2001:DB8::/32", "2001:db8::/32", 6, 32},
                         {"2001:db8:0:0:0:0:0:1", "2001:db8::1/128", 6, 128},
                         {"fe80::/10", "fe80::/10", 6, 10},
                         {"64:ff9b::10.0.0.0/104", "64:ff9b::a00:0/104", 6, 104},
                         {"::ffff:0:0:0/96", "::ffff:0:0:0/96", 6, 96},  // not the mapped range
                         {"::/80", "::/80", 6, 80}}) {
    CAPTURE(row.text);
    const auto prefix = Prefix::parse(row.text);
    REQUIRE(prefix);
    CHECK(prefix->text() == row.canonical);
    CHECK(prefix->family == row.family);
    CHECK(prefix->length == row.length);
    CHECK(Prefix::parse(prefix->text()) == *prefix);
    CHECK(prefix->check());
  }
}

TEST_CASE("a prefix that is refused says what to write instead") {
  struct Row {
    std::string text;
    const char* message;  // part of it
  };
  for (const Row& row : {Row{"10.0.0.1/8", "\"10.0.0.1/8\" has host bits set; write 10.0.0.0/8"},
                         {"10.0.0.1/0", "write 0.0.0.0/0"},
                         {"255.255.255.255/31", "write 255.255.255.254/31"},
                         {"2001:db8::1/64", "write 2001:db8::/64"},
                         {"::ffff:10.0.0.0/104", "is an IPv4-mapped prefix; write 10.0.0.0/8"},
                         {"::ffff:10.0.0.1/104", "is an IPv4-mapped prefix; write 10.0.0.0/8"},
                         {"::ffff:1.2.3.4", "write 1.2.3.4/32"},
                         {"::ffff:0:0/96", "write 0.0.0.0/0"},
                         {"", "an empty prefix"},
                         {"/8", "is not an IPv4 or IPv6 prefix"},
                         {"10.0.0.0/", "the length behind '/' is not a number from 0 to 32"},
                         {"10.0.0.0/33", "from 0 to 32"},
                         {"10.0.0.0/-1", "from 0 to 32"},
                         {"10.0.0.0/+8", "from 0 to 32"},
                         {"10.0.0.0/08", "from 0 to 32"},
                         {"10.0.0.0/8 ", "from 0 to 32"},
                         {"10.0.0.0/8/8", "from 0 to 32"},
                         {"10.0.0.0/255.0.0.0", "from 0 to 32"},
                         {"10.0.0.0/4294967304", "from 0 to 32"},
                         {"2001:db8::/129", "from 0 to 128"},
                         {"10.0.0/24", "is not an IPv4 or IPv6 prefix"},
                         {"010.0.0.0/8", "is not an IPv4 or IPv6 prefix"},
                         {"0x0a.0.0.0/8", "is not an IPv4 or IPv6 prefix"},
                         {"10.0.0.256", "is not an IPv4 or IPv6 prefix"},
                         {" 10.0.0.0/8", "is not an IPv4 or IPv6 prefix"},
                         {"pypi.org", "is not an IPv4 or IPv6 prefix"},
                         {"fe80::1%eth0", "names a zone"},
                         {"2001:db8:::/32", "is not an IPv4 or IPv6 prefix"},
                         {std::string("10.0.0.0\0.evil/8", 16), "\\x00"},
                         {"10.0.0.0\n", "\\x0a"},
                         {std::string(10'000'000, 'A'), "\"..."}}) {
    CAPTURE(row.text.substr(0, 80));
    const auto prefix = Prefix::parse(row.text);
    REQUIRE(!prefix);
    CAPTURE(prefix.error().message);
    CHECK(prefix.error().message.find(row.message) != std::string::npos);
    CHECK(prefix.error().message.size() < 300);
  }
}

TEST_CASE("a prefix covers itself and what is inside, of its own family only") {
  struct Row {
    const char *outer, *inner;
    bool covers;
  };
  for (const Row& row : {Row{"10.0.0.0/8", "10.0.0.0/8", true},
                         {"10.0.0.0/8", "10.255.255.255", true},
                         {"10.0.0.0/8", "11.0.0.0", false},
                         {"10.0.0.0/8", "9.255.255.255", false},
                         {"10.0.0.0/8", "10.0.0.0/7", false},
                         {"10.0.0.0/9", "10.128.0.0/9", false},
                         {"0.0.0.0/0", "255.0.0.0/8", true},
                         {"0.0.0.0/0", "::/0", false},
                         {"::/0", "0.0.0.0/0", false},
                         {"::/0", "ffff::/16", true},
                         {"2001:db8::/33", "2001:db8:8000::/33", false},
                         {"2001:db8::1", "2001:db8::1", true},
                         {"2001:db8::1", "2001:db8::", false}}) {
    CAPTURE(row.outer);
    CAPTURE(row.inner);
    CHECK(Prefix::parse(row.outer)->covers(*Prefix::parse(row.inner)) == row.covers);
  }
}

TEST_CASE("a prefix that did not come from text is checked the same") {
  Prefix prefix{.address = {10, 0, 0, 1}, .family = 4, .length = 8};
  CHECK(prefix.check().error().message == "10.0.0.1/8 has host bits set; write 10.0.0.0/8");
  prefix = {.address = {}, .family = 5, .length = 0};
  CHECK(!prefix.check());
  prefix = {.address = {}, .family = 4, .length = 33};
  CHECK(!prefix.check());
  prefix = {.address = {0, 0, 0, 0, 1}, .family = 4, .length = 32};  // beyond the four bytes
  CHECK(!prefix.check());
  prefix = {.address = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10}, .family = 6, .length = 128};
  CHECK(!prefix.check());
}

TEST_CASE("port ranges") {
  struct Row {
    const char* text;
    PortRange range;
    const char* canonical;
  };
  for (const Row& row : {Row{"tcp/443", {6, false, 443, 443}, "tcp/443"},
                         {"udp/8000-8100", {17, false, 8000, 8100}, "udp/8000-8100"},
                         {"tcp", {6, true}, "tcp"},
                         {"icmp", {1, true}, "icmp"},
                         {"icmpv6", {58, true}, "icmpv6"},
                         {"sctp/1-10", {132, false, 1, 10}, "sctp/1-10"},
                         {"dccp/5", {33, false, 5, 5}, "dccp/5"},
                         {"udplite/5", {136, false, 5, 5}, "udplite/5"},
                         {"proto/47", {47, true}, "gre"},
                         {"proto/6", {6, true}, "tcp"},
                         {"proto/99", {99, true}, "proto/99"},
                         {"tcp/0-65535", {6, false, 0, 65535}, "tcp/0-65535"},
                         {"tcp/0", {6, false, 0, 0}, "tcp/0"},
                         {"tcp/7-7", {6, false, 7, 7}, "tcp/7"}}) {
    CAPTURE(row.text);
    const auto range = PortRange::parse(row.text);
    REQUIRE(range);
    CHECK(*range == row.range);
    CHECK(range->text() == row.canonical);
    CHECK(PortRange::parse(range->text()) == *range);
    CHECK(range->check());
  }
}

TEST_CASE("a port range that is refused says what to write instead") {
  struct Row {
    const char* text;
    const char* message;
  };
  for (const Row& row : {Row{"tcp/90-80", "the first port is above the last; write tcp/80-90"},
                         {"icmp/8", "icmp has no ports; write icmp"},
                         {"gre/1", "gre has no ports"},
                         {"tcp/", "write tcp/443"},
                         {"tcp/65536", "from 0 to 65535"},
                         {"tcp/-1", "from 0 to 65535"},
                         {"tcp/1-", "from 0 to 65535"},
                         {"tcp/1-2-3", "from 0 to 65535"},
                         {"tcp/80,443", "one range per entry"},
                         {"tcp/080", "from 0 to 65535"},
                         {"443", "is not a protocol"},
                         {"TCP/443", "is not a protocol"},
                         {"http", "is not a protocol"},
                         {"", "is not a protocol"},
                         {"proto", "write proto/N"},
                         {"proto/256", "from 0 to 255"},
                         {"proto/tcp", "write proto/N"}}) {
    CAPTURE(row.text);
    const auto range = PortRange::parse(row.text);
    REQUIRE(!range);
    CAPTURE(range.error().message);
    CHECK(range.error().message.find(row.message) != std::string::npos);
  }
  CHECK(!PortRange{.protocol = 1, .any_port = false, .first = 1, .last = 1}.check());
  CHECK(!PortRange{.protocol = 6, .any_port = false, .first = 2, .last = 1}.check());
}

TEST_CASE("modes") {
  for (Mode mode : {Mode::block_all, Mode::allowlist, Mode::denylist, Mode::disabled})
    CHECK(parse_mode(to_string(mode)) == mode);
  CHECK(to_string(Mode::block_all) == "block-all");
  for (const char* text : {"", "block_all", "Allowlist", "allow", "block-all "}) {
    const auto mode = parse_mode(text);
    REQUIRE(!mode);
    CHECK(mode.error().message.find("write block-all, allowlist, denylist or disabled") !=
          std::string::npos);
  }
  // As the kernel stores them.
  CHECK(static_cast<int>(Mode::block_all) == 0);
  CHECK(static_cast<int>(Mode::disabled) == 3);
}

}  // namespace
}  // namespace sluice
