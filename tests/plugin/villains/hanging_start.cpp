#include "hanging.hpp"

struct HangingStart : sluice::Plugin, sluice::PolicySource {
  static constexpr sluice::About about{"hanging_start", "1.0", "never comes up"};
  static constexpr std::array options{sluice::Option::integer("release").required()};
  explicit HangingStart(const sluice::Config& config) : release_(config.get<int>("release")) {}
  void start() override { hang_on(release_); }
  void stop() override { log(sluice::LogLevel::info, "stopped after all"); }

 private:
  int release_;
};
SLUICE_PLUGIN(HangingStart)
