// The pins below bpffs. Maps live in one directory per generation of layout, made under a temporary
// name and renamed, so that a half-made one is never taken for a whole one; links stay where they
// are and are updated in place.
//
//   <bpffs>/maps-1/slots      every map by name
//   <bpffs>/links/7-from      every link: slot and hook
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace sluice {

class PinnedTree {
 public:
  // Checks that `root` lies on a writable bpffs (it is created there) and says what to do when it
  // does not.
  [[nodiscard]] static Result<PinnedTree> open(const std::filesystem::path& root);

  // One owner per tree: a lock that ends with the process, however it ends. Before open(), and for
  // as long as anything below `root` may be touched. EBUSY names the process that holds it; nothing
  // of the tree is changed then.
  [[nodiscard]] static Result<Fd> lock(const std::filesystem::path& root);

  // Directories of complete sets of maps, newest last.
  [[nodiscard]] std::vector<std::filesystem::path> map_directories() const;
  // A new set of maps: fill it, then commit() gives it its name.
  [[nodiscard]] Result<std::filesystem::path> begin() const;
  [[nodiscard]] Result<std::filesystem::path> commit(const std::filesystem::path& temporary) const;
  static void remove(const std::filesystem::path& directory);
  [[nodiscard]] std::filesystem::path links() const { return root_ / "links"; }
  [[nodiscard]] const std::filesystem::path& root() const { return root_; }

 private:
  explicit PinnedTree(std::filesystem::path root) : root_(std::move(root)) {}
  std::filesystem::path root_;
};

}  // namespace sluice
