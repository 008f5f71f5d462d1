#include "static/policy_file.hpp"

#include <spdlog/fmt/fmt.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "config/duration.hpp"
#include "config/table_reader.hpp"
#include "config/toml_document.hpp"
#include "names/public_suffix.hpp"
#include "static/domain_pattern.hpp"
#include "static/record_type.hpp"

namespace sluice::static_policy {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kLongestRuleName = 64;

// Where a prefix of a policy stands, and what decides whether another like it is a duplicate.
struct Mention {
  Prefix prefix;
  Action action = Action::deny;
  std::uint16_t ports = 0;  // index into the policy's distinct sets of ports
  std::uint16_t file = 0;   // index into the policy's files
  TextPosition at;

  [[nodiscard]] auto identity() const { return std::tie(prefix, action, ports); }
};

bool is_plain_name(std::string_view name) {
  return !name.empty() && name.size() <= 64 && std::ranges::all_of(name, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  });
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r";
  const auto first = text.find_first_not_of(kBlank);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

// Reads the rules of one policy, which may come from several files.
class PolicyRules {
 public:
  PolicyRules(Policy& policy, const std::vector<fs::path>& preset_directories,
              const FileReader& reader, ErrorList& errors)
      : policy_(policy),
        preset_directories_(preset_directories),
        reader_(reader),
        errors_(errors) {}

  // [[allow]] and [[deny]] of a policy or a preset, which `owner` reads.
  // `owner_name` goes into the names of its rules. They carry no line number: a comment added above
  // would change every rule below it.
  void read_groups(TableReader& owner, std::string_view owner_name, const fs::path& file,
                   ErrorList& errors) {
    for (const auto action : {Action::allow, Action::deny}) {
      const std::string_view key = action == Action::allow ? "allow" : "deny";
      std::size_t count = 0;
      for (const auto* node : owner.tables(key))
        read_group(*node, action, fmt::format("{}:{}:{}", owner_name, key, ++count), file, errors);
    }
  }

  void read_presets(TableReader& owner) {
    const auto names = owner.strings("presets");
    if (!names) return;
    std::set<std::string, std::less<>> seen;
    for (const auto& name : *names) {
      if (!is_plain_name(name.value) || name.value.starts_with('.'))
        errors_.add(name.position, fmt::format("preset {}: write a bare name, such as \"apt\"",
                                               in_quotes(name.value)));
      else if (!seen.insert(name.value).second)
        errors_.add(name.position,
                    fmt::format("preset {} stands here twice; remove one", in_quotes(name.value)));
      else
        read_preset(name);
    }
  }

  void refuse_duplicates() {
    std::ranges::sort(mentions_, [](const Mention& a, const Mention& b) {
      return std::tuple(a.identity(), a.file, a.at.line, a.at.column) <
             std::tuple(b.identity(), b.file, b.at.line, b.at.column);
    });
    for (std::size_t i = 1; i < mentions_.size(); ++i) {
      const auto &first = mentions_[i - 1], &second = mentions_[i];
      if (first.identity() != second.identity()) continue;
      ErrorList here(files_[second.file]);
      const auto place = first.file == second.file
                             ? fmt::format("on line {}", first.at.line)
                             : fmt::format("at {}:{}", files_[first.file], first.at.line);
      here.add(second.at, fmt::format("{} stands twice in policy {}, first {}; remove one",
                                      second.prefix.text(), in_quotes(policy_.name), place));
      errors_.add(here.take());
      if (++duplicates_ >= ErrorList::kShown) break;
    }
  }

 private:
  void read_preset(const Located<std::string>& name) {
    std::string looked_in;
    for (const auto& directory : preset_directories_) {
      const fs::path file = directory / (name.value + ".toml");
      std::error_code error;
      const auto text = reader_(file, kLargestPolicyFile);
      looked_in += (looked_in.empty() ? "" : ", ") + directory.string();
      if (!text && !fs::exists(file, error)) continue;
      if (!text) {
        errors_.add(text.error());
        return;
      }
      return read_preset_text(name.value, file, *text);
    }
    errors_.add(
        name.position,
        fmt::format("preset {} does not exist; looked for {}.toml in {}", in_quotes(name.value),
                    name.value,
                    looked_in.empty() ? "no directory (presets_path is empty)" : looked_in));
  }

  void read_preset_text(const std::string& name, const fs::path& file, const std::string& text) {
    const auto root = parse_toml(text, file.string());
    if (!root) return errors_.add(root.error());
    ErrorList errors(file.string());
    TableReader table(*root, "a preset", errors);
    (void)table.string("summary");
    read_groups(table, name, file, errors);
    table.finish();
    errors_.add(errors.take());
  }

  void read_group(const TomlNode& node, Action action, std::string name, const fs::path& file,
                  ErrorList& errors) {
    RuleGroup group{.action = action,
                    .prefixes = {},
                    .domains = {},
                    .ports = {},
                    .addresses = {},
                    .types = {},
                    .public_suffix = false,
                    .ttl = {},
                    .name = std::move(name)};
    TableReader table(node, action == Action::allow ? "an allow rule" : "a deny rule", errors);
    if (const auto given = table.string("name")) {
      if (given->value.empty() || given->value.size() > kLongestRuleName)
        errors.add(
            given->position,
            fmt::format("name takes 1 to {} bytes; reports call the rule by it", kLongestRuleName));
      group.name = given->value;
    }
    if (const auto ttl = table.string("ttl")) {
      const auto duration = parse_duration(ttl->value);
      if (duration)
        group.ttl = *duration;
      else
        errors.add(ttl->position, "ttl: " + duration.error().message);
    }
    read_ports(table, group, errors);
    read_attributes(table, group, errors);
    read_domains(table, group, errors);
    const std::uint16_t ports = number_of_ports(group.ports);
    const bool has_targets = table.has("cidrs") || table.has("domains") || table.has("cidr_files");
    if (const auto cidrs = table.strings("cidrs")) {
      const std::uint16_t file_number = number_of_file(file.string());
      for (const auto& text : *cidrs) {
        const auto prefix = Prefix::parse(text.value);
        if (prefix)
          add_prefix(group, {*prefix, action, ports, file_number, text.position});
        else
          errors.add(text.position, "cidrs: " + prefix.error().message);
      }
    }
    read_cidr_files(table, group, ports, file, errors);
    if (!has_targets) table.error("names nothing; add cidrs, cidr_files or domains");
    table.finish();
    policy_.groups.push_back(std::move(group));
  }

  static void read_ports(TableReader& table, RuleGroup& group, ErrorList& errors) {
    const auto ports = table.strings("ports");
    if (!ports) return;
    if (ports->empty())
      table.error("ports is empty; leave it out for every protocol and port, or name some");
    for (const auto& text : *ports) {
      const auto range = PortRange::parse(text.value);
      if (!range)
        errors.add(text.position, "ports: " + range.error().message);
      else if (std::ranges::find(group.ports, *range) != group.ports.end())
        errors.add(text.position,
                   fmt::format("ports: {} stands here twice; remove one", in_quotes(text.value)));
      else
        group.ports.push_back(*range);
    }
    // So that one set of ports is equal to itself in whatever order it was written.
    std::ranges::sort(group.ports);
  }

  // What is said of the domains of a rule.
  static void read_attributes(TableReader& table, RuleGroup& group, ErrorList& errors) {
    for (const auto* key : {"addresses", "types", "public_suffix"}) {
      if (!table.has(key)) continue;
      if (group.action != Action::allow)
        table.error(fmt::format("{} belongs to an allow rule: a deny needs none", key));
      else if (!table.has("domains"))
        table.error(fmt::format("{} is about domains, and the rule names none", key));
    }
    if (const auto addresses = table.strings("addresses")) {
      for (const auto& text : *addresses) {
        const auto prefix = Prefix::parse(text.value);
        if (!prefix)
          errors.add(text.position, "addresses: " + prefix.error().message);
        else if (std::ranges::find(group.addresses, *prefix) != group.addresses.end())
          errors.add(text.position, fmt::format("addresses: {} stands here twice; remove one",
                                                in_quotes(text.value)));
        else
          group.addresses.push_back(*prefix);
      }
    }
    if (const auto types = table.strings("types")) {
      for (const auto& text : *types) {
        const auto type = parse_record_type(text.value);
        if (!type)
          errors.add(text.position, "types: " + type.error().message);
        else if (std::ranges::find(group.types, *type) != group.types.end())
          errors.add(text.position,
                     fmt::format("types: {} stands here twice; remove one", in_quotes(text.value)));
        else
          group.types.push_back(*type);
      }
    }
    std::ranges::sort(group.addresses);
    std::ranges::sort(group.types);
    group.public_suffix = table.boolean("public_suffix").value_or(false);
  }

  static void read_domains(TableReader& table, RuleGroup& group, ErrorList& errors) {
    const auto domains = table.strings("domains");
    if (!domains) return;
    std::map<std::string, std::uint32_t, std::less<>> seen;
    for (const auto& text : *domains) {
      auto pattern = normal_domain_pattern(text.value);
      if (!pattern) {
        errors.add(text.position, "domains: " + pattern.error().message);
        continue;
      }
      if (group.action == Action::allow && !group.public_suffix &&
          names::covers_public_suffix(*pattern)) {
        errors.add(text.position,
                   fmt::format("domains: {} covers a public suffix: anybody may get a name below "
                               "it. Name what you mean, or set public_suffix = true in this rule",
                               in_quotes(text.value)));
        continue;
      }
      const auto [known, is_new] = seen.emplace(*pattern, text.position.line);
      if (!is_new)
        errors.add(text.position, fmt::format("domains: {} stands here twice, first on line {}; "
                                              "remove one",
                                              in_quotes(text.value), known->second));
      else
        group.domains.push_back(*std::move(pattern));
    }
  }

  void read_cidr_files(TableReader& table, RuleGroup& group, std::uint16_t ports,
                       const fs::path& file, ErrorList& errors) {
    const auto names = table.strings("cidr_files");
    if (!names) return;
    for (const auto& name : *names) {
      if (name.value.empty()) {
        errors.add(name.position, "cidr_files: an empty name; name a file");
        continue;
      }
      const fs::path list = (file.parent_path() / name.value).lexically_normal();
      const auto text = reader_(list, kLargestCidrFile);
      if (!text) {
        errors.add(name.position, "cidr_files: " + text.error().front().message());
        continue;
      }
      const auto prefixes = parse_cidr_list(*text, list.string());
      if (!prefixes) {
        errors.add(prefixes.error());
        continue;
      }
      const std::uint16_t file_number = number_of_file(list.string());
      group.prefixes.reserve(group.prefixes.size() + prefixes->size());
      mentions_.reserve(mentions_.size() + prefixes->size());
      for (const auto& listed : *prefixes)
        add_prefix(
            group,
            {listed.prefix, group.action, ports, file_number, {.line = listed.line, .column = 0}});
    }
  }

  void add_prefix(RuleGroup& group, const Mention& mention) {
    if (mentions_.size() == kMostPrefixes) {
      if (!std::exchange(too_many_, true))
        errors_.add({.line = policy_.line, .column = 1},
                    fmt::format("policy {} holds more than {} prefixes; split it, or summarise "
                                "its lists",
                                in_quotes(policy_.name), kMostPrefixes));
      return;
    }
    group.prefixes.push_back(mention.prefix);
    mentions_.push_back(mention);
  }

  std::uint16_t number_of_ports(const std::vector<PortRange>& ports) {
    return index_of(port_sets_, ports);
  }
  std::uint16_t number_of_file(const std::string& file) { return index_of(files_, file); }
  // The number of values in one file is bounded below the 65,535 that fit.
  template <typename T>
  static std::uint16_t index_of(std::vector<T>& all, const T& one) {
    const auto known = std::ranges::find(all, one);
    const auto index = static_cast<std::uint16_t>(known - all.begin());
    if (known == all.end()) all.push_back(one);
    return index;
  }

  Policy& policy_;
  const std::vector<fs::path>& preset_directories_;
  const FileReader& reader_;
  ErrorList& errors_;
  std::vector<Mention> mentions_;
  std::vector<std::vector<PortRange>> port_sets_;
  std::vector<std::string> files_;
  std::size_t duplicates_ = 0;
  bool too_many_ = false;
};

Policy read_policy(const TomlNode& node, const fs::path& file,
                   const std::vector<fs::path>& preset_directories, const FileReader& reader,
                   ErrorList& errors) {
  Policy policy;
  policy.file = file.string();
  policy.line = node.position.line;
  TableReader table(node, "[[policy]]", errors);
  if (const auto name = table.string("name")) {
    policy.name = name->value;
    if (!is_plain_name(name->value))
      errors.add(name->position,
                 fmt::format("name is {}; use 1 to 64 letters, digits, '_', '-' and '.'",
                             in_quotes(name->value)));
  } else if (!table.has("name")) {
    table.error("key \"name\" is missing; reports call the policy by it");
  }
  if (auto match = table.string_table("match"))
    policy.match = *std::move(match);
  else if (!table.has("match"))
    table.error(
        "key \"match\" is missing; name labels, such as match = { class = \"vm\" }, or write "
        "match = {} for every attachment");
  if (const auto mode = table.choice("mode", {"allowlist", "denylist", "block-all", "disabled"}))
    policy.mode = parse_mode(*mode).value();
  policy.audit = table.boolean("audit");
  policy.replies = table.boolean("replies");

  PolicyRules rules(policy, preset_directories, reader, errors);
  rules.read_groups(table, policy.name, file, errors);
  rules.read_presets(table);
  rules.refuse_duplicates();
  table.finish();
  return policy;
}

}  // namespace

std::expected<std::vector<Policy>, ConfigErrors> read_policy_file(
    const fs::path& file, const std::vector<fs::path>& preset_directories,
    const FileReader& reader) {
  const auto text = reader(file, kLargestPolicyFile);
  if (!text) return std::unexpected(text.error());
  const auto root = parse_toml(*text, file.string());
  if (!root) return std::unexpected(root.error());

  ErrorList errors(file.string());
  TableReader table(*root, "a policy file", errors);
  std::vector<Policy> policies;
  const auto nodes = table.tables("policy");
  policies.reserve(nodes.size());
  for (const auto* node : nodes)
    policies.push_back(read_policy(*node, file, preset_directories, reader, errors));
  if (nodes.empty() && !table.has("policy"))
    errors.add({.line = 1, .column = 1}, "holds no [[policy]]; write one, or remove the file");
  table.finish();
  if (!errors.empty()) return std::unexpected(errors.take());
  return policies;
}

std::expected<std::vector<ListedPrefix>, ConfigErrors> parse_cidr_list(std::string_view text,
                                                                       const std::string& file) {
  ErrorList errors(file);
  std::size_t faults = 0;
  std::vector<ListedPrefix> out;
  std::uint32_t line = 0;
  for (std::string_view rest = text; !rest.empty();) {
    ++line;
    const auto end = rest.find('\n');
    const std::string_view row = rest.substr(0, end);
    rest = end == std::string_view::npos ? std::string_view{} : rest.substr(end + 1);
    const auto item = trimmed(row.substr(0, row.find('#')));
    if (item.empty()) continue;
    const auto prefix = Prefix::parse(item);
    if (prefix && out.size() < kMostPrefixes) {
      out.push_back({*prefix, line});
      continue;
    }
    const auto column = static_cast<std::uint32_t>(item.data() - row.data()) + 1;
    if (prefix) {
      errors.add({line, column},
                 fmt::format("more than {} prefixes; split or summarise the list", kMostPrefixes));
      break;
    }
    errors.add({line, column}, prefix.error().message);
    if (++faults == ErrorList::kShown - 1) {
      errors.add({line + 1, 0}, "not read from here on, after so many errors");
      break;
    }
  }
  if (!errors.empty()) return std::unexpected(errors.take());
  return out;
}

}  // namespace sluice::static_policy
