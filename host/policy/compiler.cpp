#include "policy/compiler.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <tuple>

#include "policy/digest.hpp"
#include "policy/explain.hpp"

namespace sluice {
namespace {

// ---- prefixes, sorted by address and then length: a prefix stands before all that it covers
// ------

// Different things that rules of one policy can say (24 bits of an Entry4).
constexpr std::uint32_t kMaxShapes = 1u << 24;

// IPv4 in one word, so that a million of them sort and scan in the cache's favour.
struct Entry4 {
  std::uint64_t packed;  // address, 8 bits of length, 24 bits of shape

  static constexpr unsigned kBits = 32;
  static Entry4 make(const Prefix& prefix, std::uint32_t shape) {
    std::uint64_t address = 0;
    for (int i = 0; i < 4; ++i) address = address << 8 | prefix.address[i];
    return {address << 32 | std::uint64_t{prefix.length} << 24 | shape};
  }
  [[nodiscard]] std::uint64_t high() const { return packed & 0xffffffff00000000u; }
  [[nodiscard]] std::uint64_t low() const { return 0; }
  [[nodiscard]] unsigned length() const { return packed >> 24 & 0xff; }
  [[nodiscard]] std::uint32_t shape() const { return packed & 0xffffff; }
  [[nodiscard]] bool same_prefix(const Entry4& other) const {
    return packed >> 24 == other.packed >> 24;
  }
  bool operator<(const Entry4& other) const { return packed < other.packed; }
};

struct Entry6 {
  std::uint64_t high_, low_;
  std::uint32_t length_, shape_;

  static constexpr unsigned kBits = 128;
  static Entry6 make(const Prefix& prefix, std::uint32_t shape) {
    std::uint64_t high = 0, low = 0;
    for (int i = 0; i < 8; ++i) high = high << 8 | prefix.address[i];
    for (int i = 8; i < 16; ++i) low = low << 8 | prefix.address[i];
    return {high, low, prefix.length, shape};
  }
  [[nodiscard]] std::uint64_t high() const { return high_; }
  [[nodiscard]] std::uint64_t low() const { return low_; }
  [[nodiscard]] unsigned length() const { return length_; }
  [[nodiscard]] std::uint32_t shape() const { return shape_; }
  [[nodiscard]] bool same_prefix(const Entry6& other) const {
    return high_ == other.high_ && low_ == other.low_ && length_ == other.length_;
  }
  bool operator<(const Entry6& other) const {
    return std::tie(high_, low_, length_, shape_) <
           std::tie(other.high_, other.low_, other.length_, other.shape_);
  }
};

void sort_entries(std::vector<Entry6>& entries) {
  if (!std::ranges::is_sorted(entries, std::less<>{})) std::ranges::sort(entries, std::less<>{});
}

// Radix sort over length and address (40 bits, 4 passes of 10): a million in a fifth of the time of
// std::sort. Shapes of one prefix keep no order; they are put in order where they are joined.
void sort_entries(std::vector<Entry4>& entries) {
  if (std::ranges::is_sorted(entries, std::less<>{})) return;
  if (entries.size() < 4096) {
    std::ranges::sort(entries, std::less<>{});
    return;
  }
  constexpr int kPasses = 4, kDigitBits = 10;
  constexpr std::size_t kDigits = 1u << kDigitBits;
  std::vector<std::array<std::uint32_t, kDigits>> counts(kPasses);
  for (const Entry4& entry : entries)
    for (int pass = 0; pass < kPasses; ++pass)
      ++counts[pass][entry.packed >> (24 + pass * kDigitBits) & (kDigits - 1)];
  std::vector<Entry4> other(entries.size());
  for (int pass = 0; pass < kPasses; ++pass) {
    std::uint32_t position = 0;
    for (std::uint32_t& count : counts[pass]) position += std::exchange(count, position);
    for (const Entry4& entry : entries)
      other[counts[pass][entry.packed >> (24 + pass * kDigitBits) & (kDigits - 1)]++] = entry;
    entries.swap(other);
  }
}

// Address bits in registers, left-aligned.
struct Bits {
  std::uint64_t high = 0, low = 0;

  [[nodiscard]] Bits shifted(unsigned n) const {
    if (n == 0) return *this;
    if (n >= 128) return {};
    if (n >= 64) return {low << (n - 64), 0};
    return {high << n | low >> (64 - n), low << n};
  }
  [[nodiscard]] Bits first(unsigned n) const {
    if (n >= 128) return *this;
    if (n > 64) return {high, low & ~(~std::uint64_t{0} >> (n - 64))};
    if (n == 64) return {high, 0};
    return {n == 0 ? 0 : high & ~(~std::uint64_t{0} >> n), 0};
  }
};

template <typename Entry>
Bits bits_of(const Entry& entry) {
  return {entry.high(), entry.low()};
}

unsigned common_bits(const Bits& a, const Bits& b) {
  if (a.high != b.high) return static_cast<unsigned>(std::countl_zero(a.high ^ b.high));
  return 64 + static_cast<unsigned>(std::countl_zero(a.low ^ b.low));
}

// `count` (at most 63) bits from bit `offset` on.
template <typename Entry>
std::uint32_t bits_at(const Entry& entry, unsigned offset, unsigned count) {
  return static_cast<std::uint32_t>(bits_of(entry).shifted(offset).high >> (64 - count));
}

// ---- a table of ids by content
// -------------------------------------------------------------------

std::uint64_t mix(std::uint64_t hash, std::uint64_t word) {
  hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
  return hash ^ hash >> 29;
}

// Open addressing over ids whose content lives elsewhere. Starts without an allocation: most
// policies need none.
class IdTable {
 public:
  // The id for which `equal(id)` holds, or the one that `make()` returns, then remembered.
  template <typename Equal, typename Make>
  std::uint32_t find_or_make(std::uint64_t hash, Equal equal, Make make) {
    if (used_ * 2 >= slots_.size()) grow();
    std::size_t at = hash & (slots_.size() - 1);
    const auto tag = static_cast<std::uint32_t>(hash >> 32);
    for (; slots_[at].id_plus_one != 0; at = (at + 1) & (slots_.size() - 1))
      if (slots_[at].tag == tag && equal(slots_[at].id_plus_one - 1))
        return slots_[at].id_plus_one - 1;
    const std::uint32_t id = make();
    slots_[at] = {tag, id + 1, hash};
    ++used_;
    return id;
  }

 private:
  struct Slot {
    std::uint32_t tag = 0, id_plus_one = 0;
    std::uint64_t hash = 0;
  };
  void grow() {
    std::vector<Slot> old =
        std::exchange(slots_, std::vector<Slot>(std::max<std::size_t>(16, slots_.size() * 2)));
    for (const Slot& slot : old) {
      if (slot.id_plus_one == 0) continue;
      std::size_t at = slot.hash & (slots_.size() - 1);
      while (slots_[at].id_plus_one != 0) at = (at + 1) & (slots_.size() - 1);
      slots_[at] = slot;
    }
  }
  std::vector<Slot> slots_;
  std::size_t used_ = 0;
};

// ---- shapes: what a rule says, apart from where
// --------------------------------------------------

// Most rules of a large policy say the same of many prefixes; what they say is worked out once.
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

// Expiry as a number that compares: never is the latest.
std::uint64_t ends_at(BootTime expires) {
  return expires.never() ? UINT64_MAX : expires.nanoseconds;
}

// One packet class of one verdict, before it becomes a decision.
struct Atom {
  std::uint64_t ends = UINT64_MAX;
  bool any_protocol = false;
  std::uint8_t protocol = 0;
  bool any_port = false;
  std::uint16_t first = 0, last = 0;
};

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

// The shortest list of decisions that says what the atoms say, in an order that depends on their
// content only: what another atom covers for at least as long is dropped, overlapping and touching
// spans that end together become one, four spans share a decision.
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

// ---- the image
// -----------------------------------------------------------------------------------

// What a subtree came to: an element that its parent places, or one leaf for all of it.
struct Subtree {
  bool is_leaf = true;
  std::uint32_t leaf = SLUICE_LEAF_NONE;
  sluice_element element{};
};

// Thrown inside this file only, through the recursion; compile() turns it into an Error.
struct ImageTooLarge {};
struct ChainTooLong {
  Prefix prefix;
};

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

class Image {
 public:
  Image(std::vector<Shape> shapes, const CompileLimits& limits,
        std::vector<sluice_element>& elements)
      : shapes_(std::move(shapes)), limits_(limits), elements_(elements) {}

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

  // `decisions` before `next`, suffixes shared.
  std::uint32_t chain(std::span<const sluice_decision> decisions, std::uint32_t next);
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
  std::vector<std::uint8_t> chain_lengths_;  // by element; only decisions have one
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

// Every packet class of `inner` is one of `outer`, and `outer` does not end earlier.
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

// `later`, asked after `earlier`, can never speak. An allow with ports does not shadow a deny with
// ports: packets whose ports cannot be seen pass the first and meet the second.
bool shadows(const sluice_decision& earlier, const sluice_decision& later) {
  if (!covers(earlier, later)) return false;
  return earlier.any_protocol || earlier.spans == 0 || earlier.verdict != SLUICE_LEAF_ALLOW ||
         later.verdict == SLUICE_LEAF_ALLOW;
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

std::uint32_t Image::chain(std::span<const sluice_decision> decisions, std::uint32_t next) {
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
    std::array<std::uint64_t, 4> words;
    static_assert(sizeof words == sizeof decision);
    std::memcpy(words.data(), &decision, sizeof decision);
    std::uint64_t hash = 0;
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
          chain_lengths_[id] = static_cast<std::uint8_t>(std::min<std::size_t>(length, UINT8_MAX));
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
  const std::uint32_t leaf =
      chain(scratch_, floored_here ? std::uint32_t{SLUICE_LEAF_FLOOR} : covering);
  if (chain_length(leaf) > limits_.max_chain)
    throw ChainTooLong{prefix_of(bits_of(*first), first->length(), Entry::kBits)};
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

// Bits of the direct table for so many prefixes: a table of at most about a byte and a half per
// prefix, which is a few per cent of the image, in exchange for two to three cache misses.
unsigned direct_bits_for(std::size_t prefixes, unsigned family_bits) {
  (void)family_bits;
  if (prefixes < 1024) return 0;
  if (prefixes < 16384) return 12;
  if (prefixes < 262144) return 16;
  return 18;
}

template <typename Entry>
sluice_trie Image::build_trie(const std::vector<Entry>& entries) {
  const unsigned direct_bits = direct_bits_for(entries.size(), Entry::kBits);
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

// ---- rules in
// ------------------------------------------------------------------------------------

std::unexpected<Error> at_rule(std::size_t layer, std::size_t index, const Rule& rule,
                               std::string_view what) {
  Error error;
  error.message = fmt::format("layer {}, rule {}{}: {}", layer, index,
                              rule.name.empty() ? "" : " (" + rule.name + ")", what);
  error.rule_index = static_cast<std::uint32_t>(index);
  error.item_index = static_cast<std::uint32_t>(layer);
  return std::unexpected(std::move(error));
}

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
    std::uint64_t hash = mix(static_cast<std::uint64_t>(shape.action) << 1 | shape.overrules_floor,
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

// The last rule with that prefix: the one that was one too many.
std::unexpected<Error> chain_too_long(std::span<const LayerInput> layers, const Prefix& prefix,
                                      BootTime now, std::size_t max_chain) {
  for (std::size_t l = layers.size(); l-- > 0;) {
    const std::vector<Rule>& rules = layers[l].layer->rules;
    for (std::size_t r = rules.size(); r-- > 0;) {
      if (rules[r].prefix != prefix || (!rules[r].expires.never() && rules[r].expires <= now))
        continue;
      auto failure = at_rule(
          l, r, rules[r],
          fmt::format("more than {} port or expiry decisions would apply to {}, counting the "
                      "prefixes around it; join its port ranges, give its rules one expiry, or "
                      "leave out ports",
                      max_chain, prefix.text()));
      failure.error().code = E2BIG;
      return failure;
    }
  }
  return fail_with(E2BIG, "more than {} port or expiry decisions would apply to {}", max_chain,
                   prefix.text());
}

}  // namespace

Result<CompiledPolicy> compile(std::span<const LayerInput> layers, const Floor& floor, BootTime now,
                               const CompileLimits& limits) {
  CompiledPolicy policy;
  std::vector<Entry4> entries4;
  std::vector<Entry6> entries6;
  ShapeIds shapes;

  std::size_t count4 = 0, count6 = 0;
  for (const LayerInput& input : layers)
    for (const Rule& rule : input.layer->rules)
      if (rule.prefix) ++(rule.prefix->family == 4 ? count4 : count6);
  entries4.reserve(count4 + floor.deny.size());
  entries6.reserve(count6 + floor.deny.size());

  const auto add = [&](const Prefix& prefix, std::uint32_t shape) {
    if (prefix.family == 4)
      entries4.push_back(Entry4::make(prefix, shape));
    else
      entries6.push_back(Entry6::make(prefix, shape));
  };
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const std::vector<Rule>& rules = layers[l].layer->rules;
    for (std::size_t r = 0; r < rules.size(); ++r) {
      const Rule& rule = rules[r];
      if (!rule.prefix) continue;
      if (auto valid = rule.prefix->check(); !valid)
        return at_rule(l, r, rule, valid.error().message);
      for (const PortRange& range : rule.ports)
        if (auto valid = range.check(); !valid) return at_rule(l, r, rule, valid.error().message);
      if (!rule.expires.never()) {
        if (rule.expires <= now) continue;
        if (policy.next_expiry.never() || rule.expires < policy.next_expiry)
          policy.next_expiry = rule.expires;
      }
      const std::uint32_t shape = shapes.of(rule, layers[l].overrules_floor);
      if (shape >= kMaxShapes)
        return at_rule(l, r, rule,
                       "too many different port sets and expiries in one policy; give rules that "
                       "were made together one expiry");
      add(*rule.prefix, shape);
    }
  }
  for (const Prefix& prefix : floor.deny) {
    if (auto valid = prefix.check(); !valid) return fail("floor: {}", valid.error().message);
    add(prefix, kShapeFloor);
  }
  sort_entries(entries4);
  sort_entries(entries6);

  try {
    Image image(shapes.take(), limits, policy.elements);
    policy.descriptor.ip4 = image.build_trie(entries4);
    policy.descriptor.ip6 = image.build_trie(entries6);
  } catch (const ChainTooLong& fault) {
    return chain_too_long(layers, fault.prefix, now, limits.max_chain);
  } catch (const ImageTooLarge&) {
    return fail_with(
        ENOSPC,
        "a policy of {} prefixes needs more than {} elements of {} bytes; split it over "
        "attachments or join prefixes",
        entries4.size() + entries6.size(), limits.max_elements, sizeof(sluice_element));
  }
  policy.descriptor.elements = static_cast<std::uint32_t>(policy.elements.size());
  const auto digest = policy_digest(policy);
  policy.descriptor.digest[0] = digest[0];
  policy.descriptor.digest[1] = digest[1];
  return policy;
}

}  // namespace sluice
