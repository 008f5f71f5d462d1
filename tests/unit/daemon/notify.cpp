#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "daemon/notify.hpp"

#include <doctest/doctest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "unit/daemon/notify_socket.hpp"

using namespace sluice;

namespace {

struct Manager {
  NotifySocket socket;

  [[nodiscard]] std::string heard() const {
    char text[512];
    const auto length = ::recv(socket.get(), text, sizeof text, 0);
    return length < 0 ? "" : std::string(text, static_cast<std::size_t>(length));
  }
};

}  // namespace

TEST_CASE("the manager hears what it is told, whole") {
  Manager manager;
  CHECK(notify_manager("READY=1\nSTATUS=3 plugins"));
  CHECK(manager.heard() == "READY=1\nSTATUS=3 plugins");
  notify_reloading();
  CHECK(manager.heard().starts_with("RELOADING=1\nMONOTONIC_USEC="));
}

TEST_CASE("without a manager nothing happens") {
  ::unsetenv("NOTIFY_SOCKET");
  CHECK_FALSE(notify_manager("READY=1"));
  ::setenv("NOTIFY_SOCKET", "/nonexistent/socket", 1);
  CHECK_FALSE(notify_manager("READY=1"));
  ::unsetenv("NOTIFY_SOCKET");
}

TEST_CASE("the watchdog is fed twice per period, if it is ours") {
  ::setenv("WATCHDOG_USEC", "3000000", 1);
  CHECK(watchdog_interval() == std::chrono::milliseconds(1500));
  ::setenv("WATCHDOG_PID", std::to_string(::getpid()).c_str(), 1);
  CHECK(watchdog_interval());
  ::setenv("WATCHDOG_PID", "1", 1);
  CHECK_FALSE(watchdog_interval());
  ::unsetenv("WATCHDOG_USEC");
  ::unsetenv("WATCHDOG_PID");
  CHECK_FALSE(watchdog_interval());
}
