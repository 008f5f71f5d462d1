// What the operator may say of the resolver, read once and shared by all workers.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#ifndef SLUICE_SDK_QUALIFIED
#define SLUICE_SDK_QUALIFIED
#endif
#include <sluice/options.hpp>

#include "dns/stream.hpp"
#include "dns/upstream.hpp"

namespace sluice::dns {

// What a guest gets for a name it may not have. NXDOMAIN: every resolver library gives up at once.
// musl waits on REFUSED, and glibc does not fail fast on it.
enum class DeniedAnswer : std::uint8_t { nxdomain, refused, nodata };

struct Settings {
  UpstreamSettings upstream;
  StreamSettings stream;
  DeniedAnswer denied = DeniedAnswer::nxdomain;
  std::vector<std::uint16_t> types;  // let through on names that a rule allows; sorted

  // How long an address stands in the kernel after an answer, in ns: `grace` longer than the TTL
  // that was sent (a client may connect with the last of it), and `floor` at least. Connections
  // that live then may go on for `live_flows`.
  std::uint64_t floor = 60'000'000'000;
  std::uint64_t grace = 30'000'000'000;
  std::uint64_t live_flows = 3'600'000'000'000;

  std::uint32_t most_ttl = 86'400;                 // seconds; larger ones are sent as this
  std::uint32_t most_negative_ttl = 900;           // seconds
  std::uint32_t failure_ttl = 5;                   // seconds that a failure is answered from memory
  std::uint64_t decider_deadline = 2'000'000'000;  // ns
  std::size_t cache_bytes = 32u << 20;
  unsigned workers = 1;

  // Throws sdk::Error(EINVAL), naming the option.
  [[nodiscard]] static Settings read(const sdk::Config& config);
};
using SettingsPtr = std::shared_ptr<const Settings>;

// "A", "mx", "TYPE257"; 0 for what is none.
[[nodiscard]] std::uint16_t type_of_text(std::string_view text);

}  // namespace sluice::dns
