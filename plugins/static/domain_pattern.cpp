#include "static/domain_pattern.hpp"

#include <idn2.h>

#include <algorithm>
#include <memory>

#include "config/errors.hpp"
#include "names/domain_pattern.hpp"
#include "policy/model.hpp"

namespace sluice::static_policy {
namespace {

constexpr std::size_t kLongestName = 253;  // RFC 1035: 255 octets on the wire
constexpr std::size_t kLongestLabel = 63;

bool is_ascii(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

// The underscore is no host name's, but service names ("_sip.example.org") are looked up too.
bool is_label_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

// `name` without a NUL, at which the conversion would end it.
Result<std::string> to_ascii(std::string_view pattern, const std::string& name) {
  char* raw = nullptr;
  const int result = idn2_to_ascii_8z(name.c_str(), &raw, IDN2_NONTRANSITIONAL | IDN2_NFC_INPUT);
  const std::unique_ptr<char, decltype(&idn2_free)> ascii(raw, &idn2_free);
  if (result != IDN2_OK)
    return fail("{} is no international domain name: {}", in_quotes(pattern),
                idn2_strerror(result));
  return std::string(ascii.get());
}

Status check_label(std::string_view pattern, std::string_view label) {
  if (label.empty())
    return fail("{} has an empty label; write each dot between two labels, and none at the end",
                in_quotes(pattern));
  if (label.size() > kLongestLabel)
    return fail("{} has a label of {} characters; DNS allows {}", in_quotes(pattern), label.size(),
                kLongestLabel);
  if (label.find('*') != std::string_view::npos)
    return fail("{}: a star stands for whole labels and only in front, as in \"*.example.org\"",
                in_quotes(pattern));
  const auto odd = std::ranges::find_if_not(label, is_label_character);
  if (odd != label.end())
    return fail("{} holds {}, which is in no domain name", in_quotes(pattern),
                in_quotes(std::string_view(&*odd, 1)));
  if (label.front() == '-' || label.back() == '-')
    return fail("{}: the label {} begins or ends with '-'", in_quotes(pattern), in_quotes(label));
  return {};
}

// What people write where a name is wanted, with the cure for each.
Status check_kind(std::string_view pattern, std::string_view name) {
  if (name.empty())
    return fail("{} names no domain; to let everything pass use mode = \"denylist\"",
                in_quotes(pattern));
  if (Prefix::parse(name))
    return fail("{} is an address, not a name; write it under cidrs", in_quotes(pattern));
  if (name.find("://") != std::string_view::npos || name.find('/') != std::string_view::npos)
    return fail("{} is a URL or a path; write the name alone, such as \"example.org\"",
                in_quotes(pattern));
  if (name.find(':') != std::string_view::npos)
    return fail("{} names a port; write it in the rule's ports, such as ports = [\"tcp/443\"]",
                in_quotes(pattern));
  if (name.find('\0') != std::string_view::npos)
    return fail("{} holds a NUL, which is in no domain name", in_quotes(pattern));
  if (name.size() > 4 * kLongestName)
    return fail("{} is {} bytes long; a name has at most {}", in_quotes(pattern), name.size(),
                kLongestName);
  return {};
}

}  // namespace

Result<std::string> normal_domain_pattern(std::string_view text) {
  std::string_view front;
  if (text.starts_with("*."))
    front = "*.";
  else if (text.starts_with("."))
    front = ".";
  std::string name(text.substr(front.size()));
  if (text == "*") name.clear();
  if (auto kind = check_kind(text, name); !kind) return std::unexpected(kind.error());
  std::ranges::transform(name, name.begin(), lower);
  // Existing A-labels are decoded and encoded again: one that stands for no name is refused.
  if (!is_ascii(name) || name.find("xn--") != std::string::npos) {
    auto ascii = to_ascii(text, name);
    if (!ascii) return ascii;
    name = *std::move(ascii);
    std::ranges::transform(name, name.begin(), lower);
  }
  if (name.size() > kLongestName)
    return fail("{} is {} characters long; DNS allows {}", in_quotes(text), name.size(),
                kLongestName);
  for (std::string_view rest = name;;) {
    const auto dot = rest.find('.');
    if (auto label = check_label(text, rest.substr(0, dot)); !label)
      return std::unexpected(label.error());
    if (dot == std::string_view::npos) break;
    rest.remove_prefix(dot + 1);
  }
  std::string normal = std::string(front) + name;
  // The host has the last word: what it would refuse later, with the whole policy, is refused here.
  if (const auto pattern = dns::DomainPattern::parse(normal); !pattern)
    return fail("{} {}", in_quotes(text), pattern.error());
  return normal;
}

}  // namespace sluice::static_policy
