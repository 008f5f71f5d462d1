// Hangs in its first event. A thread of its own keeps calling the host meanwhile.
#include "hanging.hpp"

struct HangingEvent : sluice::Plugin, sluice::PolicySource {
  static constexpr sluice::About about{"hanging_event", "1.0", "goes to sleep over its work"};
  static constexpr std::array options{sluice::Option::integer("release").required()};
  explicit HangingEvent(const sluice::Config& config) : release_(config.get<int>("release")) {}
  void attachment_added(const sluice::AttachmentInfo& info) override {
    hang_on(release_);
    try {
      withdraw_layer(info.id);
    } catch (const sluice::Error& error) {
      log(sluice::LogLevel::info, "woke up to error " + std::to_string(error.code()));
    }
  }

 private:
  int release_;
};
SLUICE_PLUGIN(HangingEvent)
