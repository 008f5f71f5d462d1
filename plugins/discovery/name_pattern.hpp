// Globs that remember: "vm-{tenant}-*" matches "vm-acme-7" and says tenant = "acme".
//
//   *  any run, also empty      ?  one character      [a-z] [!0-9]  one character of a set
//   {name}  one or more characters, remembered as `name`; the leftmost capture is the shortest
//
// The backslash is an ordinary character, because systemd writes it into unit names
// ("qemu\x2d1\x2dweb.scope"); a literal star is "[*]", a literal brace "[{]".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sluice::discovery {

// Name and text of each capture, in the order of the pattern.
using Captures = std::vector<std::pair<std::string, std::string>>;

// Matches one interface name or one path segment, whole. Immutable; any thread.
class NamePattern {
 public:
  // Throws std::invalid_argument, whose text names the pattern, the fault and the remedy.
  [[nodiscard]] static NamePattern parse(std::string_view text);

  [[nodiscard]] bool matches(std::string_view name) const;
  // Absent: no match. Without captures in the pattern the list is empty.
  [[nodiscard]] std::optional<Captures> match(std::string_view name) const;
  // No wildcard and no capture: names exactly one thing.
  [[nodiscard]] bool is_literal() const;
  [[nodiscard]] const std::string& text() const { return text_; }
  [[nodiscard]] std::vector<std::string> capture_names() const;

 private:
  enum class Kind : std::uint8_t { literal, one, run, set, capture };
  struct Token {
    Kind kind = Kind::literal;
    bool negated = false;
    std::string text;  // literal: the text; set: pairs of first and last; capture: its name
  };
  struct Attempt;

  NamePattern() = default;
  [[nodiscard]] bool walk(Attempt& attempt, std::size_t token, std::size_t at) const;

  std::string text_;
  std::vector<Token> tokens_;
};

}  // namespace sluice::discovery
