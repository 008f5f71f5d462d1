#include "names/public_suffix.hpp"

#include <libpsl.h>

#include <algorithm>
#include <array>
#include <string>

namespace sluice::names {
namespace {

// Top-level labels that nobody can register below.
constexpr std::array<std::string_view, 14> kNeverDelegated = {
    "alt",                                                           // RFC 9476
    "example",  "invalid", "local",   "localhost", "test", "onion",  // RFC 6761, 6762, 7686
    "internal",                                                      // ICANN board, 2024-07-29
    "corp",     "home",    "mail",                                   // ICANN board, 2018-02-04
    "intranet", "lan",     "private",                                // RFC 6762 appendix G
};

// Stands for a label that nobody has: whether *any* name one level below is a suffix, by a rule
// such as "*.sch.uk".
constexpr std::string_view kAnyLabel = "sluice--probe.";

bool is_suffix(const std::string& name) {
  // The list that is compiled into libpsl: no file to find, nothing that fails.
  return psl_is_public_suffix2(psl_builtin(), name.c_str(), PSL_TYPE_ANY) != 0;
}

}  // namespace

bool covers_public_suffix(std::string_view pattern) {
  if (pattern.starts_with("*."))
    pattern.remove_prefix(2);
  else if (pattern.starts_with("."))
    pattern.remove_prefix(1);
  else
    return false;
  if (pattern.empty()) return true;
  if (std::ranges::find(kNeverDelegated, pattern) != kNeverDelegated.end()) return false;
  const std::string name(pattern);
  return is_suffix(name) || is_suffix(std::string(kAnyLabel) + name);
}

}  // namespace sluice::names
