#include "config/toml_document.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <toml.hpp>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <map>
#include <optional>
#include <sstream>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace sluice {
namespace {

using Tree = toml::basic_value<toml::discard_comments, std::map, std::vector>;

ConfigErrors one_error(const std::string& file, TextPosition at, std::string text) {
  return {{.file = file, .line = at.line, .column = at.column, .text = std::move(text)}};
}

bool is_continuation(char c) {
  return (static_cast<unsigned char>(c) & 0xc0u) == 0x80;
}

// Offsets to lines and columns, in logarithmic time (toml11 counts newlines from the top for each).
class LineIndex {
 public:
  explicit LineIndex(std::string_view text) : text_(text) {
    for (std::size_t at = text.find('\n'); at != std::string_view::npos;
         at = text.find('\n', at + 1))
      starts_.push_back(at + 1);
  }
  [[nodiscard]] TextPosition position(std::size_t offset) const {
    offset = std::min(offset, text_.size());
    const auto next = std::ranges::upper_bound(starts_, offset);
    const std::size_t start = *std::prev(next);
    const auto before = text_.substr(start, offset - start);
    const auto continuations = std::ranges::count_if(before, is_continuation);
    return {.line = static_cast<std::uint32_t>(next - starts_.begin()),
            .column = static_cast<std::uint32_t>(before.size() -
                                                 static_cast<std::size_t>(continuations) + 1)};
  }
  // `column` counts bytes from 1, as toml11's drawings do.
  [[nodiscard]] TextPosition position(std::size_t line, std::size_t column) const {
    if (line == 0 || line > starts_.size()) return {.line = 1, .column = 1};
    return position(starts_[line - 1] + column - 1);
  }

 private:
  std::string_view text_;
  std::vector<std::size_t> starts_{0};
};

// Length of the UTF-8 sequence at `at`, 0 when it is none (RFC 3629: no overlong forms, no
// surrogates).
std::size_t utf8_length(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) -> unsigned {
    return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0u;
  };
  const unsigned first = byte(0);
  if (first < 0x80) return 1;
  const auto continues = [&](std::size_t i) { return (byte(i) & 0xc0u) == 0x80; };
  if (first >= 0xc2 && first <= 0xdf && continues(1)) return 2;
  if ((first & 0xf0u) == 0xe0 && continues(1) && continues(2)) {
    const unsigned second = byte(1);
    return (first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f) ? 0 : 3;
  }
  if (first >= 0xf0 && first <= 0xf4 && continues(1) && continues(2) && continues(3)) {
    const unsigned second = byte(1);
    return (first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f) ? 0 : 4;
  }
  return 0;
}

struct Fault {
  std::size_t offset = 0;
  std::string text;
};

// One pass before toml11 sees the text. toml11 recurses per level of nesting and copies the whole
// line into every error it makes and mostly throws away, so lines, nesting and the number of values
// are bounded here; so are bytes that belong in no text file.
class Inspection {
 public:
  Inspection(std::string_view text, const TomlLimits& limits) : text_(text), limits_(limits) {}

  [[nodiscard]] std::optional<Fault> run() {
    std::size_t line_start = 0;
    for (std::size_t at = 0; at < text_.size();) {
      const char c = text_[at];
      const std::size_t length = utf8_length(text_, at);
      if (length == 0)
        return Fault{at, fmt::format("byte 0x{:02x} is not UTF-8; save the file as UTF-8",
                                     static_cast<unsigned char>(c))};
      if (is_control(at))
        return Fault{at, fmt::format("control character 0x{:02x}; remove it, or write \\u00{:02x} "
                                     "inside a quoted string",
                                     static_cast<unsigned char>(c), static_cast<unsigned char>(c))};
      if (at - line_start > limits_.line_bytes)
        return Fault{line_start,
                     fmt::format("line longer than {} bytes; break it, a list may have one item "
                                 "per line",
                                 limits_.line_bytes)};
      if (c == '\n') line_start = at + 1;
      if (auto fault = in_string_ ? string_step(at) : plain_step(at)) return fault;
      at += std::max(length, step_);
    }
    return std::nullopt;
  }

 private:
  [[nodiscard]] bool is_control(std::size_t at) const {
    const auto byte = static_cast<unsigned char>(text_[at]);
    if (byte == '\r') return at + 1 >= text_.size() || text_[at + 1] != '\n';
    return (byte < 0x20 && byte != '\t' && byte != '\n') || byte == 0x7f;
  }

  std::optional<Fault> string_step(std::size_t at) {
    const char c = text_[at];
    step_ = 1;
    if (c == '\\' && quote_ == '"') {
      // An escaped newline is looked at by itself, for the sake of the line's length.
      step_ = at + 1 < text_.size() && text_[at + 1] != '\n' && !is_continuation(text_[at + 1]) &&
                      utf8_length(text_, at + 1) == 1 && !is_control(at + 1)
                  ? 2
                  : 1;
    } else if (c == '\n' && !multiline_) {
      in_string_ = false;  // unterminated: toml11 says so
    } else if (c == quote_) {
      if (!multiline_) {
        in_string_ = false;
      } else if (text_.substr(at, 3) == std::string(3, quote_)) {
        // Up to two quotes may stand before the closing three.
        step_ = 3;
        while (step_ < 5 && at + step_ < text_.size() && text_[at + step_] == quote_) ++step_;
        in_string_ = false;
      }
    }
    return std::nullopt;
  }

  std::optional<Fault> plain_step(std::size_t at) {
    const char c = text_[at];
    step_ = 1;
    if (in_comment_) {
      in_comment_ = c != '\n';
      return std::nullopt;
    }
    switch (c) {
      case '#':
        in_comment_ = true;
        break;
      case '"':
      case '\'':
        in_string_ = true;
        quote_ = c;
        multiline_ = text_.substr(at, 3) == std::string(3, c);
        if (multiline_) step_ = 3;
        break;
      case '[':
      case '{':
        dots_ = 0;
        if (++depth_ > limits_.depth)
          return Fault{at, fmt::format("nested more than {} levels deep", limits_.depth)};
        return count_value(at);
      case ']':
      case '}':
        if (depth_ > 0) --depth_;
        break;
      case '=':
      case ',':
        dots_ = 0;
        return count_value(at);
      case '\n':
        dots_ = 0;
        break;
      case '.':
        if (++dots_ >= limits_.key_parts)
          return Fault{at, fmt::format("a key of more than {} parts", limits_.key_parts)};
        break;
      default:
        break;
    }
    return std::nullopt;
  }

  std::optional<Fault> count_value(std::size_t at) {
    if (++values_ <= limits_.values) return std::nullopt;
    return Fault{at, fmt::format("more than {} values in one file; a policy keeps long lists of "
                                 "prefixes in files of their own (cidr_files)",
                                 limits_.values)};
  }

  std::string_view text_;
  const TomlLimits& limits_;
  bool in_comment_ = false, in_string_ = false, multiline_ = false;
  char quote_ = '"';
  std::size_t step_ = 1, values_ = 0;
  unsigned depth_ = 0, dots_ = 0;
};

// What a toml11 drawing says, in one line. It looks like
//
//   [error] toml::parse_table: invalid line format
//    --> file
//      |
//    3 | host = 1 2
//      |          ^--- expected newline, but got '2'.
//
// with a second place after "..." for some faults; the last one is where the parser stands.
struct Drawing {
  std::string title;
  struct Place {
    std::size_t line = 0, column = 0;  // in bytes
    std::string comment;
  };
  std::vector<Place> places;
};

Drawing read_drawing(std::string_view text) {
  Drawing drawing;
  std::size_t line = 0;  // 0: between two places
  for (bool first = true; !text.empty(); first = false) {
    const auto end = text.find('\n');
    std::string_view row = text.substr(0, end);
    text = end == std::string_view::npos ? std::string_view{} : text.substr(end + 1);
    if (first) {
      drawing.title = row;
      continue;
    }
    const auto bar = row.find(" | ");
    if (bar == std::string_view::npos) continue;
    const auto digits = row.find_first_not_of(' ');
    if (line == 0) {
      std::size_t number = 0;
      if (digits < bar &&
          std::from_chars(row.data() + digits, row.data() + bar, number).ec == std::errc{})
        line = number;
      continue;
    }
    row.remove_prefix(bar + 3);
    const auto mark = row.find_first_not_of(' ');
    Drawing::Place place{
        .line = line, .column = mark == std::string_view::npos ? 1 : mark + 1, .comment = {}};
    if (mark != std::string_view::npos) {
      const auto comment = row.find_first_not_of("^-~ ", mark);
      if (comment != std::string_view::npos) place.comment = row.substr(comment);
    }
    drawing.places.push_back(std::move(place));
    line = 0;
  }
  constexpr std::string_view kError = "[error] ";
  if (drawing.title.starts_with(kError)) drawing.title.erase(0, kError.size());
  if (drawing.title.starts_with("toml::")) {
    const auto name_end = drawing.title.find(':', 6);
    drawing.title.erase(0, name_end == std::string::npos ? 6 : name_end + 1);
  }
  drawing.title.erase(0, drawing.title.find_first_not_of(' '));
  while (drawing.title.ends_with(' ') || drawing.title.ends_with('.')) drawing.title.pop_back();
  return drawing;
}

// toml11 names what its own rules missed; said here for the one who wrote the file.
struct Rewording {
  std::string_view title;  // begins so
  std::string_view text;   // said instead of title and comment
};
constexpr std::array<Rewording, 13> kRewordings{{
    {"the next token is not a valid multiline", "string of three quotes is never closed"},
    {"the next token is not a valid string",
     "string is not closed on its line, or has an unknown escape; write \\\\ for a backslash"},
    {"the next token is not a valid literal", "string is not closed on its line"},
    {"the next token is not",
     "not a value; text stands in quotes, the rest is a number, true, "
     "false, [a list] or {a table}"},
    {"bad format: unknown value",
     "not a value; text stands in straight quotes (\"vm\"), and yes and no are true and false, in "
     "small letters"},
    {"parse_", "not a number"},
    {"value having invalid format", "not a value in this list; text stands in quotes"},
    {"missing array separator", "the list needs ',' before this, or ']'"},
    {"array did not closed", "the list is never closed by ']'"},
    {"an invalid key appeared",
     "not a key or a closed [table] header; a key has letters, digits, '_' and '-', or quotes"},
    {"invalid format for key", "key with a blank or an odd character; put it in quotes"},
    {"empty key is not allowed", "the key before '=' is missing"},
    {"missing value after", "the value behind '=' is missing"},
}};

ConfigErrors syntax_errors(const std::string& file, const LineIndex& lines, const char* what) {
  constexpr std::size_t kLongest = 200;
  Drawing drawing = read_drawing(what);
  TextPosition at{.line = 1, .column = 1};
  if (drawing.title.empty() && !drawing.places.empty())
    drawing.title = std::exchange(drawing.places.back().comment, {});
  const auto reworded = std::ranges::find_if(kRewordings, [&](const Rewording& rewording) {
    return drawing.title.starts_with(rewording.title);
  });
  std::string text = reworded == kRewordings.end() ? drawing.title : std::string(reworded->text);
  if (!drawing.places.empty()) {
    const auto& place = drawing.places.back();
    at = lines.position(place.line, place.column);
    if (reworded == kRewordings.end() && !place.comment.empty())
      text += (text.empty() ? "" : ": ") + place.comment;
    if (drawing.places.size() > 1 && drawing.places.front().line != at.line)
      text += fmt::format(" (line {}: {})", drawing.places.front().line,
                          drawing.places.front().comment);
  }
  text.insert(0, "not TOML: ");
  if (text.size() > kLongest) text.resize(kLongest);
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) c = '?';
  return one_error(file, at, std::move(text));
}

// toml11's tree as ours. It recurses as deep as the file nests, which Inspection has bounded.
class Copy {
 public:
  Copy(std::string_view text, const LineIndex& lines) : text_(text), lines_(lines) {}

  // Throws Fault: a number toml11 has silently cut to what fits.
  [[nodiscard]] TomlNode node(const Tree& tree) const {
    using Kind = TomlNode::Kind;
    TomlNode out;
    const std::size_t at = offset(tree);
    out.position = lines_.position(at);
    switch (tree.type()) {
      case toml::value_t::boolean:
        out.kind = Kind::boolean;
        out.boolean = tree.as_boolean();
        break;
      case toml::value_t::integer:
        out.kind = Kind::integer;
        out.integer = tree.as_integer();
        check_range(tree, at);
        break;
      case toml::value_t::floating:
        out.kind = Kind::floating;
        out.text = written(tree);
        break;
      case toml::value_t::string:
        out.kind = Kind::string;
        out.text = tree.as_string().str;
        break;
      case toml::value_t::array:
        out.kind = Kind::array;
        out.items.reserve(tree.as_array().size());
        for (const auto& item : tree.as_array()) out.items.push_back(node(item));
        break;
      case toml::value_t::table:
        out.kind = Kind::table;
        out.entries.reserve(tree.as_table().size());
        for (const auto& [key, value] : tree.as_table())
          out.entries.push_back({key, lines_.position(key_offset(offset(value))), node(value)});
        break;
      default:
        out.kind = Kind::datetime;
        out.text = written(tree);
        break;
    }
    return out;
  }

 private:
  static void check_range(const Tree& tree, std::size_t at) {
    std::string text = written(tree);
    std::erase(text, '_');
    int base = 10;
    if (text.starts_with("0x")) base = 16;
    if (text.starts_with("0o")) base = 8;
    if (text.starts_with("0b")) base = 2;
    if (base != 10) text.erase(0, 2);
    if (text.starts_with('+')) text.erase(0, 1);
    std::int64_t value = 0;
    const auto read = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (read.ec == std::errc::result_out_of_range)
      throw Fault{at, "number too large; the largest is 9223372036854775807"};
  }
  static const toml::detail::region* region(const Tree& tree) {
    return dynamic_cast<const toml::detail::region*>(toml::detail::get_region(tree));
  }
  static std::size_t offset(const Tree& tree) {
    const auto* where = region(tree);
    return where ? static_cast<std::size_t>(where->first() - where->begin()) : 0;
  }
  static std::string written(const Tree& tree) {
    const auto* where = region(tree);
    return where ? where->str() : std::string();
  }
  [[nodiscard]] std::size_t skip_blanks_back(std::size_t at) const {
    while (at > 0 && (text_[at - 1] == ' ' || text_[at - 1] == '\t')) --at;
    return at;
  }
  // toml11 keeps the place of the value only. The key stands on the same line, before the '='; a
  // [table] or a table made by a dotted key has its header or key for a place, and no '='.
  [[nodiscard]] std::size_t key_offset(std::size_t value) const {
    std::size_t at = skip_blanks_back(std::min(value, text_.size()));
    if (at == 0 || text_[at - 1] != '=') return value;
    at = skip_blanks_back(at - 1);
    if (at == 0) return value;
    if (const char quote = text_[at - 1]; quote == '"' || quote == '\'') {
      const std::size_t open = at < 2 ? std::string_view::npos : text_.rfind(quote, at - 2);
      return open == std::string_view::npos ? value : open;
    }
    const auto is_bare = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
             c == '_' || c == '-';
    };
    while (at > 0 && is_bare(text_[at - 1])) --at;
    return at;
  }

  std::string_view text_;
  const LineIndex& lines_;
};

void append_string(std::string& out, std::string_view text) {
  out += '"';
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      (out += '\\') += c;
    else if (byte < 0x20 || byte == 0x7f)
      out += fmt::format("\\u{:04x}", byte);
    else
      out += c;
  }
  out += '"';
}

void append_canonical(std::string& out, const TomlNode& node) {
  bool first = true;
  const auto separate = [&] {
    if (!std::exchange(first, false)) out += ", ";
  };
  switch (node.kind) {
    case TomlNode::Kind::boolean:
      out += node.boolean ? "true" : "false";
      break;
    case TomlNode::Kind::integer:
      out += fmt::format("{}", node.integer);
      break;
    case TomlNode::Kind::floating:
    case TomlNode::Kind::datetime:
      out += node.text;
      break;
    case TomlNode::Kind::string:
      append_string(out, node.text);
      break;
    case TomlNode::Kind::array:
      out += '[';
      for (const auto& item : node.items) {
        separate();
        append_canonical(out, item);
      }
      out += ']';
      break;
    case TomlNode::Kind::table:
      out += '{';
      for (const auto& entry : node.entries) {
        separate();
        append_string(out, entry.key);
        out += " = ";
        append_canonical(out, entry.value);
      }
      out += '}';
      break;
  }
}

std::string open_advice(int error) {
  switch (error) {
    case ENOENT:
      return "does not exist; check the path";
    case EACCES:
      return "may not be read by this user; check its owner and mode, and those of the "
             "directories above";
    case ELOOP:
      return "is a loop of symbolic links; mend the link";
    default:
      return fmt::format("cannot be opened: {}", std::strerror(error));
  }
}

}  // namespace

const TomlNode* TomlNode::find(std::string_view key) const {
  const auto entry = std::ranges::find(entries, key, &TomlEntry::key);
  return entry == entries.end() ? nullptr : &entry->value;
}

std::string_view describe(TomlNode::Kind kind) {
  switch (kind) {
    case TomlNode::Kind::boolean:
      return "a boolean";
    case TomlNode::Kind::integer:
      return "an integer";
    case TomlNode::Kind::floating:
      return "a decimal number";
    case TomlNode::Kind::string:
      return "a string";
    case TomlNode::Kind::datetime:
      return "a date or time";
    case TomlNode::Kind::array:
      return "a list";
    case TomlNode::Kind::table:
      return "a table";
  }
  return "something unknown";
}

std::expected<std::string, ConfigErrors> read_text_file(const std::filesystem::path& file,
                                                        std::size_t limit) {
  const auto refuse = [&file](std::string text) {
    return std::unexpected(one_error(file.string(), {}, std::move(text)));
  };
  // Without O_NONBLOCK a FIFO put in the place of the file would hold the daemon up for ever.
  const Fd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd) return refuse(open_advice(errno));
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0)
    return refuse(fmt::format("cannot be examined: {}", std::strerror(errno)));
  if (S_ISDIR(status.st_mode)) return refuse("is a directory; name a file");
  if (!S_ISREG(status.st_mode)) return refuse("is not a regular file; name one");

  std::string text;
  const auto too_large = [&] {
    return refuse(
        fmt::format("is larger than {} bytes, the most that is read of such a file; is "
                    "it the right one?",
                    limit));
  };
  if (status.st_size > 0 && static_cast<std::uint64_t>(status.st_size) > limit) return too_large();
  text.resize(static_cast<std::size_t>(status.st_size) + 1);
  std::size_t filled = 0;
  while (true) {
    // One byte more than the size: it may grow while it is read.
    if (filled == text.size()) text.resize(std::min(2 * filled, limit + 1));
    const auto count = ::read(fd.get(), text.data() + filled, text.size() - filled);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return refuse(fmt::format("cannot be read: {}", std::strerror(errno)));
    if (count == 0) break;
    filled += static_cast<std::size_t>(count);
    if (filled > limit) return too_large();
  }
  text.resize(filled);
  return text;
}

std::expected<TomlNode, ConfigErrors> parse_toml(std::string_view text, const std::string& file,
                                                 const TomlLimits& limits) {
  if (text.size() > limits.bytes)
    return std::unexpected(
        one_error(file, {}, fmt::format("is larger than {} bytes", limits.bytes)));
  const LineIndex lines(text);
  if (auto fault = Inspection(text, limits).run())
    return std::unexpected(one_error(file, lines.position(fault->offset), std::move(fault->text)));
  try {
    std::istringstream stream{std::string(text)};
    // An empty name: toml11 copies it into each value.
    const auto tree = toml::parse<toml::discard_comments, std::map, std::vector>(stream, "");
    auto root = Copy(text, lines).node(tree);
    root.position = {.line = 1, .column = 1};
    return root;
  } catch (const Fault& fault) {
    return std::unexpected(one_error(file, lines.position(fault.offset), fault.text));
  } catch (const std::bad_alloc&) {
    return std::unexpected(one_error(file, {}, "there is not enough memory to read it"));
  } catch (const std::exception& error) {
    return std::unexpected(syntax_errors(file, lines, error.what()));
  }
}

std::string canonical_toml(const TomlNode& node) {
  std::string out;
  append_canonical(out, node);
  return out;
}

}  // namespace sluice
