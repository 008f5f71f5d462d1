// Calls the services with arguments that no honest plugin sends, through the raw tables, and logs
// the answers.
#include <sluice/plugin.hpp>

struct Liar : sluice::Plugin, sluice::Discovery, sluice::PolicySource {
  static constexpr sluice::About about{"liar", "1.0", "lies about everything"};
  explicit Liar(const sluice::Config&) {}
  void start() override {
    const auto& d = *services_.discovery;
    const auto& p = *services_.policy;
    auto* host = services_.host;
    sluice_applied applied{};
    applied.size = sizeof applied;
    sluice_attachment id = 0;

    answer("null target", d.attach(host, nullptr, nullptr, 0, &id, &applied), applied);
    sluice_target target{};
    target.size = sizeof target;
    target.kind = 77;
    answer("kind", d.attach(host, &target, nullptr, 0, &id, &applied), applied);
    target.kind = SLUICE_TARGET_INTERFACE;
    answer("no ifindex", d.attach(host, &target, nullptr, 0, &id, &applied), applied);
    target.ifindex = 7;
    answer("null labels", d.attach(host, &target, nullptr, 5, &id, &applied), applied);
    target.name = {nullptr, 12};
    answer("null name", d.attach(host, &target, nullptr, 0, &id, &applied), applied);
    target.name = {"x", std::size_t{1} << 40};
    answer("endless name", d.attach(host, &target, nullptr, 0, &id, &applied), applied);

    sluice_rule rule{};
    rule.size = sizeof rule;
    sluice_layer layer{};
    layer.size = sizeof layer;
    layer.mode = 9;
    answer("mode", p.replace_layer(host, 1, &layer, &applied), applied);
    layer.mode = SLUICE_POLICY_ALLOWLIST;
    layer.audit = 9;
    answer("audit", p.replace_layer(host, 1, &layer, &applied), applied);
    layer.audit = layer.replies = SLUICE_UNSET;
    layer.rule_count = 1;
    answer("null rules", p.replace_layer(host, 1, &layer, &applied), applied);
    layer.rules = &rule;
    answer("action", p.replace_layer(host, 1, &layer, &applied), applied);
    rule.action = SLUICE_RULE_ALLOW;
    answer("neither", p.replace_layer(host, 1, &layer, &applied), applied);
    rule.family = 5;
    answer("family", p.replace_layer(host, 1, &layer, &applied), applied);
    rule.family = 4;
    rule.prefix_length = 33;
    answer("length", p.replace_layer(host, 1, &layer, &applied), applied);
    rule.prefix_length = 8;
    rule.address[0] = 10;
    rule.address[3] = 1;
    answer("host bits", p.replace_layer(host, 1, &layer, &applied), applied);
    rule.address[3] = 0;
    const sluice_port_range ports{6, 0, 9, 8};
    rule.ports = &ports;
    rule.port_count = 1;
    answer("ports", p.replace_layer(host, 1, &layer, &applied), applied);
    rule.port_count = 0;
    rule.size = 8;
    answer("tiny rule", p.replace_layer(host, 1, &layer, &applied), applied);
    answer("null layer", p.replace_layer(host, 1, nullptr, nullptr), applied);
    answer("null lists", p.replace_layers(host, nullptr, nullptr, 3, nullptr, &applied), applied);
  }

 private:
  void answer(const char* lie, int code, const sluice_applied& applied) {
    log(sluice::LogLevel::info, std::string(lie) + ": " + std::to_string(code) +
                                    (code < 0 && applied.message[0] != 0 ? "" : " without a word"));
  }
  sluice_services services_ = sluice::sdk::detail::bound_services();
};
SLUICE_PLUGIN(Liar)
