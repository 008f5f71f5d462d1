#include "hanging.hpp"

struct HangingStop : sluice::Plugin, sluice::Discovery {
  static constexpr sluice::About about{"hanging_stop", "1.0", "will not leave"};
  static constexpr std::array options{sluice::Option::integer("release").required()};
  explicit HangingStop(const sluice::Config& config) : release_(config.get<int>("release")) {}
  void stop() override { hang_on(release_); }

 private:
  int release_;
};
SLUICE_PLUGIN(HangingStop)
