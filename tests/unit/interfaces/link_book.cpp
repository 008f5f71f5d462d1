// The selection as a table, and the book under a scripted feed: every order of events that the
// kernel can produce, without one.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "interfaces/link_book.hpp"

#include <doctest/doctest.h>

#include <random>
#include <stdexcept>

#include "unit/discovery/scripted_host.hpp"

using namespace sluice::interfaces;
using namespace sluice::discovery;
using Strings = std::vector<std::string>;

namespace {

Link link_of(std::uint32_t ifindex, const std::string& name, const std::string& kind = "veth",
             std::uint32_t master = 0) {
  return {.ifindex = ifindex, .name = name, .kind = kind, .master = master};
}

// A book with its keeper and host, fed by hand.
struct Bench {
  ScriptedHost host;
  Keeper keeper{host, {.calls_per_turn = 1000}};
  LinkBook book;

  explicit Bench(SelectionOptions options) : book(Selection(std::move(options)), keeper) {
    list({});
  }
  void list(const std::vector<Link>& links) {
    book.listing_started();
    for (const Link& link : links) book.changed(link);
    book.listing_complete();
    settle();
  }
  void settle() {
    book.settle();
    run_out(keeper);
  }
  Strings names() const { return host.names(); }
};

}  // namespace

TEST_CASE("which links an operator's options select") {
  struct Row {
    const char* what;
    SelectionOptions options;
    Link link;
    const char* bridge;
    bool selected;
  };
  const std::vector<Row> rows{
      {"a glob", {.match = {"tap*"}}, link_of(5, "tap0", "tap"), "", true},
      {"another name", {.match = {"tap*"}}, link_of(5, "vnet0", "tap"), "", false},
      {"the second glob", {.match = {"a*", "tap*"}}, link_of(5, "tap0", "tap"), "", true},
      {"a star takes in no uplink", {.match = {"*"}}, link_of(5, "eth0", "hardware"), "", false},
      {"a star takes in no bridge", {.match = {"*"}}, link_of(5, "docker0", "bridge"), "", false},
      {"a star takes in no tunnel", {.match = {"*"}}, link_of(5, "wg0", "wireguard"), "", false},
      {"a star takes in a veth", {.match = {"*"}}, link_of(5, "veth0"), "", true},
      {"a star takes in a macvtap", {.match = {"*"}}, link_of(5, "m0", "macvtap"), "", true},
      {"a full name takes any kind", {.match = {"eth1"}}, link_of(5, "eth1", "hardware"), "", true},
      {"the kind widens",
       {.match = {"e*"}, .kinds = {"hardware"}},
       link_of(5, "eth1", "hardware"),
       "",
       true},
      {"the kind narrows", {.match = {"*"}, .kinds = {"tap"}}, link_of(5, "veth0"), "", false},
      {"the kind narrows a full name",
       {.match = {"veth0"}, .kinds = {"tap"}},
       link_of(5, "veth0"),
       "",
       false},
      {"kind alone", {.kinds = {"tun"}}, link_of(5, "x", "tun"), "", true},
      {"a tap is no tun", {.kinds = {"tun"}}, link_of(5, "x", "tap"), "", false},
      {"excluded",
       {.match = {"tap*"}, .exclude = {"tap-mgmt*"}},
       link_of(5, "tap-mgmt0", "tap"),
       "",
       false},
      {"port of the bridge", {.bridge = {"br0"}}, link_of(5, "v", "veth", 3), "br0", true},
      {"port of another bridge", {.bridge = {"br0"}}, link_of(5, "v", "veth", 3), "br1", false},
      {"port of no bridge", {.bridge = {"*"}}, link_of(5, "v"), "", false},
      {"the bridge's uplink", {.bridge = {"br0"}}, link_of(5, "eth0", "hardware", 3), "br0", false},
      {"glob of bridges", {.bridge = {"br*"}}, link_of(5, "v", "veth", 3), "br1", true},
  };
  for (const Row& row : rows) {
    CAPTURE(row.what);
    CHECK(Selection(row.options).choose(row.link, row.bridge).has_value() == row.selected);
  }
}

TEST_CASE("the loopback device is never selected, whatever is written") {
  Link loopback = link_of(1, "lo", "hardware");
  loopback.is_loopback = true;
  CHECK_FALSE(Selection({.match = {"*"}}).choose(loopback, "").has_value());
  CHECK_FALSE(Selection({.match = {"lo"}}).choose(loopback, "").has_value());
  CHECK_FALSE(Selection({.kinds = {"hardware"}}).choose(loopback, "").has_value());
}

TEST_CASE("labels carry name, kind, bridge, captures and what is configured") {
  const Selection selection({.match = {"vm-{tenant}-{nic}", "tap*"},
                             .labels = {{"class", "vm"}, {"who", "$tenant@$bridge"}}});
  CHECK(*selection.choose(link_of(5, "vm-acme-0", "tap", 3), "br0") ==
        Labels{{"interface", "vm-acme-0"},
               {"kind", "tap"},
               {"bridge", "br0"},
               {"tenant", "acme"},
               {"nic", "0"},
               {"class", "vm"},
               {"who", "acme@br0"}});
  CHECK(*selection.choose(link_of(5, "tap0", "tap"), "") ==
        Labels{{"interface", "tap0"}, {"kind", "tap"}, {"class", "vm"}});
}

TEST_CASE("options that cannot be meant are refused") {
  CHECK_THROWS_AS(Selection({}), std::invalid_argument);
  CHECK_THROWS_AS(Selection({.match = {"tap["}}), std::invalid_argument);
  CHECK_THROWS_AS(Selection({.match = {"*"}, .exclude = {"{x}"}}), std::invalid_argument);
  CHECK_THROWS_AS(Selection({.bridge = {"{x}"}}), std::invalid_argument);
  CHECK_THROWS_AS(Selection({.match = {"{kind}"}}), std::invalid_argument);
  CHECK_THROWS_AS(Selection({.kinds = {""}}), std::invalid_argument);
  CHECK_THROWS_AS(Selection({.match = {"*"}, .labels = {{"x", "$y"}}}), std::invalid_argument);
}

TEST_CASE("existing links, then new ones, then deleted ones") {
  Bench bench({.match = {"tap*"}});
  CHECK(bench.host.listed_calls == 1);
  bench.list({link_of(1, "tap0"), link_of(2, "eth0", "hardware"), link_of(3, "tap1")});
  CHECK(bench.host.listed_calls == 2);
  CHECK(bench.names() == Strings{"tap0", "tap1"});
  bench.book.changed(link_of(4, "tap2"));
  bench.settle();
  CHECK(bench.names() == Strings{"tap0", "tap1", "tap2"});
  bench.book.removed(1);
  bench.book.removed(77);
  bench.settle();
  CHECK(bench.names() == Strings{"tap1", "tap2"});
}

TEST_CASE("a rename changes the match, the labels follow, the attachment stays the same") {
  Bench bench({.match = {"tap*"}});
  bench.book.changed(link_of(1, "tap0"));
  bench.settle();
  const auto id = bench.keeper.attachment_of(1);
  bench.book.changed(link_of(1, "tap-b"));
  bench.settle();
  CHECK(bench.keeper.attachment_of(1) == id);
  CHECK(bench.host.attachments.at(id).labels.at("interface") == "tap-b");
  bench.book.changed(link_of(1, "other"));
  bench.settle();
  CHECK(bench.names().empty());
  bench.book.changed(link_of(1, "tap0"));
  bench.settle();
  CHECK(bench.names() == Strings{"tap0"});
}

TEST_CASE("two links that swap their names keep their attachments") {
  Bench bench({.match = {"tap*"}});
  bench.list({link_of(1, "tap0"), link_of(2, "tap1")});
  const auto first = bench.keeper.attachment_of(1), second = bench.keeper.attachment_of(2);
  bench.book.changed(link_of(1, "tmp"));
  bench.book.changed(link_of(2, "tap0"));
  bench.book.changed(link_of(1, "tap1"));
  bench.settle();
  CHECK(bench.keeper.attachment_of(1) == first);
  CHECK(bench.keeper.attachment_of(2) == second);
  CHECK(bench.host.attachments.at(first).target.name == "tap1");
}

TEST_CASE("a name that is used again is another device: the old one is detached first") {
  Bench bench({.match = {"tap*"}});
  bench.book.changed(link_of(1, "tap0"));
  bench.settle();
  bench.host.calls.clear();
  bench.book.removed(1);
  bench.book.changed(link_of(2, "tap0"));
  bench.settle();
  REQUIRE(bench.host.calls.size() == 2);
  CHECK(bench.host.calls[0].starts_with("detach 1"));
  CHECK(bench.host.calls[1] == "attach tap0");
}

TEST_CASE("a number that is used again is another device, even within one batch of events") {
  Bench bench({.match = {"tap*"}});
  bench.book.changed(link_of(1, "tap0"));
  bench.settle();
  bench.host.calls.clear();
  SUBCASE("seen") {
    bench.book.removed(1);
    bench.book.changed(link_of(1, "tap0"));
    bench.settle();
    REQUIRE(bench.host.calls.size() == 2);
    CHECK(bench.host.calls[0].starts_with("detach 1"));
  }
  SUBCASE("missed, and of another kind") {
    bench.list({link_of(1, "tap0", "tun")});
    REQUIRE(bench.host.calls.size() == 3);
    CHECK(bench.host.calls[0].starts_with("detach 1"));
    CHECK(bench.host.calls[1] == "attach tap0");
    CHECK(bench.host.calls[2] == "listed");
  }
  SUBCASE("missed, and alike: asked for again, which repairs it where its filter died") {
    bench.host.attachments.clear();
    bench.list({link_of(1, "tap0")});
    CHECK(bench.names() == Strings{"tap0"});
  }
}

TEST_CASE("bridge membership comes, goes, and follows the bridge's own name") {
  Bench bench({.bridge = {"br0"}});
  // A port may be listed before its bridge.
  bench.list(
      {link_of(1, "tap0", "tap", 9), link_of(2, "tap1", "tap"), link_of(9, "br0", "bridge")});
  CHECK(bench.names() == Strings{"tap0"});
  CHECK(bench.host.attachments.begin()->second.labels.at("bridge") == "br0");

  SUBCASE("nomaster, told by the link") {
    bench.book.changed(link_of(1, "tap0", "tap"));
    bench.settle();
    CHECK(bench.names().empty());
  }
  SUBCASE("nomaster, told by the bridge: the port itself stands") {
    bench.book.left_bridge(1, 9);
    bench.settle();
    CHECK(bench.names().empty());
    CHECK(bench.book.links().contains(1));
  }
  SUBCASE("a late word of a bridge that it has left already changes nothing") {
    bench.book.changed(link_of(8, "br0b", "bridge"));
    bench.book.left_bridge(1, 8);
    bench.settle();
    CHECK(bench.names() == Strings{"tap0"});
  }
  SUBCASE("a new port") {
    bench.book.changed(link_of(2, "tap1", "tap", 9));
    bench.settle();
    CHECK(bench.names() == Strings{"tap0", "tap1"});
  }
  SUBCASE("the bridge is renamed away and back") {
    bench.book.changed(link_of(9, "old", "bridge"));
    bench.settle();
    CHECK(bench.names().empty());
    bench.book.changed(link_of(9, "br0", "bridge"));
    bench.settle();
    CHECK(bench.names() == Strings{"tap0"});
  }
  SUBCASE("the bridge is deleted") {
    bench.book.removed(9);
    bench.settle();
    CHECK(bench.names().empty());
  }
  SUBCASE("out of one bridge and into another that is wanted too, in one batch: nothing happens") {
    const auto calls = bench.host.calls.size();
    bench.book.left_bridge(1, 9);
    bench.book.changed(link_of(1, "tap0", "tap"));
    bench.book.changed(link_of(1, "tap0", "tap", 9));
    bench.settle();
    CHECK(bench.host.calls.size() == calls);
  }
}

TEST_CASE("a master that is no bridge is no bridge") {
  Bench bench({.match = {"*"}});
  bench.list({link_of(1, "tap0", "tap", 9), link_of(9, "bond0", "bond")});
  CHECK_FALSE(bench.host.attachments.begin()->second.labels.contains("bridge"));
}

TEST_CASE("what vanished while events were lost is detached by the listing, before anything new") {
  Bench bench({.match = {"tap*"}});
  bench.list({link_of(1, "tap0"), link_of(2, "tap1"), link_of(3, "tap2")});
  bench.host.calls.clear();
  bench.list({link_of(2, "tap1"), link_of(3, "gone-by-name"), link_of(4, "tap0")});
  CHECK(bench.names() == Strings{"tap0", "tap1"});
  REQUIRE(bench.host.calls.size() == 5);
  CHECK(bench.host.calls[0].starts_with("detach"));
  CHECK(bench.host.calls[1].starts_with("detach"));
  CHECK(bench.host.calls[4] == "listed");
}

TEST_CASE("events between the parts of a listing count") {
  Bench bench({.match = {"tap*"}});
  bench.book.changed(link_of(1, "tap0"));
  bench.settle();
  bench.book.listing_started();
  bench.book.changed(link_of(1, "tap0"));
  bench.book.changed(link_of(2, "tap1"));
  bench.book.removed(1);                   // after it was listed
  bench.book.changed(link_of(3, "tap2"));  // new since
  bench.book.listing_complete();
  bench.settle();
  CHECK(bench.names() == Strings{"tap1", "tap2"});
}

TEST_CASE("a listing that has to begin anew attaches what it saw and removes nothing") {
  Bench bench({.match = {"tap*"}});
  bench.book.changed(link_of(1, "tap0"));
  bench.settle();
  bench.book.listing_started();
  bench.book.changed(link_of(2, "tap1"));
  bench.book.listing_started();
  bench.settle();
  CHECK(bench.names() == Strings{"tap0", "tap1"});
  CHECK(bench.host.listed_calls == 1);
  bench.book.changed(link_of(2, "tap1"));
  bench.book.listing_complete();
  bench.settle();
  CHECK(bench.names() == Strings{"tap1"});
  CHECK(bench.host.listed_calls == 2);
}

TEST_CASE("after any history, with events lost anywhere, a listing makes both sides equal") {
  std::mt19937 random(20240229);
  const auto below = [&](std::uint32_t limit) {
    return static_cast<std::uint32_t>(random() % limit);
  };
  for (int round = 0; round < 200; ++round) {
    Bench bench({.match = {"tap*"}, .exclude = {"tap9*"}});
    std::map<std::uint32_t, Link> kernel;
    std::uint32_t next = 1;
    bool losing = false;
    for (int step = 0; step < 200; ++step) {
      if (below(20) == 0) losing = true;
      const std::uint32_t action = below(10);
      if (action < 4 || kernel.empty()) {
        // Sometimes an explicit number, as "ip link add index N" does.
        std::uint32_t ifindex = below(4) == 0 ? 1 + below(next) : next++;
        if (kernel.contains(ifindex)) continue;
        kernel[ifindex] = link_of(ifindex, (below(2) ? "tap" : "x") + std::to_string(below(20)));
        if (!losing) bench.book.changed(kernel[ifindex]);
      } else {
        auto at = std::next(kernel.begin(), below(static_cast<std::uint32_t>(kernel.size())));
        if (action < 7) {
          at->second.name = (below(2) ? "tap" : "x") + std::to_string(below(20));
          if (!losing) bench.book.changed(at->second);
        } else {
          if (!losing) bench.book.removed(at->first);
          // What dies takes its filter with it.
          const auto id = bench.keeper.attachment_of(at->first);
          bench.host.attachments.erase(id);
          kernel.erase(at);
        }
      }
      if (below(8) == 0) bench.settle();
      if (losing && below(10) == 0) {
        std::vector<Link> all;
        for (const auto& [ifindex, link] : kernel) all.push_back(link);
        bench.list(all);
        losing = false;
      }
    }
    std::vector<Link> all;
    for (const auto& [ifindex, link] : kernel) all.push_back(link);
    bench.list(all);
    std::multiset<std::pair<std::uint32_t, std::string>> expected, got;
    for (const auto& [ifindex, link] : kernel)
      if (link.name.starts_with("tap") && !link.name.starts_with("tap9"))
        expected.emplace(ifindex, link.name);
    for (const auto& [id, attached] : bench.host.attachments)
      got.emplace(attached.target.ifindex, attached.target.name);
    REQUIRE(got == expected);
  }
}
