// A secret for hash tables whose keys guests choose.
#pragma once

#include <sys/random.h>

#include <cerrno>
#include <cstdint>
#include <system_error>

namespace sluice::dns {

// Throws std::system_error: a guessable seed is worse than a plugin that does not start.
[[nodiscard]] inline std::uint64_t random_seed() {
  std::uint64_t seed = 0;
  for (;;) {
    const ssize_t got = ::getrandom(&seed, sizeof seed, 0);
    if (got == static_cast<ssize_t>(sizeof seed)) return seed;
    if (got < 0 && errno != EINTR)
      throw std::system_error(errno, std::generic_category(), "getrandom");
  }
}

}  // namespace sluice::dns
