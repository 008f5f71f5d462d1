// Gives up over its new options, from within reconfigure(), and comes back.
#include <sluice/plugin.hpp>

struct FailsReconfigured : sluice::Plugin, sluice::PolicySource {
  static constexpr sluice::About about{"fails_reconfigured", "1.0", "cannot bear changes"};
  static constexpr std::array options{sluice::Option::string("greeting").required()};
  explicit FailsReconfigured(const sluice::Config& config)
      : greeting_(config.get<std::string>("greeting")) {}
  void start() override { log(sluice::LogLevel::info, greeting_); }
  bool reconfigure(const sluice::Config&) override {
    failed("new options are too much for me");
    return true;
  }

 private:
  std::string greeting_;
};
SLUICE_PLUGIN(FailsReconfigured)
