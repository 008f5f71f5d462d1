// SPDX-License-Identifier: Apache-2.0
#include "dns/rdata.hpp"

#include "dns/message.hpp"

namespace sluice::dns {
namespace {

bool mandatory_is_sound(Bytes keys) {
  if (keys.empty() || keys.size() % 2 != 0) return false;
  for (std::size_t at = 0; at < keys.size(); at += 2) {
    const std::uint16_t key = load16(keys.data() + at);
    // Ascending, and never "mandatory" itself.
    if (key == kSvcMandatory || (at > 0 && key <= load16(keys.data() + at - 2))) return false;
  }
  return true;
}

bool svc_params_are_sound(Bytes params) {
  std::int32_t last = -1;
  while (!params.empty()) {
    if (params.size() < 4) return false;
    const std::uint16_t key = load16(params.data());
    const std::size_t length = load16(params.data() + 2);
    if (params.size() - 4 < length || key <= last) return false;
    const Bytes value = params.subspan(4, length);
    if (key == kSvcMandatory && !mandatory_is_sound(value)) return false;
    if (key == kSvcIpv4Hint && (length == 0 || length % 4 != 0)) return false;
    if (key == kSvcIpv6Hint && (length == 0 || length % 16 != 0)) return false;
    last = key;
    params = params.subspan(4 + length);
  }
  return true;
}

}  // namespace

std::string_view rdata_layout(std::uint16_t type) {
  switch (type) {
    case type::a:
      return "4";
    case type::aaaa:
      return "i";
    case type::ns:
    case 3:  // MD
    case 4:  // MF
    case type::cname:
    case 7:  // MB
    case 8:  // MG
    case 9:  // MR
    case type::ptr:
    case type::dname:
      return "n";
    case type::soa:
      return "nn44444";
    case 14:  // MINFO
    case 17:  // RP
      return "nn";
    case type::mx:
    case 18:  // AFSDB
    case 21:  // RT
    case 36:  // KX
      return "2n";
    case 26:  // PX
      return "2nn";
    case type::srv:
      return "222n";
    case 35:  // NAPTR
      return "22sssn";
    case 24:  // SIG
    case type::rrsig:
      return "2114442n*";
    case 30:  // NXT
    case type::nsec:
      return "n*";
    case type::svcb:
    case type::https:
      return "2up";
    default:
      return {};
  }
}

bool rdata_is_sound(Bytes message, std::uint16_t type, std::size_t offset, std::size_t size,
                    NamePlaces& places) {
  const std::string_view layout = rdata_layout(type);
  if (layout.empty()) return true;
  const std::size_t end = offset + size;
  // What lies behind the data is none of its own; pointers go backward, so the front may stay.
  const Bytes within = message.first(end);
  std::size_t at = offset;
  for (const char part : layout) {
    const std::size_t left = end - at;
    switch (part) {
      case '1':
      case '2':
      case '4':
        if (left < static_cast<std::size_t>(part - '0')) return false;
        at += static_cast<std::size_t>(part - '0');
        break;
      case 'i':
        if (left < 16) return false;
        at += 16;
        break;
      case 's':
        if (left < 1 || left < 1 + std::size_t{message[at]}) return false;
        at += 1 + std::size_t{message[at]};
        break;
      case 'n': {
        const auto next = skip_name(within, at, places);
        if (!next) return false;
        at = *next;
        break;
      }
      case 'u': {
        for (std::size_t start = at;;) {
          if (at >= end || message[at] > kLongestLabel) return false;
          const std::uint8_t length = message[at];
          places.mark(at);
          at += 1 + std::size_t{length};
          if (at > end || at - start > kLongestName) return false;
          if (length == 0) break;
        }
        break;
      }
      case 'p':
        if (!svc_params_are_sound(message.subspan(at, left))) return false;
        at = end;
        break;
      default:
        at = end;
        break;
    }
  }
  return at == end;
}

SvcParam take_svc_param(Bytes& params) {
  const std::size_t length = load16(params.data() + 2);
  const SvcParam param{.key = load16(params.data()), .value = params.subspan(4, length)};
  params = params.subspan(4 + length);
  return param;
}

}  // namespace sluice::dns
