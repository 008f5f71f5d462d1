#include "discovery/name_pattern.hpp"

#include <algorithm>
#include <stdexcept>

namespace sluice::discovery {
namespace {

bool is_name_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

[[noreturn]] void refuse(std::string_view pattern, const std::string& fault) {
  throw std::invalid_argument("pattern \"" + std::string(pattern) + "\": " + fault);
}

// Text between the brackets as pairs of first and last character.
std::string read_set(std::string_view pattern, std::string_view inside) {
  std::string pairs;
  for (std::size_t i = 0; i < inside.size(); ++i) {
    const bool is_range = i + 2 < inside.size() && inside[i + 1] == '-';
    const char first = inside[i], last = is_range ? inside[i + 2] : inside[i];
    if (static_cast<unsigned char>(first) > static_cast<unsigned char>(last))
      refuse(pattern, "the range " + std::string(inside.substr(i, 3)) +
                          " runs backwards; write the lower end first");
    pairs += {first, last};
    if (is_range) i += 2;
  }
  return pairs;
}

bool in_set(const std::string& pairs, char c) {
  const auto value = static_cast<unsigned char>(c);
  for (std::size_t i = 0; i + 1 < pairs.size(); i += 2)
    if (static_cast<unsigned char>(pairs[i]) <= value &&
        value <= static_cast<unsigned char>(pairs[i + 1]))
      return true;
  return false;
}

}  // namespace

// One try: where captures begin and end, and the dead ends already seen. Without the memory of
// dead ends a pattern of many stars costs exponential time on a name that almost matches.
struct NamePattern::Attempt {
  std::string_view name;
  std::vector<bool> dead;
  std::vector<std::pair<std::size_t, std::size_t>> spans;  // per token: first, last + 1
};

NamePattern NamePattern::parse(std::string_view text) {
  if (text.empty()) refuse(text, "is empty; write a name or a glob such as \"tap*\"");
  NamePattern pattern;
  pattern.text_ = text;
  auto& tokens = pattern.tokens_;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '*') {
      if (tokens.empty() || tokens.back().kind != Kind::run)
        tokens.push_back({Kind::run, false, {}});
    } else if (c == '?') {
      tokens.push_back({Kind::one, false, {}});
    } else if (c == '[') {
      const bool negated = i + 1 < text.size() && (text[i + 1] == '!' || text[i + 1] == '^');
      const std::size_t first = i + (negated ? 2 : 1);
      // As in a shell, a bracket that comes first belongs to the set.
      const std::size_t end = text.find(']', first + 1);
      if (end == std::string_view::npos)
        refuse(text, "the \"[\" is never closed; close it, or write \"[[]\" for a literal one");
      tokens.push_back({Kind::set, negated, read_set(text, text.substr(first, end - first))});
      i = end;
    } else if (c == '{') {
      const std::size_t end = text.find('}', i);
      if (end == std::string_view::npos)
        refuse(text, "the \"{\" is never closed; close it, or write \"[{]\" for a literal one");
      const std::string name(text.substr(i + 1, end - i - 1));
      if (name.empty() || !std::all_of(name.begin(), name.end(), is_name_character))
        refuse(text, "\"{" + name +
                         "}\" is not a capture; name it with letters, digits and \"_\", such as "
                         "{vm_id}");
      const auto names = pattern.capture_names();
      if (std::find(names.begin(), names.end(), name) != names.end())
        refuse(text, "captures {" + name + "} twice; give each its own name");
      tokens.push_back({Kind::capture, false, name});
      i = end;
    } else {
      if (tokens.empty() || tokens.back().kind != Kind::literal)
        tokens.push_back({Kind::literal, false, {}});
      tokens.back().text += c;
    }
  }
  return pattern;
}

bool NamePattern::walk(Attempt& attempt, std::size_t token, std::size_t at) const {
  const std::string_view name = attempt.name;
  if (token == tokens_.size()) return at == name.size();
  const std::size_t place = token * (name.size() + 1) + at;
  if (attempt.dead[place]) return false;
  const Token& now = tokens_[token];
  bool found = false;
  switch (now.kind) {
    case Kind::literal:
      found =
          name.substr(at).starts_with(now.text) && walk(attempt, token + 1, at + now.text.size());
      break;
    case Kind::one:
      found = at < name.size() && walk(attempt, token + 1, at + 1);
      break;
    case Kind::set:
      found = at < name.size() && in_set(now.text, name[at]) != now.negated &&
              walk(attempt, token + 1, at + 1);
      break;
    case Kind::run:
      for (std::size_t end = at; !found && end <= name.size(); ++end)
        found = walk(attempt, token + 1, end);
      break;
    case Kind::capture:
      for (std::size_t end = at + 1; !found && end <= name.size(); ++end) {
        found = walk(attempt, token + 1, end);
        if (found) attempt.spans[token] = {at, end};
      }
      break;
  }
  if (!found) attempt.dead[place] = true;
  return found;
}

std::optional<Captures> NamePattern::match(std::string_view name) const {
  Attempt attempt{name, std::vector<bool>(tokens_.size() * (name.size() + 1)), {}};
  attempt.spans.resize(tokens_.size());
  if (!walk(attempt, 0, 0)) return std::nullopt;
  Captures captures;
  for (std::size_t i = 0; i < tokens_.size(); ++i)
    if (tokens_[i].kind == Kind::capture)
      captures.emplace_back(tokens_[i].text, std::string(name.substr(attempt.spans[i].first,
                                                                     attempt.spans[i].second -
                                                                         attempt.spans[i].first)));
  return captures;
}

bool NamePattern::matches(std::string_view name) const {
  if (is_literal()) return name == tokens_[0].text;
  return match(name).has_value();
}

bool NamePattern::is_literal() const {
  return tokens_.size() == 1 && tokens_[0].kind == Kind::literal;
}

std::vector<std::string> NamePattern::capture_names() const {
  std::vector<std::string> names;
  for (const Token& token : tokens_)
    if (token.kind == Kind::capture) names.push_back(token.text);
  return names;
}

}  // namespace sluice::discovery
