// Denials as log lines, for the operator who runs no observer: who, where to, why. Bounded: a
// burst, then so many a second; what was left out is counted in the next line.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "attachments/core.hpp"

namespace sluice {

// "vm-7: tcp 10.0.0.2:4242 -> 192.0.2.7:443 (60 bytes): not on the allowlist".
[[nodiscard]] std::string describe(const Denial& denial, const std::string& attachment);

class DenialLog {
 public:
  using NameOf = std::function<std::string(AttachmentId)>;
  explicit DenialLog(NameOf name_of, std::function<BootTime()> clock = boot_now);
  void write(std::span<const Denial> denials);

  static constexpr std::uint32_t kBurst = 50, kPerSecond = 10;

 private:
  NameOf name_of_;
  std::function<BootTime()> clock_;
  std::uint64_t refilled_ = 0;  // seconds
  std::uint32_t tokens_ = kBurst;
  std::uint64_t left_out_ = 0;
};

}  // namespace sluice
