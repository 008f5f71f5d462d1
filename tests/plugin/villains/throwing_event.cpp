// Throws something that is not even an exception, in an event and in stop().
#include <sluice/plugin.hpp>

struct ThrowingEvent : sluice::Plugin, sluice::PolicySource {
  static constexpr sluice::About about{"throwing_event", "1.0",
                                       "throws when told of an attachment"};
  explicit ThrowingEvent(const sluice::Config&) {}
  void attachment_added(const sluice::AttachmentInfo&) override { throw 42; }
};
SLUICE_PLUGIN(ThrowingEvent)
