// Built against a later minor: every struct has grown at its end. By the prefix rule it must just
// work.
#include <sluice/plugin.hpp>

namespace {

struct LaterOption {
  sluice_option known;
  std::uint64_t a_field_of_minor_7[3];
};
struct LaterPlugin {
  sluice_plugin known;
  void (*a_function_of_minor_7)();
  std::uint64_t another[4];
};
struct LaterRule {
  sluice_rule known;
  std::uint64_t a_field_of_minor_7;
};

struct Self {
  sluice_services services;
  std::string word;
};

std::string_view view(sluice_string text) {
  return {text.data, text.length};
}
sluice_string abi(std::string_view text) {
  return {text.data(), text.size()};
}

int create(const sluice_services* services, const sluice_config* config, void** self, char*,
           std::size_t) {
  auto* mine = new Self{*services, {}};
  for (std::size_t i = 0; i < config->value_count; ++i)
    mine->word += std::string(view(config->values[i].path)) + "=" +
                  std::string(view(config->values[i].string)) + " ";
  *self = mine;
  return 0;
}
int start(void* self, char*, std::size_t) {
  const auto& mine = *static_cast<Self*>(self);
  mine.services.common->log(mine.services.host, 2, abi(mine.word));
  return 0;
}
void stop(void*) {}
void destroy(void* self) {
  delete static_cast<Self*>(self);
}
int attachment_added(void* self, const sluice_attachment_info* info) {
  const auto& services = static_cast<Self*>(self)->services;
  LaterRule rules[2]{};
  for (auto& rule : rules) {
    rule.known.size = sizeof rule;
    rule.known.action = SLUICE_RULE_ALLOW;
    rule.a_field_of_minor_7 = ~0ull;
  }
  rules[0].known.domain = abi("first.example");
  rules[1].known.domain = abi("second.example");
  sluice_layer layer{};
  layer.size = sizeof layer;
  layer.mode = SLUICE_POLICY_ALLOWLIST;
  layer.audit = SLUICE_UNSET;
  layer.replies = SLUICE_UNSET;
  layer.rules = &rules[0].known;
  layer.rule_count = 2;
  return services.policy->replace_layer(services.host, info->id, &layer, nullptr);
}

LaterOption options[2];
LaterPlugin table;

}  // namespace

__asm__(
    ".pushsection .note.sluice,\"a\",%note\n"
    ".balign 4\n.long 7\n.long 8\n.long 1\n.asciz \"Sluice\"\n.balign 4\n"
    ".long 1\n.long 7\n"
    ".popsection\n");

extern "C" __attribute__((visibility("default"))) const sluice_plugin* sluice_plugin_v1() {
  const char* names[] = {"one", "two"};
  for (int i = 0; i < 2; ++i) {
    auto& option = options[i].known;
    option.size = sizeof(LaterOption);
    option.type = SLUICE_OPTION_STRING;
    option.path = abi(names[i]);
    option.default_value = abi("\"default\"");
  }
  table.known.size = sizeof table;
  table.known.abi_minor = 7;
  table.known.name = abi("newer_minor");
  table.known.version = abi("1.0");
  table.known.roles = SLUICE_ROLE_POLICY_SOURCE | 1u << 30;  // and a role of minor 7
  table.known.option_count = 2;
  table.known.options = &options[0].known;
  table.known.create = create;
  table.known.start = start;
  table.known.stop = stop;
  table.known.destroy = destroy;
  table.known.attachment_added = attachment_added;
  return &table.known;
}
