// The part of the cgroup tree that an operator's patterns can reach, kept equal to the kernel's,
// and what follows from it for the keeper.
//
//   CgroupTree tree(CgroupSelection({.match = {"/tenants/{tenant}/*.scope"}}), hierarchy, keeper);
//   tree.relist();
//   while (tree.work(256)) {}        // also after each event and each poll
//
// Identity is the inode number: a cgroup removed and made again under its name is another target,
// and the old one is detached before the new one is attached. Every event is only a hint to look:
// an event may be older than what is known, and what a look sees is true.
//
// Where nested directories match, each is attached; the kernel asks the filters of all of them, so
// a packet passes only what every one of them allows.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cgroups/hierarchy.hpp"
#include "cgroups/path_pattern.hpp"
#include "discovery/keeper.hpp"
#include "discovery/label_rules.hpp"

namespace sluice::cgroups {

struct CgroupSelectionOptions {
  std::vector<std::string> match{};
  std::vector<std::string> exclude{};
  std::vector<std::pair<std::string, std::string>> labels{};
};

// The operator's choice, as something a walk can carry down the tree.
class CgroupSelection {
 public:
  // Where a directory stands in each pattern: index of the pattern, position in it.
  struct Standing {
    std::vector<std::pair<std::uint16_t, PathPattern::Position>> match, exclude;
    bool operator==(const Standing&) const = default;
  };

  // Throws std::invalid_argument: the option, the fault, the remedy.
  explicit CgroupSelection(CgroupSelectionOptions options);

  [[nodiscard]] Standing root() const;
  [[nodiscard]] Standing child(const Standing& parent, std::string_view name) const;
  [[nodiscard]] bool is_selected(const Standing& at) const;
  // Something below may be selected.
  [[nodiscard]] bool leads_on(const Standing& at) const;
  // Of a selected path; of the first pattern that matches.
  [[nodiscard]] discovery::Labels labels(const std::string& path) const;

 private:
  std::vector<PathPattern> match_, exclude_;
  discovery::LabelRules labels_;
};

class CgroupTree {
 public:
  CgroupTree(CgroupSelection selection, Hierarchy& hierarchy, discovery::Keeper& keeper,
             discovery::AttachmentHost& host);

  // Looks through everything again; the keeper hears listing_complete() when it is done.
  void relist();
  void handle(const Hierarchy::Event& event);
  // Looks at up to `most` directories that are due. True: there are more.
  bool work(std::size_t most);
  // Directories without a watch have to be looked through from time to time. Nanoseconds until the
  // next time, kIdle: all are watched. poll() makes them due.
  [[nodiscard]] std::uint64_t poll_interval() const;
  void poll();
  // The file system is gone; nothing can be discovered any more.
  [[nodiscard]] bool is_unmounted() const { return is_unmounted_; }

  [[nodiscard]] std::size_t watches() const { return by_watch_.size(); }
  [[nodiscard]] std::size_t directories() const { return nodes_.size(); }

 private:
  using Number = std::uint64_t;  // of a node; never used again
  struct Node {
    Number parent = 0;
    std::string name;
    std::uint64_t id = 0;  // 0: not looked at yet
    int watch = -1;
    bool leads_on = false;
    CgroupSelection::Standing standing;
    std::map<std::string, Number> children;
  };

  [[nodiscard]] std::string path_of(const Node& node) const;
  Number add_child(Number parent, const std::string& name, CgroupSelection::Standing standing);
  void look_at(Number number);
  void settle_in(Number number, const Hierarchy::Look& look);
  void adopt_children(Number number, const std::vector<std::string>& names);
  void set_watch(Number number, const Hierarchy::Look& look);
  void select(const Node& node);
  void hint(Number parent, const std::string& name);
  void remove(Number number);
  void clear(Number number);
  void say_unwatched();

  CgroupSelection selection_;
  Hierarchy& hierarchy_;
  discovery::Keeper& keeper_;
  discovery::AttachmentHost& host_;
  std::unordered_map<Number, Node> nodes_;
  std::unordered_map<int, Number> by_watch_;
  std::deque<Number> due_;
  std::set<Number> unwatched_;
  int unwatched_error_ = 0;
  bool said_unwatched_ = false;
  bool is_listing_ = false;
  bool is_unmounted_ = false;
  Number last_ = 0;
  Number root_ = 0;
};

}  // namespace sluice::cgroups
