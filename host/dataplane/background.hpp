// One thread for what blocks: RCU grace periods, TCX attaches, walks over sockets. Jobs run in
// order; each returns a completion that the owner runs on its own thread when fd() is readable.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.hpp"

namespace sluice {

class Background {
 public:
  using Completion = std::function<void()>;
  using Job = std::function<Completion()>;

  Background();
  ~Background();  // finishes the running job, drops the rest
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

  void run(Job job);  // [owner]
  // [owner] Unless one of that name waits already, which will then see what this one was to see.
  void run_once(const std::string& name, Job job);
  [[nodiscard]] int fd() const { return ready_.get(); }
  void complete();  // [owner] runs the completions of finished jobs

 private:
  struct Waiting {
    std::string name;
    Job job;
  };
  void loop(const std::stop_token& stop);

  Fd ready_;
  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::deque<Waiting> jobs_;  // not begun
  std::vector<Completion> done_;
  std::jthread thread_;  // last: it uses all of the above
};

}  // namespace sluice
