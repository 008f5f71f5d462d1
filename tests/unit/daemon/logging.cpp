// What stands on stderr for a message.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "daemon/logging.hpp"

#include <doctest/doctest.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cstdio>
#include <string>

using namespace sluice;

namespace {

std::string logged(bool journal, const std::string& message) {
  std::FILE* file = std::tmpfile();
  REQUIRE(file != nullptr);
  const int before = ::dup(2);
  REQUIRE(::dup2(::fileno(file), 2) == 2);
  start_logging(journal);
  spdlog::warn(message);
  ::dup2(before, 2);
  ::close(before);
  std::rewind(file);
  std::string text(4096, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), file));
  std::fclose(file);
  return text;
}

}  // namespace

TEST_CASE(
    "a message is one line, for people with time and level, for the journal with a priority") {
  CHECK(logged(true, "tap1: {} 100%") == "<4>tap1: {} 100%\n");
  const auto text = logged(false, "tap1: new");
  CHECK(text.ends_with(" warning tap1: new\n"));
  CHECK(text.starts_with("20"));
}

TEST_CASE("what a workload writes into its names stays text") {
  CHECK(logged(true, "/pod/\x1b[2J\r<0>all is well\n\x7f\t\xc3\xbc") ==
        "<4>/pod/\\x1b[2J\\x0d<0>all is well\\x0a\\x7f\\x09\xc3\xbc\n");
  CHECK(logged(false, "/pod/\x1b[2J").ends_with("/pod/\\x1b[2J\n"));
}
