// Decides as its option says: allow, deny, and in all the ways in which one must not.
#include "hanging.hpp"

struct Decides : sluice::Plugin, sluice::Decider {
  static constexpr sluice::About about{"decider", "1.0", "decides, well or badly"};
  static constexpr std::array options{sluice::Option::string("how").defaults_to("\"allow\""),
                                      sluice::Option::integer("release").defaults_to("-1")};
  explicit Decides(const sluice::Config& config)
      : how_(config.get<std::string>("how")), release_(config.get<int>("release")) {}
  void attachment_added(const sluice::AttachmentInfo& info) override {
    say("heard of " + std::to_string(info.id.value));
  }
  void decide(const sluice::Query& query) override {
    say("asked about " + query.name + " by " + std::to_string(query.attachment.value));
    if (how_ == "hang") hang_on(release_);
    if (how_ == "throw") throw std::runtime_error("cannot make up its mind");
    if (how_ == "fail") return failed("gives up");
    if (how_ == "silent") return;
    if (how_ == "guess") {  // for questions that were put to somebody else
      for (std::uint64_t id = 0; id < 1000; ++id)
        if (id != query.id && decided(id, {.action = sluice::Decision::Action::allow}))
          say("decided for another");
      say("guessed");
      return;
    }
    if (how_ == "nonsense") {
      try {
        decided(query.id, {.action = static_cast<sluice::Decision::Action>(9)});
      } catch (const sluice::Error& error) {
        say("nonsense: error " + std::to_string(error.code()));
      }
    }
    const auto action =
        how_ == "deny" ? sluice::Decision::Action::deny : sluice::Decision::Action::allow;
    const bool first = decided(query.id, {.action = action, .reason = how_});
    say(first ? "was heard" : "was not heard");
    if (how_ == "twice")
      say(decided(query.id, {.action = sluice::Decision::Action::deny}) ? "was heard twice"
                                                                        : "was heard once");
  }

 private:
  void say(const std::string& text) { log(sluice::LogLevel::info, text); }
  std::string how_;
  int release_;
};
SLUICE_PLUGIN(Decides)
