// Random packets by structure: headers that mostly make sense, to addresses a policy speaks of,
// then a few wrong bytes, a cut or a lie about a length.
#pragma once

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "packet/verdicts/packets.hpp"

namespace sluice::test {

inline const std::vector<std::string> kProbe4{
    "198.51.100.7", "198.51.100.66", "198.51.100.99",  "203.0.113.10",    "203.0.113.11",
    "203.0.113.20", "203.0.113.30",  "203.0.113.50",   "169.254.169.254", "192.0.2.1",
    "192.0.2.77",   "239.1.1.1",     "255.255.255.255"};
inline const std::vector<std::string> kProbe6{"2001:db8:a::7",
                                              "2001:db8:a:66::1",
                                              "2001:db8:a::99",
                                              "2001:db8:b::10",
                                              "2001:db8:b::11",
                                              "2001:db8:b::20",
                                              "2001:db8:b::30",
                                              "2001:db8:f::50",
                                              "fd00:ec2::254",
                                              "64:ff9b::198.51.100.7",
                                              "64:ff9b::198.51.100.66",
                                              "2002:c633:6407::1",
                                              "fe80::1",
                                              "ff02::1",
                                              "ff02::16",
                                              "ff02::1:2",
                                              "2001:db8::1",
                                              "::ffff:198.51.100.7",
                                              "64:ff9b:1::203.0.113.10",
                                              "2002:a9fe:a9fe::1"};

class PacketMaker {
 public:
  explicit PacketMaker(std::uint64_t seed) : engine_(seed) {}

  // The EtherType and the packet from its network header on.
  [[nodiscard]] std::pair<std::uint16_t, Bytes> next() {
    const bool six = chance(50);
    Bytes packet = six ? packet6() : packet4();
    if (chance(12) && packet.size() > 1) packet.resize(below(packet.size()) + 1);
    if (chance(8)) packet = packet + zeros(below(12) + 1);
    if (chance(30))
      for (std::size_t n = 1 + below(3); n > 0 && !packet.empty(); --n)
        packet[below(std::min<std::size_t>(packet.size(), 100))] =
            static_cast<std::uint8_t>(below(256));
    const bool lies = chance(2);
    return {six != lies ? kIp6Type : kIp4Type, packet};
  }
  std::size_t below(std::size_t n) {
    return std::uniform_int_distribution<std::size_t>(0, n - 1)(engine_);
  }
  bool chance(std::size_t percent) { return below(100) < percent; }

 private:
  template <typename T>
  const T& one_of(const std::vector<T>& values) {
    return values[below(values.size())];
  }
  std::uint16_t port() {
    static const std::vector<std::uint16_t> ports{25,  53,  67,   68,   80,   443,  444,
                                                  546, 547, 5000, 5001, 8000, 8100, 8101};
    return one_of(ports);
  }
  std::pair<std::uint8_t, Bytes> transport(bool six) {
    static const std::vector<std::uint8_t> flags{kSyn,        kSyn | kAck, kAck, kRst,
                                                 kFin | kAck, 0,           0xff};
    const Bytes payload = zeros(below(20));
    switch (below(8)) {
      case 0:
      case 1:
      case 2:
        return {6, tcp(port(), port(), one_of(flags)) + payload};
      case 3:
      case 4:
        return {17, udp(port(), port(), payload)};
      case 5: {
        static const std::vector<std::uint8_t> types4{0, 3, 8, 11, 13};
        static const std::vector<std::uint8_t> types6{1,   128, 129, 130, 131, 133,
                                                      134, 135, 136, 137, 143};
        return {six ? 58 : 1, icmp(one_of(six ? types6 : types4), 0,
                                   static_cast<std::uint16_t>(below(2)), payload)};
      }
      default: {
        static const std::vector<std::uint8_t> others{1,  4,  33, 41,  47,  50,
                                                      51, 58, 59, 132, 136, 253};
        return {one_of(others), be16(port()) + be16(port()) + zeros(below(24))};
      }
    }
  }
  Bytes packet4() {
    auto [protocol, payload] = transport(false);
    Ip4 with;
    static const std::vector<std::uint8_t> ttls{1, 64, 255};
    with.ttl = one_of(ttls);
    if (chance(15))
      with.fragment = static_cast<std::uint16_t>(below(4) | (chance(50) ? 0x2000 : 0));
    if (chance(15)) {
      static const std::vector<std::uint8_t> bytes{0, 1, 1, 1, 2, 3, 4, 5, 7, 8, 68, 131, 137, 148};
      for (std::size_t n = 4 * (1 + below(10)); n > 0; --n) with.options.push_back(one_of(bytes));
    }
    if (chance(4)) with.header_words = static_cast<std::uint8_t>(below(16));
    if (chance(4)) with.total = static_cast<std::uint16_t>(below(120));
    if (chance(2)) with.version = static_cast<std::uint8_t>(below(16));
    return ip4(chance(90) ? "192.0.2.2" : one_of(kProbe4), one_of(kProbe4), protocol, payload,
               with);
  }
  Bytes packet6() {
    auto [protocol, payload] = transport(true);
    if (chance(35)) {
      for (std::size_t n = 1 + below(chance(90) ? 4 : 10); n > 0; --n) {
        const std::size_t kind = below(12);
        const std::uint8_t next = protocol;
        if (kind < 5) {
          payload =
              options_header(next, static_cast<std::uint8_t>(chance(95) ? below(3) : below(64))) +
              payload;
          protocol = n == 1 && chance(60) ? 0 : 60;
        } else if (kind < 8) {
          payload = fragment_header(next, static_cast<std::uint16_t>(chance(50) ? 0 : below(4)),
                                    chance(50), static_cast<std::uint8_t>(below(2))) +
                    payload;
          protocol = 44;
        } else if (kind == 8) {
          payload = routing_header(next, static_cast<std::uint8_t>(below(2))) + payload;
          protocol = 43;
        } else if (kind < 11) {
          payload = authentication_header(next, static_cast<std::uint8_t>(below(6))) + payload;
          protocol = 51;
        } else {
          static const std::vector<std::uint8_t> rare{135, 139, 140, 0};
          payload = options_header(next) + payload;
          protocol = one_of(rare);
        }
      }
    }
    Ip6 with;
    static const std::vector<std::uint8_t> limits{1, 64, 254, 255, 255};
    with.hop_limit = one_of(limits);
    if (chance(4)) with.payload_length = static_cast<std::uint16_t>(below(120));
    if (chance(2)) with.version = static_cast<std::uint8_t>(below(16));
    return ip6(chance(85) ? "2001:db8::2" : "::", one_of(kProbe6), protocol, payload, with);
  }
  std::mt19937_64 engine_;
};

}  // namespace sluice::test
