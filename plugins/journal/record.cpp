#include "journal/record.hpp"

#include <array>

namespace sluice::journal {
namespace {

constexpr char kHex[] = "0123456789abcdef";
constexpr std::size_t kLongestKey = 64;  // journald drops fields with longer ones

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte >= 0x7f) {
      // Never in text that was cleaned; a line must hold whoever forgets to.
      out += "\\u00";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else {
      out += c;
    }
  }
  out += '"';
}

void append_json(std::string& out, const Record::Value& value) {
  if (const auto* text = std::get_if<std::string>(&value)) {
    append_json_string(out, *text);
  } else if (const auto* number = std::get_if<std::uint64_t>(&value)) {
    out += std::to_string(*number);
  } else if (const auto* flag = std::get_if<bool>(&value)) {
    out += *flag ? "true" : "false";
  } else {
    out += '[';
    bool first = true;
    for (const auto& item : std::get<std::vector<std::string>>(value)) {
      if (!std::exchange(first, false)) out += ',';
      append_json_string(out, item);
    }
    out += ']';
  }
}

std::string field_name(std::string_view front, std::string_view key) {
  std::string name(front);
  for (const char c : key) {
    if (name.size() == kLongestKey) break;
    if (c >= 'a' && c <= 'z')
      name += static_cast<char>(c - 'a' + 'A');
    else if ((c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'))
      name += c;
    else
      name += '_';
  }
  return name;
}

void append_field(std::string& out, std::string_view name, std::string_view value) {
  out += name;
  if (value.find('\n') == std::string_view::npos) {
    out += '=';
    out += value;
  } else {  // the length in front, so that nothing in the value ends it
    out += '\n';
    for (int shift = 0; shift < 64; shift += 8)
      out += static_cast<char>(static_cast<std::uint64_t>(value.size()) >> shift & 0xff);
    out += value;
  }
  out += '\n';
}

std::string text_of(const Record::Value& value) {
  if (const auto* text = std::get_if<std::string>(&value)) return *text;
  if (const auto* number = std::get_if<std::uint64_t>(&value)) return std::to_string(*number);
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "1" : "0";
  std::string joined;
  for (const auto& item : std::get<std::vector<std::string>>(value))
    joined += (joined.empty() ? "" : " ") + item;
  return joined;
}

}  // namespace

std::string clean(std::string_view text, std::size_t longest) {
  std::string out;
  out.reserve(std::min(text.size(), longest));
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = byte >= 0x20 && byte < 0x7f;
    if (out.size() + (plain ? 1 : 4) > longest) return out += "...";
    if (plain) {
      out += c;
      continue;
    }
    out += "\\x";
    out += kHex[byte >> 4];
    out += kHex[byte & 15];
  }
  return out;
}

std::string json_line(const Record& record) {
  std::string out = "{";
  for (const auto& [key, value] : record.fields) {
    if (out.size() > 1) out += ',';
    append_json_string(out, key);
    out += ':';
    append_json(out, value);
  }
  if (!record.labels.empty()) {
    out += out.size() > 1 ? ",\"labels\":{" : "\"labels\":{";
    bool first = true;
    for (const auto& [key, value] : record.labels) {
      if (!std::exchange(first, false)) out += ',';
      append_json_string(out, key);
      out += ':';
      append_json_string(out, value);
    }
    out += '}';
  }
  return out += '}';
}

std::string journald_datagram(const Record& record) {
  std::string out;
  append_field(out, "MESSAGE", record.message);
  append_field(out, "MESSAGE_ID", record.message_id);
  append_field(out, "PRIORITY", std::to_string(static_cast<unsigned>(record.priority)));
  append_field(out, "SYSLOG_IDENTIFIER", "sluice");
  for (const auto& [key, value] : record.fields)
    append_field(out, field_name("SLUICE_", key), text_of(value));
  for (const auto& [key, value] : record.labels)
    append_field(out, field_name("SLUICE_LABEL_", key), value);
  return out;
}

}  // namespace sluice::journal
