#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "config/config.hpp"
#include "unit/config/folder.hpp"

using namespace sluice;
using Type = OptionDeclaration::Type;

namespace {

PluginConfig plugin(const std::string& options) {
  const test::Folder folder;
  const auto config =
      load_config(folder.write("sluice.toml", "[plugin.p]\nlibrary = \"lib\"\n" + options));
  if (!config) FAIL(config.error().front().message());
  return config->plugins.front();
}

const std::vector<OptionDeclaration> kDeclared{
    {.path = "endpoint", .type = Type::string, .required = true, .help = "where to"},
    {.path = "count", .type = Type::integer, .default_value = "7"},
    {.path = "on", .type = Type::boolean, .default_value = "true"},
    {.path = "match", .type = Type::string_list, .default_value = "[\"a\", \"b\"]"},
    {.path = "labels", .type = Type::string_table, .default_value = "{ x = \"y\" }"},
    {.path = "every", .type = Type::duration, .default_value = "\"30s\""},
    {.path = "tls.ca", .type = Type::string},
    {.path = "tls.key", .type = Type::string},
};

std::vector<std::string> errors_of(const std::string& options,
                                   const std::vector<OptionDeclaration>& declared = kDeclared) {
  const auto values = check_options(plugin(options), declared);
  std::vector<std::string> out;
  if (values) return out;
  for (const auto& error : values.error())
    out.push_back(std::to_string(error.line) + ":" + std::to_string(error.column) + ": " +
                  error.text);
  return out;
}

}  // namespace

TEST_CASE("values come in the order of their declaration, configured or defaulted") {
  const auto values = check_options(
      plugin("endpoint = \"e\"\nmatch = []\nevery = \"1h\"\nlabels = { b = \"2\", a = \"1\" }\n"
             "tls = { key = \"k\" }\n"),
      kDeclared);
  REQUIRE(values);
  REQUIRE(values->size() == 8);
  const auto& all = *values;
  CHECK(all[0].path == "endpoint");
  CHECK(all[0].string == "e");
  CHECK(all[1].integer == 7);
  CHECK(all[2].boolean);
  CHECK(all[3].is_set);
  CHECK(all[3].items.empty());
  CHECK(all[4].items == std::vector<std::string>{"a", "1", "b", "2"});
  CHECK(all[5].integer == 3'600'000'000'000);
  CHECK_FALSE(all[6].is_set);
  CHECK(all[7].string == "k");
  CHECK(all[7].type == Type::string);

  const auto defaults = check_options(plugin("endpoint = \"e\"\n"), kDeclared);
  REQUIRE(defaults);
  CHECK((*defaults)[3].items == std::vector<std::string>{"a", "b"});
  CHECK((*defaults)[4].items == std::vector<std::string>{"x", "y"});
  CHECK((*defaults)[5].integer == 30'000'000'000);
}

TEST_CASE("each fault is named with line and column") {
  struct Row {
    const char* options;
    std::vector<std::string> wanted;
  };
  for (const Row& row : {
           Row{"",
               {"1:1: [plugin.p]: option \"endpoint\" is missing; it takes a string: where to"}},
           Row{"endpoint = 3\n", {"3:12: endpoint is an integer (3); it takes a string"}},
           Row{"endpont = \"e\"\n",
               {"1:1: [plugin.p]: option \"endpoint\" is missing",
                "3:1: [plugin.p]: unknown key \"endpont\" for library \"lib\"; did you mean "
                "\"endpoint\"?"}},
           Row{"endpoint = \"e\"\nrequird = true\n",
               {"4:1: [plugin.p]: unknown key \"requird\" for library \"lib\"; did you mean "
                "\"required\"?"}},
           Row{"endpoint = \"e\"\ncount = \"7\"\non = 1\nmatch = \"a\"\nlabels = []\nevery = 30\n",
               {"4:9: count is a string (\"7\"); it takes an integer",
                "5:6: on is an integer (1); it takes true or false, without quotes",
                "6:9: match is a string (\"a\"); it takes a list of strings",
                "7:10: labels is a list; it takes a table of strings",
                "8:9: every is an integer (30); it takes a duration in quotes, such as \"30s\""}},
           Row{"endpoint = \"e\"\nmatch = [\"a\", 3,\n true]\nlabels = { a = 1 }\nevery = \"3\"\n",
               {"4:15: an item of match is an integer (3); it takes strings only",
                "5:2: an item of match is a boolean (true); it takes strings only",
                "6:16: labels.a is an integer (1); it takes a string",
                "7:9: every: \"3\" is not a duration"}},
           Row{"endpoint = \"e\"\ntls = { cert = \"x\", ca = 1 }\n",
               {"4:9: [plugin.p]: unknown key \"tls.cert\" for library \"lib\"; did you mean \"tls",
                "4:26: tls.ca is an integer (1); it takes a string"}},
           Row{"endpoint = \"e\"\ntls = 4\n",
               {"4:7: tls is an integer (4); it takes a table of ca, key"}},
           Row{"endpoint = \"e\"\n[plugin.p.tsl]\nca = \"x\"\n",
               {"4:1: [plugin.p]: unknown key \"tsl\""}},
       }) {
    CAPTURE(row.options);
    const auto errors = errors_of(row.options);
    std::string all;
    for (const auto& error : errors) all += error + "\n";
    CAPTURE(all);
    REQUIRE(errors.size() == row.wanted.size());
    for (std::size_t i = 0; i < errors.size(); ++i) CHECK(errors[i].starts_with(row.wanted[i]));
  }
}

TEST_CASE("a default that does not fit its option is the plugin's fault, and is said to be") {
  const auto errors =
      errors_of("", {{.path = "a", .type = Type::integer, .default_value = "\"x\""},
                     {.path = "b", .type = Type::string, .default_value = "not toml"}});
  REQUIRE(errors.size() == 2);
  for (const auto& error : errors) CHECK(error.find("the plugin is at fault") != std::string::npos);
}

TEST_CASE("a plugin without a table of its own has its defaults") {
  PluginConfig bare;
  bare.instance = "p";
  const auto values =
      check_options(bare, {{.path = "n", .type = Type::integer, .default_value = "7"}});
  REQUIRE(values);
  CHECK(values->front().integer == 7);
}
