#include "interfaces/link_book.hpp"

#include <algorithm>
#include <stdexcept>

namespace sluice::interfaces {
namespace {

using discovery::NamePattern;

const std::set<std::string>& workload_kinds() {
  static const std::set<std::string> kinds{"tap", "tun", "veth", "netkit", "macvtap", "ipvtap"};
  return kinds;
}

std::vector<NamePattern> parse_all(const char* option, const std::vector<std::string>& texts) {
  std::vector<NamePattern> patterns;
  for (const auto& text : texts) {
    try {
      patterns.push_back(NamePattern::parse(text));
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(std::string(option) + ": " + error.what());
    }
  }
  return patterns;
}

void refuse_captures(const char* option, const std::vector<NamePattern>& patterns) {
  for (const auto& pattern : patterns)
    if (!pattern.capture_names().empty())
      throw std::invalid_argument(std::string(option) + ": pattern \"" + pattern.text() +
                                  "\": only match can capture labels; write \"*\" instead of {" +
                                  pattern.capture_names()[0] + "}");
}

bool any_matches(const std::vector<NamePattern>& patterns, const std::string& name) {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const NamePattern& pattern) { return pattern.matches(name); });
}

}  // namespace

Selection::Selection(SelectionOptions options)
    : match_(parse_all("match", options.match)),
      exclude_(parse_all("exclude", options.exclude)),
      bridge_(parse_all("bridge", options.bridge)),
      kinds_(options.kinds.begin(), options.kinds.end()),
      side_(options.side) {
  if (options.match.empty() && options.kinds.empty() && options.bridge.empty())
    throw std::invalid_argument(
        "nothing selects an interface; set match = [\"tap*\"], kinds = [\"veth\"] or bridge = "
        "[\"br0\"]");
  refuse_captures("exclude", exclude_);
  refuse_captures("bridge", bridge_);
  if (kinds_.contains(""))
    throw std::invalid_argument(
        "kinds: an empty name; a device without a kind is called \"hardware\"");
  std::vector<std::string> captures;
  for (const auto& pattern : match_)
    for (auto& name : pattern.capture_names())
      if (std::find(captures.begin(), captures.end(), name) == captures.end())
        captures.push_back(std::move(name));
  labels_ = discovery::LabelRules(options.labels, {"interface", "kind", "bridge"}, captures);
}

std::optional<discovery::Labels> Selection::choose(const Link& link,
                                                   const std::string& bridge) const {
  if (link.is_loopback) return std::nullopt;
  if (any_matches(exclude_, link.name)) return std::nullopt;
  if (!bridge_.empty() && (bridge.empty() || !any_matches(bridge_, bridge))) return std::nullopt;
  const bool has_kind =
      kinds_.empty() ? workload_kinds().contains(link.kind) : kinds_.contains(link.kind);

  discovery::Labels known{{"interface", link.name}, {"kind", link.kind}};
  if (!bridge.empty()) known["bridge"] = bridge;
  if (match_.empty()) {
    if (!has_kind) return std::nullopt;
    return labels_.resolve(known);
  }
  for (const auto& pattern : match_) {
    if (!has_kind && !(kinds_.empty() && pattern.is_literal())) continue;
    if (const auto captures = pattern.match(link.name)) {
      known.insert(captures->begin(), captures->end());
      return labels_.resolve(known);
    }
  }
  return std::nullopt;
}

std::string LinkBook::bridge_of(const Link& link) const {
  if (link.master == 0) return {};
  const auto at = links_.find(link.master);
  return at != links_.end() && at->second.kind == "bridge" ? at->second.name : std::string();
}

void LinkBook::touch_ports_of(std::uint32_t bridge) {
  for (const auto& [ifindex, link] : links_)
    if (link.master == bridge) touched_.insert(ifindex);
}

void LinkBook::note(const Link& link) {
  const auto [at, is_new] = links_.try_emplace(link.ifindex);
  Link& known = at->second;
  if (!is_new && known == link) return;
  // A device of another kind under this number: its predecessor's end was missed.
  if (!is_new && known.kind != link.kind)
    keeper_.unwant(link.ifindex, "another device took its number");
  const bool ports_follow = link.kind == "bridge" && known.name != link.name;
  known = link;
  touched_.insert(link.ifindex);
  if (ports_follow) touch_ports_of(link.ifindex);
}

void LinkBook::forget(std::uint32_t ifindex, const char* reason) {
  const auto at = links_.find(ifindex);
  if (at == links_.end()) return;
  const bool was_bridge = at->second.kind == "bridge";
  links_.erase(at);
  touched_.erase(ifindex);
  keeper_.unwant(ifindex, reason);
  if (was_bridge) touch_ports_of(ifindex);
}

void LinkBook::listing_started() {
  // A listing that begins anew was inconsistent: what it saw is true, what it did not see may exist
  // all the same. So take the former now, in case the links change too fast for a whole listing.
  if (incoming_)
    for (const auto& [ifindex, link] : *incoming_) note(link);
  incoming_.emplace();
}

void LinkBook::listing_complete() {
  if (!incoming_) return;
  auto incoming = std::move(*incoming_);
  incoming_.reset();
  std::vector<std::uint32_t> gone;
  for (const auto& [ifindex, link] : links_)
    if (!incoming.contains(ifindex)) gone.push_back(ifindex);
  for (const std::uint32_t ifindex : gone) forget(ifindex, "the interface is gone");
  for (const auto& [ifindex, link] : incoming) note(link);
  // After events were lost, a known ifindex may be another device, with no filter on it.
  if (listings_++ > 0) keeper_.reaffirm();
  settle();
  keeper_.listing_complete();
}

void LinkBook::changed(const Link& link) {
  if (incoming_)
    incoming_->insert_or_assign(link.ifindex, link);
  else
    note(link);
}

void LinkBook::removed(std::uint32_t ifindex) {
  if (incoming_) incoming_->erase(ifindex);
  forget(ifindex, "the interface was deleted or moved to another network namespace");
}

void LinkBook::left_bridge(std::uint32_t ifindex, std::uint32_t bridge) {
  const auto leave = [&](std::unordered_map<std::uint32_t, Link>& links) {
    const auto at = links.find(ifindex);
    if (at == links.end() || at->second.master != bridge) return false;
    at->second.master = 0;
    return true;
  };
  if (incoming_)
    leave(*incoming_);
  else if (leave(links_))
    touched_.insert(ifindex);
}

void LinkBook::settle() {
  const auto touched = std::exchange(touched_, {});
  for (const std::uint32_t ifindex : touched) {
    const auto at = links_.find(ifindex);
    if (at == links_.end()) continue;
    const Link& link = at->second;
    auto labels = selection_.choose(link, bridge_of(link));
    if (!labels) {
      keeper_.unwant(ifindex, "no longer selected: it is now " + link.name +
                                  (link.master == 0 ? "" : " of " + bridge_of(link)));
      continue;
    }
    keeper_.want(ifindex,
                 {.kind = discovery::TargetKind::interface,
                  .name = link.name,
                  .ifindex = ifindex,
                  .side = selection_.side()},
                 std::move(*labels));
  }
}

}  // namespace sluice::interfaces
