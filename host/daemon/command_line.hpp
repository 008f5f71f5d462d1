// What sluiced was asked to do.
#pragma once

#include <expected>
#include <string>

namespace sluice {

struct CommandLine {
  enum class Action { run, check, detach_all, version, help };
  Action action = Action::help;
  std::string config = "/etc/sluice/sluice.toml";
};

extern const char* const kUsage;

// The error is one line for stderr.
[[nodiscard]] std::expected<CommandLine, std::string> parse_command_line(int argc,
                                                                         char* const argv[]);

}  // namespace sluice
