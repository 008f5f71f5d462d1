// Leaves a thread behind that goes on calling the host after stop() and destroy(). It writes what
// it was answered into the pipe that the test reads: the values of wake() and attach() as two ints.
#include "hanging.hpp"

#include <thread>

struct ForeignThread : sluice::Plugin, sluice::Discovery {
  static constexpr sluice::About about{"foreign_thread", "1.0", "forgets a thread"};
  static constexpr std::array options{sluice::Option::integer("release").required(),
                                      sluice::Option::integer("report").required()};
  explicit ForeignThread(const sluice::Config& config)
      : release_(config.get<int>("release")), report_(config.get<int>("report")) {}
  void start() override {
    // The raw tables: the C++ object is gone by the time they are used.
    std::thread([services = sluice_services_, common = *sluice_services_.common,
                 discovery = *sluice_services_.discovery, release = release_, report = report_] {
      hang_on(release);
      common.log(services.host, 4, {"still here", 10});
      common.failed(services.host, {"still failing", 13});
      const int answers[] = {common.wake(services.host, 1), discovery.listed(services.host),
                             discovery.detach(services.host, 1, {"", 0})};
      (void)!::write(report, answers, sizeof answers);
    }).detach();
  }

 private:
  const sluice_services sluice_services_ = sluice::sdk::detail::bound_services();
  int release_, report_;
};
SLUICE_PLUGIN(ForeignThread)
