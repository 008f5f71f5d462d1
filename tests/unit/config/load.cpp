#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "base/install_paths.hpp"
#include "config/config.hpp"
#include "config/toml_document.hpp"
#include "unit/config/folder.hpp"

using namespace sluice;

namespace {

struct Loaded {
  test::Folder folder;
  std::expected<Config, ConfigErrors> config;
  explicit Loaded(const std::string& text)
      : config(load_config(folder.write("sluice.toml", text))) {}
};

// "line:column: text" of each.
std::vector<std::string> errors_of(const std::string& text) {
  const Loaded loaded(text);
  std::vector<std::string> out;
  if (loaded.config) return out;
  const auto file = (loaded.folder.path() / "sluice.toml").string();
  for (const auto& error : loaded.config.error()) {
    CHECK(error.file == file);
    out.push_back(error.message().substr(file.size() + 1));
  }
  return out;
}

constexpr const char* kPlugins =
    "[plugin.taps]\nlibrary = \"interfaces\"\n[plugin.static]\nlibrary = \"static\"\n";

}  // namespace

TEST_CASE("every key reaches its field") {
  const Loaded loaded(R"(
[host]
plugin_path = ["plugins", "/usr/lib/sluice/plugins"]
state_dir = "state"
bpffs = "/sys/fs/bpf/x"
log_level = "debug"
tc_mechanism = "clsact"
max_attachments = 100
max_learned = 2048
max_learned_per_workload = 512
max_flows = 4096
heap_kib = 128
events_per_second = 0
events_burst = 7
dns_packets_per_second = 50

[floor]
deny = ["10.1.0.0/16", "2001:db8::/32"]

[guard]
uplinks = ["eth0", "eth0.7"]
trusted = ["wg0"]
cgroups = ["/machine.slice", "/"]

[plugin.zeta]
library = "interfaces"
match = ["tap*"]
labels = { class = "vm" }

[plugin.alpha]
library = "static"
required = false
overrides_floor = true

[[wire]]
targets = { discovered_by = "zeta", labels = { class = "v*" }, name = "tap?" }
sources = ["alpha"]
mode = "denylist"
audit = true
replies = false
arp = false
nd = false
dhcp = false
tell = false
loopback = true
dhcp_servers = ["192.0.2.1", "2001:db8::1"]
ethertypes = [0x88cc, 0x88b5]
vlans = [7, 4094]

[[wire]]
)");
  if (!loaded.config) FAIL(loaded.config.error().front().message());
  const auto& config = *loaded.config;
  const auto& here = loaded.folder.path();
  CHECK(config.file == here / "sluice.toml");
  CHECK(config.host == HostConfig{.plugin_path = {here / "plugins", "/usr/lib/sluice/plugins"},
                                  .state_dir = here / "state",
                                  .bpffs = "/sys/fs/bpf/x",
                                  .log_level = "debug",
                                  .tc_mechanism = "clsact",
                                  .max_attachments = 100,
                                  .max_learned = 2048,
                                  .max_learned_per_workload = 512,
                                  .max_flows = 4096,
                                  .heap_kib = 128,
                                  .events_per_second = 0,
                                  .events_burst = 7,
                                  .dns_packets_per_second = 50});
  REQUIRE(config.floor.deny.size() == 2);
  CHECK(config.floor.deny[1].text() == "2001:db8::/32");
  CHECK(config.guard.uplinks == std::vector<std::string>{"eth0", "eth0.7"});
  CHECK(config.guard.trusted == std::vector<std::string>{"wg0"});
  CHECK(config.guard.parent_cgroups == std::vector<std::string>{"/machine.slice", "/"});

  REQUIRE(config.plugins.size() == 2);
  CHECK(config.plugins[0].instance == "zeta");  // in file order
  CHECK(config.plugins[0].library == "interfaces");
  CHECK(config.plugins[0].required);
  CHECK_FALSE(config.plugins[0].overrides_floor);
  CHECK(config.plugins[0].toml_text == R"({"labels" = {"class" = "vm"}, "match" = ["tap*"]})");
  CHECK(config.plugins[0].line == 25);
  CHECK(config.plugins[1].instance == "alpha");
  CHECK_FALSE(config.plugins[1].required);
  CHECK(config.plugins[1].overrides_floor);
  CHECK(config.plugins[1].toml_text == "{}");

  REQUIRE(config.wires.size() == 2);
  const auto& wire = config.wires[0];
  CHECK(wire.discovered_by == "zeta");
  CHECK(wire.labels == std::map<std::string, std::string>{{"class", "v*"}});
  CHECK(wire.name == "tap?");
  CHECK(wire.sources == std::vector<std::string>{"alpha"});
  CHECK(wire.mode == Mode::denylist);
  AttachmentOptions options;
  options.audit = true;
  options.replies = options.arp = options.nd = options.dhcp = options.tell = false;
  options.loopback = true;
  options.dhcp4_server = {192, 0, 2, 1};
  options.dhcp6_server = {0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
  options.ethertypes = {0x88cc, 0x88b5};
  options.vlans = {7, 4094};
  CHECK(wire.options == options);
  CHECK(config.wires[1] == WireConfig{});
}

TEST_CASE("what is not written has the default, the metadata floor included") {
  const Loaded loaded("[guard]\n");
  REQUIRE(loaded.config);
  CHECK(loaded.config->host == HostConfig{.plugin_path = {kInstalledPlugins}});
  std::vector<std::string> floor;
  for (const auto& prefix : loaded.config->floor.deny) floor.push_back(prefix.text());
  CHECK(floor == std::vector<std::string>{"169.254.169.254/32", "fd00:ec2::254/128",
                                          "100.100.100.200/32", "168.63.129.16/32"});
  CHECK(Loaded("[floor]\ndeny = []\n").config->floor.deny.empty());
}

TEST_CASE("each fault is named with line and column") {
  struct Row {
    std::string text;
    std::vector<std::string> wanted;  // beginnings
  };
  const std::string plugins = kPlugins;  // four lines
  for (const Row& row : {
           Row{"", {"1:1: nothing is configured here"}},
           Row{"# only a comment\n\n", {"1:1: nothing is configured here"}},
           Row{"[hots]\n", {"1:1: the top level: unknown key \"hots\"; did you mean \"host\"?"}},
           Row{"host = 3\n", {"1:8: host is an integer (3); it takes a table"}},
           Row{"[[host]]\n", {"1:1: host is a list; it takes a table"}},
           Row{"[wire]\n",
               {"1:1: wire is a table; it takes tables, each under a [[wire]] of its own"}},
           Row{"wire = [1]\n", {"1:9: an item of wire is an integer (1); it takes tables"}},
           Row{"[host]\nlog_levle = \"info\"\n",
               {"2:1: [host]: unknown key \"log_levle\"; did you mean \"log_level\"?"}},
           Row{"[host]\n\"with blank\" = 1\n",
               {"2:1: [host]: unknown key \"with blank\"; known "
                "here: bpffs, dns_packets_per_second, events_burst"}},
           Row{"[host]\nlog_level = \"inof\"\n",
               {"2:13: log_level is \"inof\"; it takes one of trace, debug, info, warning, error; "
                "did you mean \"info\"?"}},
           Row{"[host]\nlog_level = 3\n", {"2:13: log_level is an integer (3); it takes a string"}},
           Row{"[host]\nmax_attachments = \"8\"\n",
               {"2:19: max_attachments is a string (\"8\"); it takes an integer"}},
           Row{"[host]\nmax_attachments = 0\n",
               {"2:19: max_attachments is 0; it goes from 1 to 1048576"}},
           Row{"[host]\nheap_kib = 1.5\n",
               {"2:12: heap_kib is a decimal number (1.5); it takes an integer"}},
           Row{"[host]\nbpffs = \"bpf\"\n", {"2:9: bpffs is \"bpf\"; it takes an absolute path"}},
           Row{"[host]\nstate_dir = \"\"\n", {"2:13: state_dir is empty"}},
           Row{"[host]\nstate_dir = \"a\\u0000b\"\n", {"2:13: state_dir holds a zero byte"}},
           Row{"[host]\nplugin_path = \"/usr\"\n",
               {"2:15: plugin_path is a string (\"/usr\"); it takes a list of strings"}},
           Row{"[host]\nplugin_path = [\"/a\", \"/b\",\n  \"/a\"]\n",
               {"3:3: plugin_path: \"/a\" stands here twice, first on line 2; remove one"}},
           Row{"[floor]\ndeny = [\n\"10.0.0.1/8\",\n \"10.0.0.0/33\",\n \"x\", 7,\n "
               "\"10.0.0.0/8\", \"10.0.0.0/8\"]\n",
               {"3:1: deny: \"10.0.0.1/8\" has host bits set; write 10.0.0.0/8",
                "4:2: deny: \"10.0.0.0/33\": the length behind '/' is not a number from 0 to 32",
                "5:2: deny: \"x\" is not an IPv4 or IPv6 prefix",
                "5:7: an item of deny is an integer (7); it takes strings only",
                "6:16: deny: \"10.0.0.0/8\" stands here twice, first on line 6; remove one"}},
           Row{"[floor]\ndeny = [\"::ffff:10.0.0.0/104\"]\n",
               {"2:9: deny: \"::ffff:10.0.0.0/104\" is an IPv4-mapped prefix; write 10.0.0.0/8"}},
           Row{"[guard]\nuplinks = [\"eth0\", \"interface-name-too-long\", \"a/b\", \"\"]\n",
               {"2:20: uplinks: \"interface-name-too-long\" is no interface name",
                "2:47: uplinks: \"a/b\" is no interface name",
                "2:54: uplinks: \"\" is no interface name"}},
           Row{"[guard]\nuplinks = [\"eth0\"]\ntrusted = [\"eth0\"]\n",
               {"1:1: [guard]: \"eth0\" is named in uplinks and in trusted"}},
           Row{"[guard]\ncgroups = [\"machine.slice\", \"/a/../b\", \"/a/\"]\n",
               {"2:12: cgroups: \"machine.slice\" is no cgroup path",
                "2:29: cgroups: \"/a/../b\" is no cgroup path",
                "2:40: cgroups: \"/a/\" is no cgroup path"}},
           Row{"[plugin.a]\nmatch = []\n", {"1:1: [plugin.a]: key \"library\" is missing"}},
           Row{"[plugin.a]\nlibrary = \"../evil\"\n",
               {"2:11: library is \"../evil\"; it takes the "
                "bare name of a plugin"}},
           Row{"[plugin.a]\nlibrary = 3\nrequired = \"no\"\noverrides_floor = 1\n",
               {"2:11: library is an integer (3); it takes a string",
                "3:12: required is a string (\"no\"); it takes true or false, without quotes",
                "4:19: overrides_floor is an integer (1); it takes true or false"}},
           Row{"[plugin]\na = 3\n",
               {"2:1: plugin.a is an integer (3); it takes a table: [plugin.a]"}},
           Row{"[plugin.\"a/b\"]\nlibrary = \"x\"\n", {"1:1: plugin name \"a/b\": use 1 to 64"}},
           Row{"[plugin.a]\nlibrary = \"x\"\n[plugin.a]\nlibrary = \"y\"\n",
               {"3:1: not TOML: table (\"plugin.a\") already exists"}},
           Row{plugins + "[[wire]]\nsources = [\"statik\", \"static\", \"static\", \"zzzzzz\"]\n",
               {"6:12: sources: no [plugin.statik] is configured; did you mean \"static\"?",
                "6:32: sources: \"static\" stands here twice; remove one",
                "6:42: sources: no [plugin.zzzzzz] is configured; known here: static, taps"}},
           Row{plugins + "[[wire]]\ntargets = { discovered_by = \"tap\" }\n",
               {"6:29: discovered_by: no [plugin.tap] is configured; did you mean \"taps\"?"}},
           Row{"[[wire]]\nsources = [\"a\"]\n", {"2:12: sources: no [plugin.a] is configured"}},
           Row{"[[wire]]\ntargets = { label = { a = \"b\" } }\n",
               {"2:13: targets: unknown key \"label\"; did you mean \"labels\"?"}},
           Row{"[[wire]]\ntargets = { labels = { a = 1, b = \"x\", c = [] } }\n",
               {"2:28: labels.a is an integer (1); it takes a string",
                "2:44: labels.c is a list; it takes a string"}},
           Row{"[[wire]]\nmode = \"block_all\"\n",
               {"2:8: mode is \"block_all\"; it takes one of block-all, allowlist, denylist, "
                "disabled; did you mean \"block-all\"?"}},
           Row{"[[wire]]\nethertypes = [0x0800, 0x86dd, 0x0806, 0x8100, 5, 0x88cc, 0x88cc, "
               "\"x\"]\n",
               {"2:15: ethertypes: 0x0800 is IP", "2:23: ethertypes: 0x86dd is IP",
                "2:31: ethertypes: 0x0806 is ARP", "2:39: ethertypes: 0x8100 is a VLAN tag",
                "2:47: an item of ethertypes is 5; it goes from 1536 to 65535",
                "2:58: ethertypes: 0x88cc stands here twice",
                "2:66: an item of ethertypes is a string (\"x\"); it takes integers only"}},
           Row{"[[wire]]\nvlans = [0, 4095, 1, 2, 3, 4, 5]\n",
               {"2:10: an item of vlans is 0", "2:13: an item of vlans is 4095",
                "2:31: vlans has 5 items; the filter has room for 4"}},
           Row{"[[wire]]\ndhcp_servers = [\"192.0.2.1\", \"192.0.2.2\", \"::1\", \"::2\", "
               "\"10.0.0.0/8\", \"x\"]\n",
               {"2:30: dhcp_servers: \"192.0.2.2\" is a second IPv4 server",
                "2:50: dhcp_servers: \"::2\" is a second IPv6 server",
                "2:57: dhcp_servers: \"10.0.0.0/8\" is not an address",
                "2:71: dhcp_servers: \"x\" is not an address"}},
           Row{"[[wire]]\naudit = 1\ntargets = []\n",
               {"2:9: audit is an integer (1); it takes true or false",
                "3:11: targets is a list; it takes a table"}},
           Row{"[[wire]]\nmode = \"allowlist\"\n[[wire]]\n",
               {"3:1: [[wire]]: the same targets as the [[wire]] on line 1"}},
       }) {
    CAPTURE(row.text);
    const auto errors = errors_of(row.text);
    std::string all;
    for (const auto& error : errors) all += error + "\n";
    CAPTURE(all);
    REQUIRE(errors.size() == row.wanted.size());
    for (std::size_t i = 0; i < errors.size(); ++i) {
      CAPTURE(row.wanted[i]);
      CHECK(errors[i].starts_with(row.wanted[i]));
    }
  }
}

TEST_CASE("all faults of a file come at once, in file order") {
  const auto errors = errors_of("[[wire]]\nmode = 3\n[plugin.a]\n[host]\nx = 1\nlog_level = 2\n");
  REQUIRE(errors.size() == 4);
  CHECK(errors[0].starts_with("2:8: "));
  CHECK(errors[1].starts_with("3:1: "));
  CHECK(errors[2].starts_with("5:1: "));
  CHECK(errors[3].starts_with("6:13: "));
}

TEST_CASE("ten megabytes of garbage are one short error") {
  for (const char byte : {'\0', '\xff', 'a', '[', '\n', '"'}) {
    CAPTURE(static_cast<int>(byte));
    for (const std::size_t size : {std::size_t{10} << 20, std::size_t{4} << 20}) {
      const auto errors = errors_of(std::string(size, byte));
      REQUIRE(errors.size() == 1);
      CHECK(errors[0].size() < 300);
    }
  }
}

TEST_CASE("a thousand faults are a hundred and their number") {
  std::string text = "[host]\n";
  for (int i = 0; i < 1000; ++i) text += "key_" + std::to_string(i) + " = 1\n";
  const auto errors = errors_of(text);
  REQUIRE(errors.size() == ErrorList::kShown + 1);
  CHECK(errors.back() == " 900 more errors are not shown; mend these first");
}

TEST_CASE("a file that is not there is one error") {
  const auto config = load_config("/nonexistent/sluice.toml");
  REQUIRE_FALSE(config);
  REQUIRE(config.error().size() == 1);
  CHECK(config.error()[0].message() == "/nonexistent/sluice.toml: does not exist; check the path");
}
