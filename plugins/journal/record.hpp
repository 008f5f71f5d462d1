// One record of the journal, and how it is written: as a line of JSON, or as a datagram in
// journald's native protocol. Both are safe against their own text: whatever a value holds, the
// record has the fields it was given, in one line or one datagram, and no others.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace sluice::journal {

// Text from outside, fit for a log: printable ASCII stays, every other byte becomes \xNN, what is
// beyond `longest` bytes becomes "...". So neither a new line nor a terminal's control sequence
// gets through, nor letters that look like others. Names of domains come with their own backslashes
// doubled, so that what is escaped here cannot be mistaken for theirs.
[[nodiscard]] std::string clean(std::string_view text, std::size_t longest = 1024);

// syslog's.
enum class Priority : std::uint8_t { warning = 4, notice = 5, info = 6 };

struct Record {
  using Value = std::variant<std::string, std::uint64_t, bool, std::vector<std::string>>;
  using Texts = std::vector<std::pair<std::string, std::string>>;

  Priority priority = Priority::info;
  std::string message_id;  // 32 hex digits, one for each kind of record (journald's MESSAGE_ID)
  std::string message;     // for people
  std::vector<std::pair<std::string, Value>> fields;  // keys in snake_case
  Texts labels;
};

// Without the line's end.
[[nodiscard]] std::string json_line(const Record& record);
// https://systemd.io/JOURNAL_NATIVE_PROTOCOL: fields are SLUICE_NAME, labels SLUICE_LABEL_KEY.
[[nodiscard]] std::string journald_datagram(const Record& record);

}  // namespace sluice::journal
