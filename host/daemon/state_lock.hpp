// One daemon per state directory: a lock on <state_dir>/lock that ends with the process, however it
// ends.
#pragma once

#include <filesystem>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace sluice {

class StateLock {
 public:
  // Creates the directory (mode 0700) if there is none. EBUSY names the process that holds it.
  [[nodiscard]] static Result<StateLock> take(const std::filesystem::path& state_dir);

 private:
  explicit StateLock(Fd file) : file_(std::move(file)) {}
  Fd file_;
};

}  // namespace sluice
