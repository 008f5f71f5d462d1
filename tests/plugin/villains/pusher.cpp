// Pushes an answer for each attachment it hears of, or for one that is not its business.
#include <sluice/plugin.hpp>

struct Pusher : sluice::Plugin, sluice::AnswerSource {
  static constexpr sluice::About about{"pusher", "1.0", "brings answers"};
  static constexpr std::array options{
      sluice::Option::integer("patience_ms").defaults_to("60000"),
      sluice::Option::integer("for").defaults_to("0")};  // an attachment; 0: the one added
  explicit Pusher(const sluice::Config& config)
      : patience_(config.get<int>("patience_ms")), for_(config.get<std::uint64_t>("for")) {}
  void attachment_added(const sluice::AttachmentInfo& info) override {
    const sluice::Answer answer{.attachment = for_ != 0 ? sluice::AttachmentId{for_} : info.id,
                                .name = "a.example",
                                .chain = {"b.example"},
                                .addresses = {{sluice::Address::parse("198.51.100.7"), 60}}};
    try {
      push_answer(answer, now() + std::chrono::milliseconds(patience_));
      log(sluice::LogLevel::info, "may give it");
    } catch (const sluice::Error& error) {
      log(sluice::LogLevel::info,
          "must not give it: " + std::to_string(error.code()) + " " + error.what());
    }
  }

 private:
  int patience_;
  std::uint64_t for_;
};
SLUICE_PLUGIN(Pusher)
