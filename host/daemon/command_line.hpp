// What sluiced was asked to do.
#pragma once

#include <expected>
#include <string>

#include "base/install_paths.hpp"

namespace sluice {

struct CommandLine {
  enum class Action { run, check, detach_all, version, help };
  Action action = Action::help;
  std::string config = kInstalledConfig;
};

[[nodiscard]] std::string usage();

// The error is one line for stderr.
[[nodiscard]] std::expected<CommandLine, std::string> parse_command_line(int argc,
                                                                         char* const argv[]);

}  // namespace sluice
