#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dns/reserved.hpp"

#include <doctest/doctest.h>

#include <string>

using namespace sluice::dns;
using sluice::sdk::Address;
using sluice::sdk::Prefix;

namespace {

std::vector<Prefix> ranges_of(const std::vector<const char*>& texts) {
  std::vector<Prefix> ranges;
  for (const char* text : texts) ranges.push_back(Prefix::parse(text));
  return ranges;
}

AddressSet own() {
  return AddressSet({Address::parse("203.0.113.5"), Address::parse("10.9.0.1"),
                     Address::parse("2001:db8:5::1"), Address::parse("fd09::1")});
}

}  // namespace

TEST_CASE("what an address is: the first, the last and the neighbours of each block") {
  using enum Reserved;
  struct Row {
    const char* address;
    Reserved kind;
  };
  for (const Row& row : std::initializer_list<Row>{
           {"0.0.0.0", unspecified},
           {"0.0.0.1", this_network},
           {"0.255.255.255", this_network},
           {"1.0.0.0", ordinary},
           {"9.255.255.255", ordinary},
           {"10.0.0.0", private_network},
           {"10.255.255.255", private_network},
           {"11.0.0.0", ordinary},
           {"100.63.255.255", ordinary},
           {"100.64.0.0", shared},
           {"100.100.100.199", shared},
           {"100.100.100.200", metadata},
           {"100.127.255.255", shared},
           {"100.128.0.0", ordinary},
           {"126.255.255.255", ordinary},
           {"127.0.0.1", loopback},
           {"127.0.0.53", loopback},
           {"127.255.255.255", loopback},
           {"128.0.0.0", ordinary},
           {"168.63.129.15", ordinary},
           {"168.63.129.16", metadata},
           {"168.63.129.17", ordinary},
           {"169.253.255.255", ordinary},
           {"169.254.0.0", link_local},
           {"169.254.169.253", link_local},
           {"169.254.169.254", metadata},
           {"169.254.170.2", metadata},
           {"169.254.255.255", link_local},
           {"169.255.0.0", ordinary},
           {"172.15.255.255", ordinary},
           {"172.16.0.0", private_network},
           {"172.31.255.255", private_network},
           {"172.32.0.0", ordinary},
           {"191.255.255.255", ordinary},
           {"192.0.0.0", protocol},
           {"192.0.0.192", metadata},
           {"192.0.0.255", protocol},
           {"192.0.1.0", ordinary},
           {"192.0.2.1", ordinary},  // documentation
           {"192.88.99.1", relay_anycast},
           {"192.167.255.255", ordinary},
           {"192.168.0.0", private_network},
           {"192.168.255.255", private_network},
           {"192.169.0.0", ordinary},
           {"198.18.0.1", ordinary},  // benchmarking
           {"198.51.100.1", ordinary},
           {"203.0.113.1", ordinary},
           {"223.255.255.255", ordinary},
           {"224.0.0.0", multicast},
           {"239.255.255.255", multicast},
           {"240.0.0.0", future},
           {"255.255.255.254", future},
           {"255.255.255.255", broadcast},
           {"8.8.8.8", ordinary},
           {"::", unspecified},
           {"::1", loopback},
           {"::2", compatible},
           {"::8.8.8.8", compatible},
           {"::ffff:8.8.8.8", mapped},
           {"::ffff:0:8.8.8.8", not_given_out},  // RFC 2765
           {"64:ff9b::808:808", nat64},
           {"64:ff9b::1:0:0", not_given_out},
           {"64:ff9b:1::1", nat64},
           {"64:ff9b:1:ffff:ffff:ffff:ffff:ffff", nat64},
           {"64:ff9b:2::", not_given_out},
           {"100::1", discard},
           {"100:0:0:1::", not_given_out},
           {"1fff:ffff::", not_given_out},
           {"2000::", ordinary},
           {"2001::1", teredo},
           {"2001:0:ffff:ffff:ffff:ffff:ffff:ffff", teredo},
           {"2001:1::1", protocol},
           {"2001:1::2", protocol},
           {"2001:2::1", ordinary},  // benchmarking
           {"2001:10::1", not_given_out},
           {"2001:1f::1", not_given_out},
           {"2001:20::1", not_given_out},
           {"2001:2f:ffff::1", not_given_out},
           {"2001:30::1", ordinary},
           {"2001:db8::1", ordinary},  // documentation
           {"2001:4860:4860::8888", ordinary},
           {"2001:ffff::", ordinary},
           {"2002::1", six_to_four},
           {"2002:ffff:ffff::", six_to_four},
           {"2003::", ordinary},
           {"3fff::1", ordinary},  // documentation
           {"3fff:ffff:ffff::", ordinary},
           {"4000::", not_given_out},
           {"5f00::1", not_given_out},  // segment routing
           {"fbff::1", not_given_out},
           {"fc00::", unique_local},
           {"fd00:ec2::253", unique_local},
           {"fd00:ec2::254", metadata},
           {"fd20:ce::254", metadata},
           {"fdff:ffff::", unique_local},
           {"fe00::", not_given_out},
           {"fe80::1", link_local},
           {"febf:ffff::", link_local},
           {"fec0::1", site_local},
           {"feff:ffff::", site_local},
           {"ff02::1", multicast},
           {"ffff:ffff::", multicast},
       }) {
    INFO(std::string(row.address));
    const Address address = Address::parse(row.address);
    INFO(std::string(describe(reserved_as(address))));
    CHECK(reserved_as(address) == row.kind);
    // Without a range nothing but an ordinary address is granted.
    CHECK((vet(address, {}, AddressSet()) == Reserved::ordinary) == (row.kind == ordinary));
  }
}

TEST_CASE("a range opens what it names and nothing else") {
  using enum Reserved;
  struct Row {
    const char* what;
    const char* address;
    std::vector<const char*> ranges;
    Reserved left;
  };
  for (const Row& row : std::initializer_list<Row>{
           {"its own block", "10.1.2.3", {"10.0.0.0/8"}, ordinary},
           {"part of it, inside", "10.1.2.3", {"10.1.0.0/16"}, ordinary},
           {"part of it, outside", "10.2.2.3", {"10.1.0.0/16"}, private_network},
           {"an odd length, inside", "10.127.0.1", {"10.64.0.0/10"}, ordinary},
           {"an odd length, outside", "10.128.0.1", {"10.64.0.0/10"}, private_network},
           {"another family", "10.1.2.3", {"::/0"}, private_network},
           {"IPv6", "fd12::1", {"fd12::/16"}, ordinary},
           {"IPv6, outside", "fd13::1", {"fd12::/16"}, unique_local},
           {"one of several", "192.168.1.1", {"10.0.0.0/8", "192.168.0.0/16"}, ordinary},
           {"everything", "127.0.0.1", {"0.0.0.0/0"}, ordinary},
           {"a range is no allowlist", "8.8.8.8", {"10.0.0.0/8"}, ordinary},

           {"metadata is in no range", "169.254.169.254", {"169.254.0.0/16"}, metadata},
           {"metadata, not even /31", "169.254.169.254", {"169.254.169.254/31"}, metadata},
           {"metadata, everything", "169.254.169.254", {"0.0.0.0/0"}, metadata},
           {"metadata by name", "169.254.169.254", {"169.254.169.254/32"}, ordinary},
           {"its neighbours are in one", "169.254.169.253", {"169.254.0.0/16"}, ordinary},
           {"metadata, public space", "168.63.129.16", {"168.63.0.0/16"}, metadata},
           {"metadata, IPv6", "fd00:ec2::254", {"fd00::/8"}, metadata},
           {"metadata, IPv6 by name", "fd00:ec2::254", {"fd00:ec2::254/128"}, ordinary},

           {"the host's own, public", "203.0.113.5", {}, own},
           {"the host's own in a range", "10.9.0.1", {"10.0.0.0/8"}, own},
           {"the host's own by name", "10.9.0.1", {"10.9.0.1/32"}, ordinary},
           {"the host's own, IPv6", "2001:db8:5::1", {"2001:db8::/32"}, own},
           {"the host's neighbour", "203.0.113.6", {}, ordinary},

           {"NAT64, unnamed", "64:ff9b::8.8.8.8", {}, nat64},
           {"NAT64, named", "64:ff9b::8.8.8.8", {"64:ff9b::/96"}, ordinary},
           {"NAT64 of a private address", "64:ff9b::10.0.0.1", {"64:ff9b::/96"}, private_network},
           {"both named", "64:ff9b::10.0.0.1", {"64:ff9b::/96", "10.0.0.0/8"}, ordinary},
           {"NAT64 of metadata", "64:ff9b::169.254.169.254", {"64:ff9b::/96"}, metadata},
           {"NAT64 of metadata, exactly, carried one unnamed",
            "64:ff9b::169.254.169.254",
            {"64:ff9b::a9fe:a9fe/128", "169.254.0.0/16"},
            metadata},
           {"NAT64 of the host", "64:ff9b::203.0.113.5", {"64:ff9b::/96"}, own},
           {"carried one named only", "64:ff9b::10.0.0.1", {"10.0.0.0/8"}, nat64},
           {"local NAT64, /96", "64:ff9b:1::8.8.8.8", {"64:ff9b:1::/48"}, ordinary},
           {"local NAT64, /96, private",
            "64:ff9b:1::10.0.0.1",
            {"64:ff9b:1::/48"},
            private_network},
           {"local NAT64, /64, private",
            "64:ff9b:1:1:a:0:100:0",
            {"64:ff9b:1::/48"},
            private_network},
           {"local NAT64, /64, public", "64:ff9b:1:1:8:808:800:0", {"64:ff9b:1::/48"}, ordinary},
           {"local NAT64, /56, private", "64:ff9b:1:a:0:1::", {"64:ff9b:1::/48"}, private_network},
           {"local NAT64, /48, private",
            "64:ff9b:1:c0a8:1:100::",
            {"64:ff9b:1::/48"},
            private_network},
           {"local NAT64, /48, public", "64:ff9b:1:808:8:800::", {"64:ff9b:1::/48"}, ordinary},
           {"local NAT64, nothing in it", "64:ff9b:1::", {"64:ff9b:1::/48"}, nat64},
           {"6to4", "2002:808:808::1", {"2002::/16"}, ordinary},
           {"6to4 of a private address", "2002:a00:1::1", {"2002::/16"}, private_network},
           {"Teredo", "2001:0:808:808:0:0:f7f7:f7f7", {"2001::/32"}, ordinary},
           {"Teredo, private client",
            "2001:0:808:808:0:0:f5ff:fffe",
            {"2001::/32"},
            private_network},
           {"Teredo, private server", "2001:0:a00:1:0:0:f7f7:f7f7", {"2001::/32"}, private_network},
           {"mapped", "::ffff:10.0.0.1", {"::ffff:0:0/96"}, private_network},
           {"mapped, by the IPv4 range only", "::ffff:10.0.0.1", {"10.0.0.0/8"}, mapped},
           {"compatible", "::10.0.0.1", {"::/96"}, private_network},
       }) {
    INFO(std::string(row.what));
    const auto ranges = ranges_of(row.ranges);
    const Reserved left = vet(Address::parse(row.address), ranges, ::own());
    INFO(std::string(describe(left)));
    CHECK(left == row.left);
  }
}

TEST_CASE("an address of no family is granted by nothing") {
  const Address nothing{.family = 0};
  CHECK(vet(nothing, ranges_of({"0.0.0.0/0", "::/0"}), AddressSet()) != Reserved::ordinary);
}

TEST_CASE("a set of addresses holds each once and tells families apart") {
  const AddressSet set(
      {Address::parse("192.0.2.1"), Address::parse("192.0.2.1"), Address::parse("2001:db8::1")});
  CHECK(set.all().size() == 2);
  CHECK(set.contains(Address::parse("192.0.2.1")));
  CHECK_FALSE(set.contains(Address::parse("c000:201::")));  // the same bytes in the other family
}
