// The host's addresses from the real kernel, in a network namespace of this process.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dns/own_addresses.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <string>
#include <thread>

#include "unit/interfaces/throwaway_netns.hpp"

using namespace sluice::dns;
using sluice::sdk::Address;
using sluice::test::ip;

namespace {

std::vector<std::string> known(OwnAddresses& own) {
  own.read();
  std::vector<std::string> texts;
  for (const Address& address : own.addresses().load().value->all())
    texts.push_back(address.text());
  return texts;
}
using Texts = std::vector<std::string>;

}  // namespace

TEST_CASE("what stands before, comes and goes is known") {
  SLUICE_NEEDS_NETNS();
  ip("link add d0 type veth peer name e0\nlink add d1 type veth peer name e1\n"
     "addr add 192.0.2.1/24 dev d0\naddr add 2001:db8::1/64 dev d0 nodad\n");
  OwnAddresses own;
  own.open();
  CHECK(known(own) == Texts{"192.0.2.1", "2001:db8::1"});
  const auto version = own.addresses().version();
  CHECK(known(own).size() == 2);
  CHECK(own.addresses().version() == version);  // nothing changed, nothing published

  ip("addr add 192.0.2.2/24 dev d1\n");
  CHECK(known(own) == Texts{"192.0.2.1", "192.0.2.2", "2001:db8::1"});

  // One address on two links is known until both have lost it.
  ip("addr add 192.0.2.1/24 dev d1\naddr del 192.0.2.1/24 dev d0\n");
  CHECK(known(own) == Texts{"192.0.2.1", "192.0.2.2", "2001:db8::1"});
  // And so is one that stands twice on a link.
  ip("addr add 192.0.2.1/32 dev d1\naddr del 192.0.2.1/32 dev d1\n");
  CHECK(known(own) == Texts{"192.0.2.1", "192.0.2.2", "2001:db8::1"});
  ip("link del d1\n");
  CHECK(known(own) == Texts{"2001:db8::1"});
  ip("addr del 2001:db8::1/64 dev d0\n");
  CHECK(known(own).empty());
}

TEST_CASE("on a point-to-point link this end is the host's, not the other") {
  SLUICE_NEEDS_NETNS();
  ip("link add d0 type veth peer name e0\naddr add 192.0.2.1 peer 192.0.2.2 dev d0\n"
     "addr add 2001:db8::1 peer 2001:db8::2 dev d0 nodad\n");
  OwnAddresses own;
  own.open();
  CHECK(known(own) == Texts{"192.0.2.1", "2001:db8::1"});
}

TEST_CASE("a thousand addresses are listed whole") {
  SLUICE_NEEDS_NETNS();
  std::string lines = "link add d0 type veth peer name e0\n";
  for (int i = 0; i < 1000; ++i)
    lines +=
        "addr add 10." + std::to_string(i / 250) + "." + std::to_string(i % 250) + ".1/32 dev d0\n";
  ip(lines);
  OwnAddresses own;
  own.open();
  CHECK(known(own).size() == 1000);
}

TEST_CASE("after lost events everything is listed again, and what went meanwhile is gone") {
  SLUICE_NEEDS_NETNS();
  ip("link add d0 type veth peer name e0\naddr add 192.0.2.1/32 dev d0\n");
  OwnAddresses own({.receive_buffer = 4096});
  own.open();
  std::string lines = "addr del 192.0.2.1/32 dev d0\n";
  for (int i = 0; i < 500; ++i)
    lines +=
        "addr add 10.0." + std::to_string(i / 250) + "." + std::to_string(i % 250) + "/32 dev d0\n";
  ip(lines);
  // The listing may take several turns with so small a buffer.
  for (int turn = 0; turn < 100 && known(own).size() != 500; ++turn) {
  }
  const Texts all = known(own);
  CHECK(all.size() == 500);
  CHECK(std::ranges::find(all, "192.0.2.1") == all.end());
  CHECK(own.relistings() >= 1);
}

TEST_CASE("workers see a whole set while it changes") {
  SLUICE_NEEDS_NETNS();
  ip("link add d0 type veth peer name e0\naddr add 192.0.2.1/32 dev d0\n");
  OwnAddresses own;
  own.open();
  std::atomic<bool> stop{false};
  std::atomic<int> missed{0};
  std::vector<std::jthread> workers;
  for (int i = 0; i < 3; ++i)
    workers.emplace_back([&] {
      Published<AddressSet>::Reader reader(own.addresses());
      while (!stop) missed += !reader.get()->contains(Address::parse("192.0.2.1"));
    });
  for (int i = 0; i < 50; ++i) {
    ip("addr add 192.0.2.2/32 dev d0\naddr del 192.0.2.2/32 dev d0\n");
    own.read();
  }
  stop = true;
  workers.clear();
  CHECK(missed == 0);
}

TEST_CASE("open() is for once") {
  SLUICE_NEEDS_NETNS();
  OwnAddresses own;
  CHECK(own.fd() == -1);
  own.open();
  CHECK(own.fd() >= 0);
  CHECK_THROWS_AS(own.open(), std::system_error);
}
