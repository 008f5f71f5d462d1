// A domain pattern of a rule, in wire form: "pypi.org" is that name, "*.pypi.org" one or more
// labels below it, ".pypi.org" both.
//
// Whatever source a rule came from, it is read here once more and refused rather than guessed at.
// Letters are folded, nothing else is: no international names (sources bring A-labels), no escapes,
// no dot at the end. A label holds letters, digits, '-' and '_': enough for every name that a
// person means, and two spellings of one name cannot exist.
#pragma once

#include <expected>
#include <string>
#include <string_view>

#include "names/name.hpp"

namespace sluice::dns {

enum class Reach : std::uint8_t {
  exact,       // "pypi.org"
  below,       // "*.pypi.org"
  with_below,  // ".pypi.org"
};

struct DomainPattern {
  Reach reach = Reach::exact;
  Name base;  // never the root

  // The error is a sentence without a subject: "has an empty label".
  [[nodiscard]] static std::expected<DomainPattern, std::string> parse(std::string_view text);

  [[nodiscard]] bool matches(const Name& name) const {
    if (reach == Reach::exact) return name == base;
    return reach == Reach::below ? name.is_below(base) : name.is_same_or_below(base);
  }
};

}  // namespace sluice::dns
