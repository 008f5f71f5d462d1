#include <sluice/plugin.hpp>

struct ThrowingStart : sluice::Plugin, sluice::Discovery {
  static constexpr sluice::About about{"throwing_start", "1.0", "throws as it starts"};
  explicit ThrowingStart(const sluice::Config&) {}
  void start() override {
    throw sluice::Error(ECONNREFUSED, "the zoo is closed; come back on Monday");
  }
};
SLUICE_PLUGIN(ThrowingStart)
