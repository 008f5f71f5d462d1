// Says failed() as often as it is told to, from a thread of its own, then runs.
#include <sluice/plugin.hpp>

#include <thread>

namespace {
std::atomic<int> runs{0};  // outlives the restarts: the library is never unloaded
}

struct GivesUp : sluice::Plugin, sluice::Discovery {
  static constexpr sluice::About about{"gives_up", "1.0", "fails and comes back"};
  static constexpr std::array options{sluice::Option::integer("times").required()};
  explicit GivesUp(const sluice::Config& config) : times_(config.get<int>("times")) {}
  void start() override {
    const int run = ++runs;
    log(sluice::LogLevel::info, "run " + std::to_string(run));
    if (run <= times_)
      thread_ = std::thread([this] { failed("the upstream went away; check the cable"); });
  }
  void stop() override {
    if (thread_.joinable()) thread_.join();
  }

 private:
  int times_;
  std::thread thread_;
};
SLUICE_PLUGIN(GivesUp)
