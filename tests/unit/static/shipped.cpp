// What is shipped is valid: an operator starts from it.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <filesystem>
#include <string>

#include "config/config.hpp"
#include "config/toml_document.hpp"
#include "static/policy_file.hpp"

using namespace sluice;
using namespace sluice::static_policy;
namespace fs = std::filesystem;

namespace {
const fs::path kSource = SLUICE_SOURCE_DIR;

std::string said(const ConfigErrors& errors) {
  std::string out;
  for (const auto& error : errors) out += error.message() + "\n";
  return out;
}
}  // namespace

TEST_CASE("the shipped configuration is valid and closed by default") {
  const auto config = load_config(fs::path(SLUICE_CONFIG_DIR) / "sluice.toml");
  REQUIRE_MESSAGE(config, (config ? "" : said(config.error())));
  REQUIRE(config->wires.size() == 1);
  CHECK(config->wires[0].mode == Mode::block_all);
  CHECK(config->plugins.size() == 2);
  CHECK(config->floor.deny.size() == 4);
}

TEST_CASE("the example policy is valid") {
  const auto policies =
      read_policy_file(kSource / "config/policies.d/example.toml.disabled", {}, &read_text_file);
  REQUIRE_MESSAGE(policies, (policies ? "" : said(policies.error())));
  CHECK(policies->front().mode == Mode::allowlist);
}

TEST_CASE("every preset is valid, and all of them fit into one policy") {
  std::string names;
  std::size_t count = 0;
  for (const auto& entry : fs::directory_iterator(kSource / "config/presets")) {
    names += "\"" + entry.path().stem().string() + "\", ";
    ++count;
  }
  CHECK(count >= 13);
  const FileReader reader = [&](const fs::path& file,
                                std::size_t limit) -> std::expected<std::string, ConfigErrors> {
    if (file == "/all.toml")
      return "[[policy]]\nname = \"all\"\nmatch = {}\npresets = [" + names + "]\n";
    return read_text_file(file, limit);
  };
  const auto policies = read_policy_file("/all.toml", {kSource / "config/presets"}, reader);
  REQUIRE_MESSAGE(policies, (policies ? "" : said(policies.error())));
  CHECK(policies->front().groups.size() == count);
  // Zones, not hosts: a preset that names one server ages with it.
  for (const auto& group : policies->front().groups)
    for (const auto& domain : group.domains) CHECK(domain.starts_with("."));
}
