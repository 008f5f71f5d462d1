// A policy source that allows one /24 everywhere ("allow = 3": 10.0.3.0/24), and misbehaves on
// request.
#include <sluice/plugin.hpp>

#include <unistd.h>

#include <array>
#include <csignal>
#include <stdexcept>
#include <string>

namespace {

class StageSource : public sluice::Plugin, public sluice::PolicySource {
 public:
  static constexpr sluice::About about{"stage_source", "1.0", "allows one network"};
  static constexpr std::array options{
      sluice::Option::integer("allow").defaults_to("1").help("third byte of the network"),
      sluice::Option::string("start").defaults_to("\"fine\"").help("fine, throw"),
      sluice::Option::string("check")
          .defaults_to("\"fine\"")
          .help("fine, complain, doubt, names, crash, hang"),
  };

  explicit StageSource(const sluice::Config& config) { take(config); }

  void start() override {
    if (start_ == "throw") throw std::runtime_error("the stage source was told not to start");
  }
  bool reconfigure(const sluice::Config& config) override {
    take(config);
    for (const auto id : known_) speak(id);
    return true;
  }
  void check(const Report& report) override {
    if (check_ == "complain") report("policies.toml:3:7: not a network");
    if (check_ == "doubt") log(sluice::LogLevel::warning, "policies.d: nothing is there");
    if (check_ == "names") show();
    if (check_ == "crash") std::raise(SIGKILL);
    while (check_ == "hang") ::pause();
  }
  void attachment_added(const sluice::AttachmentInfo& info) override {
    known_.push_back(info.id);
    speak(info.id);
  }

 private:
  void take(const sluice::Config& config) {
    allow_ = config.get<std::uint8_t>("allow");
    start_ = config.get<std::string>("start");
    check_ = config.get<std::string>("check");
  }
  void show() {
    sluice::Layer layer;
    layer.rules.push_back({.action = sluice::Action::allow, .domain = "pypi.org"});
    replace_layer({}, layer);
  }
  void speak(sluice::AttachmentId id) {
    sluice::Rule rule{.action = sluice::Action::allow, .name = "stage"};
    sluice::Prefix prefix{.address = {.family = 4}, .length = 24};
    prefix.address.bytes[0] = 10;
    prefix.address.bytes[2] = allow_;
    rule.prefix = prefix;
    sluice::Layer layer;
    layer.mode = sluice::Mode::allowlist;
    layer.rules.push_back(rule);
    replace_layer(id, layer);
  }

  std::uint8_t allow_ = 0;
  std::string start_, check_;
  std::vector<sluice::AttachmentId> known_;
};

}  // namespace

SLUICE_PLUGIN(StageSource)
