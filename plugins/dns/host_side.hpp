// What workers need of the host, as an interface: the plugin implements it with its services, so
// that workers are tested without one. All of it [any].
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#ifndef SLUICE_SDK_QUALIFIED
#define SLUICE_SDK_QUALIFIED
#endif
#include <sluice/roles.hpp>

namespace sluice::dns {

struct LearnResult {
  int error = 0;  // 0, or a positive errno
  // EACCES: which address is denied, if the host says, counted through over all grants.
  std::uint32_t address = UINT32_MAX;
};

enum class AskResult : std::uint8_t { asked, no_decider, down };

class HostSide {
 public:
  virtual ~HostSide() = default;
  // CLOCK_BOOTTIME, as the kernel programs count.
  [[nodiscard]] virtual std::uint64_t boot_now() const noexcept = 0;
  // 0: nobody.
  [[nodiscard]] virtual std::uint64_t asker_of_mark(std::uint32_t mark) noexcept = 0;
  [[nodiscard]] virtual std::uint64_t asker_of_stream(int accepted) noexcept = 0;
  // Returns when all of it is in the kernel, or nothing. `names`: the question's, then every one
  // that it led to.
  [[nodiscard]] virtual LearnResult learn(std::uint64_t attachment,
                                          std::span<const std::string_view> names,
                                          std::span<const sdk::Grant> grants) noexcept = 0;
  [[nodiscard]] virtual AskResult ask(const sdk::Query& query, std::uint64_t deadline) noexcept = 0;
  virtual void report(std::span<const sluice_query_report> reports) noexcept = 0;
  virtual void say(sdk::LogLevel level, std::string_view text) noexcept = 0;
  // A worker cannot go on.
  virtual void give_up(std::string_view why) noexcept = 0;
};

}  // namespace sluice::dns
