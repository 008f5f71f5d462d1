#include "discovery/label_rules.hpp"

#include <algorithm>
#include <cctype>
#include <optional>
#include <stdexcept>

namespace sluice::discovery {
namespace {

[[noreturn]] void refuse(const std::string& key, const std::string& fault) {
  throw std::invalid_argument("labels." + key + ": " + fault);
}

bool holds(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "$" : ", $") + name;
  return text;
}

std::size_t end_of_name(std::string_view text, std::size_t at) {
  while (at < text.size() &&
         (std::isalnum(static_cast<unsigned char>(text[at])) || text[at] == '_'))
    ++at;
  return at;
}

}  // namespace

LabelRules::LabelRules(const std::vector<std::pair<std::string, std::string>>& configured,
                       const std::vector<std::string>& facts,
                       const std::vector<std::string>& captures) {
  for (const auto& name : captures)
    if (holds(facts, name))
      throw std::invalid_argument("capture {" + name +
                                  "}: the label of that name is set by discovery itself; "
                                  "choose another name");
  for (const auto& [key, value] : configured) {
    if (key.empty()) throw std::invalid_argument("labels: a key is empty; name the label");
    if (holds(facts, key))
      refuse(key, "this label is set by discovery itself; choose another name");
    if (holds(captures, key))
      refuse(key, "a pattern already captures {" + key + "}; rename one of the two");
    Rule rule{key, parse(key, value)};
    for (const Part& part : rule.parts)
      if (part.is_reference && !holds(facts, part.text) && !holds(captures, part.text)) {
        auto known = facts;
        known.insert(known.end(), captures.begin(), captures.end());
        refuse(key, "nothing is called $" + part.text + "; there is " + listed(known) +
                        ", and \"$$\" is a dollar sign");
      }
    rules_.push_back(std::move(rule));
  }
}

std::vector<LabelRules::Part> LabelRules::parse(const std::string& key, std::string_view value) {
  std::vector<Part> parts;
  const auto add_text = [&](std::string_view text) {
    if (parts.empty() || parts.back().is_reference) parts.push_back({});
    parts.back().text += text;
  };
  for (std::size_t i = 0; i < value.size();) {
    if (value[i] != '$') {
      add_text(value.substr(i, 1));
      ++i;
    } else if (value.substr(i).starts_with("$$")) {
      add_text("$");
      i += 2;
    } else {
      const bool braced = value.substr(i).starts_with("${");
      const std::size_t first = i + (braced ? 2 : 1);
      const std::size_t end = end_of_name(value, first);
      if (end == first || (braced && (end == value.size() || value[end] != '}')))
        refuse(key, "\"" + std::string(value.substr(i)) +
                        "\" is not a reference; write $name, ${name}, or $$ for a dollar sign");
      parts.push_back({true, std::string(value.substr(first, end - first))});
      i = end + (braced ? 1 : 0);
    }
  }
  return parts;
}

Labels LabelRules::resolve(const Labels& known) const {
  Labels labels = known;
  for (const Rule& rule : rules_) {
    std::optional<std::string> value{std::in_place};
    for (const Part& part : rule.parts) {
      if (!part.is_reference) {
        *value += part.text;
        continue;
      }
      const auto found = known.find(part.text);
      if (found == known.end()) {
        value.reset();
        break;
      }
      *value += found->second;
    }
    if (value) labels[rule.key] = *value;
  }
  return labels;
}

}  // namespace sluice::discovery
