// No villain: an observer and resolver that repeats what it is told.
#include "hanging.hpp"

struct Watcher : sluice::Plugin, sluice::Observer, sluice::Resolver {
  static constexpr sluice::About about{"watcher", "1.0", "repeats what it is told"};
  static constexpr std::array options{sluice::Option::integer("release").defaults_to("-1")};
  explicit Watcher(const sluice::Config& config) : release_(config.get<int>("release")) {}
  void denials(std::span<const sluice::Denial> denials) override {
    for (const auto& denial : denials)
      say("denied " + denial.source.text() + " to " + denial.destination.text() + ":" +
          std::to_string(denial.destination_port) + ", " + denial.reason);
  }
  void queries(std::span<const sluice::QueryReport> reports) override {
    if (release_ >= 0) hang_on(release_);
    for (const auto& report : reports) {
      std::string text = "query " + std::string(report.name) + " " +
                         std::string(to_string(report.verdict)) + " " + std::string(report.rule);
      for (const auto& address : report.addresses) text += " " + address.text();
      say(text);
    }
  }
  void plugin_state(const sluice::PluginState& state) override {
    say(state.instance + " is " + state.state);
  }
  void domain_rules(sluice::AttachmentId id, const std::vector<sluice::Rule>& rules) override {
    for (const auto& rule : rules) say("rule " + std::to_string(id.value) + " " + rule.domain);
    if (rules.empty()) return;
    const std::array addresses{sluice::Address::parse("198.51.100.7"),
                               sluice::Address::parse("2001:db8::7")};
    learn(id, "www.example",
          {.rule = 0,
           .addresses = addresses,
           .ttl = std::chrono::seconds(60),
           .grace = std::chrono::seconds(30)});
    revoke(id, std::span(addresses).first(1));
  }
  void attachment_added(const sluice::AttachmentInfo& info) override {
    const auto seen = counters(info.id);
    say("counted " + std::to_string(seen.denied_packets) + " of " + std::to_string(list().size()));
  }

 private:
  void say(const std::string& text) { log(sluice::LogLevel::info, text); }
  int release_;
};
SLUICE_PLUGIN(Watcher)
