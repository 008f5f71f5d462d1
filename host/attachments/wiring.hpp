// Which wire an attachment falls under: the first [[wire]] whose discovered_by, labels and name all
// match. A target that no wire names gets one of its own: block-all, no sources. Nobody has said
// what it may do, so it may do nothing.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "attachments/core.hpp"
#include "config/config.hpp"
#include "policy/model.hpp"

namespace sluice {

// A wire is shared by all its attachments and immutable; a reload makes new ones.
using WirePtr = std::shared_ptr<const WireConfig>;

struct Wiring {
  std::vector<WirePtr> wires;
  std::shared_ptr<const Floor> floor;
  std::set<std::string, std::less<>> overrules_floor;  // instances

  Wiring();
  explicit Wiring(const Config& config);
};

// Shell pattern over the whole text; `*` also crosses '/', so that "/machine.slice/*" names every
// cgroup below.
[[nodiscard]] bool matches_glob(const std::string& pattern, const std::string& text);

// Interface name or cgroup path: what a wire's `name` is matched against and what messages call it.
[[nodiscard]] const std::string& target_name(const Target& target);

[[nodiscard]] WirePtr match_wire(const Wiring& wiring, const Target& target, const Labels& labels,
                                 std::string_view discovered_by);

// The wire of a target that no [[wire]] matches.
[[nodiscard]] const WirePtr& closed_wire();

}  // namespace sluice
