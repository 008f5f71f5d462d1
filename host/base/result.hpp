// The one error idiom of the host: a Result carries a value or an Error that a person can act on.
//
//   return fail("veth0: cannot attach: {}; is CAP_NET_ADMIN missing?", std::strerror(errno));
//
// A message names the thing, the cause and the next step. A function that returns an Error leaves
// its outputs, and whatever was in force, untouched unless its comment says otherwise.
#pragma once

#include <spdlog/fmt/fmt.h>

#include <cerrno>
#include <cstdint>
#include <expected>
#include <string>
#include <utility>

namespace sluice {

struct Error {
  std::string message;
  int code = EINVAL;                    // errno value: what crosses the plugin boundary, negated
  std::uint32_t rule_index = kNoIndex;  // the rule at fault, where the call took rules
  std::uint32_t item_index = kNoIndex;  // the layer at fault, where the call took several

  static constexpr std::uint32_t kNoIndex = UINT32_MAX;
};

template <typename T>
using Result = std::expected<T, Error>;
using Status = Result<void>;

template <typename... Args>
[[nodiscard]] std::unexpected<Error> fail(fmt::format_string<Args...> format, Args&&... args) {
  return std::unexpected(Error{.message = fmt::format(format, std::forward<Args>(args)...)});
}

template <typename... Args>
[[nodiscard]] std::unexpected<Error> fail_with(int code, fmt::format_string<Args...> format,
                                               Args&&... args) {
  return std::unexpected(
      Error{.message = fmt::format(format, std::forward<Args>(args)...), .code = code});
}

}  // namespace sluice
