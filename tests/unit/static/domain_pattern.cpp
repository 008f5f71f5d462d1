#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "static/domain_pattern.hpp"

#include <doctest/doctest.h>

#include <string>

using sluice::static_policy::normal_domain_pattern;

TEST_CASE("patterns come out in wire form") {
  struct Row {
    std::string written, wanted;
  };
  const std::string label(63, 'a');
  for (const Row& row : {
           Row{"pypi.org", "pypi.org"},
           Row{"*.pypi.org", "*.pypi.org"},
           Row{".pypi.org", ".pypi.org"},
           Row{"PyPI.Org", "pypi.org"},
           Row{"localhost", "localhost"},
           Row{"_sip._tcp.example.org", "_sip._tcp.example.org"},
           Row{"b\xc3\xbc"
               "cher.example",
               "xn--bcher-kva.example"},
           Row{"*.B\xc3\x9c"
               "CHER.example",
               "*.xn--bcher-kva.example"},
           Row{"stra\xc3\x9f"
               "e.de",
               "xn--strae-oqa.de"},
           Row{"xn--bcher-kva.example", "xn--bcher-kva.example"},
           Row{"XN--BCHER-KVA.example", "xn--bcher-kva.example"},
           Row{"1.2.example", "1.2.example"},
           Row{label + ".org", label + ".org"},
       }) {
    CAPTURE(row.written);
    const auto pattern = normal_domain_pattern(row.written);
    REQUIRE_MESSAGE(pattern, (pattern ? "" : pattern.error().message));
    CHECK(*pattern == row.wanted);
  }
}

TEST_CASE("what is no pattern is refused with the cure") {
  struct Row {
    std::string written, reason;
  };
  const std::string label(64, 'a');
  std::string longest;
  for (int i = 0; i < 128; ++i) longest += "a.";
  for (const Row& row : {
           Row{"", "names no domain"},
           Row{"*", "use mode = \"denylist\""},
           Row{".", "names no domain"},
           Row{"*.", "names no domain"},
           Row{"pypi.org.", "none at the end"},
           Row{"a..b", "empty label"},
           Row{"..b", "empty label"},
           Row{"*.*.org", "a star stands for whole labels"},
           Row{"a.*.org", "a star stands for whole labels"},
           Row{"*pypi.org", "a star stands for whole labels"},
           Row{"https://pypi.org", "write the name alone"},
           Row{"pypi.org/simple", "write the name alone"},
           Row{"pypi.org:443", "write it in the rule's ports"},
           Row{"10.0.0.1", "write it under cidrs"},
           Row{"10.0.0.0/8", "write it under cidrs"},
           Row{"2001:db8::1", "write it under cidrs"},
           Row{".10.0.0.1", "write it under cidrs"},
           Row{"1.2.3", "is an address, not a name"},
           Row{"*.example.7", "is an address, not a name"},
           Row{"\xef\xbc\x91\xef\xbc\x90.0.0.1", "is an address, not a name"},  // full-width 10
           Row{std::string("pypi.org\0.b\xc3\xbc"
                           "cher.example",
                           25),
               "holds a NUL"},
           Row{"-a.org", "begins or ends with '-'"},
           Row{"a-.org", "begins or ends with '-'"},
           Row{"a b.org", "is in no domain name"},
           Row{"user@example.org", "is in no domain name"},
           Row{"a\\.org", "is in no domain name"},
           Row{"^a$", "is in no domain name"},
           Row{label + ".org", "DNS allows 63"},
           Row{longest + "org", "DNS allows 253"},
           Row{std::string(5000, 'a'), "a name has at most 253"},
           Row{"xn--zzzz--.com", "no international domain name"},
           Row{"\xe2\x80\x8b.org", "empty label"},  // a zero-width blank, which IDNA removes
           Row{"\xe2\x98\xba.org", "no international domain name"},
       }) {
    CAPTURE(row.written);
    const auto pattern = normal_domain_pattern(row.written);
    REQUIRE_FALSE(pattern);
    CAPTURE(pattern.error().message);
    CHECK(pattern.error().message.find(row.reason) != std::string::npos);
  }
}
