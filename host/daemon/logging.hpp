// Log lines on stderr: with time and level for people, with syslog priorities for the journal,
// which has its own time. A message is one line; control characters in it are written as \xNN.
#pragma once

#include <string>

namespace sluice {

// True when stderr goes to the journal (JOURNAL_STREAM names the very same file).
[[nodiscard]] bool stderr_is_journal();
// Sets up spdlog's default logger.
void start_logging(bool journal);
// "trace", "debug", "info", "warning", "error".
void set_log_level(const std::string& level);

}  // namespace sluice
