#include <sluice/plugin.hpp>

struct ThrowingStop : sluice::Plugin, sluice::Discovery {
  static constexpr sluice::About about{"throwing_stop", "1.0", "throws as it stops"};
  explicit ThrowingStop(const sluice::Config&) {}
  void stop() override { throw std::logic_error("I will not go"); }
};
SLUICE_PLUGIN(ThrowingStop)
