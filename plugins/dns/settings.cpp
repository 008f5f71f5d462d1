#include "dns/settings.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <utility>

namespace sluice::dns {
namespace {

using std::chrono::nanoseconds;

constexpr std::array<std::pair<std::string_view, std::uint16_t>, 27> kTypes{{
    {"A", 1},      {"NS", 2},      {"CNAME", 5},  {"SOA", 6},     {"PTR", 12},   {"MX", 15},
    {"TXT", 16},   {"RP", 17},     {"AFSDB", 18}, {"AAAA", 28},   {"LOC", 29},   {"SRV", 33},
    {"NAPTR", 35}, {"CERT", 37},   {"DNAME", 39}, {"DS", 43},     {"SSHFP", 44}, {"RRSIG", 46},
    {"NSEC", 47},  {"DNSKEY", 48}, {"TLSA", 52},  {"SMIMEA", 53}, {"SVCB", 64},  {"HTTPS", 65},
    {"SPF", 99},   {"URI", 256},   {"CAA", 257},
}};

[[noreturn]] void refuse(std::string_view option, const std::string& why) {
  throw sdk::Error(EINVAL, std::string(option) + ": " + why);
}

std::uint64_t duration(const sdk::Config& config, std::string_view option, std::uint64_t least,
                       std::uint64_t most, const char* range) {
  const auto value = config.get<nanoseconds>(option).count();
  if (value < 0 || static_cast<std::uint64_t>(value) < least ||
      static_cast<std::uint64_t>(value) > most)
    refuse(option, std::string("must be ") + range);
  return static_cast<std::uint64_t>(value);
}

std::uint64_t number(const sdk::Config& config, std::string_view option, std::int64_t least,
                     std::int64_t most) {
  const auto value = config.get<std::int64_t>(option);
  if (value < least || value > most)
    refuse(option, "must be " + std::to_string(least) + " to " + std::to_string(most));
  return static_cast<std::uint64_t>(value);
}

}  // namespace

std::uint16_t type_of_text(std::string_view text) {
  std::string upper(text);
  for (auto& c : upper)
    if (c >= 'a' && c <= 'z') c = static_cast<char>(c - 32);
  for (const auto& [name, type] : kTypes)
    if (name == upper) return type;
  if (!upper.starts_with("TYPE")) return 0;
  std::uint16_t type = 0;
  const auto [end, error] = std::from_chars(upper.data() + 4, upper.data() + upper.size(), type);
  return error == std::errc{} && end == upper.data() + upper.size() ? type : std::uint16_t{0};
}

Settings Settings::read(const sdk::Config& config) {
  constexpr std::uint64_t kSecond = 1'000'000'000;
  Settings settings;
  for (const auto& text : config.get<std::vector<std::string>>("upstreams")) {
    try {
      settings.upstream.servers.push_back(Endpoint::parse(text));
    } catch (const sdk::Error& error) {
      refuse("upstreams", error.message());
    }
  }
  if (settings.upstream.servers.empty()) refuse("upstreams", "names no server");
  if (settings.upstream.servers.size() > 16) refuse("upstreams", "names more than 16 servers");
  // glibc asks again after 5 s: the last word must be there before.
  settings.upstream.deadline =
      duration(config, "upstream_deadline", kSecond / 10, 4'800'000'000, "100ms to 4800ms");
  settings.upstream.first_try =
      duration(config, "upstream_timeout", kSecond / 100, 4'800'000'000, "10ms to 4800ms");
  settings.upstream.in_flight =
      static_cast<std::uint32_t>(number(config, "upstream_in_flight", 16, 65'536));

  settings.workers = static_cast<unsigned>(number(config, "workers", 1, 16));
  const auto denied = config.get<std::string>("denied");
  if (denied == "nxdomain")
    settings.denied = DeniedAnswer::nxdomain;
  else if (denied == "refused")
    settings.denied = DeniedAnswer::refused;
  else if (denied == "nodata")
    settings.denied = DeniedAnswer::nodata;
  else
    refuse("denied", "\"" + denied + "\" is none of \"nxdomain\", \"refused\" and \"nodata\"");
  for (const auto& text : config.get<std::vector<std::string>>("types")) {
    const auto type = type_of_text(text);
    if (type == 0)
      refuse("types", "\"" + text + "\" is no record type; write \"MX\", or \"TYPE\" and a number");
    settings.types.push_back(type);
  }
  std::ranges::sort(settings.types);

  settings.floor = duration(config, "floor", 0, 86'400 * kSecond, "at most a day");
  settings.grace = duration(config, "grace", 0, 86'400 * kSecond, "at most a day");
  settings.live_flows = duration(config, "live_flows", 0, 30 * 86'400 * kSecond, "at most 30 days");
  settings.most_ttl = static_cast<std::uint32_t>(
      duration(config, "max_ttl", kSecond, 7 * 86'400 * kSecond, "1s to 7 days") / kSecond);
  settings.decider_deadline =
      duration(config, "decider_deadline", kSecond / 100, 4'500'000'000, "10ms to 4500ms");
  settings.cache_bytes = number(config, "cache_megabytes", 0, 65'536) << 20;
  settings.stream.idle = duration(config, "tcp_idle", kSecond / 10, 3600 * kSecond, "100ms to 1h");
  settings.stream.connections =
      static_cast<std::uint32_t>(number(config, "tcp_connections", 1, 1'000'000));
  return settings;
}

}  // namespace sluice::dns
