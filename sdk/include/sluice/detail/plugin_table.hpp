// SPDX-License-Identifier: Apache-2.0
// The C table of a plugin class, with the exception barrier in front of each entry. Included by
// plugin.hpp.
#pragma once

#include <sluice/plugin.hpp>

namespace sluice::sdk::detail {

// Writes terminated text of at most `capacity` bytes, whole UTF-8 sequences only.
inline void write_message(char* message, std::size_t capacity, std::string_view text) noexcept {
  if (message == nullptr || capacity == 0) return;
  std::size_t length = std::min(text.size(), capacity - 1);
  while (length > 0 && length < text.size() &&
         (static_cast<unsigned char>(text[length]) & 0xC0u) == 0x80u)
    --length;
  std::memcpy(message, text.data(), length);
  message[length] = '\0';
}

// The barrier. `refused(code, text)` learns of what was thrown; nothing leaves.
template <typename Work, typename Refused>
int guarded(Work&& work, Refused&& refused) noexcept {
  const auto refuse = [&](int code, std::string_view text) noexcept {
    try {
      refused(code, text);
    } catch (...) {  // out of memory while reporting: the code alone must do
    }
    return -code;
  };
  try {
    return work();
  } catch (const Error& error) {
    return refuse(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return refuse(ENOMEM, "out of memory");
  } catch (const std::system_error& error) {
    const bool is_errno = error.code().category() == std::generic_category() ||
                          error.code().category() == std::system_category();
    return refuse(is_errno && error.code().value() > 0 ? error.code().value() : EIO, error.what());
  } catch (const std::exception& error) {
    return refuse(EIO, error.what());
  } catch (...) {
    return refuse(EIO, "threw something that is no std::exception");
  }
}

template <typename Class>
constexpr std::size_t option_count() {
  if constexpr (requires { Class::options.size(); })
    return Class::options.size();
  else
    return 0;
}

template <typename Class>
struct PluginTable {
  static_assert(std::is_base_of_v<Plugin, Class>,
                "SLUICE_PLUGIN(C): C must derive publicly from sluice::Plugin");
  static_assert(std::is_constructible_v<Class, const Config&>,
                "SLUICE_PLUGIN(C): C needs a public constructor C(const sluice::Config&)");
  static_assert(!std::is_abstract_v<Class>,
                "SLUICE_PLUGIN(C): C leaves a pure virtual function open (a Resolver must "
                "implement domain_rules, a Decider decide)");
  static_assert(
      requires {
        { Class::about } -> std::convertible_to<About>;
      },
      "SLUICE_PLUGIN(C): C needs `static constexpr sluice::About about{\"name\", \"version\", "
      "\"summary\"}`");

  static constexpr bool is_discovery = std::is_base_of_v<Discovery, Class>;
  static constexpr bool is_source = std::is_base_of_v<PolicySource, Class>;
  static constexpr bool is_resolver = std::is_base_of_v<Resolver, Class>;
  static constexpr bool is_observer = std::is_base_of_v<Observer, Class>;
  static constexpr bool is_decider = std::is_base_of_v<Decider, Class>;
  static constexpr bool is_answer_source = std::is_base_of_v<AnswerSource, Class>;
  static constexpr bool hears_of_attachments =
      is_source || is_resolver || is_observer || is_decider || is_answer_source;
  static_assert(is_discovery || hears_of_attachments,
                "SLUICE_PLUGIN(C): C holds no role; derive it from sluice::Discovery, "
                "PolicySource, Resolver, Observer, Decider or AnswerSource as well");

  static constexpr std::uint32_t roles =
      (is_discovery ? SLUICE_ROLE_DISCOVERY : 0u) | (is_source ? SLUICE_ROLE_POLICY_SOURCE : 0u) |
      (is_resolver ? SLUICE_ROLE_RESOLVER : 0u) | (is_observer ? SLUICE_ROLE_OBSERVER : 0u) |
      (is_decider ? SLUICE_ROLE_DECIDER : 0u) | (is_answer_source ? SLUICE_ROLE_ANSWER_SOURCE : 0u);

  static constexpr auto make_options() {
    std::array<sluice_option, option_count<Class>() + 1> raw{};  // never of size zero
    if constexpr (option_count<Class>() > 0) {
      std::size_t i = 0;
      for (const Option& option : Class::options)
        raw[i++] = {.size = sizeof(sluice_option),
                    .type = static_cast<std::uint32_t>(option.type),
                    .flags = option.is_required ? SLUICE_OPTION_REQUIRED : 0u,
                    .path = abi(option.path),
                    .default_value = abi(option.default_value_toml),
                    .help = abi(option.help_text)};
    }
    return raw;
  }
  static constexpr auto options = make_options();

  static Class& self_of(void* self) { return *static_cast<Class*>(self); }

  // An event that throws ends the instance: the host is told why, in the plugin's words.
  template <typename Work>
  static int event(void* self, const char* name, Work&& work) noexcept {
    return guarded(
        [&] {
          work(self_of(self));
          return 0;
        },
        [&](int, std::string_view text) {
          self_of(self).failed(std::string(name) + " threw: " + std::string(text));
        });
  }
  template <typename Work>
  static int call(char* message, std::size_t capacity, Work&& work) noexcept {
    return guarded(work,
                   [&](int, std::string_view text) { write_message(message, capacity, text); });
  }

  static int create(const sluice_services* services, const sluice_config* config, void** self,
                    char* message, std::size_t capacity) noexcept {
    return call(message, capacity, [&] {
      const auto known = known_part(services);
      const Binding binding(&known);
      *self = std::make_unique<Class>(Config(*config)).release();
      return 0;
    });
  }
  static int start(void* self, char* message, std::size_t capacity) noexcept {
    return call(message, capacity, [&] {
      self_of(self).start();
      return 0;
    });
  }
  static void stop(void* self) noexcept {
    guarded(
        [&] {
          self_of(self).stop();
          return 0;
        },
        [&](int, std::string_view text) {
          self_of(self).log(LogLevel::error, "stop threw: " + std::string(text));
        });
  }
  static void destroy(void* self) noexcept { delete static_cast<Class*>(self); }

  static int on_timer(void* self, std::uint64_t id) noexcept {
    return event(self, "on_timer", [&](Class& plugin) { plugin.on_timer(id); });
  }
  static int on_fd(void* self, int fd, std::uint32_t events) noexcept {
    return event(self, "on_fd", [&](Class& plugin) { plugin.on_fd(fd, events); });
  }
  static int on_wake(void* self, std::uint64_t token) noexcept {
    return event(self, "on_wake", [&](Class& plugin) { plugin.on_wake(token); });
  }
  static int on_resync(void* self) noexcept {
    return event(self, "on_resync", [](Class& plugin) { plugin.on_resync(); });
  }
  static int attachment_added(void* self, const sluice_attachment_info* info) noexcept {
    return event(self, "attachment_added",
                 [&](auto& plugin) { plugin.attachment_added(info_of(info)); });
  }
  static int attachment_changed(void* self, const sluice_attachment_info* info) noexcept {
    return event(self, "attachment_changed",
                 [&](auto& plugin) { plugin.attachment_changed(info_of(info)); });
  }
  static int attachment_removed(void* self, const sluice_attachment_info* info,
                                sluice_string reason) noexcept {
    return event(self, "attachment_removed",
                 [&](auto& plugin) { plugin.attachment_removed(info_of(info), view(reason)); });
  }
  static int domain_rules(void* self, sluice_attachment id, const sluice_rule* rules,
                          std::size_t count) noexcept {
    return event(self, "domain_rules", [&](auto& plugin) {
      plugin.domain_rules(AttachmentId{id}, rules_of(rules, count));
    });
  }
  static int denials(void* self, const sluice_denial* denials, std::size_t count) noexcept {
    return event(self, "denials", [&](auto& plugin) {
      std::vector<Denial> all;
      all.reserve(count);
      for (std::size_t i = 0; i < count; ++i) all.push_back(denial_of(element(denials, i)));
      plugin.denials(std::span<const Denial>(all));
    });
  }
  static int plugin_state(void* self, const sluice_plugin_state* state) noexcept {
    return event(self, "plugin_state", [&](auto& plugin) {
      const auto raw = known_part(state);
      plugin.plugin_state(PluginState{copy(raw.instance), copy(raw.state), copy(raw.reason)});
    });
  }
  // Both a Resolver and a Decider have a decided(): the event is the Resolver's.
  static int decided(void* self, std::uint64_t query_id,
                     const sluice_decision_made* decision) noexcept {
    return event(self, "decided", [&](auto& plugin) {
      static_cast<Resolver&>(plugin).decided(query_id, decision_of(decision));
    });
  }
  static int answer_pushed(void* self, std::uint64_t push_id,
                           const sluice_answer* answer) noexcept {
    return event(self, "answer_pushed",
                 [&](auto& plugin) { plugin.answer_pushed(push_id, answer_of(answer)); });
  }
  static int queries(void* self, const sluice_query_report* reports, std::size_t count) noexcept {
    return event(self, "queries",
                 [&](auto& plugin) { plugin.queries(Reports(reports, count).get()); });
  }
  static int decide(void* self, const sluice_query* query) noexcept {
    return event(self, "decide", [&](auto& plugin) { plugin.decide(query_of(query)); });
  }
  static int reconfigure(void* self, const sluice_config* config, char* message,
                         std::size_t capacity) noexcept {
    return call(message, capacity,
                [&] { return self_of(self).reconfigure(Config(*config)) ? 0 : -ENOTSUP; });
  }
  static int check(void* self, void (*report)(void*, sluice_string), void* context) noexcept {
    const auto say = [&](std::string_view text) { report(context, abi(text)); };
    return guarded(
        [&] {
          self_of(self).check(say);
          return 0;
        },
        [&](int, std::string_view text) { say(text); });
  }

  template <bool wanted, typename Function>
  static constexpr Function when(Function function) {
    return wanted ? function : nullptr;
  }

  // A function that is not of the plugin's roles is not even instantiated.
  static constexpr sluice_plugin make_table() {
    sluice_plugin table{};
    table.size = sizeof table;
    table.abi_minor = SLUICE_ABI_MINOR;
    table.name = abi(About(Class::about).name);
    table.version = abi(About(Class::about).version);
    table.summary = abi(About(Class::about).summary);
    table.roles = roles;
    table.option_count = static_cast<std::uint32_t>(option_count<Class>());
    table.options = option_count<Class>() == 0 ? nullptr : options.data();
    table.create = create;
    table.start = start;
    table.stop = stop;
    table.destroy = destroy;
    table.on_timer = on_timer;
    table.on_fd = on_fd;
    table.on_wake = on_wake;
    table.on_resync = on_resync;
    if constexpr (hears_of_attachments) {
      table.attachment_added = attachment_added;
      table.attachment_changed = attachment_changed;
      table.attachment_removed = attachment_removed;
    }
    if constexpr (is_resolver) {
      table.domain_rules = domain_rules;
      table.decided = decided;
      table.answer_pushed = answer_pushed;
    }
    if constexpr (is_decider) table.decide = decide;
    if constexpr (is_observer) {
      table.denials = denials;
      table.queries = queries;
      table.plugin_state = plugin_state;
    }
    table.reconfigure = reconfigure;
    table.check = check;
    return table;
  }
  static constexpr sluice_plugin value = make_table();
};

}  // namespace sluice::sdk::detail

// Assembler, because a C++ variable cannot be given the section type @note by every compiler: name
// size, descriptor size, type, name padded to 4 bytes, descriptor (struct sluice_note).
#define SLUICE_NOTE_TEXT_2_(value) #value
#define SLUICE_NOTE_TEXT_(value) SLUICE_NOTE_TEXT_2_(value)
#define SLUICE_PLUGIN_NOTE_ \
  __asm__(".pushsection " SLUICE_NOTE_SECTION ",\"a\",%note\n"            \
          ".balign 4\n"                                                   \
          ".long 7\n"                                                     \
          ".long 8\n"                                                     \
          ".long " SLUICE_NOTE_TEXT_(SLUICE_NOTE_TYPE) "\n"               \
          ".asciz \"" SLUICE_NOTE_NAME "\"\n"                             \
          ".balign 4\n"                                                   \
          ".long " SLUICE_NOTE_TEXT_(SLUICE_ABI_MAJOR) "\n"               \
          ".long " SLUICE_NOTE_TEXT_(SLUICE_ABI_MINOR) "\n"               \
          ".popsection\n");
