#include "base/ids.hpp"

#include <ctime>

namespace sluice {

BootTime boot_now() {
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return {static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000ull +
          static_cast<std::uint64_t>(now.tv_nsec)};
}

}  // namespace sluice
