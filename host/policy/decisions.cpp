#include "policy/decisions.hpp"

#include <algorithm>
#include <tuple>

namespace sluice::image {
namespace {

// Expiry as a number that compares: never is the latest.
std::uint64_t ends_at(BootTime expires) {
  return expires.never() ? UINT64_MAX : expires.nanoseconds;
}

}  // namespace

void add_atoms(const Shape& shape, std::vector<Atom>& atoms) {
  const std::uint64_t ends = ends_at(shape.expires);
  if (shape.ports.empty()) {
    atoms.push_back({.ends = ends, .any_protocol = true});
    return;
  }
  for (const PortRange& range : shape.ports)
    atoms.push_back({.ends = ends,
                     .protocol = range.protocol,
                     .any_port = range.any_port,
                     .first = range.any_port ? std::uint16_t{0} : range.first,
                     .last = range.any_port ? std::uint16_t{0} : range.last});
}

void append_decisions(std::vector<Atom>& atoms, std::uint8_t verdict,
                      std::vector<sluice_decision>& out) {
  std::ranges::sort(atoms, [](const Atom& a, const Atom& b) {
    if (a.any_protocol != b.any_protocol) return a.any_protocol;
    return std::tuple(a.protocol, !a.any_port, ~a.ends, a.first, ~a.last) <
           std::tuple(b.protocol, !b.any_port, ~b.ends, b.first, ~b.last);
  });
  std::uint64_t all_covered_until = 0, protocol_covered_until = 0;
  int protocol = -1;
  sluice_decision* open = nullptr;
  for (const Atom& atom : atoms) {
    if (!atom.any_protocol && atom.protocol != protocol) {
      protocol = atom.protocol;
      protocol_covered_until = all_covered_until;
      open = nullptr;
    }
    std::uint64_t& covered_until = atom.any_protocol ? all_covered_until : protocol_covered_until;
    if (atom.ends <= covered_until) continue;
    const std::uint64_t expires = atom.ends == UINT64_MAX ? 0 : atom.ends;
    if (atom.any_protocol || atom.any_port) {
      covered_until = atom.ends;
      sluice_decision decision{};
      decision.verdict = verdict;
      decision.protocol = atom.any_protocol ? std::uint8_t{0} : atom.protocol;
      decision.any_protocol = atom.any_protocol ? 1 : 0;
      decision.expires = expires;
      for (sluice_port_span& span : decision.span) span = {1, 0};
      out.push_back(decision);
      continue;
    }
    if (open != nullptr && open->expires == expires) {
      sluice_port_span& previous = open->span[open->spans - 1];
      if (atom.first <= previous.last + 1) {
        previous.last = std::max(previous.last, atom.last);
        continue;
      }
    }
    if (open == nullptr || open->expires != expires || open->spans == SLUICE_DECISION_SPANS) {
      sluice_decision decision{};
      decision.verdict = verdict;
      decision.protocol = atom.protocol;
      decision.expires = expires;
      for (sluice_port_span& span : decision.span) span = {1, 0};
      out.push_back(decision);
      open = &out.back();
    }
    open->span[open->spans++] = {atom.first, atom.last};
  }
}

bool covers(const sluice_decision& outer, const sluice_decision& inner) {
  if (outer.expires != 0 && (inner.expires == 0 || outer.expires < inner.expires)) return false;
  if (outer.any_protocol) return true;
  if (inner.any_protocol || outer.protocol != inner.protocol) return false;
  if (outer.spans == 0) return true;
  if (inner.spans == 0) return false;
  return std::all_of(inner.span, inner.span + inner.spans, [&](const sluice_port_span& in) {
    return std::any_of(outer.span, outer.span + outer.spans, [&](const sluice_port_span& out) {
      return out.first <= in.first && in.last <= out.last;
    });
  });
}

bool shadows(const sluice_decision& earlier, const sluice_decision& later) {
  if (!covers(earlier, later)) return false;
  return earlier.any_protocol || earlier.spans == 0 || earlier.verdict != SLUICE_LEAF_ALLOW ||
         later.verdict == SLUICE_LEAF_ALLOW;
}

}  // namespace sluice::image
