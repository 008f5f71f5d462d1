// Built with a C++ runtime of its own (-static-libstdc++), by this compiler or another: throws and
// catches within, and throws at the barrier.
#include <sluice/plugin.hpp>

#include <stdexcept>

struct OwnRuntime : sluice::Plugin, sluice::PolicySource {
  static constexpr sluice::About about{"own_runtime", "1.0", "brings its own libstdc++"};
  explicit OwnRuntime(const sluice::Config&) {}
  void start() override {
    try {
      (void)std::stoi("not a number");
    } catch (const std::invalid_argument&) {
      log(sluice::LogLevel::info, "caught what it threw");
    }
  }
  void attachment_added(const sluice::AttachmentInfo& info) override {
    try {
      (void)replace_layer(info.id, {.mode = sluice::Mode::allowlist});
    } catch (const sluice::Error& error) {
      log(sluice::LogLevel::info, std::string("refused: ") + error.what());
    }
    throw std::out_of_range("thrown across nothing; look at the barrier");
  }
};
SLUICE_PLUGIN(OwnRuntime)
