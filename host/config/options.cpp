#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <map>

#include "config/config.hpp"
#include "config/duration.hpp"
#include "config/table_reader.hpp"
#include "config/toml_document.hpp"

namespace sluice {
namespace {

using Type = OptionDeclaration::Type;

std::string_view wanted(Type type) {
  switch (type) {
    case Type::string:
      return "a string";
    case Type::integer:
      return "an integer";
    case Type::boolean:
      return "true or false, without quotes";
    case Type::string_list:
      return "a list of strings";
    case Type::string_table:
      return "a table of strings, such as { class = \"vm\" }";
    case Type::duration:
      return "a duration in quotes, such as \"30s\" or \"8h\"";
  }
  return "something else";
}

TomlNode::Kind kind_of(Type type) {
  switch (type) {
    case Type::integer:
      return TomlNode::Kind::integer;
    case Type::boolean:
      return TomlNode::Kind::boolean;
    case Type::string_list:
      return TomlNode::Kind::array;
    case Type::string_table:
      return TomlNode::Kind::table;
    case Type::string:
    case Type::duration:
      break;
  }
  return TomlNode::Kind::string;
}

OptionValue unset(const OptionDeclaration& option) {
  OptionValue value;
  value.path = option.path;
  value.type = option.type;
  return value;
}

class Checker {
 public:
  Checker(const PluginConfig& plugin, const std::vector<OptionDeclaration>& declared,
          ErrorList& errors)
      : plugin_(plugin), declared_(declared), errors_(errors) {
    for (const auto& option : declared) values_.emplace(option.path, unset(option));
  }

  [[nodiscard]] std::vector<OptionValue> run() && {
    if (plugin_.toml) walk(*static_cast<const TomlNode*>(plugin_.toml.get()), "");
    std::vector<OptionValue> out;
    out.reserve(declared_.size());
    for (const auto& option : declared_) {
      auto& value = values_.at(option.path);
      if (!value.is_set && !faulty(option.path)) complete(option, value);
      out.push_back(std::move(value));
    }
    return out;
  }

 private:
  [[nodiscard]] bool faulty(std::string_view path) const {
    return std::ranges::find(faulty_, path) != faulty_.end();
  }

  // Default, or the report that there is none.
  void complete(const OptionDeclaration& option, OptionValue& value) {
    if (option.default_value.empty()) {
      if (!option.required) return;
      errors_.add({.line = plugin_.line, .column = 1},
                  fmt::format("[plugin.{}]: option {} is missing; it takes {}{}{}",
                              plugin_.instance, in_quotes(option.path), wanted(option.type),
                              option.help.empty() ? "" : ": ", option.help));
      return;
    }
    const auto parsed = parse_toml("value = " + option.default_value, "default");
    const auto* node = parsed ? parsed->find("value") : nullptr;
    if (!node || !fill(option, *node, {}, value)) {
      errors_.add(
          {.line = plugin_.line, .column = 1},
          fmt::format("[plugin.{}]: library {} declares the default {} for option {}, "
                      "which takes {}; the plugin is at fault, ask its author",
                      plugin_.instance, in_quotes(plugin_.library), in_quotes(option.default_value),
                      in_quotes(option.path), wanted(option.type)));
    }
  }

  void walk(const TomlNode& table, const std::string& prefix) {
    for (const auto& entry : table.entries) {
      const std::string path = prefix.empty() ? entry.key : prefix + "." + entry.key;
      const auto option = std::ranges::find(declared_, path, &OptionDeclaration::path);
      if (option != declared_.end()) {
        OptionValue value = unset(*option);
        if (fill(*option, entry.value, &errors_, value))
          values_.at(path) = std::move(value);
        else
          faulty_.push_back(path);
        continue;
      }
      const auto inside = below(path);
      if (inside.empty()) {
        errors_.add(entry.position, unknown(path));
      } else if (entry.value.kind != TomlNode::Kind::table) {
        errors_.add(
            entry.value.position,
            wrong_type(path, entry.value, fmt::format("a table of {}", fmt::join(inside, ", "))));
        for (const auto key : inside) faulty_.push_back(fmt::format("{}.{}", path, key));
      } else {
        walk(entry.value, path);
      }
    }
  }

  // Declared keys below a table.
  [[nodiscard]] std::vector<std::string_view> below(const std::string& path) const {
    std::vector<std::string_view> keys;
    for (const auto& option : declared_) {
      const std::string_view declared = option.path;
      if (declared.size() > path.size() + 1 && declared.starts_with(path) &&
          declared[path.size()] == '.')
        keys.push_back(declared.substr(path.size() + 1));
    }
    return keys;
  }

  [[nodiscard]] std::string unknown(const std::string& path) const {
    std::vector<std::string_view> known{"library", "required", "overrides_floor"};
    for (const auto& option : declared_) known.push_back(option.path);
    return fmt::format("[plugin.{}]: unknown key {} for library {}; {}", plugin_.instance,
                       in_quotes(path), in_quotes(plugin_.library), suggestion(path, known));
  }

  // Without `errors`: a default, whose faults are not the operator's.
  static bool fill(const OptionDeclaration& option, const TomlNode& node, ErrorList* errors,
                   OptionValue& value) {
    const auto refuse = [errors](const TomlNode& at, std::string text) {
      if (errors) errors->add(at.position, std::move(text));
      return false;
    };
    if (node.kind != kind_of(option.type))
      return refuse(node, wrong_type(option.path, node, wanted(option.type)));
    bool is_good = true;
    switch (option.type) {
      case Type::boolean:
        value.boolean = node.boolean;
        break;
      case Type::integer:
        value.integer = node.integer;
        break;
      case Type::string:
        value.string = node.text;
        break;
      case Type::duration:
        if (const auto duration = parse_duration(node.text); duration) {
          value.integer = duration->count();
          value.string = node.text;
        } else {
          return refuse(node, fmt::format("{}: {}", option.path, duration.error().message));
        }
        break;
      case Type::string_list:
        for (const auto& item : node.items) {
          if (item.kind == TomlNode::Kind::string)
            value.items.push_back(item.text);
          else
            is_good = refuse(
                item, wrong_type(fmt::format("an item of {}", option.path), item, "strings only"));
        }
        break;
      case Type::string_table:
        for (const auto& entry : node.entries) {
          if (entry.value.kind == TomlNode::Kind::string) {
            value.items.push_back(entry.key);
            value.items.push_back(entry.value.text);
          } else {
            is_good = refuse(entry.value, wrong_type(fmt::format("{}.{}", option.path, entry.key),
                                                     entry.value, "a string"));
          }
        }
        break;
    }
    value.is_set = is_good;
    return is_good;
  }

  const PluginConfig& plugin_;
  const std::vector<OptionDeclaration>& declared_;
  ErrorList& errors_;
  std::map<std::string, OptionValue, std::less<>> values_;
  std::vector<std::string> faulty_;
};

}  // namespace

std::expected<std::vector<OptionValue>, ConfigErrors> check_options(
    const PluginConfig& plugin, const std::vector<OptionDeclaration>& declared) {
  ErrorList errors(plugin.file);
  auto values = Checker(plugin, declared, errors).run();
  if (!errors.empty()) return std::unexpected(errors.take());
  return values;
}

}  // namespace sluice
