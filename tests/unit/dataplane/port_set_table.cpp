// The port lists of learned addresses, over a map of the test's own.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dataplane/port_set_table.hpp"

#include "unit/dataplane/maps.hpp"

using namespace sluice;
using namespace sluice::test;

namespace {

std::vector<PortRange> ports(std::initializer_list<const char*> texts) {
  std::vector<PortRange> ranges;
  for (const char* text : texts) ranges.push_back(PortRange::parse(text).value());
  return ranges;
}
std::vector<PortRange> many(std::uint16_t count) {
  std::vector<PortRange> ranges;
  for (std::uint16_t i = 0; i < count; ++i)
    ranges.push_back(
        {6, false, static_cast<std::uint16_t>(1 + 2 * i), static_cast<std::uint16_t>(1 + 2 * i)});
  return ranges;
}

struct Stage {
  std::uint32_t entries;
  Fd map = array_map("test_port_sets", sizeof(sluice_port_set), entries);
  PortSetTable table{map.get(), entries};
  explicit Stage(std::uint32_t count = 8) : entries(count) {}
  [[nodiscard]] sluice_port_set at(std::uint32_t index) const {
    sluice_port_set set{};
    REQUIRE(bpf_map_lookup_elem(map.get(), &index, &set) == 0);
    return set;
  }
};

}  // namespace

TEST_CASE("no ports are every port: index 0") {
  Stage stage;
  CHECK(stage.table.index_of({}).value() == 0);
  CHECK(stage.at(0).spans == 0);
}

TEST_CASE("a list is in the kernel as it was given, and equal lists exist once") {
  Stage stage;
  const auto index = stage.table.index_of(ports({"udp/8000-8100", "tcp/443", "icmp"})).value();
  CHECK(index != 0);
  CHECK(stage.table.index_of(ports({"tcp/443", "icmp", "udp/8000-8100", "tcp/443"})).value() ==
        index);
  CHECK(stage.table.index_of(ports({"tcp/443"})).value() != index);
  const sluice_port_set set = stage.at(index);
  REQUIRE(set.spans == 3);
  CHECK(set.span[0].protocol == 1);
  CHECK(set.span[0].any_port == 1);
  CHECK(set.span[1].protocol == 6);
  CHECK(set.span[1].any_port == 0);
  CHECK(set.span[1].ports.first == 443);
  CHECK(set.span[1].ports.last == 443);
  CHECK(set.span[2].protocol == 17);
  CHECK(set.span[2].ports.first == 8000);
  CHECK(set.span[2].ports.last == 8100);
}

TEST_CASE("a union has the ports of both; with every port it is every port") {
  Stage stage;
  const auto web = stage.table.index_of(ports({"tcp/443"})).value();
  const auto both = stage.table.united(web, ports({"tcp/80"})).value();
  CHECK(both != web);
  CHECK(stage.at(both).spans == 2);
  CHECK(stage.at(web).spans == 1);  // others may use it
  CHECK(stage.table.united(both, ports({"tcp/443"})).value() == both);
  CHECK(stage.table.united(web, {}).value() == 0);
  CHECK(stage.table.united(0, ports({"tcp/443"})).value() == 0);
}

TEST_CASE("too long a list and a full table are refused, and nothing is written") {
  Stage stage(3);
  const auto longest = stage.table.index_of(many(SLUICE_PORT_SET_SPANS)).value();
  CHECK(stage.at(longest).spans == SLUICE_PORT_SET_SPANS);
  const auto longer = stage.table.index_of(many(SLUICE_PORT_SET_SPANS + 1));
  REQUIRE_FALSE(longer);
  CHECK(longer.error().code == E2BIG);
  const auto united = stage.table.united(longest, ports({"udp/53"}));
  REQUIRE_FALSE(united);
  CHECK(united.error().code == E2BIG);
  CHECK(stage.at(2).spans == 0);
  const auto last = stage.table.index_of(ports({"tcp/443"})).value();
  const auto full = stage.table.index_of(ports({"tcp/80"}));
  REQUIRE_FALSE(full);
  CHECK(full.error().code == ENOSPC);
  CHECK(stage.table.index_of(ports({"tcp/443"})).value() == last);
  CHECK(stage.at(longest).spans == SLUICE_PORT_SET_SPANS);
}

TEST_CASE("the next daemon knows the lists that the one before wrote") {
  Stage stage;
  const auto web = stage.table.index_of(ports({"tcp/443", "icmp"})).value();
  const auto dns = stage.table.index_of(ports({"udp/53"})).value();
  PortSetTable next(stage.map.get(), stage.entries);
  CHECK(next.index_of(ports({"udp/53"})).value() == dns);
  CHECK(next.index_of(ports({"icmp", "tcp/443"})).value() == web);
  const auto fresh = next.index_of(ports({"tcp/22"})).value();
  CHECK(fresh != web);
  CHECK(fresh != dns);
  CHECK(stage.at(dns).span[0].ports.first == 53);
}
