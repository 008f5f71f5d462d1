// All policies that the globs name, read and checked together: the set is whole or it is not there.
// What did not change since the last set keeps its identity, and with it the moment from which its
// TTLs count.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "static/policy.hpp"
#include "static/policy_file.hpp"

namespace sluice::static_policy {

// What an instance is configured with; paths are absolute.
struct Sources {
  std::vector<std::string> globs;
  std::vector<std::filesystem::path> preset_directories;
  bool operator==(const Sources&) const = default;
};

// Relative globs and directories count from `directory`.
[[nodiscard]] Sources resolve(const std::vector<std::string>& globs,
                              const std::vector<std::string>& preset_directories,
                              const std::filesystem::path& directory);

// When a policy with TTLs began to count, remembered over a restart: in wall-clock seconds, because
// the kernel clock starts anew with each boot.
struct Beginnings {
  std::map<std::string, std::int64_t> by_digest;  // Policy::digest() -> Unix seconds

  [[nodiscard]] static Beginnings load(const std::filesystem::path& file);  // absent or odd: none
  // Whole, by rename. Throws std::system_error.
  void save(const std::filesystem::path& file) const;
  bool operator==(const Beginnings&) const = default;
};

struct Moment {
  sdk::Time boot;             // the kernel's clock
  std::int64_t wall_seconds;  // Unix time
};

// Immutable. In order: file name, then path, then place in the file.
struct PolicySet {
  std::vector<PolicyPtr> policies;
};

struct LoadResult {
  std::optional<PolicySet> set;  // absent: errors
  ConfigErrors errors;
  std::vector<std::string> warnings;  // ready to print
  // Every path that was read or looked for, also in vain: a change of any may change the outcome.
  std::set<std::filesystem::path> touched;
};

class PolicyLoader {
 public:
  explicit PolicyLoader(Sources sources) : sources_(std::move(sources)) {}

  // `current`: the set in force, whose unchanged policies are kept. A file whose bytes and whose
  // lists' and presets' bytes are those of the last load is not parsed again.
  [[nodiscard]] LoadResult load(const PolicySet& current, const Beginnings& beginnings,
                                const Moment& now);

  [[nodiscard]] const Sources& sources() const { return sources_; }

 private:
  // One policy file as last read without fault.
  struct Known {
    std::map<std::filesystem::path, std::string> digests;  // of every file read for it
    std::vector<PolicyPtr> policies;
  };
  [[nodiscard]] std::expected<Known, ConfigErrors> read(const std::filesystem::path& file,
                                                        std::set<std::filesystem::path>& touched);
  [[nodiscard]] bool is_unchanged(const Known& known) const;

  Sources sources_;
  std::map<std::filesystem::path, Known> known_;
};

// When the TTLs of these policies began, to be saved.
[[nodiscard]] Beginnings beginnings_of(const PolicySet& set, const Moment& now);

}  // namespace sluice::static_policy
