#include "dns/endpoint.hpp"

#include <arpa/inet.h>
#include <net/if.h>

#include <charconv>

#define SLUICE_SDK_QUALIFIED
#include <sluice/types.hpp>

namespace sluice::dns {
namespace {

[[noreturn]] void refuse(std::string_view text, const char* why) {
  throw sdk::Error(EINVAL, "\"" + std::string(text) + "\" " + why +
                               "; write an address, as in \"192.0.2.1\", \"192.0.2.1:5353\" or "
                               "\"[2001:db8::1]:53\"");
}

std::uint16_t parse_port(std::string_view text, std::string_view whole) {
  unsigned port = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), port);
  if (error != std::errc{} || end != text.data() + text.size() || port == 0 || port > 65535)
    refuse(whole, "has no valid port");
  return static_cast<std::uint16_t>(port);
}

}  // namespace

std::string Endpoint::text() const {
  char buffer[INET6_ADDRSTRLEN] = "?";
  if (family() == AF_INET) {
    inet_ntop(AF_INET, &v4.sin_addr, buffer, sizeof buffer);
    return std::string(buffer) + ":" + std::to_string(ntohs(v4.sin_port));
  }
  if (family() == AF_INET6) {
    inet_ntop(AF_INET6, &v6.sin6_addr, buffer, sizeof buffer);
    std::string text("[");
    return text.append(buffer).append("]:").append(std::to_string(ntohs(v6.sin6_port)));
  }
  return "nowhere";
}

Endpoint Endpoint::parse(std::string_view text) {
  std::string host(text);
  std::uint16_t port = 53;
  if (text.starts_with('[')) {
    const auto close = text.find(']');
    if (close == std::string_view::npos) refuse(text, "lacks a closing bracket");
    host = text.substr(1, close - 1);
    const auto rest = text.substr(close + 1);
    if (!rest.empty()) {
      if (rest.front() != ':') refuse(text, "has something after its bracket that is no port");
      port = parse_port(rest.substr(1), text);
    }
  } else if (const auto colon = text.find(':');
             colon != std::string_view::npos &&
             text.find(':', colon + 1) == std::string_view::npos) {
    host = text.substr(0, colon);
    port = parse_port(text.substr(colon + 1), text);
  }

  Endpoint result;
  if (inet_pton(AF_INET, host.c_str(), &result.v4.sin_addr) == 1) {
    result.v4.sin_family = AF_INET;
    result.v4.sin_port = htons(port);
    result.length = sizeof result.v4;
    return result;
  }
  std::string zone;
  if (const auto percent = host.find('%'); percent != std::string::npos) {
    zone = host.substr(percent + 1);
    host.resize(percent);
  }
  if (inet_pton(AF_INET6, host.c_str(), &result.v6.sin6_addr) != 1)
    refuse(text, "is no address of a DNS server");
  result.v6.sin6_family = AF_INET6;
  result.v6.sin6_port = htons(port);
  if (!zone.empty()) {
    result.v6.sin6_scope_id = if_nametoindex(zone.c_str());
    if (result.v6.sin6_scope_id == 0) refuse(text, "names an interface that does not exist");
  }
  result.length = sizeof result.v6;
  return result;
}

}  // namespace sluice::dns
