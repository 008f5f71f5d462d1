#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "attachments/wiring.hpp"

#include <doctest/doctest.h>

#include "stage.hpp"

using namespace sluice;
using namespace sluice::test;

TEST_CASE("the first wire whose discovery, labels and name all match is taken") {
  auto by_discovery = wire({"a"});
  by_discovery.discovered_by = "containers";
  auto by_label = wire({"b"}, {{"class", "vm"}, {"tenant", "t-*"}});
  auto by_name = wire({"c"});
  by_name.name = "/machine.slice/*";
  auto rest = wire({"d"});
  rest.name = "tap?";
  const Wiring wiring(config_of({by_discovery, by_label, by_name, rest}));

  struct Row {
    const char* description;
    Target target;
    Labels labels;
    const char* discovered_by;
    const char* source;  // of the wire expected; "" the closed one
  };
  const Row rows[] = {
      {"by discovery", tap("veth1", 1), {}, "containers", "a"},
      {"discovery comes before labels", tap("t", 1), {{"class", "vm"}}, "containers", "a"},
      {"all labels match", tap("x", 1), {{"class", "vm"}, {"tenant", "t-9"}}, "taps", "b"},
      {"further labels do not matter",
       tap("x", 1),
       {{"class", "vm"}, {"tenant", "t-"}, {"zone", "1"}},
       "taps",
       "b"},
      {"one label differs", tap("tapA", 1), {{"class", "vm"}, {"tenant", "x"}}, "taps", "d"},
      {"one label is missing", tap("tap1", 1), {{"class", "vm"}}, "taps", "d"},
      {"a glob crosses folders", cgroup("/machine.slice/a/b", 5), {}, "taps", "c"},
      {"? is one character", tap("tap12", 1), {}, "taps", ""},
      {"nothing matches", cgroup("/system.slice", 6), {}, "taps", ""},
  };
  for (const auto& row : rows) {
    CAPTURE(row.description);
    const auto found = match_wire(wiring, row.target, row.labels, row.discovered_by);
    CHECK((found->sources.empty() ? "" : found->sources.front()) == std::string(row.source));
  }
}

TEST_CASE("a target that no wire matches is closed, to replies too") {
  const auto found = match_wire(Wiring{}, tap("tap1", 1), {}, "taps");
  CHECK(found == closed_wire());
  CHECK(found->mode == Mode::block_all);
  CHECK_FALSE(found->options.replies);
  CHECK(found->sources.empty());
}
