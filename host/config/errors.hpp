// Faults in a file of the operator's: all of them, in file order, bounded in number and length.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice {

// One fault, ready to print: "file:line:column: text". Line 0: the file as a whole; column 0: the
// line as a whole. Columns count characters from 1.
struct ConfigError {
  std::string file;
  std::uint32_t line = 0, column = 0;
  std::string text;
  [[nodiscard]] std::string message() const;
  bool operator==(const ConfigError&) const = default;
};
using ConfigErrors = std::vector<ConfigError>;

struct TextPosition {
  std::uint32_t line = 0, column = 0;
};

// Collects the faults of one file.
class ErrorList {
 public:
  explicit ErrorList(std::string file) : file_(std::move(file)) {}

  void add(TextPosition at, std::string text);
  void add(ConfigErrors errors);
  [[nodiscard]] bool empty() const { return errors_.empty(); }
  [[nodiscard]] const std::string& file() const { return file_; }
  // In file order. Beyond the hundredth they are counted only: a generated file with one wrong
  // column would bury the reader.
  [[nodiscard]] ConfigErrors take();

  static constexpr std::size_t kShown = 100;

 private:
  std::string file_;
  ConfigErrors errors_;
  std::size_t hidden_ = 0;
};

// What an operator wrote, fit for a log line: quoted, control characters escaped, never long.
[[nodiscard]] std::string in_quotes(std::string_view text);

// The one of `known` that `text` was probably meant to be: a typing error away; empty: none is.
[[nodiscard]] std::string_view nearest(std::string_view text,
                                       const std::vector<std::string_view>& known);

// "did you mean "x"?", or the list of what is known where nothing is near.
[[nodiscard]] std::string suggestion(std::string_view text,
                                     const std::vector<std::string_view>& known);

}  // namespace sluice
