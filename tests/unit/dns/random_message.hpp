// DNS messages by chance or by a fuzzer's bytes: well-formed for the most part, with few names, so
// that chains, loops and contradictions come about by themselves; then, sometimes, damaged.
#pragma once

#include <array>
#include <random>
#include <string_view>

#include "unit/dns/packets.hpp"

namespace dns_test {

// Where decisions come from: below(n) is 0 to n - 1.
class Chance {
 public:
  explicit Chance(std::uint64_t seed) : engine_(seed) {}
  unsigned below(unsigned bound) { return static_cast<unsigned>(engine_() % bound); }

 private:
  std::mt19937_64 engine_;
};

// A fuzzer's bytes; zeros when they are used up.
class Decisions {
 public:
  explicit Decisions(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  unsigned below(unsigned bound) {
    unsigned value = 0;
    for (unsigned left = bound - 1; left != 0; left >>= 8) {
      value <<= 8;
      if (bytes_.empty()) continue;
      value |= bytes_.front();
      bytes_ = bytes_.subspan(1);
    }
    return value % bound;
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

template <typename Source>
class RandomMessage {
 public:
  explicit RandomMessage(Source& source) : source_(source) {}

  // A response, or about one time in eight a query.
  Packet make() {
    packet_.assign(12, 0);
    spots_.clear();
    const bool query = source_.below(8) == 0;
    put16(0, source_.below(65536));
    put16(2, query ? 0x0100 : 0x8180);
    if (one_in(8)) put16(2, source_.below(65536));
    if (one_in(12)) packet_[3] = static_cast<std::uint8_t>((packet_[3] & 0xf0) | 3);

    const unsigned questions = one_in(24) ? source_.below(3) : 1;
    for (unsigned i = 0; i < questions; ++i) {
      current_ = some();
      write_name(current_);
      asked_ = one_in(3) ? kTypes[source_.below(kTypes.size())] : kAddressTypes[source_.below(4)];
      add(two(asked_));
      add(two(one_in(24) ? source_.below(65536) : 1));
    }
    put16(4, questions);
    for (unsigned section = 0; section < 3; ++section) {
      if (query && section < 2 && !one_in(24)) continue;
      unsigned records = section == 0 ? source_.below(7) : source_.below(4);
      for (unsigned i = 0; i < records; ++i) {
        if (section == 0 && !one_in(4))
          fitting_record();
        else
          some_record();
      }
      if (section == 2 && !one_in(3)) {
        opt();
        ++records;
      }
      put16(6 + 2 * section, records);
    }
    if (one_in(10)) damage();
    return packet_;
  }

 private:
  static constexpr std::array<unsigned, 4> kAddressTypes{type::a, type::aaaa, type::https, type::a};
  static constexpr std::array<unsigned, 34> kTypes{
      type::a,    type::aaaa, type::cname, type::cname, type::cname, type::dname, type::dname,
      type::ns,   type::soa,  type::ptr,   type::mx,    type::txt,   type::srv,   type::rrsig,
      type::nsec, type::svcb, type::https, type::any,   3,           4,           7,
      8,          9,          14,          17,          18,          21,          24,
      26,         30,         35,          36,          type::ds,    65280};
  static constexpr std::array<std::string_view, 14> kNames{"www.example",
                                                           "a.example",
                                                           "b.example",
                                                           "c.example",
                                                           "old.example",
                                                           "a.old.example",
                                                           "b.a.old.example",
                                                           "new.example",
                                                           "example",
                                                           "a.new.example",
                                                           "b.a.new.example",
                                                           ".",
                                                           "x\xff\x01y.example",
                                                           "org"};

  bool one_in(unsigned count) { return source_.below(count) == count - 1; }
  void add(const Packet& more) { packet_.insert(packet_.end(), more.begin(), more.end()); }
  void put16(std::size_t at, unsigned value) {
    packet_[at] = static_cast<std::uint8_t>(value >> 8);
    packet_[at + 1] = static_cast<std::uint8_t>(value);
  }

  // In full, or as far as a place is known where the rest has been written; seldom a wild pointer.
  void some_name() {
    if (one_in(40)) {
      const std::size_t size = 1 + source_.below(63);
      packet_.push_back(static_cast<std::uint8_t>(size));
      add(Packet(size, static_cast<std::uint8_t>(source_.below(256))));
    }
    if (one_in(60))
      return add(two(0xc000 | source_.below(static_cast<unsigned>(packet_.size()) + 8)));
    write_name(some());
  }
  std::string_view some() { return kNames[source_.below(kNames.size())]; }

  void write_name(std::string_view rest) {
    const bool upper = one_in(4);
    for (;;) {
      if (rest.empty() || rest == ".") return packet_.push_back(0);
      for (const auto& [name, at] : spots_)
        if (name == rest && at < 0x4000 && !one_in(6))
          return add(two(0xc000 | static_cast<unsigned>(at)));
      spots_.emplace_back(rest, packet_.size());
      const std::size_t size = std::min(rest.find('.'), rest.size());
      packet_.push_back(static_cast<std::uint8_t>(size));
      for (const char c : rest.substr(0, size)) {
        const bool letter = c >= 'a' && c <= 'z';
        packet_.push_back(static_cast<std::uint8_t>(letter && upper ? c - 32 : c));
      }
      rest.remove_prefix(std::min(size + 1, rest.size()));
    }
  }
  // RFC 9460: a target is not compressed.
  void full_name() { add(wire(kNames[source_.below(12)])); }

  std::uint32_t some_ttl() {
    static constexpr std::array<std::uint32_t, 8> kTtls{0,     1,          60,         300,
                                                        86400, 0x7fffffff, 0x80000000, 0xffffffff};
    return kTtls[source_.below(8)];
  }

  void some_record() {
    some_name();
    const unsigned kind = one_in(2) ? asked_ : kTypes[source_.below(kTypes.size())];
    add(two(kind));
    add(two(one_in(32) ? source_.below(65536) : 1));
    add(four(some_ttl()));
    const std::size_t length_at = packet_.size();
    add(two(0));
    rdata(kind);
    std::size_t length = packet_.size() - length_at - 2;
    if (one_in(80)) length += source_.below(3);
    put16(length_at, static_cast<unsigned>(length));
  }

  // One that belongs to the answer: what was asked, a signature, or a link that leads on.
  void fitting_record() {
    const unsigned choice = source_.below(8);
    const unsigned kind = choice < 5   ? asked_
                          : choice < 7 ? unsigned{type::cname}
                                       : unsigned{type::rrsig};
    write_name(current_);
    add(two(kind));
    add(two(1));
    add(four(some_ttl()));
    const std::size_t length_at = packet_.size();
    add(two(0));
    if (kind == type::cname) {
      const std::string_view target = some();
      write_name(target);
      current_ = target;
    } else {
      rdata(kind);
    }
    put16(length_at, static_cast<unsigned>(packet_.size() - length_at - 2));
  }

  void rdata(unsigned kind) {
    switch (kind) {
      case type::a:
        return add({192, 0, static_cast<std::uint8_t>(source_.below(4)),
                    static_cast<std::uint8_t>(source_.below(8))});
      case type::aaaa: {
        Packet address = v6("2001:db8::");
        address[15] = static_cast<std::uint8_t>(source_.below(8));
        return add(address);
      }
      case type::ns:
      case type::cname:
      case type::ptr:
      case type::dname:
      case 3:
      case 4:
      case 7:
      case 8:
      case 9:
        return some_name();
      case type::soa:
        some_name();
        some_name();
        return add(Packet(20, static_cast<std::uint8_t>(source_.below(256))));
      case 14:
      case 17:
        some_name();
        return some_name();
      case type::mx:
      case 18:
      case 21:
      case 36:
        add(two(10));
        return some_name();
      case 26:
        add(two(10));
        some_name();
        return some_name();
      case type::srv:
        add(Packet(6, 1));
        return some_name();
      case 35:
        add(two(1));
        add(two(2));
        add({1, 'u', 3, 'a', 'b', 'c', 0});
        return some_name();
      case 24:
      case type::rrsig:
        add(two(one_in(2) ? asked_ : kTypes[source_.below(kTypes.size())]));
        add({8, 2});
        add(Packet(14, 3));
        some_name();
        return add(Packet(4 + source_.below(8), 9));
      case 30:
      case type::nsec:
        some_name();
        return add({0, 1, 0x40});
      case type::svcb:
      case type::https:
        add(two(source_.below(3)));
        full_name();
        return params();
      case type::txt:
        return add({3, 'a', 'b', 'c'});
      case type::ds:
        return add(Packet(24, 1));
      default:
        return add(Packet(source_.below(12), static_cast<std::uint8_t>(source_.below(256))));
    }
  }

  void params() {
    unsigned key = 0;
    if (one_in(3)) add(param(0, one_in(2) ? two(4) : joined({two(4), two(6)})));
    while (!one_in(3) && key < 8) {
      key += 1 + source_.below(3);
      unsigned size = key == 4   ? 4 * (1 + source_.below(3))
                      : key == 6 ? 16 * (1 + source_.below(2))
                                 : source_.below(6);
      if (one_in(60)) size += 1;
      Packet value(size);
      for (std::size_t i = 0; i < value.size(); ++i)
        value[i] = static_cast<std::uint8_t>(i % 4 == 3 ? source_.below(8) : 192);
      add(param(key, value));
    }
  }

  void opt() {
    packet_.push_back(0);
    add(two(type::opt));
    add(two(source_.below(8) * 600));
    add({static_cast<std::uint8_t>(one_in(12) ? 1 : 0),
         static_cast<std::uint8_t>(one_in(16) ? 1 : 0),
         static_cast<std::uint8_t>(one_in(2) ? 0x80 : 0), 0});
    Packet options;
    while (one_in(3))
      options = joined({options, param(source_.below(20), Packet(source_.below(12), 7))});
    add(two(static_cast<unsigned>(options.size())));
    add(options);
  }

  void damage() {
    switch (source_.below(4)) {
      case 0:
        packet_.resize(source_.below(static_cast<unsigned>(packet_.size())));
        return;
      case 1:
        add(Packet(1 + source_.below(4), 0));
        return;
      default:
        for (unsigned i = 0, count = 1 + source_.below(4); i < count; ++i)
          packet_[source_.below(static_cast<unsigned>(packet_.size()))] =
              static_cast<std::uint8_t>(source_.below(256));
        return;
    }
  }

  Source& source_;
  Packet packet_;
  unsigned asked_ = type::a;
  std::string_view current_;  // where the chain leads so far
  std::vector<std::pair<std::string_view, std::size_t>> spots_;
};

}  // namespace dns_test
