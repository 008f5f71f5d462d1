// No villain: a resolver that asks about each attachment it hears of, logs what comes of it, and
// answers pushes as its option says.
#include <sluice/plugin.hpp>

#include <thread>

struct Asker : sluice::Plugin, sluice::Resolver {
  static constexpr sluice::About about{"asker", "1.0", "asks about all it hears of"};
  static constexpr std::array options{
      sluice::Option::integer("questions").defaults_to("1"),
      sluice::Option::integer("patience_ms").defaults_to("60000"),
      sluice::Option::integer("about").defaults_to("0"),  // another attachment; 0: the one added
      sluice::Option::string("pushes").defaults_to("\"take\""),  // take, refuse, ignore
      sluice::Option::integer("reports").defaults_to("0")};
  explicit Asker(const sluice::Config& config)
      : questions_(config.get<int>("questions")),
        patience_(config.get<int>("patience_ms")),
        about_(config.get<std::uint64_t>("about")),
        pushes_(config.get<std::string>("pushes")),
        reports_(config.get<int>("reports")) {}
  void stop() override {
    if (worker_.joinable()) worker_.join();
  }
  void domain_rules(sluice::AttachmentId, const std::vector<sluice::Rule>&) override {}
  void attachment_added(const sluice::AttachmentInfo& info) override {
    stop();
    say("heard of " + std::to_string(info.id.value));
    // From a thread of its own, as a resolver does.
    worker_ = std::thread([this, id = about_ != 0 ? sluice::AttachmentId{about_} : info.id] {
      for (int i = 0; i < questions_; ++i) question(id, static_cast<std::uint64_t>(i + 1));
      for (int i = 0; i < reports_; ++i) {
        const std::array given{sluice::Address::parse("198.51.100.7")};
        const sluice::QueryReport report{.attachment = id,
                                         .name = "reported.example",
                                         .verdict = sluice::QueryVerdict::allowed,
                                         .rule = "*.example",
                                         .addresses = given};
        this->report(std::span(&report, 1));
      }
      if (reports_ > 0) say("reported");
    });
  }
  void decided(std::uint64_t id, const sluice::Decision& decision) override {
    static constexpr const char* kActions[] = {"none", "allow", "deny"};
    say("decided " + std::to_string(id) + " " +
        kActions[static_cast<std::size_t>(decision.action)] + " " + decision.reason);
  }
  void answer_pushed(std::uint64_t id, const sluice::Answer& answer) override {
    say("pushed " + answer.name + " " + std::to_string(answer.chain.size()) + " " +
        (answer.addresses.empty() ? "" : answer.addresses[0].address.text()));
    if (pushed(id + 1, 0)) say("answered for another");
    if (pushes_ == "take") say(pushed(id, 0) ? "taken" : "too late");
    if (pushes_ == "refuse") pushed(id, EACCES, "that name is not allowed");
    if (pushes_ != "ignore" && pushed(id, 0)) say("answered twice");
  }

 private:
  void question(sluice::AttachmentId attachment, std::uint64_t id) {
    try {
      const bool taken = ask({.id = id, .attachment = attachment, .name = "q.example", .type = 1},
                             now() + std::chrono::milliseconds(patience_));
      if (!taken) say("nobody decides");
    } catch (const sluice::Error& error) {
      say("ask failed with " + std::to_string(error.code()));
    }
  }
  void say(const std::string& text) { log(sluice::LogLevel::info, text); }
  int questions_, patience_;
  std::uint64_t about_;
  std::string pushes_;
  int reports_;
  std::thread worker_;
};
SLUICE_PLUGIN(Asker)
