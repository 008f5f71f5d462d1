// Whether a domain pattern covers a public suffix (publicsuffix.org): a name below which anybody
// may get names of their own, so that allowing all of it allows everybody.
//
//   covers_public_suffix("*.com")        // true: whoever buys a name is allowed
//   covers_public_suffix(".github.io")   // true: private suffixes count, an account suffices
//   covers_public_suffix("*.sch.uk")     // true: each "*.sch.uk" is a suffix
//   covers_public_suffix("github.io")    // false: that one host and nothing below it
//   covers_public_suffix("*.pypi.org")   // false
//
// A top-level label that the list does not know is taken for a public suffix (the list's own
// default rule, and new ones come every year), except those that are set aside and will never be
// sold: "internal", "test", "example", "lan"...
//
// Not found: a pattern some levels above a suffix that is not one itself ("*.amazonaws.com", which
// has "s3.amazonaws.com" below it); libpsl answers for names only.
#pragma once

#include <string_view>

namespace sluice::names {

// `pattern`: normal form, that is lower case, A-labels, no dot at the end. [any] thread.
[[nodiscard]] bool covers_public_suffix(std::string_view pattern);

}  // namespace sluice::names
