// `sluiced --check FILE`: loads everything in a throwaway child, so that a plugin that crashes or
// hangs costs one line and not the answer; and the same from a running daemon, before a reload.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "daemon/event_loop.hpp"

namespace sluice {

// Lines ready to print. Without errors the daemon can start; warnings are about what is hardly
// meant.
struct CheckReport {
  std::vector<std::string> errors, warnings;
};
// Forks, so no other thread may be running.
[[nodiscard]] CheckReport check_configuration(
    const std::filesystem::path& file, uid_t library_owner,
    std::chrono::milliseconds patience = std::chrono::seconds{30});
// To stderr, warnings marked as such. The exit status of `--check`.
int print(const CheckReport& report);

// This program's own `--check FILE` as a child process, watched by the loop. Destroying it kills
// the child.
class CheckRun {
 public:
  // `done` gets the lines it printed and whether all is well; once, on the loop.
  using Done = std::function<void(bool fine, std::vector<std::string> lines)>;
  [[nodiscard]] static Result<std::unique_ptr<CheckRun>> start(EventLoop& loop,
                                                               const std::filesystem::path& program,
                                                               const std::filesystem::path& file,
                                                               std::chrono::milliseconds patience,
                                                               Done done);
  ~CheckRun();
  CheckRun(const CheckRun&) = delete;
  CheckRun& operator=(const CheckRun&) = delete;

 private:
  CheckRun(EventLoop& loop, Fd output, pid_t child, Done done)
      : loop_(loop), output_(std::move(output)), child_(child), done_(std::move(done)) {}
  void read_output();
  void reap();
  void finish(bool fine);

  EventLoop& loop_;
  Fd output_;
  pid_t child_;
  Done done_;
  std::string text_;
  EventLoop::TimerId deadline_ = 0, retry_ = 0;
};

}  // namespace sluice
