#include "plugins/name_values.hpp"

#include <algorithm>
#include <cstddef>

#include "plugins/abi_values.hpp"

namespace sluice {
namespace {

constexpr std::size_t kLongestName = 1024;    // 255 octets, each as \DDD
constexpr std::size_t kLongestReason = 1024;  // of a text for people; the rest is cut off
constexpr std::size_t kMostAddresses = 4096;
constexpr std::size_t kLongestChain = 256;
constexpr std::size_t kMostReports = 65536;  // of one call

Result<std::string> name_from(const sluice_string& raw, const char* what) {
  const auto text = abi::view(raw);
  if (text.empty()) return fail("{} is empty; the root is written \".\"", what);
  if (text.size() > kLongestName)
    return fail_with(E2BIG, "{} has {} bytes; at most {} are taken", what, text.size(),
                     kLongestName);
  return std::string(text);
}

std::string_view cut(const sluice_string& raw, std::size_t longest) {
  return abi::view(raw).substr(0, longest);
}

// Null data with a count, or an absurd count.
Status check_list(const void* list, std::size_t count, std::size_t most, const char* what) {
  if (count > most) return fail_with(E2BIG, "{} {}; at most {} are taken", count, what, most);
  if (count > 0 && list == nullptr) return fail("{} {} and no list of them", count, what);
  return {};
}

}  // namespace

Result<NameQuery> NameQuery::from(const sluice_query* writers) {
  if (writers == nullptr) return fail("no query was given");
  const auto raw = abi::known_part(writers);
  auto name = name_from(raw.name, "the query's name");
  if (!name) return std::unexpected(name.error());
  return NameQuery{
      .id = raw.id, .attachment = {raw.attachment}, .name = std::move(*name), .type = raw.type};
}

Result<std::shared_ptr<const NameDecision>> NameDecision::from(
    const sluice_decision_made* writers) {
  if (writers == nullptr) return fail("no decision was given");
  const auto raw = abi::known_part(writers);
  if (raw.action > SLUICE_DECISION_DENY)
    return fail("action {} is none of 0 (no opinion), 1 (allow) and 2 (deny)", raw.action);
  if (auto ports = abi::ports_from(raw.ports, raw.port_count); !ports)
    return std::unexpected(ports.error());
  if (auto status = check_list(raw.addresses, raw.address_count, kMostAddresses, "addresses");
      !status)
    return std::unexpected(status.error());
  if (auto addresses = abi::addresses_from(raw.addresses, raw.address_count); !addresses)
    return std::unexpected(addresses.error());
  if (auto ranges = abi::prefixes_from(raw.ranges, raw.range_count); !ranges)
    return std::unexpected(ranges.error());
  std::shared_ptr<NameDecision> made(new NameDecision);
  made->ports_.assign(raw.ports, raw.ports + raw.port_count);
  made->addresses_.assign(raw.addresses, raw.addresses + raw.address_count);
  made->ranges_.assign(raw.ranges, raw.ranges + raw.range_count);
  made->reason_ = cut(raw.reason, kLongestReason);
  made->raw_ = raw;
  made->raw_.size = sizeof made->raw_;
  made->raw_.ports = made->ports_.data();
  made->raw_.addresses = made->addresses_.data();
  made->raw_.ranges = made->ranges_.data();
  made->raw_.reason = abi::raw(made->reason_);
  return made;
}

std::shared_ptr<const NameDecision> NameDecision::none(std::string reason) {
  std::shared_ptr<NameDecision> made(new NameDecision);
  made->reason_ = std::move(reason);
  made->raw_.size = sizeof made->raw_;
  made->raw_.action = SLUICE_DECISION_NONE;
  made->raw_.reason = abi::raw(made->reason_);
  return made;
}

Result<std::shared_ptr<const NameAnswer>> NameAnswer::from(const sluice_answer* writers) {
  if (writers == nullptr) return fail("no answer was given");
  const auto raw = abi::known_part(writers);
  std::shared_ptr<NameAnswer> made(new NameAnswer);
  auto name = name_from(raw.name, "the answer's name");
  if (!name) return std::unexpected(name.error());
  made->name_ = std::move(*name);
  if (auto status = check_list(raw.chain, raw.chain_count, kLongestChain, "names of the chain");
      !status)
    return std::unexpected(status.error());
  for (std::size_t i = 0; i < raw.chain_count; ++i) {
    auto link = name_from(raw.chain[i], "a name of the chain");
    if (!link) return std::unexpected(link.error());
    made->names_.push_back(std::move(*link));
  }
  if (auto status = check_list(raw.addresses, raw.address_count, kMostAddresses, "addresses");
      !status)
    return std::unexpected(status.error());
  for (std::size_t i = 0; i < raw.address_count; ++i) {
    const auto family = raw.addresses[i].family;
    if (family != 4 && family != 6)
      return fail("address {}: family {} is neither 4 nor 6", i, family);
  }
  made->addresses_.assign(raw.addresses, raw.addresses + raw.address_count);
  for (const auto& link : made->names_) made->chain_.push_back(abi::raw(link));
  made->raw_ = raw;
  made->raw_.size = sizeof made->raw_;
  made->raw_.name = abi::raw(made->name_);
  made->raw_.chain = made->chain_.data();
  made->raw_.addresses = made->addresses_.data();
  return made;
}

sluice_string NameReports::keep(const sluice_string& raw) {
  const auto text = cut(raw, kLongestReason);
  const auto at = texts_.size();
  texts_ += text;
  return {texts_.data() + at, text.size()};
}

Result<std::shared_ptr<const NameReports>> NameReports::from(const sluice_query_report* raw,
                                                             std::size_t count) {
  if (auto status = check_list(raw, count, kMostReports, "reports"); !status)
    return std::unexpected(status.error());
  std::shared_ptr<NameReports> made(new NameReports);
  if (count == 0) return made;
  constexpr auto kSmallest = offsetof(sluice_query_report, push_ns) + sizeof raw->push_ns;
  if (raw->size < kSmallest)
    return fail("reports of {} bytes each; ABI 1.1 has {}", raw->size, kSmallest);
  std::size_t text_bytes = 0, address_count = 0;
  made->raw_.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    const auto* writers = abi::element(raw, i);
    if (writers->size != raw->size) return fail("report {} has another size than the first", i);
    const auto& one = made->raw_.emplace_back(abi::known_part(writers));
    if (auto status = check_list(one.addresses, one.address_count, kMostAddresses, "addresses");
        !status)
      return std::unexpected(status.error());
    address_count += one.address_count;
    for (const auto* text : {&one.name, &one.rule, &one.reason, &one.upstream})
      text_bytes += cut(*text, kLongestReason).size();
  }
  made->texts_.reserve(text_bytes);
  made->addresses_.reserve(address_count);
  for (auto& one : made->raw_) {
    one.size = sizeof one;
    one.name = made->keep(one.name);
    one.rule = made->keep(one.rule);
    one.reason = made->keep(one.reason);
    one.upstream = made->keep(one.upstream);
    const auto at = made->addresses_.size();
    made->addresses_.insert(made->addresses_.end(), one.addresses,
                            one.addresses + one.address_count);
    one.addresses = made->addresses_.data() + at;
  }
  return made;
}

}  // namespace sluice
