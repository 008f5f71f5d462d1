// SPDX-License-Identifier: Apache-2.0
#include "names/name.hpp"

namespace sluice::dns {
namespace {

constexpr std::uint8_t kPointer = 0xc0;  // the two high bits of a length byte

std::uint8_t lower(std::uint8_t byte) {
  return byte >= 'A' && byte <= 'Z' ? static_cast<std::uint8_t>(byte | 0x20) : byte;
}

// Lower case for eight bytes at once: a byte without its high bit that lies in 'A'..'Z' gets 0x20.
std::uint64_t lower8(std::uint64_t word) {
  constexpr std::uint64_t kOnes = 0x0101010101010101;
  const std::uint64_t low = word & (0x7f * kOnes);
  const std::uint64_t from_a = low + (0x80 - 'A') * kOnes;    // high bit: >= 'A'
  const std::uint64_t beyond_z = low + (0x7f - 'Z') * kOnes;  // high bit: > 'Z'
  const std::uint64_t upper = (from_a ^ beyond_z) & ~word & (0x80 * kOnes);
  return word | upper >> 2;
}

// Copies in lower case. Length bytes are at most 63, which is below 'A': they may be among the
// bytes.
void copy_lower(std::uint8_t* to, const std::uint8_t* from, std::size_t size) {
  for (; size >= 8; size -= 8, to += 8, from += 8) {
    std::uint64_t word;
    std::memcpy(&word, from, 8);
    word = lower8(word);
    std::memcpy(to, &word, 8);
  }
  for (; size > 0; --size) *to++ = lower(*from++);
}

bool equal_lower(const std::uint8_t* any_case, const std::uint8_t* lower_case, std::size_t size) {
  for (; size >= 8; size -= 8, any_case += 8, lower_case += 8) {
    std::uint64_t a, b;
    std::memcpy(&a, any_case, 8);
    std::memcpy(&b, lower_case, 8);
    if (lower8(a) != b) return false;
  }
  for (; size > 0; --size)
    if (lower(*any_case++) != *lower_case++) return false;
  return true;
}

// One walk for all readers. `piece(from, size)` gets each run of whole labels, length bytes
// included, the last with the root's zero; the sum of their sizes is at most 255. It may return
// false to end the walk with an error (any). With `places`, see skip_name().
template <typename Piece>
std::expected<std::size_t, NameError> walk(Bytes message, std::size_t offset, Piece&& piece,
                                           NamePlaces* places = nullptr) {
  std::size_t next = 0;  // behind the name where it stands; 0: no pointer followed yet
  std::size_t total = 0;
  std::size_t hops = 0;
  std::size_t start = offset;  // of the present run
  std::size_t at = offset;
  for (;;) {
    if (at >= message.size()) return std::unexpected(NameError::cut_short);
    const std::uint8_t length = message[at];
    if (places && next == 0) places->mark(at);
    if (length == 0) {
      total += at + 1 - start;
      if (total > kLongestName) return std::unexpected(NameError::too_long);
      if (!piece(message.data() + start, at + 1 - start))
        return std::unexpected(NameError::cut_short);
      return next != 0 ? next : at + 1;
    }
    if (length <= kLongestLabel) {
      at += 1 + std::size_t{length};
      // Checked here as well, so that a hostile run is not walked to its end.
      if (total + (at - start) >= kLongestName) return std::unexpected(NameError::too_long);
      continue;
    }
    if ((length & kPointer) != kPointer) return std::unexpected(NameError::label_type);
    if (at + 2 > message.size()) return std::unexpected(NameError::cut_short);
    const std::size_t target = load16(message.data() + at) & 0x3fff;
    if (target >= start || target < kHeaderSize || (places && !places->has(target)))
      return std::unexpected(NameError::pointer);
    if (++hops > kMostLabels) return std::unexpected(NameError::too_many_hops);
    if (!piece(message.data() + start, at - start)) return std::unexpected(NameError::cut_short);
    total += at - start;
    if (next == 0) next = at + 2;
    start = at = target;
  }
}

// What text() writes with a backslash only; all else that is not printable becomes \DDD.
bool is_special(std::uint8_t byte) {
  switch (byte) {
    case '.':
    case '\\':
    case '(':
    case ')':
    case ';':
    case '@':
    case '$':
      return true;
    default:
      return false;
  }
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

}  // namespace

std::string_view describe(NameError error) {
  switch (error) {
    case NameError::cut_short:
      return "the message ends inside a name";
    case NameError::label_type:
      return "a label of unknown type";
    case NameError::too_long:
      return "a name of over 255 bytes";
    case NameError::pointer:
      return "a compression pointer that does not point backward";
    case NameError::too_many_hops:
      return "too many compression pointers";
    case NameError::empty_label:
      return "an empty label";
    case NameError::label_too_long:
      return "a label of over 63 bytes";
    case NameError::bad_escape:
      return "a backslash without a character or three digits up to 255";
    case NameError::trailing:
      return "bytes behind the name";
  }
  return "?";
}

std::expected<Name, NameError> Name::from_text(std::string_view text) {
  Name name;
  if (text == ".") return name;
  if (text.empty()) return std::unexpected(NameError::empty_label);
  std::size_t at = 0;
  std::size_t length_at = 0;  // of the label being written
  std::size_t to = 1;
  const auto end_label = [&]() -> std::expected<void, NameError> {
    const std::size_t length = to - length_at - 1;
    if (length == 0) return std::unexpected(NameError::empty_label);
    if (length > kLongestLabel) return std::unexpected(NameError::label_too_long);
    if (to >= kLongestName) return std::unexpected(NameError::too_long);
    name.bytes_[length_at] = static_cast<std::uint8_t>(length);
    length_at = to++;
    return {};
  };
  while (at < text.size()) {
    auto byte = static_cast<std::uint8_t>(text[at++]);
    if (byte == '.') {
      if (const auto ended = end_label(); !ended) return std::unexpected(ended.error());
      continue;
    }
    if (byte == '\\') {
      if (at == text.size()) return std::unexpected(NameError::bad_escape);
      if (is_digit(text[at])) {
        if (text.size() - at < 3 || !is_digit(text[at + 1]) || !is_digit(text[at + 2]))
          return std::unexpected(NameError::bad_escape);
        const int value = (text[at] - '0') * 100 + (text[at + 1] - '0') * 10 + (text[at + 2] - '0');
        if (value > 255) return std::unexpected(NameError::bad_escape);
        byte = static_cast<std::uint8_t>(value);
        at += 3;
      } else {
        byte = static_cast<std::uint8_t>(text[at++]);
      }
    }
    if (to - length_at - 1 >= kLongestLabel) return std::unexpected(NameError::label_too_long);
    if (to >= kLongestName) return std::unexpected(NameError::too_long);
    name.bytes_[to++] = lower(byte);
  }
  if (to - length_at > 1)
    if (const auto ended = end_label(); !ended) return std::unexpected(ended.error());
  name.bytes_[length_at] = 0;
  name.size_ = static_cast<std::uint8_t>(length_at + 1);
  return name;
}

std::expected<Name, NameError> Name::from_wire(Bytes wire) {
  Name name;
  std::size_t at = 0;
  for (;;) {
    if (at >= wire.size()) return std::unexpected(NameError::cut_short);
    const std::uint8_t length = wire[at];
    if (length > kLongestLabel) return std::unexpected(NameError::label_type);
    at += 1 + std::size_t{length};
    if (at > kLongestName) return std::unexpected(NameError::too_long);
    if (length == 0) break;
  }
  if (at != wire.size()) return std::unexpected(NameError::trailing);
  copy_lower(name.bytes_.data(), wire.data(), at);
  name.size_ = static_cast<std::uint8_t>(at);
  return name;
}

std::size_t Name::labels() const {
  std::size_t count = 0;
  for (std::size_t at = 0; bytes_[at] != 0; at += 1 + std::size_t{bytes_[at]}) ++count;
  return count;
}

std::size_t Name::label_starts(std::array<std::uint8_t, kMostLabels>& starts) const {
  std::size_t count = 0;
  for (std::size_t at = 0; bytes_[at] != 0; at += 1 + std::size_t{bytes_[at]})
    starts[count++] = static_cast<std::uint8_t>(at);
  return count;
}

Name Name::parent() const {
  if (is_root()) return *this;
  Name above;
  const std::size_t first = 1 + std::size_t{bytes_[0]};
  above.size_ = static_cast<std::uint8_t>(size_ - first);
  std::memcpy(above.bytes_.data(), bytes_.data() + first, above.size_);
  return above;
}

bool Name::is_same_or_below(const Name& other) const {
  if (size_ < other.size_) return false;
  const std::size_t from = size_ - std::size_t{other.size_};
  if (std::memcmp(bytes_.data() + from, other.bytes_.data(), other.size_) != 0) return false;
  // The bytes agree; they must also begin at a label, since a label's bytes may look like labels.
  std::size_t at = 0;
  while (at < from) at += 1 + std::size_t{bytes_[at]};
  return at == from;
}

std::optional<Name> Name::substituted(const Name& owner, const Name& target) const {
  if (!is_below(owner)) return std::nullopt;
  const std::size_t kept = size_ - std::size_t{owner.size_};
  if (kept + target.size_ > kLongestName) return std::nullopt;
  Name result;
  std::memcpy(result.bytes_.data(), bytes_.data(), kept);
  std::memcpy(result.bytes_.data() + kept, target.bytes_.data(), target.size_);
  result.size_ = static_cast<std::uint8_t>(kept + target.size_);
  return result;
}

std::uint64_t Name::hash(std::uint64_t seed) const {
  return hash_wire(wire(), seed);
}

Name::Text Name::text() const {
  Text text;
  char* to = text.bytes_.data();
  if (is_root()) *to++ = '.';
  for (std::size_t at = 0; bytes_[at] != 0;) {
    if (at != 0) *to++ = '.';
    const std::size_t end = at + 1 + bytes_[at];
    for (++at; at < end; ++at) {
      const std::uint8_t byte = bytes_[at];
      if (is_special(byte)) {
        *to++ = '\\';
        *to++ = static_cast<char>(byte);
      } else if (byte > ' ' && byte < 0x7f && byte != '"' && byte != '\'' && byte != '`') {
        *to++ = static_cast<char>(byte);
      } else {
        *to++ = '\\';
        *to++ = static_cast<char>('0' + byte / 100);
        *to++ = static_cast<char>('0' + byte / 10 % 10);
        *to++ = static_cast<char>('0' + byte % 10);
      }
    }
  }
  *to = 0;
  text.size_ = static_cast<std::size_t>(to - text.bytes_.data());
  return text;
}

// wyhash's mixing (public domain): 128-bit products of 8-byte words, folded.
std::uint64_t hash_wire(Bytes wire, std::uint64_t seed) {
  __extension__ using Wide = unsigned __int128;
  const auto mix = [](std::uint64_t a, std::uint64_t b) {
    const Wide product = static_cast<Wide>(a) * b;
    return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
  };
  constexpr std::uint64_t kA = 0xa0761d6478bd642f, kB = 0xe7037ed1a0b428db, kC = 0x8ebc6af09c88c6e3;
  const std::uint8_t* at = wire.data();
  std::size_t left = wire.size();
  std::uint64_t state = mix(seed ^ kA, wire.size() ^ kB);
  const auto word = [](const std::uint8_t* from, std::size_t size) {
    std::uint64_t value = 0;
    std::memcpy(&value, from, size);
    return value;
  };
  for (; left > 16; left -= 16, at += 16) state = mix(word(at, 8) ^ kA, word(at + 8, 8) ^ state);
  const std::uint64_t a = left >= 8 ? word(at, 8) : word(at, left);
  const std::uint64_t b = left > 8 ? word(at + 8, left - 8) : 0;
  return mix(kC ^ wire.size(), mix(a ^ kB, b ^ state));
}

std::expected<std::size_t, NameError> read_name(Bytes message, std::size_t offset, Name& name) {
  std::size_t size = 0;
  const auto next = walk(message, offset, [&](const std::uint8_t* from, std::size_t length) {
    copy_lower(name.bytes_.data() + size, from, length);
    size += length;
    return true;
  });
  if (!next) name.bytes_[0] = 0, size = 1;
  name.size_ = static_cast<std::uint8_t>(size);
  return next;
}

std::expected<std::size_t, NameError> skip_name(Bytes message, std::size_t offset) {
  return walk(message, offset, [](const std::uint8_t*, std::size_t) { return true; });
}

std::expected<std::size_t, NameError> skip_name(Bytes message, std::size_t offset,
                                                NamePlaces& places) {
  return walk(
      message, offset, [](const std::uint8_t*, std::size_t) { return true; }, &places);
}

std::expected<Expanded, NameError> expand_name(Bytes message, std::size_t offset,
                                               std::span<std::uint8_t, kLongestName> out) {
  std::size_t size = 0;
  const auto next = walk(message, offset, [&](const std::uint8_t* from, std::size_t length) {
    std::memcpy(out.data() + size, from, length);
    size += length;
    return true;
  });
  if (!next) return std::unexpected(next.error());
  return Expanded{.next = *next, .size = size};
}

bool name_at_is(Bytes message, std::size_t offset, const Name& name) {
  const Bytes wanted = name.wire();
  std::size_t size = 0;
  const auto next = walk(message, offset, [&](const std::uint8_t* from, std::size_t length) {
    if (size + length > wanted.size() || !equal_lower(from, wanted.data() + size, length))
      return false;
    size += length;
    return true;
  });
  return next && size == wanted.size();
}

}  // namespace sluice::dns
