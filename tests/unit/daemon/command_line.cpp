#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "daemon/command_line.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

using namespace sluice;
using Action = CommandLine::Action;

namespace {

std::expected<CommandLine, std::string> parse(std::vector<std::string> words) {
  words.insert(words.begin(), "sluiced");
  std::vector<char*> argv;
  for (auto& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  return parse_command_line(static_cast<int>(words.size()), argv.data());
}

}  // namespace

TEST_CASE("what the command line asks for") {
  struct Row {
    std::vector<std::string> words;
    Action action;
    const char* config;
  };
  const Row rows[] = {
      {{}, Action::run, kInstalledConfig},
      {{"--config", "a.toml"}, Action::run, "a.toml"},
      {{"--config=a.toml"}, Action::run, "a.toml"},
      {{"-c", "a.toml"}, Action::run, "a.toml"},
      {{"--check", "a.toml"}, Action::check, "a.toml"},
      {{"--detach-all"}, Action::detach_all, kInstalledConfig},
      {{"--detach-all", "--config", "a.toml"}, Action::detach_all, "a.toml"},
      {{"--config", "a.toml", "--detach-all"}, Action::detach_all, "a.toml"},
      {{"--version"}, Action::version, kInstalledConfig},
      {{"--help"}, Action::help, kInstalledConfig},
  };
  for (const auto& row : rows) {
    const auto line = parse(row.words);
    REQUIRE(line);
    CHECK(line->action == row.action);
    CHECK(line->config == row.config);
  }
}

TEST_CASE("wrong usage names the word") {
  CHECK(parse({"--nonsense"}).error() == "--nonsense: unknown option");
  CHECK(parse({"--check"}).error() == "--check: needs a file");
  CHECK(parse({"a.toml"}).error() == "a.toml: unexpected argument");
}
