#include "cgroups/path_pattern.hpp"

#include <algorithm>
#include <stdexcept>

namespace sluice::cgroups {
namespace {

[[noreturn]] void refuse(std::string_view pattern, const std::string& fault) {
  throw std::invalid_argument("pattern \"" + std::string(pattern) + "\": " + fault);
}

std::vector<std::string_view> split(std::string_view path) {
  std::vector<std::string_view> names;
  while (!path.empty()) {
    path.remove_prefix(1);  // the slash
    const std::size_t end = std::min(path.find('/'), path.size());
    names.push_back(path.substr(0, end));
    path.remove_prefix(end);
  }
  return names;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

}  // namespace

std::string unescape_unit_name(std::string_view text) {
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool is_escape = text[i] == '\\' && i + 3 < text.size() && text[i + 1] == 'x' &&
                           hex_digit(text[i + 2]) >= 0 && hex_digit(text[i + 3]) >= 0;
    const int value = is_escape ? hex_digit(text[i + 2]) * 16 + hex_digit(text[i + 3]) : 0;
    if (value > 0x20 && value < 0x7f) {
      result += static_cast<char>(value);
      i += 3;
    } else {
      result += text[i];
    }
  }
  return result;
}

PathPattern PathPattern::parse(std::string_view text) {
  if (!text.starts_with('/'))
    refuse(text,
           "does not begin with \"/\"; write the path below the cgroup2 mount, such as "
           "\"/machine.slice/*.scope\"");
  if (text == "/")
    refuse(text, "is the root, which is the whole host; write \"/**\" for everything below it");
  PathPattern pattern;
  pattern.text_ = text;
  for (const std::string_view part : split(text)) {
    if (part.empty())
      refuse(text, "has an empty segment; write each \"/\" once and none at the end");
    if (part == "." || part == "..")
      refuse(text,
             "has a \"" + std::string(part) + "\" segment; write the path as the kernel does");
    if (part == "**") {
      if (pattern.segments_.empty() || !pattern.segments_.back().is_any_depth)
        pattern.segments_.push_back({true, std::nullopt});
      continue;
    }
    if (part.find("**") != std::string_view::npos)
      refuse(text, "\"**\" stands for whole segments; write it between slashes, or a single \"*\"");
    try {
      pattern.segments_.push_back({false, discovery::NamePattern::parse(part)});
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument("in \"" + std::string(text) + "\": " + error.what());
    }
  }
  if (pattern.segments_.size() > 1000) refuse(text, "has more than 1,000 segments; shorten it");
  auto names = pattern.capture_names();
  std::sort(names.begin(), names.end());
  if (const auto twice = std::adjacent_find(names.begin(), names.end()); twice != names.end())
    refuse(text, "captures {" + *twice + "} twice; give each its own name");
  return pattern;
}

void PathPattern::arrive(std::size_t at, std::vector<Position>& into) const {
  const auto position = static_cast<Position>(at);
  if (std::find(into.begin(), into.end(), position) == into.end()) into.push_back(position);
  // "**" may stand for nothing, unless it is the last.
  if (at + 1 < segments_.size() && segments_[at].is_any_depth) arrive(at + 1, into);
}

void PathPattern::advance(Position from, std::string_view name, std::vector<Position>& into) const {
  if (!leads_on(from)) return;
  const Segment& segment = segments_[from];
  if (segment.is_any_depth) {
    arrive(from, into);
    if (takes_all_below(from)) arrive(segments_.size(), into);
  } else if (segment.name->matches(name)) {
    arrive(from + 1u, into);
  }
}

bool PathPattern::walk(const std::vector<std::string_view>& names, std::size_t segment,
                       std::size_t name, std::vector<bool>& dead,
                       discovery::Captures& captures) const {
  if (segment == segments_.size()) return name == names.size();
  const std::size_t place = segment * (names.size() + 1) + name;
  if (dead[place]) return false;
  const Segment& now = segments_[segment];
  if (now.is_any_depth) {
    const bool is_last = segment + 1 == segments_.size();
    if (is_last && name < names.size()) return true;
    for (std::size_t end = name; !is_last && end <= names.size(); ++end)
      if (walk(names, segment + 1, end, dead, captures)) return true;
  } else if (name < names.size()) {
    const std::size_t before = captures.size();
    if (auto here = now.name->match(names[name])) {
      for (auto& [key, value] : *here) captures.emplace_back(key, unescape_unit_name(value));
      if (walk(names, segment + 1, name + 1, dead, captures)) return true;
      captures.resize(before);
    }
  }
  dead[place] = true;
  return false;
}

std::optional<discovery::Captures> PathPattern::match(std::string_view path) const {
  const auto names = split(path);
  std::vector<bool> dead(segments_.size() * (names.size() + 1));
  discovery::Captures captures;
  if (!walk(names, 0, 0, dead, captures)) return std::nullopt;
  return captures;
}

std::vector<std::string> PathPattern::capture_names() const {
  std::vector<std::string> names;
  for (const Segment& segment : segments_)
    if (segment.name)
      for (auto& name : segment.name->capture_names()) names.push_back(std::move(name));
  return names;
}

}  // namespace sluice::cgroups
