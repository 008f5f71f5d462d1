// Values across the C boundary: the ABI's structs as the host's types and back. What comes from a
// plugin is checked here; nothing below this line meets a raw struct.
#pragma once

#include <sluice/plugin_abi.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "attachments/core.hpp"
#include "config/config.hpp"

namespace sluice::abi {

// ---- from a plugin ------------------------------------------------------------------------------

// A struct as this host knows it; what the writer does not have is zero.
template <typename T>
T known_part(const T* writers) {
  T mine{};
  std::memcpy(&mine, writers, std::min<std::size_t>(writers->size, sizeof(T)));
  return mine;
}
// Element of an array of sized structs: it advances by the writer's size.
template <typename T>
const T* element(const T* first, std::size_t index) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(first) + index * first->size);
}
[[nodiscard]] inline std::string_view view(const sluice_string& text) {
  return text.data == nullptr ? std::string_view{} : std::string_view(text.data, text.length);
}

[[nodiscard]] Result<Target> target_from(const sluice_target* raw);
[[nodiscard]] Result<Labels> labels_from(const sluice_label* raw, std::size_t count);
// Error::rule_index tells the rule at fault.
[[nodiscard]] Result<std::vector<Rule>> rules_from(const sluice_rule* raw, std::size_t count);
[[nodiscard]] Result<Layer> layer_from(const sluice_layer* raw);
// IPv4 becomes mapped, as the core has it.
[[nodiscard]] Result<std::vector<std::array<std::uint8_t, 16>>> addresses_from(
    const sluice_address* raw, std::size_t count);
[[nodiscard]] Result<std::vector<PortRange>> ports_from(const sluice_port_range* raw,
                                                        std::size_t count);
[[nodiscard]] Result<std::vector<Prefix>> prefixes_from(const sluice_prefix* raw,
                                                        std::size_t count);

// A push, checked, and what it borrows from.
class PushFrom {
 public:
  PushFrom() = default;
  PushFrom(const PushFrom&) = delete;
  PushFrom& operator=(const PushFrom&) = delete;
  // Once.
  [[nodiscard]] Status read(const sluice_push* writers);
  [[nodiscard]] NamePush get() const { return {names_, grants_}; }

 private:
  std::vector<std::string_view> names_;
  std::vector<std::array<std::uint8_t, 16>> addresses_;  // sized whole first
  std::vector<std::vector<PortRange>> ports_;            // likewise, reserved
  std::vector<NameGrant> grants_;
};

// What a descriptor may be kept under.
[[nodiscard]] Result<std::string> fd_name_from(const sluice_string& raw);
[[nodiscard]] std::vector<OptionDeclaration> declarations_of(const sluice_plugin& table);

// What a caller's result struct has room for.
void write_applied(sluice_applied* into, const Applied& applied);
void write_error(sluice_applied* into, const Error& error);
void write_endpoint(sluice_endpoint* into, const Endpoint& endpoint);
void write_counters(sluice_counters_info* into, const Counters& counters);

// ---- to a plugin. Each keeps what its raw struct points into; borrows from its argument
// ----------

[[nodiscard]] inline sluice_string raw(std::string_view text) {
  return {text.data(), text.size()};
}

class RawInfo {
 public:
  explicit RawInfo(const AttachmentInfo& info);
  RawInfo(const RawInfo&) = delete;
  RawInfo& operator=(const RawInfo&) = delete;
  [[nodiscard]] const sluice_attachment_info* get() const { return &raw_; }

 private:
  std::vector<sluice_label> labels_;
  sluice_target target_{};
  sluice_attachment_info raw_{};
};

class RawRules {
 public:
  explicit RawRules(const std::vector<Rule>& rules);
  RawRules(const RawRules&) = delete;
  RawRules& operator=(const RawRules&) = delete;
  [[nodiscard]] const sluice_rule* data() const { return raw_.data(); }
  [[nodiscard]] std::size_t size() const { return raw_.size(); }

 private:
  std::deque<std::vector<sluice_port_range>> ports_;
  std::deque<std::vector<sluice_prefix>> ranges_;
  std::vector<sluice_rule> raw_;
};

class RawDenials {
 public:
  explicit RawDenials(std::span<const Denial> denials);
  [[nodiscard]] const sluice_denial* data() const { return raw_.data(); }
  [[nodiscard]] std::size_t size() const { return raw_.size(); }

 private:
  std::vector<sluice_denial> raw_;
};

class RawConfig {
 public:
  RawConfig(const std::string& instance, const std::vector<OptionValue>& values,
            const std::string& config_directory, const std::string& state_directory);
  RawConfig(const RawConfig&) = delete;
  RawConfig& operator=(const RawConfig&) = delete;
  [[nodiscard]] const sluice_config* get() const { return &raw_; }

 private:
  std::deque<std::vector<sluice_string>> items_;
  std::vector<sluice_option_value> values_;
  sluice_config raw_{};
};

}  // namespace sluice::abi
