#include "config/table_reader.hpp"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <utility>

namespace sluice {
namespace {

// A value as it would have been written in quotes, where a missing pair is the likely fault.
std::string written(const TomlNode& node) {
  return node.kind == TomlNode::Kind::string ? in_quotes(node.text)
         : node.kind == TomlNode::Kind::array || node.kind == TomlNode::Kind::table
             ? std::string()
             : canonical_toml(node);
}

}  // namespace

std::string wrong_type(std::string_view key, const TomlNode& found, std::string_view wanted) {
  const std::string value = written(found);
  return fmt::format("{} is {}{}{}{}; it takes {}", key, describe(found.kind),
                     value.empty() ? "" : " (", value, value.empty() ? "" : ")", wanted);
}

TableReader::TableReader(const TomlNode& table, std::string where, ErrorList& errors)
    : table_(table), where_(std::move(where)), errors_(errors) {}

const TomlNode* TableReader::expect(std::string_view key, TomlNode::Kind kind,
                                    std::string_view wanted) {
  known_.push_back(key);
  const TomlNode* node = table_.find(key);
  if (!node || node->kind == kind) return node;
  errors_.add(node->position, wrong_type(key, *node, wanted));
  return nullptr;
}

std::optional<Located<std::string>> TableReader::string(std::string_view key) {
  const TomlNode* node = expect(key, TomlNode::Kind::string, "a string");
  if (!node) return std::nullopt;
  if (node->text.find('\0') != std::string::npos) {
    errors_.add(node->position, fmt::format("{} holds a zero byte; remove it", key));
    return std::nullopt;
  }
  return Located<std::string>{node->text, node->position};
}

std::optional<std::int64_t> TableReader::integer(std::string_view key, std::int64_t lowest,
                                                 std::int64_t highest) {
  const TomlNode* node = expect(key, TomlNode::Kind::integer, "an integer");
  if (!node) return std::nullopt;
  if (node->integer < lowest || node->integer > highest) {
    errors_.add(node->position, fmt::format("{} is {}; it goes from {} to {}", key, node->integer,
                                            lowest, highest));
    return std::nullopt;
  }
  return node->integer;
}

std::optional<bool> TableReader::boolean(std::string_view key) {
  const TomlNode* node = expect(key, TomlNode::Kind::boolean, "true or false, without quotes");
  return node ? std::optional(node->boolean) : std::nullopt;
}

std::optional<std::vector<Located<std::string>>> TableReader::strings(std::string_view key) {
  const TomlNode* node = expect(key, TomlNode::Kind::array, "a list of strings");
  if (!node) return std::nullopt;
  std::vector<Located<std::string>> out;
  out.reserve(node->items.size());
  for (const auto& item : node->items) {
    if (item.kind == TomlNode::Kind::string && item.text.find('\0') == std::string::npos) {
      out.push_back({item.text, item.position});
      continue;
    }
    if (item.kind == TomlNode::Kind::string)
      errors_.add(item.position, fmt::format("{} holds a zero byte; remove it", key));
    else
      errors_.add(item.position,
                  wrong_type(fmt::format("an item of {}", key), item, "strings only"));
  }
  return out;
}

std::optional<std::vector<Located<std::int64_t>>> TableReader::integers(std::string_view key,
                                                                        std::int64_t lowest,
                                                                        std::int64_t highest) {
  const TomlNode* node = expect(key, TomlNode::Kind::array, "a list of integers");
  if (!node) return std::nullopt;
  std::vector<Located<std::int64_t>> out;
  for (const auto& item : node->items) {
    if (item.kind == TomlNode::Kind::integer && item.integer >= lowest && item.integer <= highest) {
      out.push_back({item.integer, item.position});
      continue;
    }
    if (item.kind != TomlNode::Kind::integer)
      errors_.add(item.position,
                  wrong_type(fmt::format("an item of {}", key), item, "integers only"));
    else
      errors_.add(item.position, fmt::format("an item of {} is {}; it goes from {} to {}", key,
                                             item.integer, lowest, highest));
  }
  return out;
}

std::optional<std::map<std::string, std::string>> TableReader::string_table(std::string_view key) {
  const TomlNode* node =
      expect(key, TomlNode::Kind::table, "a table of strings, such as { class = \"vm\" }");
  if (!node) return std::nullopt;
  std::map<std::string, std::string> out;
  for (const auto& entry : node->entries) {
    if (entry.value.kind == TomlNode::Kind::string) {
      out.emplace(entry.key, entry.value.text);
      continue;
    }
    errors_.add(entry.value.position,
                wrong_type(fmt::format("{}.{}", key, entry.key), entry.value, "a string"));
  }
  return out;
}

const TomlNode* TableReader::table(std::string_view key) {
  return expect(key, TomlNode::Kind::table, "a table");
}

std::vector<const TomlNode*> TableReader::tables(std::string_view key) {
  const std::string wanted = fmt::format("tables, each under a [[{}]] of its own", key);
  std::vector<const TomlNode*> out;
  const TomlNode* node = expect(key, TomlNode::Kind::array, wanted);
  if (!node) return out;
  for (const auto& item : node->items) {
    if (item.kind == TomlNode::Kind::table)
      out.push_back(&item);
    else
      errors_.add(item.position, wrong_type(fmt::format("an item of {}", key), item, wanted));
  }
  return out;
}

std::optional<std::string> TableReader::choice(std::string_view key,
                                               const std::vector<std::string_view>& choices) {
  auto text = string(key);
  if (!text) return std::nullopt;
  if (std::ranges::find(choices, text->value) != choices.end()) return std::move(text->value);
  const auto best = nearest(text->value, choices);
  errors_.add(text->position,
              fmt::format("{} is {}; it takes one of {}{}", key, in_quotes(text->value),
                          fmt::join(choices, ", "),
                          best.empty() ? "" : fmt::format("; did you mean {}?", in_quotes(best))));
  return std::nullopt;
}

void TableReader::finish() {
  for (const auto& entry : table_.entries) {
    if (std::ranges::find(known_, entry.key) != known_.end()) continue;
    errors_.add(entry.position, fmt::format("{}: unknown key {}; {}", where_, in_quotes(entry.key),
                                            suggestion(entry.key, known_)));
  }
}

}  // namespace sluice
