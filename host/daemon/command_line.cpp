#include "daemon/command_line.hpp"

#include <getopt.h>
#include <spdlog/fmt/fmt.h>

#include <cstddef>

namespace sluice {

std::string usage() {
  return fmt::format(
      "Usage: sluiced [--config FILE]     filter, until told to stop\n"
      "       sluiced --check FILE        load everything, print every error, change nothing\n"
      "       sluiced --detach-all [--config FILE]\n"
      "                                   remove every filter and the pinned tree (uninstall)\n"
      "       sluiced --version | --help\n"
      "\n"
      "FILE is {} unless given. SIGHUP reloads it; SIGTERM and SIGINT stop the\n"
      "daemon and leave its filters in force.\n"
      "\n"
      "Exit status: 0 fine, 1 an error (each is printed), 2 wrong usage.\n",
      kInstalledConfig);
}

std::expected<CommandLine, std::string> parse_command_line(int argc, char* const argv[]) {
  enum Option { kConfig = 1, kCheck, kDetachAll, kVersion, kHelp };
  static constexpr option kOptions[] = {{"config", required_argument, nullptr, kConfig},
                                        {"check", required_argument, nullptr, kCheck},
                                        {"detach-all", no_argument, nullptr, kDetachAll},
                                        {"version", no_argument, nullptr, kVersion},
                                        {"help", no_argument, nullptr, kHelp},
                                        {nullptr, 0, nullptr, 0}};
  CommandLine line;
  line.action = CommandLine::Action::run;
  optind = 0;  // from the start, also when called again
  opterr = 0;
  for (;;) {
    const int found = getopt_long(argc, argv, ":c:h", kOptions, nullptr);
    if (found == -1) break;
    switch (found) {
      case 'c':
      case kConfig:
        line.config = optarg;
        break;
      case kCheck:
        line.action = CommandLine::Action::check;
        line.config = optarg;
        break;
      case kDetachAll:
        line.action = CommandLine::Action::detach_all;
        break;
      case kVersion:
        line.action = CommandLine::Action::version;
        return line;
      case 'h':
      case kHelp:
        line.action = CommandLine::Action::help;
        return line;
      case ':':
        return std::unexpected(std::string(argv[optind - 1]) + ": needs a file");
      default:
        return std::unexpected(std::string(argv[optind - 1]) + ": unknown option");
    }
  }
  if (optind < argc) return std::unexpected(std::string(argv[optind]) + ": unexpected argument");
  return line;
}

}  // namespace sluice
