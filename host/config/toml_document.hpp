// TOML as a tree of plain values that know where they stand in the file. The parser is toml11, and
// this is the only place that sees it: its own tree costs some 600 bytes for each value, and its
// errors are drawings of several lines.
//
//   auto text = read_text_file("/etc/sluice/sluice.toml", 4 << 20);
//   auto root = parse_toml(*text, "/etc/sluice/sluice.toml");
//   for (const auto& [key, at, node] : root->entries) ...
//
// Also linked into plugins that read TOML of their own. Any thread; no state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "config/errors.hpp"

namespace sluice {

struct TomlEntry;

struct TomlNode {
  enum class Kind : std::uint8_t { boolean, integer, floating, string, datetime, array, table };

  Kind kind = Kind::table;
  bool boolean = false;
  TextPosition position;  // a [table]: of its header
  std::int64_t integer = 0;
  std::string text;                // string: decoded; floating and datetime: as written
  std::vector<TomlNode> items;     // array
  std::vector<TomlEntry> entries;  // table, sorted by key

  [[nodiscard]] const TomlNode* find(std::string_view key) const;
};

struct TomlEntry {
  std::string key;
  TextPosition position;  // of the key
  TomlNode value;
};

// "a string", "a list", "a table": for messages that say what was found.
[[nodiscard]] std::string_view describe(TomlNode::Kind kind);

// What keeps a file that is no configuration from costing time or memory.
struct TomlLimits {
  std::size_t bytes = std::size_t{4} << 20;
  std::size_t line_bytes = std::size_t{16} << 10;
  std::size_t values = 100'000;  // toml11 takes about 2 KiB for each at its peak
  unsigned depth = 16;           // nested brackets
  unsigned key_parts = 16;       // a.b.c: three
};

// The whole of a regular file, refused unread when it is larger than `limit` bytes.
[[nodiscard]] std::expected<std::string, ConfigErrors> read_text_file(
    const std::filesystem::path& file, std::size_t limit);

// `file` is the name errors carry. Errors hold exactly one entry: nothing can be said about what
// stands behind a syntax error.
[[nodiscard]] std::expected<TomlNode, ConfigErrors> parse_toml(std::string_view text,
                                                               const std::string& file,
                                                               const TomlLimits& limits = {});

// One value as TOML text, keys sorted, on one line: equal text, equal value.
[[nodiscard]] std::string canonical_toml(const TomlNode& node);

}  // namespace sluice
