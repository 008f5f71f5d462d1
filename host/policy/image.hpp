// The poptrie image under construction: entries in, elements out (bpf/layout.h has the format).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "layout.h"
#include "policy/compiler.hpp"
#include "policy/decisions.hpp"
#include "policy/entries.hpp"
#include "policy/id_table.hpp"

namespace sluice::image {

// What a subtree came to: an element that its parent places, or one leaf for all of it.
struct Subtree {
  bool is_leaf = true;
  std::uint32_t leaf = SLUICE_LEAF_NONE;
  sluice_element element{};
};

// Thrown through the recursion by build_trie() only; compile() turns them into an Error.
struct ImageTooLarge {};
struct ChainTooLong {
  Prefix prefix;
};

// Appends to `elements`. Children stand together, as the format has it, and are placed before the
// node that holds them: so a subtree that comes to one leaf leaves nothing behind, and needs no
// second pass.
class Image {
 public:
  Image(std::vector<Shape> shapes, const CompileLimits& limits,
        std::vector<sluice_element>& elements)
      : shapes_(std::move(shapes)), limits_(limits), elements_(elements) {}

  // `entries`: sorted.
  template <typename Entry>
  sluice_trie build_trie(const std::vector<Entry>& entries);

 private:
  // The leaf that entries [first, last), all of one prefix, make of the leaf of their covering
  // prefix. `under_floor`: some floor prefix covers them; updated.
  template <typename Entry>
  std::uint32_t leaf_of(const Entry* first, const Entry* last, std::uint32_t covering,
                        bool& under_floor);
  template <typename Entry>
  Subtree build(const Entry* first, const Entry* last, unsigned offset, std::uint32_t leaf,
                bool under_floor);
  template <typename Entry>
  Subtree build_node(const Entry* first, const Entry* last, unsigned offset, std::uint32_t leaf,
                     bool under_floor);
  template <typename Entry>
  sluice_trie build_direct(const std::vector<Entry>& entries, unsigned direct_bits);

  // `decisions` before `next`, suffixes shared. Nothing when it is far beyond what can be walked:
  // going on would take the square of the rules that were written to make it long.
  std::optional<std::uint32_t> chain(std::span<const sluice_decision> decisions,
                                     std::uint32_t next);
  [[nodiscard]] bool redundant(const sluice_decision& decision, std::uint32_t next) const;
  [[nodiscard]] std::size_t chain_length(std::uint32_t leaf) const {
    return leaf < SLUICE_LEAF_DECISION ? 0 : chain_lengths_[leaf - SLUICE_LEAF_DECISION];
  }

  std::uint32_t allocate(std::size_t count) {
    const std::size_t index = elements_.size();
    if (index + count > limits_.max_elements) throw ImageTooLarge{};
    elements_.resize(index + count);
    return static_cast<std::uint32_t>(index);
  }
  std::uint32_t allocate_leaves(std::size_t count);
  std::uint32_t place(const Subtree& tree) {
    const std::uint32_t index = allocate(1);
    elements_[index] = tree.element;
    return index;
  }
  std::uint32_t reference(const Subtree& tree) {
    return tree.is_leaf ? tree.leaf : SLUICE_IS_ELEMENT | place(tree);
  }

  std::vector<Shape> shapes_;
  const CompileLimits& limits_;
  std::vector<sluice_element>& elements_;
  std::vector<std::uint16_t> chain_lengths_;  // by element; only decisions have one
  IdTable decisions_;
  // Leaf lanes not yet used of the last block taken for leaf arrays.
  std::uint32_t next_leaf_ = 0, leaves_left_ = 0;
  // The last answer of leaf_of() for a lone shape: neighbours in a list mostly repeat it.
  struct {
    std::uint32_t shape = UINT32_MAX, covering = 0, leaf = 0;
    bool under_floor = false;
  } last_;
  std::vector<Atom> atoms_;
  std::vector<sluice_decision> scratch_;
};

extern template sluice_trie Image::build_trie(const std::vector<Entry4>& entries);
extern template sluice_trie Image::build_trie(const std::vector<Entry6>& entries);

}  // namespace sluice::image
