#include "cgroups/cgroup_tree.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <stdexcept>

namespace sluice::cgroups {
namespace {

constexpr std::uint64_t kPollInterval = 1'000'000'000;

std::vector<PathPattern> parse_all(const char* option, const std::vector<std::string>& texts) {
  std::vector<PathPattern> patterns;
  for (const auto& text : texts) {
    try {
      patterns.push_back(PathPattern::parse(text));
    } catch (const std::invalid_argument& error) {
      throw std::invalid_argument(std::string(option) + ": " + error.what());
    }
  }
  return patterns;
}

using Places = std::vector<std::pair<std::uint16_t, PathPattern::Position>>;

void begin_all(const std::vector<PathPattern>& patterns, Places& into) {
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    std::vector<PathPattern::Position> positions;
    patterns[i].begin(positions);
    for (const auto position : positions) into.emplace_back(i, position);
  }
}

void advance_all(const std::vector<PathPattern>& patterns, const Places& from,
                 std::string_view name, Places& into) {
  for (std::size_t i = 0; i < from.size();) {
    const std::uint16_t pattern = from[i].first;
    std::vector<PathPattern::Position> positions;
    for (; i < from.size() && from[i].first == pattern; ++i)
      patterns[pattern].advance(from[i].second, name, positions);
    for (const auto position : positions) into.emplace_back(pattern, position);
  }
}

template <typename Question>
bool any_place(const std::vector<PathPattern>& patterns, const Places& places, Question question) {
  return std::any_of(places.begin(), places.end(), [&](const auto& place) {
    return question(patterns[place.first], place.second);
  });
}

std::string read_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line.empty() ? "unknown" : line;
}

}  // namespace

CgroupSelection::CgroupSelection(CgroupSelectionOptions options)
    : match_(parse_all("match", options.match)), exclude_(parse_all("exclude", options.exclude)) {
  if (match_.empty())
    throw std::invalid_argument(
        "match: nothing selects a cgroup; name some, such as [\"/machine.slice/*.scope\"]");
  if (match_.size() > 1000 || exclude_.size() > 1000)
    throw std::invalid_argument("match, exclude: more than 1,000 patterns; use fewer, wider ones");
  for (const auto& pattern : exclude_)
    if (!pattern.capture_names().empty())
      throw std::invalid_argument("exclude: pattern \"" + pattern.text() +
                                  "\": only match can capture labels; write \"*\" instead of {" +
                                  pattern.capture_names()[0] + "}");
  std::vector<std::string> captures;
  for (const auto& pattern : match_)
    for (auto& name : pattern.capture_names())
      if (std::find(captures.begin(), captures.end(), name) == captures.end())
        captures.push_back(std::move(name));
  labels_ = discovery::LabelRules(options.labels, {"cgroup"}, captures);
}

CgroupSelection::Standing CgroupSelection::root() const {
  Standing standing;
  begin_all(match_, standing.match);
  begin_all(exclude_, standing.exclude);
  return standing;
}

CgroupSelection::Standing CgroupSelection::child(const Standing& parent,
                                                 std::string_view name) const {
  Standing standing;
  advance_all(match_, parent.match, name, standing.match);
  advance_all(exclude_, parent.exclude, name, standing.exclude);
  return standing;
}

bool CgroupSelection::is_selected(const Standing& at) const {
  const auto is_match = [](const PathPattern& pattern, PathPattern::Position position) {
    return pattern.is_match(position);
  };
  return any_place(match_, at.match, is_match) && !any_place(exclude_, at.exclude, is_match);
}

bool CgroupSelection::leads_on(const Standing& at) const {
  return any_place(match_, at.match,
                   [](const PathPattern& pattern, PathPattern::Position position) {
                     return pattern.leads_on(position);
                   }) &&
         !any_place(exclude_, at.exclude,
                    [](const PathPattern& pattern, PathPattern::Position position) {
                      return pattern.takes_all_below(position);
                    });
}

discovery::Labels CgroupSelection::labels(const std::string& path) const {
  discovery::Labels known{{"cgroup", path}};
  for (const auto& pattern : match_)
    if (const auto captures = pattern.match(path)) {
      known.insert(captures->begin(), captures->end());
      break;
    }
  return labels_.resolve(known);
}

CgroupTree::CgroupTree(CgroupSelection selection, Hierarchy& hierarchy, discovery::Keeper& keeper,
                       discovery::AttachmentHost& host)
    : selection_(std::move(selection)), hierarchy_(hierarchy), keeper_(keeper), host_(host) {
  root_ = ++last_;
  Node& root = nodes_[root_];
  root.standing = selection_.root();
  root.leads_on = selection_.leads_on(root.standing);
}

void CgroupTree::relist() {
  is_listing_ = true;
  due_.push_back(root_);
}

std::string CgroupTree::path_of(const Node& node) const {
  if (node.parent == 0) return "/";
  std::vector<const std::string*> names;
  std::size_t length = 0;
  for (const Node* at = &node; at->parent != 0; at = &nodes_.at(at->parent)) {
    names.push_back(&at->name);
    length += at->name.size() + 1;
  }
  std::string path;
  path.reserve(length);
  for (auto name = names.rbegin(); name != names.rend(); ++name) path += "/" + **name;
  return path;
}

CgroupTree::Number CgroupTree::add_child(Number parent, const std::string& name,
                                         CgroupSelection::Standing standing) {
  const Number number = ++last_;
  Node& node = nodes_[number];
  node.parent = parent;
  node.name = name;
  node.leads_on = selection_.leads_on(standing);
  node.standing = std::move(standing);
  nodes_.at(parent).children[name] = number;
  return number;
}

bool CgroupTree::work(std::size_t most) {
  for (std::size_t i = 0; i < most && !due_.empty(); ++i) {
    const Number number = due_.front();
    due_.pop_front();
    // Removed since it became due.
    if (nodes_.contains(number)) look_at(number);
  }
  if (!due_.empty()) return true;
  say_unwatched();
  if (is_listing_) {
    is_listing_ = false;
    keeper_.listing_complete();
  }
  return false;
}

void CgroupTree::look_at(Number number) {
  const Node& node = nodes_.at(number);
  const Hierarchy::Look look = hierarchy_.look(path_of(node), node.leads_on);
  if (!look.exists) {
    // Also a directory that was removed while it was looked at; its watch goes with it.
    if (look.watch >= 0 && !by_watch_.contains(look.watch)) hierarchy_.unwatch(look.watch);
    if (number != root_) remove(number);
    return;
  }
  settle_in(number, look);
}

void CgroupTree::settle_in(Number number, const Hierarchy::Look& look) {
  Node& node = nodes_.at(number);
  if (node.id != look.id) {
    // Another directory under the same name: nothing of what was below it is left.
    if (node.id != 0) clear(number);
    node.id = look.id;
    select(node);
  }
  if (!node.leads_on) return;
  set_watch(number, look);
  adopt_children(number, look.children);
}

void CgroupTree::select(const Node& node) {
  if (node.parent == 0 || !selection_.is_selected(node.standing)) return;
  std::string path = path_of(node);
  auto labels = selection_.labels(path);
  keeper_.want(
      node.id,
      {.kind = discovery::TargetKind::cgroup, .name = std::move(path), .cgroup_id = node.id},
      std::move(labels));
}

void CgroupTree::set_watch(Number number, const Hierarchy::Look& look) {
  Node& node = nodes_.at(number);
  if (look.watch >= 0) {
    node.watch = look.watch;
    by_watch_[look.watch] = number;
  }
  if (look.error == 0) {
    unwatched_.erase(number);
    return;
  }
  unwatched_.insert(number);
  unwatched_error_ = look.error;
}

void CgroupTree::adopt_children(Number number, const std::vector<std::string>& names) {
  const std::set<std::string_view> listed(names.begin(), names.end());
  std::vector<Number> gone;
  for (const auto& [name, child] : nodes_.at(number).children)
    if (!listed.contains(name)) gone.push_back(child);
  for (const Number child : gone) remove(child);
  for (const auto& name : names) {
    const auto& children = nodes_.at(number).children;
    if (const auto known = children.find(name); known != children.end()) {
      due_.push_back(known->second);
      continue;
    }
    auto standing = selection_.child(nodes_.at(number).standing, name);
    if (!selection_.leads_on(standing) && !selection_.is_selected(standing)) continue;
    due_.push_back(add_child(number, name, std::move(standing)));
  }
}

// Something was created or deleted under this name, now or some time ago.
void CgroupTree::hint(Number parent, const std::string& name) {
  const auto& children = nodes_.at(parent).children;
  if (const auto known = children.find(name); known != children.end()) {
    const Node& child = nodes_.at(known->second);
    // Most hints are echoes of what a listing has already shown: not worth another one.
    if (child.id != 0 && (!child.leads_on || child.watch >= 0)) {
      const auto look = hierarchy_.look(path_of(child), false);
      if (look.exists && look.id == child.id) return;
      if (!look.exists) {
        remove(known->second);
        return;
      }
    }
    // The successor of a removed one: the old filter goes now, the new one comes with the look.
    look_at(known->second);
    return;
  }
  auto standing = selection_.child(nodes_.at(parent).standing, name);
  if (!selection_.leads_on(standing) && !selection_.is_selected(standing)) return;
  look_at(add_child(parent, name, std::move(standing)));
}

void CgroupTree::handle(const Hierarchy::Event& event) {
  using What = Hierarchy::Event::What;
  if (event.what == What::overflow) {
    // In a storm the queue overflows again before the tree is through; once says it.
    if (!is_listing_)
      host_.log(discovery::LogLevel::warning,
                "cgroup events were lost because too many came at once; looking through all again "
                "(fs.inotify.max_queued_events, now " +
                    read_line("/proc/sys/fs/inotify/max_queued_events") + ", makes this rarer)");
    relist();
    return;
  }
  if (event.what == What::unmounted) {
    is_unmounted_ = true;
    return;
  }
  const auto at = by_watch_.find(event.watch);
  if (at == by_watch_.end()) return;
  const Number number = at->second;
  if (event.what == What::unwatched) {
    by_watch_.erase(at);
    nodes_.at(number).watch = -1;
    due_.push_back(number);
    return;
  }
  hint(number, event.name);
}

// Everything below a node, its watch, and its attachment; the node itself stays.
void CgroupTree::clear(Number number) {
  std::vector<Number> stack{number};
  while (!stack.empty()) {
    const Number next = stack.back();
    stack.pop_back();
    Node& node = nodes_.at(next);
    for (const auto& [name, child] : node.children) stack.push_back(child);
    node.children.clear();
    if (node.watch >= 0) {
      by_watch_.erase(node.watch);
      hierarchy_.unwatch(node.watch);
      node.watch = -1;
    }
    unwatched_.erase(next);
    if (node.id != 0) keeper_.unwant(node.id, "the cgroup was removed");
    node.id = 0;
    if (next != number) nodes_.erase(next);
  }
}

void CgroupTree::remove(Number number) {
  clear(number);
  const auto at = nodes_.find(number);
  nodes_.at(at->second.parent).children.erase(at->second.name);
  nodes_.erase(at);
}

std::uint64_t CgroupTree::poll_interval() const {
  return unwatched_.empty() ? discovery::Keeper::kIdle : kPollInterval;
}

void CgroupTree::poll() {
  due_.insert(due_.end(), unwatched_.begin(), unwatched_.end());
}

// Said at the end of a round, when the number of watches needed is known.
void CgroupTree::say_unwatched() {
  if (unwatched_.empty()) {
    if (said_unwatched_)
      host_.log(discovery::LogLevel::info, "all cgroups that matter are watched again");
    said_unwatched_ = false;
    return;
  }
  if (said_unwatched_) return;
  said_unwatched_ = true;
  const std::string needed = std::to_string(by_watch_.size() + unwatched_.size());
  const std::string first = path_of(nodes_.at(*unwatched_.begin()));
  std::string text = std::to_string(unwatched_.size()) +
                     " cgroups cannot be watched, the first is " + first + ": ";
  if (unwatched_error_ == ENOSPC)
    text += "the inotify watches of this user are used up (fs.inotify.max_user_watches is " +
            read_line("/proc/sys/fs/inotify/max_user_watches") + "); " + needed +
            " are needed here, besides those of other programs; raise the limit: sysctl "
            "fs.inotify.max_user_watches=N";
  else
    text += std::string(std::strerror(unwatched_error_)) +
            "; the daemon has to be able to read these directories";
  host_.log(discovery::LogLevel::error,
            text +
                ". Until then they are looked through once a second, so what appears there is "
                "attached up to a second late");
}

}  // namespace sluice::cgroups
