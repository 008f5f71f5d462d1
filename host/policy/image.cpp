#include "policy/image.hpp"

#include <algorithm>
#include <array>
#include <cstring>

namespace sluice::image {
namespace {

Prefix prefix_of(const Bits& bits, unsigned length, unsigned family_bits) {
  Prefix prefix{.address = {},
                .family = static_cast<std::uint8_t>(family_bits == 32 ? 4 : 6),
                .length = static_cast<std::uint8_t>(length)};
  for (unsigned i = 0; i < 8; ++i) {
    prefix.address[i] = static_cast<std::uint8_t>(bits.high >> (56 - 8 * i));
    if (family_bits == 128)
      prefix.address[8 + i] = static_cast<std::uint8_t>(bits.low >> (56 - 8 * i));
  }
  return prefix;
}

}  // namespace

std::uint32_t Image::allocate_leaves(std::size_t count) {
  if (count > leaves_left_) {
    // Small policies take what they need, large ones blocks of 512 bytes.
    const std::size_t block =
        std::max((count + 7) / 8, std::min<std::size_t>(16, elements_.size() / 16));
    next_leaf_ = allocate(block) * 8;
    leaves_left_ = static_cast<std::uint32_t>(block * 8);
  }
  const std::uint32_t first = next_leaf_;
  next_leaf_ += static_cast<std::uint32_t>(count);
  leaves_left_ -= static_cast<std::uint32_t>(count);
  return first;
}

// Put before the chain at `next`, `decision` would change no verdict: what is asked after it says
// the same of all that it speaks for. (A list of networks with the same ports, nested in each
// other, is one decision.)
bool Image::redundant(const sluice_decision& decision, std::uint32_t next) const {
  while (next >= SLUICE_LEAF_DECISION) {
    const sluice_decision& later = elements_[next - SLUICE_LEAF_DECISION].decision;
    if (later.verdict != decision.verdict) return false;
    if (covers(later, decision)) return true;
    next = later.next;
  }
  return next == decision.verdict;
}

std::optional<std::uint32_t> Image::chain(std::span<const sluice_decision> decisions,
                                          std::uint32_t next) {
  // Behind an unconditional decision nothing is asked.
  for (std::size_t i = 0; i < decisions.size(); ++i)
    if (decisions[i].any_protocol && decisions[i].expires == 0) decisions = decisions.first(i + 1);
  // Decisions in front may still shorten it, hence the room.
  const std::size_t give_up = 4 * limits_.max_chain;
  for (std::size_t i = decisions.size(); i-- > 0;) {
    sluice_decision decision = decisions[i];
    // It would change nothing: what holds where it does not speak says the same.
    if (decision.verdict == next) continue;
    if (decision.any_protocol && decision.expires == 0) {
      next = decision.verdict;
      continue;
    }
    if (redundant(decision, next)) continue;
    // What it covers right behind it is never asked.
    while (next >= SLUICE_LEAF_DECISION &&
           shadows(decision, elements_[next - SLUICE_LEAF_DECISION].decision))
      next = elements_[next - SLUICE_LEAF_DECISION].decision.next;
    if (decision.verdict == next) continue;
    decision.next = next;
    const std::size_t length = chain_length(next) + 1;
    if (length > give_up) return std::nullopt;
    std::array<std::uint64_t, 4> words;
    static_assert(sizeof words == sizeof decision);
    std::memcpy(words.data(), &decision, sizeof decision);
    std::uint64_t hash = hash_seed;
    for (std::uint64_t word : words) hash = mix(hash, word);
    const std::uint32_t index = decisions_.find_or_make(
        hash,
        [&](std::uint32_t id) {
          return std::memcmp(&elements_[id].decision, &decision, sizeof decision) == 0;
        },
        [&] {
          const std::uint32_t id = allocate(1);
          elements_[id].decision = decision;
          if (chain_lengths_.size() <= id)
            chain_lengths_.resize(std::max<std::size_t>(id + 1, chain_lengths_.size() * 2));
          chain_lengths_[id] = static_cast<std::uint16_t>(length);
          return id;
        });
    next = SLUICE_LEAF_DECISION + index;
  }
  return next;
}

template <typename Entry>
std::uint32_t Image::leaf_of(const Entry* first, const Entry* last, std::uint32_t covering,
                             bool& under_floor) {
  if (last - first == 1) {
    switch (first->shape()) {
      case kShapeDeny:
        return SLUICE_LEAF_DENY;
      case kShapeAllow:
        return under_floor ? covering : std::uint32_t{SLUICE_LEAF_ALLOW};
      case kShapeAllowOverFloor:
        return SLUICE_LEAF_ALLOW;
      case kShapeFloor:
        under_floor = true;
        return SLUICE_LEAF_FLOOR;
      default:
        break;
    }
    if (last_.shape == first->shape() && last_.covering == covering &&
        last_.under_floor == under_floor)
      return last_.leaf;
  }

  bool floored_here = false;
  for (const Entry* entry = first; entry != last; ++entry)
    floored_here = floored_here || entry->shape() == kShapeFloor;
  const bool floored = under_floor || floored_here;

  // Within one prefix: denies, then allows (under the floor only those that overrule it), then the
  // floor. Then the covering prefix's chain, which never gets asked where the floor ends it.
  scratch_.clear();
  for (Action action : {Action::deny, Action::allow}) {
    atoms_.clear();
    for (const Entry* entry = first; entry != last; ++entry) {
      if (entry->shape() == kShapeFloor) continue;
      const Shape& shape = shapes_[entry->shape()];
      if (shape.action != action) continue;
      if (action == Action::allow && floored && !shape.overrules_floor) continue;
      add_atoms(shape, atoms_);
    }
    append_decisions(atoms_, action == Action::deny ? SLUICE_LEAF_DENY : SLUICE_LEAF_ALLOW,
                     scratch_);
  }
  const std::optional<std::uint32_t> joined =
      chain(scratch_, floored_here ? std::uint32_t{SLUICE_LEAF_FLOOR} : covering);
  if (!joined || chain_length(*joined) > limits_.max_chain)
    throw ChainTooLong{prefix_of(bits_of(*first), first->length(), Entry::kBits)};
  const std::uint32_t leaf = *joined;
  if (last - first == 1)
    last_ = {
        .shape = first->shape(), .covering = covering, .leaf = leaf, .under_floor = under_floor};
  under_floor = floored;
  return leaf;
}

template <typename Entry>
const Entry* end_of_prefix(const Entry* first, const Entry* last) {
  const Entry* end = first + 1;
  while (end != last && end->same_prefix(*first)) ++end;
  return end;
}

// Entries [first, last), all longer than `offset` and equal in the first `offset` bits.
template <typename Entry>
Subtree Image::build(const Entry* first, const Entry* last, unsigned offset, std::uint32_t leaf,
                     bool under_floor) {
  while (first != last) {
    // All agree in the first `common` bits. An entry no longer than that is the first, since its
    // address is the smallest.
    const unsigned common =
        std::min(first->length(), common_bits(bits_of(*first), bits_of(last[-1])));
    if (common < offset + SLUICE_STRIDE) return build_node(first, last, offset, leaf, under_floor);

    std::uint32_t inner = leaf;
    bool inner_floor = under_floor;
    const Entry* rest = first;
    if (first->length() == common) {
      rest = end_of_prefix(first, last);
      inner = leaf_of(first, rest, leaf, inner_floor);
      if (inner == leaf && inner_floor == under_floor) {
        first = rest;  // changes nothing; the others may agree in more
        continue;
      }
    }
    Subtree tree = rest == last ? Subtree{.is_leaf = true, .leaf = inner}
                                : build(rest, last, common, inner, inner_floor);
    if (tree.is_leaf && tree.leaf == leaf) return tree;

    Subtree result{.is_leaf = false};
    sluice_skip& skip = result.element.skip;
    const Bits key = bits_of(*first).shifted(offset).first(common - offset);
    skip.key_high = key.high;
    skip.key_low = key.low;
    skip.bits = SLUICE_IS_SKIP | (common - offset);
    skip.target = reference(tree);
    skip.otherwise = leaf;
    return result;
  }
  return {.is_leaf = true, .leaf = leaf};
}

template <typename Entry>
Subtree Image::build_node(const Entry* first, const Entry* last, unsigned offset,
                          std::uint32_t leaf, bool under_floor) {
  constexpr unsigned kSlots = 1u << SLUICE_STRIDE;
  const unsigned end = offset + SLUICE_STRIDE;
  std::array<std::uint32_t, kSlots> leaves;
  leaves.fill(leaf);
  std::uint64_t floored = under_floor ? ~std::uint64_t{0} : 0;
  std::uint64_t vector = 0;
  std::array<sluice_element, kSlots> children;
  unsigned child_count = 0;

  while (first != last) {
    const std::uint32_t slot = bits_at(*first, offset, SLUICE_STRIDE);
    if (first->length() <= end) {
      const Entry* next = end_of_prefix(first, last);
      bool floor_here = floored >> slot & 1;
      const std::uint32_t value = leaf_of(first, next, leaves[slot], floor_here);
      const unsigned count = 1u << (end - first->length());
      std::fill_n(leaves.begin() + slot, count, value);
      const std::uint64_t covered =
          (count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1) << slot;
      floored = floor_here ? floored | covered : floored & ~covered;
      first = next;
      continue;
    }
    const Entry* next = first + 1;
    while (next != last && bits_at(*next, offset, SLUICE_STRIDE) == slot) ++next;
    const Subtree tree = build(first, next, end, leaves[slot], floored >> slot & 1);
    if (tree.is_leaf) {
      leaves[slot] = tree.leaf;
    } else {
      vector |= std::uint64_t{1} << slot;
      children[child_count++] = tree.element;
    }
    first = next;
  }

  // Runs of equal leaves, slots with a child passed over.
  std::array<std::uint32_t, kSlots> runs;
  unsigned run_count = 0;
  std::uint64_t leafvec = 0;
  std::array<std::uint32_t, 2> pair{};
  unsigned distinct = 0;
  for (unsigned slot = 0; slot < kSlots; ++slot) {
    if (vector >> slot & 1 || (run_count > 0 && runs[run_count - 1] == leaves[slot])) continue;
    leafvec |= std::uint64_t{1} << slot;
    runs[run_count++] = leaves[slot];
    if (distinct == 0 || (leaves[slot] != pair[0] && (distinct == 1 || leaves[slot] != pair[1]))) {
      if (distinct < 2) pair[distinct] = leaves[slot];
      ++distinct;
    }
  }
  if (vector == 0 && run_count == 1) return {.is_leaf = true, .leaf = runs[0]};

  Subtree result{.is_leaf = false};
  sluice_node& node = result.element.node;
  node.vector = vector;
  node.leafvec = leafvec;
  if (child_count > 0) {
    node.children = allocate(child_count);
    std::copy_n(children.begin(), child_count, elements_.begin() + node.children);
  }
  if (distinct <= 2) {
    node.leaves = SLUICE_LEAVES_INLINE;
    node.inline_leaves[0] = pair[0];
    node.inline_leaves[1] = pair[1];
  } else {
    node.leaves = allocate_leaves(run_count);
    for (unsigned i = 0; i < run_count; ++i)
      elements_[(node.leaves + i) / 8].leaf[(node.leaves + i) % 8] = runs[i];
  }
  return result;
}

template <typename Entry>
sluice_trie Image::build_direct(const std::vector<Entry>& entries, unsigned direct_bits) {
  const std::size_t size = std::size_t{1} << direct_bits;
  std::vector<std::uint32_t> references(size, SLUICE_LEAF_NONE);
  std::vector<bool> floored(size, false);
  // The table stands first, so that it shares no page with what is seldom read.
  const std::uint32_t table = allocate(size / 8);
  const Entry* first = entries.data();
  const Entry* const last = first + entries.size();
  while (first != last) {
    const std::uint32_t slot = bits_at(*first, 0, direct_bits);
    if (first->length() <= direct_bits) {
      const Entry* next = end_of_prefix(first, last);
      bool floor_here = floored[slot];
      const std::uint32_t value = leaf_of(first, next, references[slot], floor_here);
      const std::size_t count = std::size_t{1} << (direct_bits - first->length());
      std::fill_n(references.begin() + slot, count, value);
      std::fill_n(floored.begin() + slot, count, floor_here);
      first = next;
      continue;
    }
    const Entry* next = first + 1;
    while (next != last && bits_at(*next, 0, direct_bits) == slot) ++next;
    references[slot] = reference(build(first, next, direct_bits, references[slot], floored[slot]));
    first = next;
  }
  std::memcpy(&elements_[table], references.data(), size * sizeof(std::uint32_t));
  return {.root = SLUICE_NO_TRIE,
          .leaf = SLUICE_LEAF_NONE,
          .direct = table,
          .direct_bits = direct_bits};
}

// Bits of the direct table for so many prefixes: at most some four bytes a prefix (usually one, a
// few per cent of the image), in exchange for two or three steps of each lookup.
unsigned direct_bits_for(std::size_t prefixes) {
  if (prefixes < 4096) return 0;
  if (prefixes < 16384) return 12;
  if (prefixes < 262144) return 16;
  return 18;
}

template <typename Entry>
sluice_trie Image::build_trie(const std::vector<Entry>& entries) {
  std::size_t prefixes = 0;
  for (std::size_t i = 0; i < entries.size(); ++i)
    prefixes += i == 0 || !entries[i].same_prefix(entries[i - 1]);
  const unsigned direct_bits = direct_bits_for(prefixes);
  if (direct_bits != 0) return build_direct(entries, direct_bits);
  // The default route apart, since every other entry must be longer than the offset.
  const Entry* first = entries.data();
  const Entry* const last = first + entries.size();
  std::uint32_t leaf = SLUICE_LEAF_NONE;
  bool under_floor = false;
  if (first != last && first->length() == 0) {
    const Entry* next = end_of_prefix(first, last);
    leaf = leaf_of(first, next, leaf, under_floor);
    first = next;
  }
  const Subtree tree = build(first, last, 0, leaf, under_floor);
  if (tree.is_leaf)
    return {.root = SLUICE_NO_TRIE, .leaf = tree.leaf, .direct = 0, .direct_bits = 0};
  return {.root = place(tree), .leaf = SLUICE_LEAF_NONE, .direct = 0, .direct_bits = 0};
}

template sluice_trie Image::build_trie(const std::vector<Entry4>& entries);
template sluice_trie Image::build_trie(const std::vector<Entry6>& entries);

}  // namespace sluice::image
