// DNS messages for tests, put together by parts. Names keep the case they are written in, and are
// compressed only where a test says so.
//
//   const Packet packet = Build().question("www.example", type::a).answer("www.example", type::a,
//   60, v4("192.0.2.1")).done();
#pragma once

#include <arpa/inet.h>

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "dns/address.hpp"
#include "dns/message.hpp"
#include "names/name.hpp"

namespace dns_test {

using Packet = std::vector<std::uint8_t>;
using sluice::dns::Section;
namespace type = sluice::dns::type;

inline Packet bytes(std::string_view text) {
  return Packet(text.begin(), text.end());
}

inline sluice::dns::Name name(std::string_view text) {
  const auto read = sluice::dns::Name::from_text(text);
  if (!read) throw std::invalid_argument(std::string(text));
  return *read;
}

inline Packet joined(std::initializer_list<Packet> parts) {
  Packet all;
  for (const Packet& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

inline Packet two(unsigned value) {
  return {static_cast<std::uint8_t>(value >> 8), static_cast<std::uint8_t>(value)};
}

inline Packet four(std::uint32_t value) {
  return joined({two(value >> 16), two(value & 0xffff)});
}

// Dots separate labels, no escapes, the case stays.
inline Packet wire(std::string_view text) {
  Packet all;
  while (!text.empty() && text != ".") {
    const std::size_t size = std::min(text.find('.'), text.size());
    all.push_back(static_cast<std::uint8_t>(size));
    all.insert(all.end(), text.begin(), text.begin() + static_cast<std::ptrdiff_t>(size));
    text.remove_prefix(std::min(size + 1, text.size()));
  }
  all.push_back(0);
  return all;
}

inline Packet v4(const std::string& text) {
  Packet address(4);
  if (inet_pton(AF_INET, text.c_str(), address.data()) != 1) throw std::invalid_argument(text);
  return address;
}

inline Packet v6(const std::string& text) {
  Packet address(16);
  if (inet_pton(AF_INET6, text.c_str(), address.data()) != 1) throw std::invalid_argument(text);
  return address;
}

inline Packet param(unsigned key, const Packet& value) {
  return joined({two(key), two(static_cast<unsigned>(value.size())), value});
}

inline Packet svc(unsigned priority, std::string_view target, const Packet& params = {}) {
  return joined({two(priority), wire(target), params});
}

inline Packet soa(std::string_view server, std::uint32_t minimum) {
  return joined({wire(server), wire("hostmaster.example"), four(1), four(2), four(3), four(4),
                 four(minimum)});
}

inline Packet rrsig(unsigned covered, std::string_view signer) {
  return joined({two(covered),
                 {8, 2},
                 four(60),
                 four(2000000000),
                 four(1000000000),
                 two(7),
                 wire(signer),
                 bytes("signature")});
}

class Build {
 public:
  explicit Build(unsigned flags = 0x8180, unsigned id = 0x1234) {
    packet_.assign(12, 0);
    put16(0, id);
    put16(2, flags);
  }

  // From here on owner names are compressed against owners and questions before.
  Build& compress() {
    compress_ = true;
    return *this;
  }
  Build& question(std::string_view owner, unsigned kind, unsigned klass = 1) {
    owner_name(owner);
    append(two(kind));
    append(two(klass));
    return count(4);
  }
  Build& record(Section section, std::string_view owner, unsigned kind, std::uint32_t ttl,
                const Packet& rdata, unsigned klass = 1) {
    owner_name(owner);
    append(two(kind));
    append(two(klass));
    append(four(ttl));
    append(two(static_cast<unsigned>(rdata.size())));
    append(rdata);
    return count(6 + 2 * static_cast<std::size_t>(section));
  }
  Build& answer(std::string_view owner, unsigned kind, std::uint32_t ttl, const Packet& rdata,
                unsigned klass = 1) {
    return record(Section::answer, owner, kind, ttl, rdata, klass);
  }
  Build& authority(std::string_view owner, unsigned kind, std::uint32_t ttl, const Packet& rdata) {
    return record(Section::authority, owner, kind, ttl, rdata);
  }
  Build& additional(std::string_view owner, unsigned kind, std::uint32_t ttl, const Packet& rdata) {
    return record(Section::additional, owner, kind, ttl, rdata);
  }
  // A record whose data is a name; compressed where compress() says so.
  Build& link(std::string_view owner, unsigned kind, std::uint32_t ttl, std::string_view target,
              Section section = Section::answer) {
    record(section, owner, kind, ttl, {});
    const std::size_t length_at = packet_.size() - 2;
    owner_name(target);
    put16(length_at, static_cast<unsigned>(packet_.size() - length_at - 2));
    return *this;
  }
  Build& opt(unsigned udp_size, bool dnssec_ok = false, unsigned version = 0, unsigned rcode = 0,
             const Packet& options = {}) {
    return record(Section::additional, ".", type::opt,
                  rcode << 24 | version << 16 | (dnssec_ok ? 0x8000u : 0u), options, udp_size);
  }
  Build& append(const Packet& raw) {
    packet_.insert(packet_.end(), raw.begin(), raw.end());
    return *this;
  }
  Build& put16(std::size_t at, unsigned value) {
    packet_[at] = static_cast<std::uint8_t>(value >> 8);
    packet_[at + 1] = static_cast<std::uint8_t>(value);
    return *this;
  }
  [[nodiscard]] const Packet& done() const { return packet_; }
  [[nodiscard]] std::size_t size() const { return packet_.size(); }

 private:
  Build& count(std::size_t at) { return put16(at, (packet_[at] << 8 | packet_[at + 1]) + 1u); }

  void owner_name(std::string_view text) {
    while (!text.empty() && text != ".") {
      if (const auto seen = seen_.find(std::string(text)); compress_ && seen != seen_.end()) {
        append(two(0xc000u | static_cast<unsigned>(seen->second)));
        return;
      }
      if (packet_.size() < 0x4000) seen_.emplace(text, packet_.size());
      const std::size_t size = std::min(text.find('.'), text.size());
      packet_.push_back(static_cast<std::uint8_t>(size));
      append(bytes(text.substr(0, size)));
      text.remove_prefix(std::min(size + 1, text.size()));
    }
    packet_.push_back(0);
  }

  Packet packet_;
  bool compress_ = false;
  std::map<std::string, std::size_t> seen_;
};

// A message without reading it must: throws where it does not parse. The packet must outlive the
// view.
inline sluice::dns::MessageView view(const Packet& packet) {
  const auto read = sluice::dns::MessageView::parse(packet);
  if (!read) throw std::invalid_argument(std::string(describe(read.error())));
  return *read;
}

// One record as text: "answer www.example 1 60 c0000201" (type and TTL as numbers, data in hex).
inline std::string shown(const sluice::dns::MessageView& message,
                         const sluice::dns::Record& record) {
  static constexpr const char* kSections[] = {"answer", "authority", "additional"};
  std::string text = kSections[static_cast<int>(record.section)];
  text += " ";
  text += message.owner(record).text().view();
  text += " " + std::to_string(record.type) + " " + std::to_string(record.ttl) + " ";
  static constexpr char kHex[] = "0123456789abcdef";
  for (const std::uint8_t byte : record.rdata) {
    text += kHex[byte >> 4];
    text += kHex[byte & 15];
  }
  return text;
}

}  // namespace dns_test
