// The one error idiom of the host: a Result carries a value or an Error that a person can act on.
//
//   return fail("veth0: cannot attach: {}; is CAP_NET_ADMIN missing?", std::strerror(errno));
//
// A message names the thing, the cause and the next step. A function that returns an Error leaves
// its outputs, and whatever was in force, untouched unless its comment says otherwise.
#pragma once

#include <spdlog/fmt/fmt.h>

#include <cerrno>
#include <expected>
#include <string>
#include <utility>

namespace sluice {

struct Error {
  std::string message;
  int code = EINVAL;  // errno value: what crosses the plugin boundary, negated
};

template <typename T>
using Result = std::expected<T, Error>;
using Status = Result<void>;

template <typename... Args>
[[nodiscard]] std::unexpected<Error> fail(fmt::format_string<Args...> format, Args&&... args) {
  return std::unexpected(Error{fmt::format(format, std::forward<Args>(args)...)});
}

template <typename... Args>
[[nodiscard]] std::unexpected<Error> fail_with(int code, fmt::format_string<Args...> format,
                                               Args&&... args) {
  return std::unexpected(Error{fmt::format(format, std::forward<Args>(args)...), code});
}

}  // namespace sluice
