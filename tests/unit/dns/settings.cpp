#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dns/settings.hpp"

#include <doctest/doctest.h>

#define SLUICE_SDK_QUALIFIED
#include <sluice/fake_host.hpp>

#include "dns/plugin.hpp"

namespace dns = sluice::dns;
namespace sdk = sluice::sdk;

TEST_CASE("upstreams as people write them") {
  struct Case {
    const char* text;
    const char* read;  // nullptr: refused
  };
  for (const auto& [text, read] : {
           Case{"127.0.0.53", "127.0.0.53:53"},
           Case{"192.0.2.1:5353", "192.0.2.1:5353"},
           Case{"::1", "[::1]:53"},
           Case{"[::1]:5353", "[::1]:5353"},
           Case{"[2001:db8::1]", "[2001:db8::1]:53"},
           Case{"fe80::1%lo", "[fe80::1]:53"},
           Case{"", nullptr},
           Case{"dns.example", nullptr},
           Case{"192.0.2.1:0", nullptr},
           Case{"192.0.2.1:65536", nullptr},
           Case{"192.0.2.1:53x", nullptr},
           Case{"[::1", nullptr},
           Case{"[::1]53", nullptr},
           Case{"fe80::1%nothere", nullptr},
           Case{"https://192.0.2.1", nullptr},
       }) {
    CAPTURE(text);
    if (read != nullptr)
      CHECK(dns::Endpoint::parse(text).text() == read);
    else
      CHECK_THROWS_AS((void)dns::Endpoint::parse(text), sdk::Error);
  }
}

TEST_CASE("what an operator gets wrong is named") {
  struct Case {
    const char* option;
    const char* toml;
    const char* says;
  };
  for (const auto& [option, toml, says] : {
           Case{"upstreams", "[]", "upstreams"},
           Case{"upstreams", "[\"resolver\"]", "\"resolver\" is no address"},
           Case{"workers", "0", "workers: must be 1 to 16"},
           Case{"workers", "17", "workers: must be 1 to 16"},
           Case{"denied", "\"drop\"", "none of \"nxdomain\""},
           Case{"types", "[\"NOPE\"]", "\"NOPE\" is no record type"},
           Case{"upstream_deadline", "\"10s\"", "upstream_deadline: must be 100ms to 4800ms"},
           Case{"limit.rate", "0", "limit.rate"},
           Case{"limit.window", "\"0s\"", "limit.window"},
       }) {
    CAPTURE(option);
    CAPTURE(toml);
    sdk::FakeHost host;
    host.configure("upstreams", std::vector<std::string>{"127.0.0.53"});
    host.configure_toml(option, toml);
    CHECK_THROWS_WITH_AS((void)host.create<dns::DnsPlugin>(), doctest::Contains(says), sdk::Error);
  }
}

TEST_CASE("record types by name and by number") {
  CHECK(dns::type_of_text("MX") == 15);
  CHECK(dns::type_of_text("txt") == 16);
  CHECK(dns::type_of_text("TYPE257") == 257);
  CHECK(dns::type_of_text("TYPE") == 0);
  CHECK(dns::type_of_text("TYPE70000") == 0);
  CHECK(dns::type_of_text("nonsense") == 0);
}
