// A cgroup tree in memory that behaves like the kernel's: inode numbers are never given twice,
// watches die with their directory, events queue up and may be lost. A hook runs in the middle of a
// look, where the real one can be overtaken.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cgroups/hierarchy.hpp"

namespace sluice::cgroups {

class ScriptedHierarchy final : public Hierarchy {
 public:
  // "opened": the directory is held, neither watched nor listed. "watched": watched, not listed.
  std::function<void(const std::string& path, const std::string& moment)> hook =
      [](const std::string&, const std::string&) {};
  std::size_t watch_limit = SIZE_MAX;
  std::size_t queue_limit = SIZE_MAX;
  std::size_t looks = 0;
  // Somebody keeps removed directories open, and with them their watches.
  bool removed_are_held = false;

  ScriptedHierarchy() { root_.id = ++last_id_; }

  void make(const std::string& path) {
    Directory& parent = *find(parent_of(path));
    auto& child = parent.children[name_of(path)];
    child = std::make_shared<Directory>();
    child->id = ++last_id_;
    emit(parent.watch, Event::What::created, name_of(path));
  }
  void make_all(const std::string& path) {  // mkdir -p
    for (std::size_t at = path.find('/', 1);; at = path.find('/', at + 1)) {
      const std::string part = path.substr(0, at);
      if (!find(part)) make(part);
      if (at == std::string::npos) return;
    }
  }
  void remove(const std::string& path) {  // rmdir: children first, as the kernel demands
    while (!find(path)->children.empty()) remove(path + "/" + find(path)->children.begin()->first);
    Directory& parent = *find(parent_of(path));
    const auto gone = parent.children.at(name_of(path));
    gone->is_removed = true;
    parent.children.erase(name_of(path));
    emit(parent.watch, Event::What::deleted, name_of(path));
    if (gone->watch >= 0 && removed_are_held) {
      held_.push_back(gone);
    } else if (gone->watch >= 0) {
      emit(gone->watch, Event::What::unwatched, "");
      watched_.erase(gone->watch);
      gone->watch = -1;
    }
  }
  bool has(const std::string& path) { return find(path) != nullptr; }
  std::uint64_t id(const std::string& path) { return find(path)->id; }
  std::size_t watches() const { return watched_.size(); }
  // Every path, with its number.
  std::map<std::string, std::uint64_t> all() {
    std::map<std::string, std::uint64_t> result;
    collect(root_, "", result);
    return result;
  }

  Look look(const std::string& path, bool inside) override {
    ++looks;
    Look look;
    const auto directory = hold(path);
    if (!directory) return look;
    look.exists = true;
    look.id = directory->id;
    if (!inside) return look;
    hook(path, "opened");
    if (directory->is_removed) {
      look.error = 2;
    } else if (directory->watch < 0 && watched_.size() >= watch_limit) {
      look.error = 28;
    } else {
      if (directory->watch < 0) directory->watch = ++last_watch_;
      watched_.insert({directory->watch, directory.get()});
      look.watch = directory->watch;
    }
    hook(path, "watched");
    if (directory->is_removed) look.exists = false;
    for (const auto& [name, child] : directory->children) look.children.push_back(name);
    return look;
  }
  void unwatch(int watch) override {
    const auto at = watched_.find(watch);
    if (at == watched_.end()) return;
    at->second->watch = -1;
    watched_.erase(at);
    emit(watch, Event::What::unwatched, "");
  }
  std::vector<Event> events(std::size_t most) override {
    std::vector<Event> result;
    while (!queue_.empty() && result.size() < most) {
      result.push_back(queue_.front());
      queue_.pop_front();
    }
    return result;
  }

 private:
  struct Directory {
    std::uint64_t id = 0;
    int watch = -1;
    bool is_removed = false;
    std::map<std::string, std::shared_ptr<Directory>> children;
  };

  static std::string parent_of(const std::string& path) { return path.substr(0, path.rfind('/')); }
  static std::string name_of(const std::string& path) { return path.substr(path.rfind('/') + 1); }
  std::shared_ptr<Directory> hold(const std::string& path) {
    // The root is not owned; an empty deleter makes it look as if.
    std::shared_ptr<Directory> at(&root_, [](Directory*) {});
    for (std::size_t i = 1; i < path.size();) {
      const std::size_t end = std::min(path.find('/', i), path.size());
      const auto child = at->children.find(path.substr(i, end - i));
      if (child == at->children.end()) return nullptr;
      at = child->second;
      i = end + 1;
    }
    return at;
  }
  Directory* find(const std::string& path) { return hold(path).get(); }
  void collect(const Directory& directory, const std::string& path,
               std::map<std::string, std::uint64_t>& into) {
    for (const auto& [name, child] : directory.children) {
      into[path + "/" + name] = child->id;
      collect(*child, path + "/" + name, into);
    }
  }
  void emit(int watch, Event::What what, const std::string& name) {
    if (watch < 0) return;
    if (queue_.size() > queue_limit) return;
    if (queue_.size() == queue_limit)
      queue_.push_back({Event::What::overflow, -1, ""});
    else
      queue_.push_back({what, watch, name});
  }

  Directory root_;
  std::vector<std::shared_ptr<Directory>> held_;
  std::map<int, Directory*> watched_;
  std::deque<Event> queue_;
  std::uint64_t last_id_ = 0;
  int last_watch_ = 0;
};

}  // namespace sluice::cgroups
