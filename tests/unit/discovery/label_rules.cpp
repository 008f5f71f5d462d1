#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "discovery/label_rules.hpp"

#include <doctest/doctest.h>

#include <stdexcept>
#include <string>
#include <vector>

using sluice::discovery::LabelRules;
using sluice::discovery::Labels;

TEST_CASE("configured labels may refer to facts and captures") {
  const LabelRules rules({{"class", "vm"},
                          {"vm_id", "$interface"},
                          {"shard", "${tenant}-a/$interface"},
                          {"price", "5$$"},
                          {"empty", ""}},
                         {"interface", "bridge"}, {"tenant"});
  CHECK(rules.resolve({{"interface", "tap0"}, {"tenant", "acme"}}) ==
        Labels{{"interface", "tap0"},
               {"tenant", "acme"},
               {"class", "vm"},
               {"vm_id", "tap0"},
               {"shard", "acme-a/tap0"},
               {"price", "5$"},
               {"empty", ""}});
}

TEST_CASE("a label that refers to what the target does not have is left out, not left empty") {
  const LabelRules rules({{"net", "$bridge"}, {"mixed", "x-$bridge"}}, {"interface", "bridge"}, {});
  CHECK(rules.resolve({{"interface", "tap0"}}) == Labels{{"interface", "tap0"}});
}

TEST_CASE("what cannot be meant is refused with label, fault and remedy") {
  using Table = std::vector<std::pair<std::string, std::string>>;
  const auto says = [](const Table& table, const std::vector<std::string>& captures,
                       const std::string& text) {
    CAPTURE(text);
    try {
      LabelRules rules(table, {"interface"}, captures);
      FAIL("accepted");
    } catch (const std::invalid_argument& error) {
      CAPTURE(error.what());
      CHECK(std::string(error.what()).find(text) != std::string::npos);
    }
  };
  says({{"vm", "$tenant"}}, {"id"},
       "labels.vm: nothing is called $tenant; there is $interface, $id");
  says({{"vm", "a$"}}, {}, "not a reference");
  says({{"vm", "${interface"}}, {}, "not a reference");
  says({{"vm", "$-"}}, {}, "not a reference");
  says({{"interface", "x"}}, {}, "labels.interface: this label is set by discovery itself");
  says({{"id", "x"}}, {"id"}, "already captures {id}");
  says({}, {"interface"}, "capture {interface}");
  says({{"", "x"}}, {}, "key is empty");
}
