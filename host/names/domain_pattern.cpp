#include "names/domain_pattern.hpp"

#include <arpa/inet.h>

#include <algorithm>

namespace sluice::dns {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

bool is_label_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) || c == '-' || c == '_';
}

bool is_address(const std::string& text) {
  in6_addr ignored;
  return inet_pton(AF_INET, text.c_str(), &ignored) == 1 ||
         inet_pton(AF_INET6, text.c_str(), &ignored) == 1;
}

std::unexpected<std::string> refused(std::string why) {
  return std::unexpected(std::move(why));
}

}  // namespace

std::expected<DomainPattern, std::string> DomainPattern::parse(std::string_view text) {
  DomainPattern pattern;
  std::string_view name = text;
  if (name.starts_with("*.")) {
    pattern.reach = Reach::below;
    name.remove_prefix(2);
  } else if (name.starts_with('.')) {
    pattern.reach = Reach::with_below;
    name.remove_prefix(1);
  }
  if (name.empty()) return refused("names no domain");
  if (std::ranges::any_of(name, [](char c) { return static_cast<unsigned char>(c) >= 0x80; }))
    return refused("is not ASCII; write international labels as A-labels (\"xn--...\")");
  // What wire form takes besides: a length before the first label, and the root.
  if (name.size() + 2 > kLongestName) return refused("is longer than the 253 bytes of a name");
  if (is_address(std::string(name))) return refused("is an address, not a name");
  for (std::string_view rest = name;;) {
    const auto label = rest.substr(0, rest.find('.'));
    if (label.empty()) return refused("has an empty label");
    if (label.size() > kLongestLabel) return refused("has a label of more than 63 bytes");
    if (label.find('*') != label.npos) return refused("has a star that is not a whole first label");
    if (!std::ranges::all_of(label, is_label_character))
      return refused("holds a character that is in no domain name");
    if (label.size() == rest.size()) {
      // No such top-level domain exists, and readers of addresses take "1.2.3" for one.
      if (std::ranges::all_of(label, is_digit)) return refused("is an address, not a name");
      break;
    }
    rest.remove_prefix(label.size() + 1);
  }
  const auto base = Name::from_text(name);
  if (!base) return refused(std::string(describe(base.error())));
  pattern.base = *base;
  return pattern;
}

}  // namespace sluice::dns
