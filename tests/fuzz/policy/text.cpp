// Any text as a prefix, a port range and a mode: it is refused with a printable message, or it has
// a canonical text that reads back as the same value.
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "policy/model.hpp"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void require_printable(const sluice::Error& error) {
  require(!error.message.empty() && error.message.size() < 1024);
  for (char c : error.message) require(std::isprint(static_cast<unsigned char>(c)) != 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (const auto prefix = sluice::Prefix::parse(text)) {
    require(prefix->check().has_value());
    const auto again = sluice::Prefix::parse(prefix->text());
    require(again && *again == *prefix && again->text() == prefix->text());
    require(prefix->covers(*prefix));
  } else {
    require_printable(prefix.error());
  }
  if (const auto range = sluice::PortRange::parse(text)) {
    require(range->check().has_value());
    const auto again = sluice::PortRange::parse(range->text());
    require(again && *again == *range);
  } else {
    require_printable(range.error());
  }
  if (const auto mode = sluice::parse_mode(text))
    require(sluice::to_string(*mode) == text);
  else
    require_printable(mode.error());
  return 0;
}
