// A library like any other: no version note. Its static constructor must never run.
#include <cstdlib>

namespace {
[[maybe_unused]] const int kRan = setenv("SLUICE_VILLAIN_NOTELESS_RAN", "1", 1);
}
