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

// Who answers for addresses in the kernel: a domain rule, or a decision with its ports.
struct Voucher {
  std::uint32_t rule = SLUICE_NO_RULE;      // as Rule::id has it
  const sdk::Decision* decision = nullptr;  // where there is no rule
};

struct LearnResult {
  int error = 0;                       // 0, or a positive errno
  std::uint32_t address = UINT32_MAX;  // EACCES: which one is denied, if the host says
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
  // Returns when all of the addresses are in the kernel, or none of them.
  [[nodiscard]] virtual LearnResult learn(std::uint64_t attachment,
                                          std::span<const sdk::Address> addresses,
                                          std::uint64_t ttl_ns, std::uint64_t grace_ns,
                                          const Voucher& voucher) noexcept = 0;
  [[nodiscard]] virtual AskResult ask(const sdk::Query& query, std::uint64_t deadline) noexcept = 0;
  virtual void report(std::span<const sluice_query_report> reports) noexcept = 0;
  virtual void say(sdk::LogLevel level, std::string_view text) noexcept = 0;
  // A worker cannot go on.
  virtual void give_up(std::string_view why) noexcept = 0;
};

}  // namespace sluice::dns
