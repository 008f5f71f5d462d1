// SPDX-License-Identifier: Apache-2.0
// A domain name in wire form (RFC 1035 section 3.1), ASCII lower case, held in place: no
// allocation, no failure after construction, comparable by bytes.
//
//   const auto name = Name::from_text("Files.PythonHosted.org");
//   name->is_same_or_below(*Name::from_text("pythonhosted.org"));  // true
//   name->text().view();                                          // "files.pythonhosted.org"
//
// Labels are bytes, not text: a guest may put anything into them. text() escapes all but printable
// ASCII, so that it may go into logs as it is.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <optional>
#include <string_view>

#include "names/bytes.hpp"

namespace sluice::dns {

inline constexpr std::size_t kLongestName = 255;  // bytes on the wire, the root's zero included
inline constexpr std::size_t kLongestLabel = 63;  // bytes
inline constexpr std::size_t kMostLabels = 127;   // follows from kLongestName
inline constexpr std::size_t kHeaderSize = 12;    // of a message

enum class NameError : std::uint8_t {
  cut_short,       // the message ends inside the name
  label_type,      // a length byte of 0x40 to 0xbf: extended labels (RFC 6891 ended them)
  too_long,        // over 255 bytes when expanded
  pointer,         // a compression pointer that does not point backward, or not to a name
  too_many_hops,   // over 127 pointers
  empty_label,     // text only: "a..b", ".a"
  label_too_long,  // text only
  bad_escape,      // text only: "\25", "\256", a lone backslash at the end
  trailing,        // from_wire() only: bytes after the root
};

[[nodiscard]] std::string_view describe(NameError error);

class Name {
 public:
  // Longest presentation: each byte of 63+63+63+61 as \DDD, three dots between.
  static constexpr std::size_t kLongestText = 4 * 250 + 4;

  // Presentation form, ending in a zero byte; "." for the root.
  class Text {
   public:
    [[nodiscard]] std::string_view view() const { return {bytes_.data(), size_}; }
    [[nodiscard]] const char* c_str() const { return bytes_.data(); }

   private:
    friend class Name;
    std::size_t size_ = 0;
    std::array<char, kLongestText + 1> bytes_;  // written up to size_ only
  };

  // The root.
  Name() { bytes_[0] = 0; }
  Name(const Name& other) : size_(other.size_) {
    std::memcpy(bytes_.data(), other.bytes_.data(), size_);
  }
  Name& operator=(const Name& other) {
    size_ = other.size_;
    std::memmove(bytes_.data(), other.bytes_.data(), size_);
    return *this;
  }

  // Presentation form (RFC 1035 section 5.1): "\." and "\\" and "\DDD" are bytes of a label, one
  // dot at the end is allowed, "." is the root. No international names: A-labels only, or raw
  // bytes.
  [[nodiscard]] static std::expected<Name, NameError> from_text(std::string_view text);

  // Exactly one uncompressed name in wire form, nothing behind it.
  [[nodiscard]] static std::expected<Name, NameError> from_wire(Bytes wire);

  // Wire form with the root's zero: 1 to 255 bytes. Valid while this name is.
  [[nodiscard]] Bytes wire() const { return {bytes_.data(), size_}; }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] bool is_root() const { return size_ == 1; }

  // Labels without the root: 0 to 127.
  [[nodiscard]] std::size_t labels() const;

  // Where each label begins in wire(), outermost last; returns how many. starts[i] is the i-th
  // ancestor: wire().subspan(starts[i]) is its wire form, and the root is not counted.
  std::size_t label_starts(std::array<std::uint8_t, kMostLabels>& starts) const;

  // One label less; of the root, the root.
  [[nodiscard]] Name parent() const;

  [[nodiscard]] bool is_same_or_below(const Name& other) const;
  [[nodiscard]] bool is_below(const Name& other) const {
    return size_ != other.size_ && is_same_or_below(other);
  }

  // DNAME (RFC 6672 section 2.2): this name with its suffix `owner` replaced by `target`; nothing
  // where this name is not below `owner`, or where the result is over 255 bytes.
  [[nodiscard]] std::optional<Name> substituted(const Name& owner, const Name& target) const;

  // Good for hash tables of names that guests choose, if `seed` is random and secret.
  [[nodiscard]] std::uint64_t hash(std::uint64_t seed = 0) const;

  // Printable ASCII but '.', '\\', '"' and other characters special to zone files or shells; those
  // are escaped as "\c" or "\DDD". No control byte, quote, space or byte over 0x7e survives
  // unescaped.
  [[nodiscard]] Text text() const;

  friend bool operator==(const Name& a, const Name& b) {
    return a.size_ == b.size_ && std::memcmp(a.bytes_.data(), b.bytes_.data(), a.size_) == 0;
  }

 private:
  friend std::expected<std::size_t, NameError> read_name(Bytes message, std::size_t offset,
                                                         Name& name);

  std::uint8_t size_ = 1;
  std::array<std::uint8_t, kLongestName> bytes_;  // written up to size_ only
};

// The same function over the wire form of a name or of one of its suffixes (see label_starts()).
[[nodiscard]] std::uint64_t hash_wire(Bytes lower_case_wire, std::uint64_t seed = 0);

// Reads the name at `offset` of a message, following compression, into `name` (the root after an
// error). Returns the offset behind the name where it stands. Pointers go strictly backward, each
// to before the piece that it ends, and never into the header; so no loop exists, and reading ends
// after at most 127 labels and 127 pointers. Reads nothing outside `message`.
[[nodiscard]] std::expected<std::size_t, NameError> read_name(Bytes message, std::size_t offset,
                                                              Name& name);

// The same checks without building the name.
[[nodiscard]] std::expected<std::size_t, NameError> skip_name(Bytes message, std::size_t offset);

// Where names stand in a message that is read front to back: where each label begins, and each
// pointer.
class NamePlaces {
 public:
  // For a message of `size` bytes, 65535 at most.
  explicit NamePlaces(std::size_t size) { std::memset(bits_.data(), 0, (size / 64 + 1) * 8); }
  void mark(std::size_t offset) { bits_[offset / 64] |= std::uint64_t{1} << offset % 64; }
  [[nodiscard]] bool has(std::size_t offset) const { return bits_[offset / 64] >> offset % 64 & 1; }

 private:
  std::array<std::uint64_t, 1024> bits_;  // written as far as the message goes only
};

// skip_name(), and a pointer must go to one of `places`: to a name that has been read, never into
// TTLs or other bytes that change on the way and would make another name. Adds this name's own
// places.
[[nodiscard]] std::expected<std::size_t, NameError> skip_name(Bytes message, std::size_t offset,
                                                              NamePlaces& places);

// The same, expanded into `out` with its case as it stands; returns {offset behind, bytes written}.
struct Expanded {
  std::size_t next;
  std::size_t size;
};
[[nodiscard]] std::expected<Expanded, NameError> expand_name(
    Bytes message, std::size_t offset, std::span<std::uint8_t, kLongestName> out);

// Whether the name at `offset`, which skip_name() has accepted, is `name`.
[[nodiscard]] bool name_at_is(Bytes message, std::size_t offset, const Name& name);

}  // namespace sluice::dns

template <>
struct std::hash<sluice::dns::Name> {
  std::size_t operator()(const sluice::dns::Name& name) const { return name.hash(); }
};
