#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "static/policy_file.hpp"

#include <doctest/doctest.h>

#include <map>
#include <string>
#include <vector>

using namespace sluice;
using namespace sluice::static_policy;
using namespace std::chrono_literals;

namespace {

// Files that exist in the test only: path -> text.
using Files = std::map<std::string, std::string>;

auto read(const std::string& text, Files files = {}) {
  files["/p/a.toml"] = text;
  const FileReader reader = [files](const std::filesystem::path& file,
                                    std::size_t limit) -> std::expected<std::string, ConfigErrors> {
    const auto at = files.find(file.string());
    if (at == files.end())
      return std::unexpected(ConfigErrors{{.file = file.string(), .text = "does not exist"}});
    if (at->second.size() > limit)
      return std::unexpected(ConfigErrors{{.file = file.string(), .text = "too large"}});
    return at->second;
  };
  return read_policy_file("/p/a.toml", {"/none", "/presets"}, reader);
}

std::vector<std::string> errors_of(const std::string& text, Files files = {}) {
  const auto policies = read(text, std::move(files));
  std::vector<std::string> out;
  if (!policies)
    for (const auto& error : policies.error()) out.push_back(error.message());
  return out;
}

constexpr const char* kHead = "[[policy]]\nname = \"p\"\nmatch = {}\n";  // three lines

std::vector<std::string> texts(const std::vector<Prefix>& prefixes) {
  std::vector<std::string> out;
  for (const auto& prefix : prefixes) out.push_back(prefix.text());
  return out;
}

}  // namespace

TEST_CASE("a policy says what its file says") {
  const auto policies =
      read(R"(
[[policy]]
name    = "agents"
match   = { class = "vm", tenant = "a*" }
mode    = "allowlist"
audit   = true
replies = false
presets = ["apt"]
[[policy.allow]]
domains = ["pypi.org", "*.PythonHosted.org"]
ports   = ["tcp/443"]
[[policy.allow]]
name  = "databases"
cidrs = ["10.20.0.0/16", "2001:db8:20::/48", "192.0.2.1"]
ports = ["udp/8000-8100", "tcp/5432"]
ttl   = "8h"
[[policy.deny]]
cidrs      = ["10.20.99.0/24"]
cidr_files = ["lists/bad.txt"]
[[policy]]
name  = "other"
match = {}
)",
           {{"/presets/apt.toml",
             "summary = \"x\"\n[[allow]]\ndomains = "
             "[\".debian.org\"]\n[[deny]]\ncidrs = "
             "[\"192.0.2.9\"]\n"},
            {"/p/lists/bad.txt", "# bad\n203.0.113.0/24\n\n  2001:db8:bad::/48 # x\r\n"}});
  REQUIRE_MESSAGE(policies, (policies ? "" : policies.error().front().message()));
  REQUIRE(policies->size() == 2);
  const auto& policy = policies->front();
  CHECK(policy.name == "agents");
  CHECK(policy.match == sdk::Labels{{"class", "vm"}, {"tenant", "a*"}});
  CHECK(policy.mode == Mode::allowlist);
  CHECK(policy.audit == true);
  CHECK(policy.replies == false);
  CHECK(policy.file == "/p/a.toml");
  CHECK(policy.line == 2);
  CHECK(policy.has_ttl());
  CHECK(policy.rule_count() == 10);
  REQUIRE(policy.groups.size() == 5);
  CHECK(policy.groups[0].domains == std::vector<std::string>{"pypi.org", "*.pythonhosted.org"});
  CHECK(policy.groups[0].name == "agents:allow:1");
  CHECK(policy.groups[0].ports == std::vector{*PortRange::parse("tcp/443")});
  CHECK(policy.groups[1].name == "databases");
  CHECK(policy.groups[1].ttl == 8h);
  CHECK(texts(policy.groups[1].prefixes) ==
        std::vector<std::string>{"10.20.0.0/16", "2001:db8:20::/48", "192.0.2.1/32"});
  CHECK(policy.groups[2].action == Action::deny);
  CHECK(policy.groups[2].name == "agents:deny:1");
  CHECK(texts(policy.groups[2].prefixes) ==
        std::vector<std::string>{"10.20.99.0/24", "203.0.113.0/24", "2001:db8:bad::/48"});
  CHECK(policy.groups[3].domains == std::vector<std::string>{".debian.org"});
  CHECK(policy.groups[3].name == "apt:allow:1");
  CHECK(policy.groups[4].action == Action::deny);

  const auto& other = policies->back();
  CHECK_FALSE(other.mode);
  CHECK_FALSE(other.audit);
  CHECK_FALSE(other.replies);
  CHECK(other.groups.empty());
}

TEST_CASE("each fault is named with file, line and column") {
  struct Row {
    std::string text;
    std::vector<std::string> wanted;
    Files files{};
  };
  const std::string head = kHead;
  for (const Row& row : {
           Row{"", {"/p/a.toml:1:1: holds no [[policy]]; write one, or remove the file"}},
           Row{"# nothing\n", {"/p/a.toml:1:1: holds no [[policy]]"}},
           Row{"[policy]\nname = \"p\"\n",
               {"/p/a.toml:1:1: policy is a table; it takes tables, each under a [[policy]]"}},
           Row{"[[polciy]]\n",
               {"/p/a.toml:1:1: holds no [[policy]]",
                "/p/a.toml:1:1: a policy file: unknown key \"polciy\"; did you mean \"policy\"?"}},
           Row{"[[policy]]\n",
               {"/p/a.toml:1:1: [[policy]]: key \"name\" is missing",
                "/p/a.toml:1:1: [[policy]]: key \"match\" is missing"}},
           Row{"[[policy]]\nname = \"a b\"\nmatch = { class = 3 }\nmode = \"alowlist\"\naudit = "
               "0\nreplies = \"no\"\n",
               {"/p/a.toml:2:8: name is \"a b\"; use 1 to 64 letters",
                "/p/a.toml:3:19: match.class is an integer (3); it takes a string",
                "/p/a.toml:4:8: mode is \"alowlist\"; it takes one of allowlist, denylist, "
                "block-all, disabled; did you mean \"allowlist\"?",
                "/p/a.toml:5:9: audit is an integer (0); it takes true or false",
                "/p/a.toml:6:11: replies is a string (\"no\"); it takes true or false"}},
           Row{head + "[[policy.alow]]\n",
               {"/p/a.toml:4:1: [[policy]]: unknown key \"alow\"; did you mean \"allow\"?"}},
           Row{head + "[policy.allow]\ncidrs = []\n",
               {"/p/a.toml:4:1: allow is a table; it takes tables, each under a [[allow]]"}},
           Row{head + "[[policy.allow]]\n", {"/p/a.toml:4:1: an allow rule: names nothing"}},
           Row{head + "[[policy.deny]]\ncidr = [\"10.0.0.0/8\"]\n",
               {"/p/a.toml:4:1: a deny rule: names nothing",
                "/p/a.toml:5:1: a deny rule: unknown key \"cidr\"; did you mean \"cidrs\"?"}},
           Row{head + "[[policy.allow]]\ncidrs = [\"10.0.0.1/8\", \"x\",\n 3, \"10.0.0.0/8\"]\n",
               {"/p/a.toml:5:10: cidrs: \"10.0.0.1/8\" has host bits set; write 10.0.0.0/8",
                "/p/a.toml:5:24: cidrs: \"x\" is not an IPv4 or IPv6 prefix",
                "/p/a.toml:6:2: an item of cidrs is an integer (3); it takes strings only"}},
           Row{head + "[[policy.allow]]\ncidrs = [\"::/0\"]\nports = [\"tcp/443\", \"https\", "
                      "\"tcp/9-3\", \"tcp/443\"]\n",
               {"/p/a.toml:6:21: ports: \"https\" is not a protocol with ports",
                "/p/a.toml:6:30: ports: \"tcp/9-3\": the first port is above the last",
                "/p/a.toml:6:41: ports: \"tcp/443\" stands here twice"}},
           Row{head + "[[policy.allow]]\ncidrs = [\"::/0\"]\nports = []\n",
               {"/p/a.toml:4:1: an allow rule: ports is empty"}},
           Row{head + "[[policy.allow]]\ncidrs = [\"::/0\"]\nttl = 8\nname = \"\"\n",
               {"/p/a.toml:6:7: ttl is an integer (8); it takes a string",
                "/p/a.toml:7:8: name takes 1 to 64 bytes"}},
           Row{head + "[[policy.allow]]\ncidrs = [\"::/0\"]\nttl = \"8 h\"\n",
               {"/p/a.toml:6:7: ttl: \"8 h\" is not a duration"}},
           Row{head + "[[policy.allow]]\ndomains = [\"a.org\", \"A.ORG\", \"http://b.org\"]\n",
               {"/p/a.toml:5:21: domains: \"A.ORG\" stands here twice, first on line 5",
                "/p/a.toml:5:30: domains: \"http://b.org\" is a URL or a path"}},
           Row{head +
                   "[[policy.allow]]\ndomains = [\"*.com\",\n \".co.uk\", \"pypi.org\", \"com\", "
                   "\".github.io\"]\n",
               {"/p/a.toml:5:12: domains: \"*.com\" covers a public suffix",
                "/p/a.toml:6:2: domains: \".co.uk\" covers a public suffix",
                "/p/a.toml:6:31: domains: \".github.io\" covers a public suffix"}},
           Row{head + "[[policy.allow]]\ndomains = [\"a.org\"]\naddresses = [\"10.0.0.1/8\", "
                      "\"10.0.0.0/8\", \"10.0.0.0/8\"]\n",
               {"/p/a.toml:6:14: addresses: \"10.0.0.1/8\" has host bits set",
                "/p/a.toml:6:42: addresses: \"10.0.0.0/8\" stands here twice"}},
           Row{head +
                   "[[policy.allow]]\ndomains = [\"a.org\"]\ntypes = [\"mx\", \"TYPE15\", \"A\", "
                   "\"ANY\", \"MXX\", \"TYPE070\", \"TYPE65536\"]\n",
               {"/p/a.toml:6:16: types: \"TYPE15\" stands here twice",
                "/p/a.toml:6:26: types: \"A\" always passes",
                "/p/a.toml:6:31: types: \"ANY\" is no type of record that a name can have",
                "/p/a.toml:6:38: types: \"MXX\" is no DNS record type",
                "/p/a.toml:6:45: types: \"TYPE070\" is no DNS record type",
                "/p/a.toml:6:56: types: \"TYPE65536\" is no DNS record type"}},
           Row{head + "[[policy.allow]]\ncidrs = [\"10.0.0.0/8\"]\ntypes = [\"MX\"]\n",
               {"/p/a.toml:4:1: an allow rule: types is about domains, and the rule names none"}},
           Row{head + "[[policy.deny]]\ndomains = [\"*.com\"]\naddresses = [\"10.0.0.0/8\"]\n"
                      "public_suffix = true\n",
               {"/p/a.toml:4:1: a deny rule: addresses belongs to an allow rule",
                "/p/a.toml:4:1: a deny rule: public_suffix belongs to an allow rule"}},
           Row{head + "[[policy.allow]]\ncidrs = [\"10.0.0.0/8\",\n  \"10.0.0.0/8\"]\n",
               {"/p/a.toml:6:3: 10.0.0.0/8 stands twice in policy \"p\", first on line 5; remove "
                "one"}},
           Row{head + "[[policy.allow]]\ncidrs = [\"10.0.0.0/8\"]\nports = [\"udp/1\", "
                      "\"tcp/1\"]\n[[policy.allow]]\ncidrs = [\"10.0.0.0/8\"]\nports = [\"tcp/1\", "
                      "\"udp/1\"]\nttl = \"1h\"\n",
               {"/p/a.toml:8:10: 10.0.0.0/8 stands twice in policy \"p\", first on line 5"}},
           Row{head + "presets = [\"apt\", \"../x\", \"apt\", \"nope\", 3]\n",
               {"/p/a.toml:4:19: preset \"../x\": write a bare name",
                "/p/a.toml:4:27: preset \"apt\" stands here twice",
                "/p/a.toml:4:34: preset \"nope\" does not exist; looked for nope.toml in /none, "
                "/presets",
                "/p/a.toml:4:42: an item of presets is an integer (3)"},
               {{"/presets/apt.toml", "[[allow]]\ncidrs = [\"::/0\"]\n"}}},
           Row{head + "presets = [\"x\"]\nmood = 1\n",
               {"/p/a.toml:5:1: [[policy]]: unknown key \"mood\"",
                "/presets/x.toml:1:1: a preset: unknown key \"mode\"",
                "/presets/x.toml:3:10: cidrs: \"10.0.0.1/8\" has host bits set"},
               {{"/presets/x.toml", "mode = \"denylist\"\n[[deny]]\ncidrs = [\"10.0.0.1/8\"]\n"}}},
           Row{head + "presets = [\"x\"]\n",
               {"/presets/x.toml:1:5: not TOML: "},
               {{"/presets/x.toml", "a = tru\n"}}},
           Row{head + "presets = [\"x\"]\n[[policy.deny]]\ncidrs = [\"10.0.0.0/8\"]\n",
               {"/presets/x.toml:2:10: 10.0.0.0/8 stands twice in policy \"p\", first at "
                "/p/a.toml:6"},
               {{"/presets/x.toml", "[[deny]]\ncidrs = [\"10.0.0.0/8\"]\n"}}},
           Row{head + "[[policy.deny]]\ncidr_files = [\"l\", \"gone\", \"\", \"l\"]\n",
               {"/p/a.toml:5:20: cidr_files: /p/gone: does not exist",
                "/p/a.toml:5:28: cidr_files: an empty name",
                "/p/l:1:2: \"10.0.0.1/8\" has host bits set; write 10.0.0.0/8",
                "/p/l:4:1: \"what\" is not an IPv4 or IPv6 prefix"},
               {{"/p/l", " 10.0.0.1/8\n#x\n10.0.0.0/8\nwhat # is it\n"}}},
           Row{head + "[[policy.deny]]\ncidr_files = [\"l\", \"m\"]\n",
               {"/p/l:3: 10.0.0.0/8 stands twice in policy \"p\", first on line 1; remove one",
                "/p/m:2: 10.0.0.0/8 stands twice in policy \"p\", first at /p/l:3; remove one"},
               {{"/p/l", "10.0.0.0/8\n\n10.0.0.0/8"}, {"/p/m", "\n10.0.0.0/8\n"}}},
           Row{std::string("[[policy]]\nname = \"p\xff\"\n"),
               {"/p/a.toml:2:10: byte 0xff is not UTF-8"}},
       }) {
    CAPTURE(row.text);
    const auto errors = errors_of(row.text, row.files);
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

TEST_CASE("the same prefix may be allowed and denied, and for other ports") {
  CHECK(read(std::string(kHead) +
             "[[policy.allow]]\ncidrs = [\"10.0.0.0/8\"]\n[[policy.deny]]\ncidrs = "
             "[\"10.0.0.0/8\"]\n[[policy.allow]]\ncidrs = [\"10.0.0.0/8\"]\nports = "
             "[\"tcp/1\"]\n"));
}

TEST_CASE("a broken preset named by two policies is reported once") {
  const auto errors = errors_of(
      "[[policy]]\nname = \"a\"\nmatch = {}\npresets = [\"x\"]\n[[policy]]\nname = "
      "\"b\"\nmatch = {}\npresets = [\"x\"]\n",
      {{"/presets/x.toml", "x = 1\n"}});
  CHECK(errors.size() == 1);
}

TEST_CASE("a list full of garbage is a hundred errors, and read no further") {
  std::string text;
  for (int i = 0; i < 200'000; ++i) text += "garbage\n";
  const auto list = parse_cidr_list(text, "l");
  REQUIRE_FALSE(list);
  REQUIRE(list.error().size() == ErrorList::kShown);
  CHECK(list.error().back().message() == "l:100: not read from here on, after so many errors");
}

TEST_CASE("a list of a million prefixes is a list of a million prefixes") {
  std::string text;
  for (unsigned i = 0; i < 1'000'000; ++i)
    text += "10." + std::to_string(i >> 16) + "." + std::to_string(i >> 8 & 255) + "." +
            std::to_string(i & 255) + "\n";
  const auto list = parse_cidr_list(text, "l");
  REQUIRE(list);
  CHECK(list->size() == 1'000'000);
  CHECK(list->back().line == 1'000'000);
  const auto policies =
      read(std::string(kHead) + "[[policy.deny]]\ncidr_files = [\"l\"]\n", {{"/p/l", text}});
  REQUIRE(policies);
  CHECK(policies->front().rule_count() == 1'000'000);
}

TEST_CASE("what a rule says of its domains goes with each of them, and with no prefix") {
  const auto policies = read(R"(
[[policy]]
name = "one"
match = {}
[[policy.allow]]
domains = ["*.com", "intranet.example"]
cidrs = ["192.0.2.0/24"]
addresses = ["fd00::/8", "10.0.0.0/8"]
types = ["TXT", "MX", "TYPE65280"]
public_suffix = true
[[policy.deny]]
domains = ["*.org"]
)");
  REQUIRE_MESSAGE(policies, (policies ? "" : policies.error().front().message()));
  const auto layer = unite({std::make_shared<const Policy>(policies->front())});
  REQUIRE(layer.rules.size() == 4);
  CHECK(layer.rules[0].ranges.empty());
  CHECK(layer.rules[0].types.empty());
  for (const int i : {1, 2}) {
    CHECK(layer.rules[i].ranges == std::vector<sdk::Prefix>{sdk::Prefix::parse("10.0.0.0/8"),
                                                            sdk::Prefix::parse("fd00::/8")});
    CHECK(layer.rules[i].types == std::vector<std::uint16_t>{15, 16, 65280});
    CHECK(layer.rules[i].public_suffix);
  }
  CHECK(layer.rules[3].ranges.empty());

  auto other = policies->front();
  other.groups[0].types.pop_back();
  CHECK_FALSE(other.says_same(policies->front()));
  CHECK(other.digest() != policies->front().digest());
  other.groups[0].types = policies->front().groups[0].types;
  other.groups[0].public_suffix = false;
  CHECK(other.digest() != policies->front().digest());
}

TEST_CASE("policies that fit unite; the first that sets a switch decides it") {
  const auto policies = read(R"(
[[policy]]
name = "one"
match = { class = "v?" }
audit = true
[[policy.allow]]
cidrs = ["10.0.0.0/8"]
ttl = "1h"
[[policy]]
name = "two"
match = { class = "vm", tenant = "*" }
mode = "allowlist"
audit = false
[[policy.deny]]
cidrs = ["2001:db8::/32"]
domains = [".example.org"]
ports = ["udp/53"]
[[policy]]
name = "three"
match = {}
mode = "denylist"
replies = false
)");
  REQUIRE(policies);
  std::vector<PolicyPtr> all;
  for (auto policy : *policies) {
    policy.counted_from = sdk::Time(100s);
    all.push_back(std::make_shared<const Policy>(policy));
  }
  CHECK(select(all, {}).size() == 1);
  CHECK(select(all, {{"class", "vm"}}).size() == 2);
  CHECK(select(all, {{"class", "container"}}).size() == 1);

  const auto fitting = select(all, {{"class", "vm"}, {"tenant", ""}});
  REQUIRE(fitting.size() == 3);
  const auto layer = unite(fitting);
  CHECK(layer.mode == sdk::Mode::allowlist);
  CHECK(layer.audit == true);
  CHECK(layer.replies == false);
  REQUIRE(layer.rules.size() == 3);
  CHECK(layer.rules[0] == sdk::Rule{.action = sdk::Action::allow,
                                    .prefix = sdk::Prefix::parse("10.0.0.0/8"),
                                    .expires = sdk::Time(3700s),
                                    .name = "one:allow:1"});
  CHECK(layer.rules[1] == sdk::Rule{.action = sdk::Action::deny,
                                    .prefix = sdk::Prefix::parse("2001:db8::/32"),
                                    .ports = {{17, false, 53, 53}},
                                    .name = "two:deny:1"});
  CHECK(layer.rules[2].domain == ".example.org");
  CHECK_FALSE(layer.rules[2].prefix);
  CHECK_FALSE(unite({}).mode);
}

TEST_CASE("a TTL that ended before the boot has ended, and is not endless") {
  Policy policy;
  policy.counted_from = sdk::Time(-7200s);
  policy.groups.push_back({.action = Action::allow,
                           .prefixes = {*Prefix::parse("10.0.0.0/8")},
                           .domains = {},
                           .ports = {},
                           .addresses = {},
                           .types = {},
                           .public_suffix = false,
                           .ttl = 1h,
                           .name = "x"});
  const auto layer = unite({std::make_shared<const Policy>(policy)});
  REQUIRE(layer.rules.front().expires);
  CHECK(layer.rules.front().expires->time_since_epoch() == 1ns);
}
