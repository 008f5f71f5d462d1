// SPDX-License-Identifier: Apache-2.0
// Options as data. A plugin declares them; the host checks the TOML table before the plugin is
// created and reports every unknown key and wrong type with file, line and column; the plugin reads
// typed values.
//
//   static constexpr std::array options{
//       sluice::Option::string_list("match").required().help("globs on interface names"),
//       sluice::Option::duration("interval").defaults_to("\"30s\"").help("how often to list
//       again"),
//   };
//   explicit Mine(const sluice::Config& config) :
//   match_(config.get<std::vector<std::string>>("match")) {}
#pragma once

#include <sluice/types.hpp>

#include <concepts>
#include <filesystem>
#include <limits>
#include <type_traits>

namespace sluice::sdk {

enum class OptionType : std::uint32_t {
  string = SLUICE_OPTION_STRING,
  integer = SLUICE_OPTION_INTEGER,
  boolean = SLUICE_OPTION_BOOLEAN,
  string_list = SLUICE_OPTION_STRING_LIST,
  string_table = SLUICE_OPTION_STRING_TABLE,
  duration = SLUICE_OPTION_DURATION,
};

[[nodiscard]] constexpr std::string_view to_string(OptionType type) {
  switch (type) {
    case OptionType::string:
      return "a string";
    case OptionType::integer:
      return "an integer";
    case OptionType::boolean:
      return "a boolean";
    case OptionType::string_list:
      return "a list of strings";
    case OptionType::string_table:
      return "a table of strings";
    case OptionType::duration:
      return "a duration";
  }
  return "an unknown type";
}

// One declared option. The texts must be literals: the declaration is compiled into the plugin's
// table.
struct Option {
  OptionType type = OptionType::string;
  std::string_view path;                // dotted below the plugin's table: "tls.ca"
  std::string_view default_value_toml;  // empty: none
  std::string_view help_text;           // one line
  bool is_required = false;

  [[nodiscard]] static constexpr Option string(std::string_view path) {
    return {OptionType::string, path, {}, {}, false};
  }
  [[nodiscard]] static constexpr Option integer(std::string_view path) {
    return {OptionType::integer, path, {}, {}, false};
  }
  [[nodiscard]] static constexpr Option boolean(std::string_view path) {
    return {OptionType::boolean, path, {}, {}, false};
  }
  [[nodiscard]] static constexpr Option string_list(std::string_view path) {
    return {OptionType::string_list, path, {}, {}, false};
  }
  [[nodiscard]] static constexpr Option string_table(std::string_view path) {
    return {OptionType::string_table, path, {}, {}, false};
  }
  // Written "250ms", "30s", "5m", "8h".
  [[nodiscard]] static constexpr Option duration(std::string_view path) {
    return {OptionType::duration, path, {}, {}, false};
  }

  [[nodiscard]] constexpr Option required() const {
    Option option = *this;
    option.is_required = true;
    return option;
  }
  // TOML text: defaults_to("\"30s\""), defaults_to("[\"tap*\"]"), defaults_to("true").
  [[nodiscard]] constexpr Option defaults_to(std::string_view toml) const {
    Option option = *this;
    option.default_value_toml = toml;
    return option;
  }
  [[nodiscard]] constexpr Option help(std::string_view text) const {
    Option option = *this;
    option.help_text = text;
    return option;
  }
};

namespace detail {

inline std::string_view view(const sluice_string& text) {
  return text.length == 0 ? std::string_view{} : std::string_view(text.data, text.length);
}
inline std::string copy(const sluice_string& text) {
  return std::string(view(text));
}
constexpr sluice_string abi(std::string_view text) {
  return {text.data(), text.size()};
}

// A struct as this side knows it, whatever the size of the writer's: what the writer does not have
// is zero.
template <typename T>
T known_part(const T* writers) {
  T mine{};
  std::memcpy(&mine, writers, std::min<std::size_t>(writers->size, sizeof(T)));
  return mine;
}
// Element of an array written by the other side: it advances by the writer's size.
template <typename T>
const T* element(const T* first, std::size_t index) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(first) + index * first->size);
}

template <typename T>
struct is_duration : std::false_type {};
template <typename R, typename P>
struct is_duration<std::chrono::duration<R, P>> : std::true_type {};
template <typename T>
inline constexpr bool unsupported = false;

}  // namespace detail

// The checked configuration of one instance. A copy: it outlives the call that brought it.
class Config {
 public:
  Config() = default;
  explicit Config(const sluice_config& raw) {
    const auto config = detail::known_part(&raw);
    instance_ = detail::copy(config.instance);
    config_directory_ = detail::copy(config.config_directory);
    state_directory_ = detail::copy(config.state_directory);
    for (std::size_t i = 0; i < config.value_count; ++i) {
      const auto raw_value = detail::known_part(detail::element(config.values, i));
      Value value{.type = static_cast<OptionType>(raw_value.type),
                  .is_set = raw_value.is_set != 0,
                  .boolean = raw_value.boolean != 0,
                  .integer = raw_value.integer,
                  .string = detail::copy(raw_value.string),
                  .items = {}};
      for (std::size_t k = 0; k < raw_value.item_count; ++k)
        value.items.push_back(detail::copy(raw_value.items[k]));
      values_.insert_or_assign(detail::copy(raw_value.path), std::move(value));
    }
  }

  [[nodiscard]] const std::string& instance() const {
    return instance_;
  }  // "taps" of [plugin.taps]
  // Base of relative paths in options.
  [[nodiscard]] const std::filesystem::path& config_directory() const { return config_directory_; }
  // The instance's own; created on first use, by the plugin.
  [[nodiscard]] const std::filesystem::path& state_directory() const { return state_directory_; }

  // Configured or defaulted.
  [[nodiscard]] bool has(std::string_view path) const { return value_of(path).is_set; }

  // The value of a declared option as T: std::string, bool, an integer type, a chrono duration,
  // std::vector<std::string>, Labels (or a vector of pairs, in order). Throws Error(EINVAL) when it
  // is not set, and Error(ERANGE) when T cannot hold it.
  template <typename T>
  [[nodiscard]] T get(std::string_view path) const {
    const auto& value = value_of(path);
    if (!value.is_set)
      throw Error(EINVAL, instance_ + ": option \"" + std::string(path) +
                              "\" is not set; add it to [plugin." + instance_ + "]");
    return convert<T>(path, value);
  }
  // Absent where neither configured nor defaulted.
  template <typename T>
  [[nodiscard]] std::optional<T> find(std::string_view path) const {
    const auto& value = value_of(path);
    if (!value.is_set) return std::nullopt;
    return convert<T>(path, value);
  }
  template <typename T>
  [[nodiscard]] T get_or(std::string_view path, T otherwise) const {
    auto value = find<T>(path);
    return value ? std::move(*value) : std::move(otherwise);
  }

 private:
  struct Value {
    OptionType type = OptionType::string;
    bool is_set = false;
    bool boolean = false;
    std::int64_t integer = 0;
    std::string string;
    std::vector<std::string> items;
  };

  const Value& value_of(std::string_view path) const {
    const auto at = values_.find(path);
    if (at == values_.end())
      throw Error(EINVAL, instance_ + ": option \"" + std::string(path) +
                              "\" is read but not declared; add it to the plugin's `options`");
    return at->second;
  }
  void expect(std::string_view path, const Value& value, OptionType type) const {
    if (value.type != type)
      throw Error(EINVAL, instance_ + ": option \"" + std::string(path) + "\" is declared as " +
                              std::string(to_string(value.type)) + " and read as " +
                              std::string(to_string(type)));
  }

  template <typename T>
  T convert(std::string_view path, const Value& value) const {
    if constexpr (std::same_as<T, bool>) {
      expect(path, value, OptionType::boolean);
      return value.boolean;
    } else if constexpr (std::integral<T>) {
      expect(path, value, OptionType::integer);
      if (!std::in_range<T>(value.integer))
        throw Error(ERANGE, instance_ + ": option \"" + std::string(path) + "\" is " +
                                std::to_string(value.integer) + "; it must be between " +
                                std::to_string(std::numeric_limits<T>::min()) + " and " +
                                std::to_string(std::numeric_limits<T>::max()));
      return static_cast<T>(value.integer);
    } else if constexpr (detail::is_duration<T>::value) {
      expect(path, value, OptionType::duration);
      return std::chrono::duration_cast<T>(std::chrono::nanoseconds(value.integer));
    } else if constexpr (std::same_as<T, std::string> || std::same_as<T, std::filesystem::path>) {
      expect(path, value, OptionType::string);
      return T(value.string);
    } else if constexpr (std::same_as<T, std::vector<std::string>>) {
      expect(path, value, OptionType::string_list);
      return value.items;
    } else if constexpr (std::same_as<T, Labels>) {
      expect(path, value, OptionType::string_table);
      Labels labels;
      for (std::size_t i = 0; i + 1 < value.items.size(); i += 2)
        labels.insert_or_assign(value.items[i], value.items[i + 1]);
      return labels;
    } else if constexpr (std::same_as<T, std::vector<std::pair<std::string, std::string>>>) {
      expect(path, value, OptionType::string_table);
      T pairs;
      for (std::size_t i = 0; i + 1 < value.items.size(); i += 2)
        pairs.emplace_back(value.items[i], value.items[i + 1]);
      return pairs;
    } else {
      static_assert(
          detail::unsupported<T>,
          "Config reads std::string, std::filesystem::path, bool, integers, chrono durations, "
          "std::vector<std::string>, Labels and vectors of string pairs");
    }
  }

  std::string instance_;
  std::filesystem::path config_directory_, state_directory_;
  std::map<std::string, Value, std::less<>> values_;
};

}  // namespace sluice::sdk
