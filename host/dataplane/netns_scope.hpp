// Puts the calling thread into another network namespace, and back.
#pragma once

#include <string>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace sluice {

class NetnsScope {
 public:
  // An empty path stays where it is. Needs CAP_SYS_ADMIN otherwise.
  [[nodiscard]] static Result<NetnsScope> enter(const std::string& path);
  NetnsScope(NetnsScope&&) noexcept = default;
  NetnsScope& operator=(NetnsScope&&) = delete;
  ~NetnsScope();

 private:
  explicit NetnsScope(Fd home) : home_(std::move(home)) {}
  Fd home_;
};

}  // namespace sluice
