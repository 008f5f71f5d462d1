// Whatever is in a configuration, a policy file, a prefix list or an option: the answer is values
// or errors of one short line each, whose places exist. Never a crash, never a hang.
//
//   fuzz_config -max_len=8192 -dict=tests/fuzz/config/toml.dict CORPUS tests/fuzz/config/seeds
//
// The first byte chooses the reader; the rest is its text. Policy files may bring others along: a
// line "=== NAME" begins the next file.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>

#include "base/fd.hpp"
#include "config/config.hpp"
#include "config/duration.hpp"
#include "config/toml_document.hpp"
#include "names/rule_pattern.hpp"
#include "static/domain_pattern.hpp"
#include "static/policy_file.hpp"

namespace {

using namespace sluice;

void require(bool holds, const char* what, std::string_view text) {
  if (holds) return;
  std::fprintf(stderr, "%s: %.*s\n", what, static_cast<int>(text.size()), text.data());
  std::abort();
}

void check_errors(const ConfigErrors& errors, std::size_t lines) {
  constexpr std::size_t kLongest = 1200;  // the longest lists what is known
  require(!errors.empty(), "refused without a reason", "");
  require(errors.size() <= 2 * ErrorList::kShown + 2, "errors without end", "");
  for (const auto& error : errors) {
    const auto message = error.message();
    require(message.size() < kLongest, "a long error", message);
    require(error.line <= lines + 1, "a place that does not exist", message);
    require(!error.text.empty(), "an empty error", message);
    for (const char c : message)
      require(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f, "a control character", message);
  }
}

// What the plugin takes, the host takes: else a sound file's policy would not come into force.
void check_pattern(const std::string& pattern) {
  const auto again = static_policy::normal_domain_pattern(pattern);
  require(again && *again == pattern, "a pattern that is not normal", pattern);
  require(dns::DomainPattern::parse(pattern).has_value(), "a pattern that the host refuses",
          pattern);
}

std::size_t count_lines(std::string_view text) {
  std::size_t lines = 1;
  for (const char c : text) lines += c == '\n';
  return lines;
}

void configuration(std::string_view text) {
  const Fd file(::memfd_create("config", MFD_CLOEXEC));
  if (!file || ::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    return;
  const auto config = load_config("/proc/self/fd/" + std::to_string(file.get()));
  if (!config) return check_errors(config.error(), count_lines(text));
  for (const auto& prefix : config->floor.deny)
    require(prefix.check().has_value(), "a bad prefix", prefix.text());
  using Type = OptionDeclaration::Type;
  const std::vector<OptionDeclaration> declared{
      {.path = "match", .type = Type::string_list, .required = true},
      {.path = "labels", .type = Type::string_table},
      {.path = "every", .type = Type::duration, .default_value = "\"30s\""},
      {.path = "count", .type = Type::integer},
      {.path = "on", .type = Type::boolean},
      {.path = "tls.ca", .type = Type::string}};
  for (const auto& plugin : config->plugins) {
    const auto values = check_options(plugin, declared);
    if (!values) check_errors(values.error(), count_lines(text));
    if (values) require(values->size() == declared.size(), "values missing", text);
  }
}

void document(std::string_view text) {
  const auto root = parse_toml(text, "f");
  if (!root) return check_errors(root.error(), count_lines(text));
  const auto canonical = canonical_toml(*root);
  const auto again = parse_toml("x = " + canonical, "f", {.line_bytes = 1u << 20});
  // Dates and the likes of inf are kept as written; all else must come back.
  if (again) require(canonical_toml(*again->find("x")) == canonical, "not canonical", canonical);
}

void policies(std::string_view text) {
  std::map<std::string, std::string, std::less<>> files;
  std::string name = "/p/a.toml";
  const std::size_t lines = count_lines(text);
  while (!text.empty()) {
    const auto mark = text.find("\n=== ");
    files[name] = text.substr(0, mark == std::string_view::npos ? mark : mark + 1);
    if (mark == std::string_view::npos) break;
    text.remove_prefix(mark + 5);
    const auto end = std::min(text.find('\n'), text.size());
    name = "/p/" + std::string(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  const static_policy::FileReader reader =
      [&files](const std::filesystem::path& file,
               std::size_t limit) -> std::expected<std::string, ConfigErrors> {
    const auto at = files.find(file.string());
    if (at == files.end() || at->second.size() > limit)
      return std::unexpected(ConfigErrors{{.file = "f", .text = "does not exist"}});
    return at->second;
  };
  const auto result = static_policy::read_policy_file("/p/a.toml", {"/p"}, reader);
  if (!result) return check_errors(result.error(), lines);
  for (const auto& policy : *result) {
    for (const auto& group : policy.groups) {
      for (const auto& prefix : group.prefixes)
        require(prefix.check().has_value(), "a bad prefix", prefix.text());
      for (const auto& domain : group.domains) {
        check_pattern(domain);
        const auto action = group.action == Action::allow ? sdk::Action::allow : sdk::Action::deny;
        require(dns::rule_pattern({domain, action, group.public_suffix}).has_value(),
                "a rule that the host refuses", domain);
      }
      for (const auto& ports : group.ports)
        require(ports.check().has_value(), "bad ports", ports.text());
    }
    require(policy.says_same(policy), "unequal to itself", policy.name);
    const auto layer =
        static_policy::unite({std::make_shared<const static_policy::Policy>(policy)});
    require(layer.rules.size() == policy.rule_count(), "rules lost", policy.name);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 6) {
    case 0:
      document(text);
      break;
    case 1:
      configuration(text);
      break;
    case 2:
      policies(text);
      break;
    case 3:
      if (const auto list = static_policy::parse_cidr_list(text, "f"); !list)
        check_errors(list.error(), count_lines(text));
      break;
    case 4:
      if (const auto pattern = static_policy::normal_domain_pattern(text)) check_pattern(*pattern);
      break;
    default:
      if (const auto duration = parse_duration(text))
        require(duration->count() > 0, "no time", text);
      break;
  }
  return 0;
}
