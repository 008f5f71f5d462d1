#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "names/domain_pattern.hpp"

#include <doctest/doctest.h>

#include <string>

using namespace sluice::dns;

TEST_CASE("a pattern is read as it is written") {
  struct Row {
    const char* text;
    Reach reach;
    const char* base;
  };
  for (const Row& row : std::initializer_list<Row>{
           {"pypi.org", Reach::exact, "pypi.org"},
           {"*.pypi.org", Reach::below, "pypi.org"},
           {".pypi.org", Reach::with_below, "pypi.org"},
           {"*.PyPI.Org", Reach::below, "pypi.org"},
           {"_sip._tcp.example.org", Reach::exact, "_sip._tcp.example.org"},
           {"-odd-.example.org", Reach::exact, "-odd-.example.org"},
           {"xn--bcher-kva.example", Reach::exact, "xn--bcher-kva.example"},
           {"localhost", Reach::exact, "localhost"},
           {"4chan.example", Reach::exact, "4chan.example"},
           {"1.2.3.example", Reach::exact, "1.2.3.example"},
       }) {
    INFO(std::string(row.text));
    const auto pattern = DomainPattern::parse(row.text);
    REQUIRE(pattern);
    CHECK(pattern->reach == row.reach);
    CHECK(pattern->base == *Name::from_text(row.base));
  }
}

TEST_CASE("what is no pattern is refused, never guessed at") {
  const std::string label63(63, 'a');
  const std::string longest = label63 + "." + label63 + "." + label63 + "." + std::string(61, 'a');
  CHECK(longest.size() == 253);
  CHECK(DomainPattern::parse(longest));
  CHECK(DomainPattern::parse("*." + longest));
  struct Row {
    std::string text;
    const char* why;
  };
  for (const Row& row : std::initializer_list<Row>{
           {"", "names no domain"},
           {".", "names no domain"},
           {"*", "star"},
           {"*.", "names no domain"},
           {"..", "empty label"},
           {"a..b", "empty label"},
           {"pypi.org.", "empty label"},
           {"..pypi.org", "empty label"},
           {"*.*.pypi.org", "star"},
           {"a.*.org", "star"},
           {"a*.pypi.org", "star"},
           {"b\xc3\xbc"
            "cher.example",
            "not ASCII"},
           {"192.0.2.1", "address"},
           {"*.192.0.2.1", "address"},
           {"*.2.1", "address"},
           {"2001:db8::1", "address"},
           {"1234", "address"},
           {label63 + "a.example", "63"},
           {longest + "a", "253"},
           {"a b.example", "character"},
           {"a/b.example", "character"},
           {"a\\.b.example", "character"},
           {std::string("a\0b.example", 11), "character"},
           {"http://example.org", "character"},
           {"example.org:443", "character"},
       }) {
    INFO(row.text);
    const auto pattern = DomainPattern::parse(row.text);
    REQUIRE_FALSE(pattern);
    INFO(pattern.error());
    CHECK(pattern.error().find(row.why) != std::string::npos);
  }
}

TEST_CASE("what a pattern covers") {
  struct Row {
    const char *pattern, *name;
    bool covers;
  };
  for (const Row& row : std::initializer_list<Row>{
           {"pypi.org", "pypi.org", true},
           {"pypi.org", "a.pypi.org", false},
           {"pypi.org", "xpypi.org", false},
           {"*.pypi.org", "pypi.org", false},
           {"*.pypi.org", "a.pypi.org", true},
           {"*.pypi.org", "a.b.c.pypi.org", true},
           {"*.pypi.org", "a.xpypi.org", false},
           {".pypi.org", "pypi.org", true},
           {".pypi.org", "a.b.pypi.org", true},
           {".pypi.org", "org", false},
       }) {
    INFO(std::string(row.pattern) << " " << row.name);
    CHECK(DomainPattern::parse(row.pattern)->matches(*Name::from_text(row.name)) == row.covers);
  }
}
