// Reads one TOML table key by key and collects every fault: wrong types as they are asked for,
// unknown keys in finish(), which knows by then what was asked for.
//
//   TableReader host(node, "[host]", errors);
//   if (auto level = host.string("log_level")) ...
//   host.finish();
//
// Absent and wrong are the same to the caller: nothing is returned, the default holds. Of a list,
// good items are returned, so that they are checked too. A file with any error is refused whole.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/errors.hpp"
#include "config/toml_document.hpp"

namespace sluice {

template <typename T>
struct Located {
  T value{};
  TextPosition position;
};

class TableReader {
 public:
  // `where` names the table in messages: "[host]". Node and errors outlive the reader.
  TableReader(const TomlNode& table, std::string where, ErrorList& errors);

  [[nodiscard]] std::optional<Located<std::string>> string(std::string_view key);
  [[nodiscard]] std::optional<std::int64_t> integer(std::string_view key, std::int64_t lowest,
                                                    std::int64_t highest);
  [[nodiscard]] std::optional<bool> boolean(std::string_view key);
  [[nodiscard]] std::optional<std::vector<Located<std::string>>> strings(std::string_view key);
  [[nodiscard]] std::optional<std::vector<Located<std::int64_t>>> integers(std::string_view key,
                                                                           std::int64_t lowest,
                                                                           std::int64_t highest);
  // A table whose values are strings: labels.
  [[nodiscard]] std::optional<std::map<std::string, std::string>> string_table(
      std::string_view key);
  [[nodiscard]] const TomlNode* table(std::string_view key);
  // [[key]]
  [[nodiscard]] std::vector<const TomlNode*> tables(std::string_view key);
  // One of `choices`.
  [[nodiscard]] std::optional<std::string> choice(std::string_view key,
                                                  const std::vector<std::string_view>& choices);

  [[nodiscard]] bool has(std::string_view key) const { return table_.find(key) != nullptr; }
  // Faults of the table as a whole.
  void error(std::string text) { errors_.add(table_.position, where_ + ": " + std::move(text)); }
  [[nodiscard]] TextPosition position() const { return table_.position; }

  void finish();

 private:
  // Null: absent, or of another kind, which is then reported.
  const TomlNode* expect(std::string_view key, TomlNode::Kind kind, std::string_view wanted);

  const TomlNode& table_;
  std::string where_;
  ErrorList& errors_;
  std::vector<std::string_view> known_;
};

// "x is an integer; it takes a string": for one found in the place of another.
[[nodiscard]] std::string wrong_type(std::string_view key, const TomlNode& found,
                                     std::string_view wanted);

}  // namespace sluice
