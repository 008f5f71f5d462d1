// SPDX-License-Identifier: Apache-2.0
// Write a Sluice plugin:
//
//   #include <sluice/plugin.hpp>
//   struct Hello : sluice::Plugin, sluice::Observer {
//     static constexpr sluice::About about{"hello", "1.0", "greets each workload"};
//     explicit Hello(const sluice::Config&) {}
//     void attachment_added(const sluice::AttachmentInfo& info) override {
//     log(sluice::LogLevel::info, info.state); }
//   };
//   SLUICE_PLUGIN(Hello)
//
// A plugin derives from Plugin and from its roles (roles.hpp): Discovery, PolicySource, Resolver,
// Observer. It declares its options as data (options.hpp). It may throw anywhere: the barrier in
// front of each entry is compiled into the plugin, so no exception, string or closure of one C++
// library ever meets another's. A throwing constructor or start() fails the start; a throwing event
// fails the instance, which the host restarts with backoff.
//
// All functions of a plugin are called on its strand: one thread of its own, one call at a time. It
// may keep threads of its own, which reach the strand by wake(), and which are joined when stop()
// returns. Test it with fake_host.hpp.
#pragma once

#include <sluice/roles.hpp>

#include <sys/epoll.h>

#include <memory>

namespace sluice::sdk {

// Who a plugin is. Literals: they are compiled into its table.
struct About {
  std::string_view name, version, summary;
};

class Plugin {
 public:
  Plugin(const Plugin&) = delete;
  Plugin& operator=(const Plugin&) = delete;
  virtual ~Plugin() = default;

  // ---- what the host calls, all [strand] except check() ----

  // Within 10 s. Begin: open, list, arm.
  virtual void start() {}
  // Within 5 s. Everything the plugin started is joined when it returns.
  virtual void stop() {}
  virtual void on_timer(std::uint64_t /*id*/) {}
  virtual void on_fd(int /*fd*/, std::uint32_t /*events*/) {}
  virtual void on_wake(std::uint64_t /*token*/) {}
  // Events were lost: forget what you know and list again. attachment_added and domain_rules come
  // anew.
  virtual void on_resync() {}
  // The options changed. False: restart me. Throw to refuse; what was configured then stays in
  // force.
  virtual bool reconfigure(const Config&) { return false; }
  // `sluiced --check`, [loader], without start(): look at the files that the options name, report
  // each fault as "file:line:column: text", log() doubts as warnings. See check in plugin_abi.h.
  using Report = std::function<void(std::string_view)>;
  virtual void check(const Report&) {}

  // ---- what every plugin may ask of the host ----

  // [any]
  void log(LogLevel level, std::string_view message) const noexcept {
    services_.log(host_, static_cast<std::uint32_t>(level), detail::abi(message));
  }
  // [any]
  [[nodiscard]] Time now() const noexcept {
    return Time(std::chrono::nanoseconds(services_.now(host_)));
  }
  // [strand] One shot; setting it again re-arms it. on_timer(id) follows.
  void set_timer(std::uint64_t id, std::chrono::nanoseconds delay) {
    detail::require(
        services_.timer_set(host_, id,
                            delay.count() < 0 ? 0 : static_cast<std::uint64_t>(delay.count())),
        "timer_set");
  }
  void cancel_timer(std::uint64_t id) {
    detail::require(services_.timer_cancel(host_, id), "timer_cancel");
  }
  // [strand] Level-triggered; on_fd(fd, events) follows. The fd stays the plugin's: unwatch it
  // before closing it.
  void watch(int fd, std::uint32_t events = EPOLLIN) {
    detail::require(services_.fd_watch(host_, fd, events), "fd_watch");
  }
  void unwatch(int fd) { detail::require(services_.fd_unwatch(host_, fd), "fd_unwatch"); }
  // [any] on_wake(token) follows on the strand. False: the instance has stopped.
  bool wake(std::uint64_t token = 0) const noexcept { return services_.wake(host_, token) >= 0; }
  // [strand] Leaves a duplicate of `fd` with the service manager, so that it outlives the daemon.
  // `name`: 1 to 64 of [a-zA-Z0-9._-]. False: no service manager keeps descriptors here.
  bool keep_fd(std::string_view name, int fd) {
    const int result = detail::known(services_.keep_fd)(host_, detail::abi(name), fd);
    if (result == -ENOTSUP) return false;
    detail::require(result, "keep_fd");
    return true;
  }
  // [any] A new descriptor (the caller's, close-on-exec) of what was kept under that name, in this
  // life or an earlier one.
  [[nodiscard]] std::optional<int> kept_fd(std::string_view name) {
    const int result = detail::known(services_.kept_fd)(host_, detail::abi(name));
    if (result == -ENOENT || result == -ENOTSUP) return std::nullopt;
    detail::require(result, "kept_fd");
    return result;
  }
  // [strand] Forgets it, if there is one.
  void drop_fd(std::string_view name) {
    const int result = detail::known(services_.drop_fd)(host_, detail::abi(name));
    if (result != -ENOENT && result != -ENOTSUP) detail::require(result, "drop_fd");
  }
  // [any] This instance cannot go on: it is stopped, the reason is shown, and it is restarted with
  // backoff.
  void failed(std::string_view reason) const noexcept {
    services_.failed(host_, detail::abi(reason));
  }

 protected:
  Plugin() = default;

 private:
  sluice_host* host_ = detail::bound_services().host;
  sluice_common_services services_ = detail::services_of(detail::bound_services().common);
};

}  // namespace sluice::sdk

#include <sluice/detail/plugin_table.hpp>

#ifndef SLUICE_SDK_QUALIFIED
namespace sluice {
using namespace sdk;
}
#endif

// Makes CLASS the plugin of this library: the one exported symbol, its static table, and the ELF
// note with the ABI version, which a host reads before it runs a line of this library. Once per
// library, at namespace scope.
#define SLUICE_PLUGIN(CLASS)                                                    \
  SLUICE_PLUGIN_NOTE_                                                           \
  extern "C" __attribute__((visibility("default"))) const struct sluice_plugin* \
  sluice_plugin_v1() noexcept {                                                 \
    return &::sluice::sdk::detail::PluginTable<CLASS>::value;                   \
  }
