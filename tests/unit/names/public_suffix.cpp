#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "names/public_suffix.hpp"

#include <doctest/doctest.h>

#include <string>

using sluice::names::covers_public_suffix;

TEST_CASE("a pattern below which anybody may get a name covers a public suffix") {
  struct Row {
    const char* pattern;
    bool covers;
  };
  for (const Row& row : std::initializer_list<Row>{
           {"*.com", true},
           {".com", true},
           {"com", false},  // that name alone
           {"*.co.uk", true},
           {".co.uk", true},
           {"*.uk", true},
           {"*.sch.uk", true},
           {"*.ck", true},  // "*.ck" is a rule of the list
           {"*.compute.amazonaws.com", true},
           {"*.github.io", true},  // the private part
           {"github.io", false},
           {"*.xn--p1ai", true},
           {"*.pypi.org", false},
           {".pypi.org", false},
           {"pypi.org", false},
           {"*.x.github.io", false},
           {"*.a.b.c.example.org", false},
           {"*.notatldyet", true},  // may become one
           {"notatldyet", false},
           {"*.internal", false},
           {".test", false},
           {"*.example", false},
           {"*.home.arpa", false},
           {"*.", true},
           {".", true},
       }) {
    INFO(std::string(row.pattern));
    CHECK(covers_public_suffix(row.pattern) == row.covers);
  }
}
