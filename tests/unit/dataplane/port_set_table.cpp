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
  CHECK(stage.table.use({}).value().index() == 0);
  CHECK(stage.at(0).spans == 0);
}

TEST_CASE("a list is in the kernel as it was given, and equal lists exist once") {
  Stage stage;
  const auto index = stage.table.use(ports({"udp/8000-8100", "tcp/443", "icmp"})).value().index();
  CHECK(index != 0);
  CHECK(stage.table.use(ports({"tcp/443", "icmp", "udp/8000-8100", "tcp/443"})).value().index() ==
        index);
  CHECK(stage.table.use(ports({"tcp/443"})).value().index() != index);
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

TEST_CASE("too long a list and a full table are refused, and nothing is written") {
  Stage stage(3);
  const auto longest = stage.table.use(many(SLUICE_PORT_SET_SPANS)).value().index();
  CHECK(stage.at(longest).spans == SLUICE_PORT_SET_SPANS);
  const auto longer = stage.table.use(many(SLUICE_PORT_SET_SPANS + 1));
  REQUIRE_FALSE(longer);
  CHECK(longer.error().code == E2BIG);
  CHECK(stage.at(2).spans == 0);
  const auto last = stage.table.use(ports({"tcp/443"})).value().index();
  const auto full = stage.table.use(ports({"tcp/80"}));
  REQUIRE_FALSE(full);
  CHECK(full.error().code == ENOSPC);
  CHECK(stage.table.use(ports({"tcp/443"})).value().index() == last);
  CHECK(stage.at(longest).spans == SLUICE_PORT_SET_SPANS);
}

TEST_CASE("the next daemon knows the lists that the one before wrote") {
  Stage stage;
  const auto web = stage.table.use(ports({"tcp/443", "icmp"})).value().index();
  const auto dns = stage.table.use(ports({"udp/53"})).value().index();
  PortSetTable next(stage.map.get(), stage.entries);
  CHECK(next.use(ports({"udp/53"})).value().index() == dns);
  CHECK(next.use(ports({"icmp", "tcp/443"})).value().index() == web);
  const auto fresh = next.use(ports({"tcp/22"})).value().index();
  CHECK(fresh != web);
  CHECK(fresh != dns);
  CHECK(stage.at(dns).span[0].ports.first == 53);
}

TEST_CASE("more lists over time than there are places, of which some are always in use") {
  Stage stage(8);
  const auto kept = stage.table.use(ports({"tcp/443"}));
  REQUIRE(kept);
  for (std::uint16_t port = 1; port < 100; ++port) {
    CAPTURE(port);
    const std::vector<PortRange> list{{6, false, port, port}};
    const auto index = stage.table.use(list).value().index();
    CHECK(index != kept->index());
    CHECK(stage.at(index).span[0].ports.first == port);
    CHECK(stage.table.ports_of(index) == list);
    stage.table.reclaim(stage.table.idle());
    CHECK(stage.at(kept->index()).span[0].ports.first == 443);
    CHECK(stage.table.use(ports({"tcp/443"})).value().index() == kept->index());
  }
}

TEST_CASE("what is used again while a grace period runs is kept, also when it is let go again") {
  Stage stage(4);
  const auto one = stage.table.use(ports({"tcp/1"})).value().index();
  const auto two = stage.table.use(ports({"tcp/2"})).value().index();
  const auto three = stage.table.use(ports({"tcp/3"})).value().index();
  const auto idle = stage.table.idle();
  CHECK(idle.size() == 3);
  const auto held = stage.table.use(ports({"tcp/1"}));
  (void)stage.table.use(ports({"tcp/2"}));
  stage.table.reclaim(idle);
  CHECK(stage.at(one).spans == 1);
  CHECK(stage.at(two).spans == 1);
  CHECK(stage.at(three).spans == 0);
  CHECK_FALSE(stage.table.ports_of(three));
  CHECK(stage.table.use(ports({"tcp/4"})).value().index() == three);
  CHECK(stage.table.ports_of(one) == ports({"tcp/1"}));
}

TEST_CASE("lists stay while there is room for more") {
  Stage stage(8);
  for (std::uint16_t port = 1; port <= 4; ++port)
    (void)stage.table.use(std::vector<PortRange>{{6, false, port, port}});
  CHECK(stage.table.idle().empty());
  (void)stage.table.use(ports({"tcp/5"}));
  CHECK(stage.table.idle().size() == 5);
}

TEST_CASE("the next daemon fills the gaps, but none that an address still names") {
  Stage stage(4);
  for (std::uint16_t port = 1; port <= 3; ++port)
    (void)stage.table.use(std::vector<PortRange>{{6, false, port, port}});
  const auto last = stage.table.use(ports({"tcp/3"}));
  REQUIRE(last);
  stage.table.reclaim(stage.table.idle());
  PortSetTable next(stage.map.get(), stage.entries);
  next.hold(1);  // by an address that was found
  CHECK(next.ports_of(last->index()) == ports({"tcp/3"}));
  CHECK(next.use(ports({"tcp/9"})).value().index() == 2);
  const auto full = next.use(ports({"tcp/10"}));
  REQUIRE_FALSE(full);
  CHECK(full.error().code == ENOSPC);
}
