// Globs over cgroup paths: "/tenants/{tenant}/{vm_id}.scope", "/kubepods.slice/**".
//
// Each segment is a NamePattern and stays within its segment. "**" stands for any number of
// segments, also none; as the last one it stands for everything below, not for the directory
// itself.
//
// A walk down the tree keeps a list of positions, so that it knows which directories can still lead
// to a match, and enters no other.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "discovery/name_pattern.hpp"

namespace sluice::cgroups {

// Immutable; any thread.
class PathPattern {
 public:
  // How many of the pattern's segments the path so far has used up. One path may stand at several.
  using Position = std::uint16_t;

  // Throws std::invalid_argument: the pattern, the fault, the remedy.
  [[nodiscard]] static PathPattern parse(std::string_view text);

  // Positions of the root, and of the child `name` of a directory at `from`; added to `into`, each
  // at most once.
  void begin(std::vector<Position>& into) const { arrive(0, into); }
  void advance(Position from, std::string_view name, std::vector<Position>& into) const;
  [[nodiscard]] bool is_match(Position at) const { return at == segments_.size(); }
  [[nodiscard]] bool leads_on(Position at) const { return at < segments_.size(); }
  // Whatever is below matches.
  [[nodiscard]] bool takes_all_below(Position at) const {
    return at + 1u == segments_.size() && segments_[at].is_any_depth;
  }

  // Of an absolute path without a trailing slash. systemd's \xNN in captured text is undone.
  [[nodiscard]] std::optional<discovery::Captures> match(std::string_view path) const;
  [[nodiscard]] const std::string& text() const { return text_; }
  [[nodiscard]] std::vector<std::string> capture_names() const;

 private:
  struct Segment {
    bool is_any_depth = false;
    std::optional<discovery::NamePattern> name;
  };

  PathPattern() = default;
  void arrive(std::size_t at, std::vector<Position>& into) const;
  [[nodiscard]] bool walk(const std::vector<std::string_view>& names, std::size_t segment,
                          std::size_t name, std::vector<bool>& dead,
                          discovery::Captures& captures) const;

  std::string text_;
  std::vector<Segment> segments_;
};

// systemd writes characters that a unit name cannot hold as \xNN: "web\x2d1" is "web-1". Only
// printable ASCII is undone.
[[nodiscard]] std::string unescape_unit_name(std::string_view text);

}  // namespace sluice::cgroups
