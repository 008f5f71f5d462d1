#include "daemon/denial_log.hpp"

#include <arpa/inet.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>

namespace sluice {
namespace {

std::string address_text(std::uint8_t family, const std::uint8_t* address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (family == 4) {
    ::inet_ntop(AF_INET, address + 12, text.data(), text.size());
  } else {
    ::inet_ntop(AF_INET6, address, text.data(), text.size());
  }
  return text.data();
}

std::string endpoint(const sluice_event& event, const std::uint8_t* address, std::uint16_t port) {
  const auto text = address_text(event.family, address);
  if (!has_ports(event.protocol) || port == 0) return text;
  return event.family == 6 ? fmt::format("[{}]:{}", text, port) : fmt::format("{}:{}", text, port);
}

std::string protocol_text(const sluice_event& event) {
  switch (event.protocol) {
    case 1:
      return fmt::format("icmp {}/{}", event.icmp_type, event.icmp_code);
    case 58:
      return fmt::format("icmpv6 {}/{}", event.icmp_type, event.icmp_code);
    default:
      return PortRange{.protocol = event.protocol, .any_port = true, .first = 0, .last = 0}.text();
  }
}

}  // namespace

std::string describe(const Denial& denial, const std::string& attachment) {
  const auto& event = denial.event;
  std::string text = denial.attachment ? attachment : "guard";
  if (event.family == 0) {
    text += fmt::format(": frame of EtherType 0x{:04x}", event.ethertype);
  } else {
    text += fmt::format(
        ": {} {} -> {}", protocol_text(event),
        endpoint(event, event.source, __builtin_bswap16(event.source_port_be)),
        endpoint(event, event.destination, __builtin_bswap16(event.destination_port_be)));
  }
  text += fmt::format(" ({} bytes): {}", event.length, denial.reason);
  if (!denial.rule.empty()) text += ": " + denial.rule;
  return text;
}

DenialLog::DenialLog(NameOf name_of, std::function<BootTime()> clock)
    : name_of_(std::move(name_of)), clock_(std::move(clock)) {}

void DenialLog::write(std::span<const Denial> denials) {
  const auto second = clock_().nanoseconds / 1'000'000'000;
  if (second != refilled_) {
    const auto fresh = std::min<std::uint64_t>((second - refilled_) * kPerSecond, kBurst);
    tokens_ = std::min(kBurst, tokens_ + static_cast<std::uint32_t>(fresh));
    refilled_ = second;
  }
  for (const auto& denial : denials) {
    if (tokens_ == 0) {
      left_out_ += 1;
      continue;
    }
    tokens_ -= 1;
    if (left_out_ != 0) {
      spdlog::info("{} denials were not logged", left_out_);
      left_out_ = 0;
    }
    const auto name = denial.attachment ? name_of_(denial.attachment) : std::string{};
    spdlog::info("{} {}", denial.event.audited ? "would deny" : "denied", describe(denial, name));
  }
}

}  // namespace sluice
