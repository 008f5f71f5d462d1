// No villain: a policy source that does all a source may do, and says in the log what it was told.
#include <sluice/plugin.hpp>

struct Diligent : sluice::Plugin, sluice::PolicySource {
  static constexpr sluice::About about{"diligent", "1.0", "speaks for every attachment"};
  static constexpr std::array options{
      sluice::Option::string("greeting").defaults_to("\"hello\"").help("what it says at start"),
      sluice::Option::boolean("reconfigurable")
          .defaults_to("true")
          .help("takes options as it runs"),
      sluice::Option::boolean("picky").defaults_to("false").help("refuses new options"),
  };
  explicit Diligent(const sluice::Config& config) { take(config); }
  void start() override { say(greeting_); }
  void stop() override { say("goodbye"); }
  bool reconfigure(const sluice::Config& config) override {
    if (config.get<bool>("picky"))
      throw sluice::Error(EINVAL, "picky = true is not to my taste; leave it out");
    if (!config.get<bool>("reconfigurable")) return false;
    take(config);
    say("now " + greeting_);
    return true;
  }
  void check(const Report& report) override {
    if (greeting_ == "rude") report("diligent.toml:3:1: that is no greeting");
  }
  void attachment_added(const sluice::AttachmentInfo& info) override {
    say("added " + std::to_string(info.id.value));
    sluice::Layer layer{.mode = sluice::Mode::allowlist};
    layer.rules.push_back({.action = sluice::Action::allow,
                           .prefix = sluice::Prefix::parse("10.20.0.0/16"),
                           .ports = {{6, false, 443, 443}},
                           .expires = now() + std::chrono::hours(1),
                           .name = "web"});
    layer.rules.push_back({.action = sluice::Action::deny, .domain = "*.example.org"});
    const auto applied = replace_layer(info.id, layer);
    say("applied " + std::to_string(applied.generation));
  }
  void attachment_changed(const sluice::AttachmentInfo& info) override {
    say("changed " + std::to_string(info.id.value) + " " + info.labels.at("class"));
  }
  void attachment_removed(const sluice::AttachmentInfo& info, std::string_view reason) override {
    say("removed " + std::to_string(info.id.value) + " (" + std::string(reason) + ")");
  }

 private:
  void take(const sluice::Config& config) { greeting_ = config.get<std::string>("greeting"); }
  void say(const std::string& text) { log(sluice::LogLevel::info, text); }
  std::string greeting_;
};
SLUICE_PLUGIN(Diligent)
