// What rules say, apart from where: shapes, and the decisions that the kernel walks for them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "layout.h"
#include "policy/id_table.hpp"
#include "policy/model.hpp"

namespace sluice::image {

// Most rules of a large policy say the same of many prefixes. These are told apart without a look
// at their content.
enum : std::uint32_t {
  kShapeDeny,
  kShapeAllow,
  kShapeAllowOverFloor,
  kShapeFloor,
  kShapeFirstFree,
};

struct Shape {
  Action action = Action::deny;
  bool overrules_floor = false;
  BootTime expires{};
  std::span<const PortRange> ports{};  // in the rule, which outlives the compilation
};

// The ids of shapes, by content.
class ShapeIds {
 public:
  std::uint32_t of(const Rule& rule, bool overrules_floor) {
    if (rule.ports.empty() && rule.expires.never()) {
      if (rule.action == Action::deny) return kShapeDeny;
      return overrules_floor ? kShapeAllowOverFloor : kShapeAllow;
    }
    const Shape shape{.action = rule.action,
                      .overrules_floor = rule.action == Action::allow && overrules_floor,
                      .expires = rule.expires,
                      .ports = rule.ports};
    if (last_ >= kShapeFirstFree && same(shapes_[last_], shape)) return last_;
    std::uint64_t hash =
        mix(hash_seed ^ (static_cast<std::uint64_t>(shape.action) << 1 | shape.overrules_floor),
            shape.expires.nanoseconds);
    for (const PortRange& range : shape.ports)
      hash = mix(hash, std::uint64_t{range.protocol} << 40 | std::uint64_t{range.any_port} << 32 |
                           std::uint64_t{range.first} << 16 | range.last);
    last_ = ids_.find_or_make(
        hash, [&](std::uint32_t id) { return same(shapes_[id], shape); },
        [&] {
          shapes_.push_back(shape);
          return static_cast<std::uint32_t>(shapes_.size() - 1);
        });
    return last_;
  }
  [[nodiscard]] std::size_t size() const { return shapes_.size(); }
  [[nodiscard]] std::vector<Shape> take() { return std::move(shapes_); }

 private:
  static bool same(const Shape& a, const Shape& b) {
    return a.action == b.action && a.overrules_floor == b.overrules_floor &&
           a.expires == b.expires && std::ranges::equal(a.ports, b.ports);
  }
  std::vector<Shape> shapes_{{.action = Action::deny},
                             {.action = Action::allow},
                             {.action = Action::allow, .overrules_floor = true},
                             {}};
  IdTable ids_;
  std::uint32_t last_ = 0;
};

// One packet class of one verdict, before it becomes a decision.
struct Atom {
  std::uint64_t ends = UINT64_MAX;
  bool any_protocol = false;
  std::uint8_t protocol = 0;
  bool any_port = false;
  std::uint16_t first = 0, last = 0;
};

// What `shape` says, as atoms of its action.
void add_atoms(const Shape& shape, std::vector<Atom>& atoms);

// The shortest list of decisions that says what the atoms say, in an order that depends on their
// content only: what another atom covers for at least as long is dropped, overlapping and touching
// spans that end together become one, four spans share a decision.
void append_decisions(std::vector<Atom>& atoms, std::uint8_t verdict,
                      std::vector<sluice_decision>& out);

// Every packet class of `inner` is one of `outer`, and `outer` does not end earlier.
[[nodiscard]] bool covers(const sluice_decision& outer, const sluice_decision& inner);

// `later`, asked after `earlier`, can never speak. An allow with ports does not shadow a deny with
// ports: packets whose ports cannot be seen pass the first and meet the second.
[[nodiscard]] bool shadows(const sluice_decision& earlier, const sluice_decision& later);

}  // namespace sluice::image
