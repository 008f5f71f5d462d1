// Tells the service manager how we are: sd_notify(3) by one datagram, so that libsystemd need not
// be loaded. Without NOTIFY_SOCKET every call does nothing.
#pragma once

#include <chrono>
#include <optional>
#include <string_view>

namespace sluice {

// `state` is lines as in sd_notify(3): "READY=1\nSTATUS=3 plugins". True when it was sent. `fd`,
// where given, goes along (FDSTORE=1) and stays the caller's.
bool notify_manager(std::string_view state, int fd = -1);
// "RELOADING=1" with the clock that the manager wants beside it.
void notify_reloading();
// How often the manager wants to hear "WATCHDOG=1": half of WATCHDOG_USEC, if it is set for us.
[[nodiscard]] std::optional<std::chrono::microseconds> watchdog_interval();

}  // namespace sluice
