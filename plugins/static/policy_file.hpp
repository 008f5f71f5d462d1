// Reads one policy file with the presets and prefix lists it names; every fault with file, line and
// column.
//
//   FileReader reader = &read_text_file;
//   auto policies = read_policy_file("/etc/sluice/policies.d/agents.toml", preset_directories,
//   reader);
//
// Nothing here touches a file but through the reader, so that all of it is tested and fuzzed in
// memory.
#pragma once

#include <cstddef>
#include <expected>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "config/errors.hpp"
#include "static/policy.hpp"

namespace sluice::static_policy {

// A file's whole text, refused unread beyond `limit` bytes.
using FileReader = std::function<std::expected<std::string, ConfigErrors>(
    const std::filesystem::path& file, std::size_t limit)>;

inline constexpr std::size_t kLargestPolicyFile = std::size_t{4} << 20;
inline constexpr std::size_t kLargestCidrFile = std::size_t{64} << 20;
inline constexpr std::size_t kMostPrefixes = 4'000'000;  // of one policy

// The policies of one file, in its order. `counted_from` is not set. Relative cidr_files are looked
// for beside the file that names them.
[[nodiscard]] std::expected<std::vector<Policy>, ConfigErrors> read_policy_file(
    const std::filesystem::path& file, const std::vector<std::filesystem::path>& preset_directories,
    const FileReader& reader);

// A prefix and where it stood.
struct ListedPrefix {
  Prefix prefix;
  std::uint32_t line = 0;
};

// A list without TOML: one CIDR or address a line, '#' starts a comment. Reading ends at the
// hundredth error.
[[nodiscard]] std::expected<std::vector<ListedPrefix>, ConfigErrors> parse_cidr_list(
    std::string_view text, const std::string& file);

}  // namespace sluice::static_policy
