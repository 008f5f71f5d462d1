#include "static/record_type.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <string>

#include "config/errors.hpp"

namespace sluice::static_policy {
namespace {

struct RecordType {
  std::string_view name;
  std::uint16_t number;
};
// IANA "Resource Record (RR) TYPEs": those in use. Others are written TYPEnnn (RFC 3597).
constexpr std::array kTypes = std::to_array<RecordType>({
    {"A", 1},           {"NS", 2},      {"CNAME", 5},   {"SOA", 6},       {"PTR", 12},
    {"HINFO", 13},      {"MX", 15},     {"TXT", 16},    {"RP", 17},       {"AFSDB", 18},
    {"SIG", 24},        {"KEY", 25},    {"AAAA", 28},   {"LOC", 29},      {"SRV", 33},
    {"NAPTR", 35},      {"KX", 36},     {"CERT", 37},   {"DNAME", 39},    {"OPT", 41},
    {"APL", 42},        {"DS", 43},     {"SSHFP", 44},  {"IPSECKEY", 45}, {"RRSIG", 46},
    {"NSEC", 47},       {"DNSKEY", 48}, {"DHCID", 49},  {"NSEC3", 50},    {"NSEC3PARAM", 51},
    {"TLSA", 52},       {"SMIMEA", 53}, {"HIP", 55},    {"CDS", 59},      {"CDNSKEY", 60},
    {"OPENPGPKEY", 61}, {"CSYNC", 62},  {"ZONEMD", 63}, {"SVCB", 64},     {"HTTPS", 65},
    {"EUI48", 108},     {"EUI64", 109}, {"TKEY", 249},  {"TSIG", 250},    {"IXFR", 251},
    {"AXFR", 252},      {"MAILB", 253}, {"MAILA", 254}, {"ANY", 255},     {"URI", 256},
    {"CAA", 257},
});
constexpr std::array kAlwaysPass = std::to_array<std::uint16_t>({1, 28, 64, 65});

// Decimal without sign, blanks or leading zeros.
bool read_number(std::string_view text, std::uint16_t& number) {
  if (text.empty() || (text.size() > 1 && text[0] == '0')) return false;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc{} && end == text.data() + text.size();
}

}  // namespace

Result<std::uint16_t> parse_record_type(std::string_view text) {
  std::string name(text);
  std::ranges::transform(name, name.begin(), [](char c) {
    return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  });
  std::uint16_t number = 0;
  if (const auto known = std::ranges::find(kTypes, name, &RecordType::name); known != kTypes.end())
    number = known->number;
  else if (!name.starts_with("TYPE") || !read_number(std::string_view(name).substr(4), number))
    return fail("{} is no DNS record type; write a name such as \"MX\", or a number as \"TYPE257\"",
                in_quotes(text));
  if (std::ranges::find(kAlwaysPass, number) != kAlwaysPass.end())
    return fail("{} always passes, and types takes nothing away; name further ones only",
                in_quotes(text));
  // RFC 6895: 0 is reserved, 41 is OPT, 128 to 255 ask for more than one type or are no data.
  if (number == 0 || number == 41 || (number >= 128 && number <= 255))
    return fail("{} is no type of record that a name can have", in_quotes(text));
  return number;
}

}  // namespace sluice::static_policy
