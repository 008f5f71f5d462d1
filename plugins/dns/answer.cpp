// SPDX-License-Identifier: Apache-2.0
#include "dns/answer.hpp"

#include <algorithm>
#include <cstring>

#include "dns/rdata.hpp"

namespace sluice::dns {
namespace {

// What may stand beside a CNAME (RFC 2181 section 10.1, RFC 4034 section 2.5, and what they
// replaced).
bool may_join_cname(std::uint16_t type) {
  switch (type) {
    case type::rrsig:
    case type::nsec:
    case 24:  // SIG
    case 25:  // KEY
    case 30:  // NXT
      return true;
    default:
      return false;
  }
}

// Asking for these gets the link itself, not what it leads to.
bool follows_links(std::uint16_t asked) {
  return asked != type::cname && asked != type::any;
}

bool answers_type(std::uint16_t asked, std::uint16_t type) {
  return type == asked || asked == type::any;
}

Name name_at(Bytes message, std::size_t offset) {
  Name name;
  (void)read_name(message, offset, name);  // parse() has
  return name;
}

}  // namespace

std::string_view describe(AnswerFault fault) {
  switch (fault) {
    case AnswerFault::truncated:
      return "truncated";
    case AnswerFault::rcode:
      return "the upstream answers with an error";
    case AnswerFault::contradiction:
      return "NXDOMAIN with data";
    case AnswerFault::not_in:
      return "a record that is not of class IN";
    case AnswerFault::cname_conflict:
      return "two CNAMEs at one name";
    case AnswerFault::cname_and_data:
      return "a CNAME and other data at one name";
    case AnswerFault::dname_conflict:
      return "a DNAME that another record contradicts";
    case AnswerFault::name_too_long:
      return "a DNAME that makes a name of over 255 bytes";
    case AnswerFault::loop:
      return "a CNAME loop";
    case AnswerFault::too_many_links:
      return "too many CNAME or DNAME records";
    case AnswerFault::too_many_targets:
      return "too many SVCB or HTTPS targets";
    case AnswerFault::too_many_addresses:
      return "too many addresses";
  }
  return "?";
}

void Answer::clear() {
  chain_ = count_ = grants_ = data_ = link_records_ = 0;
  least_ttl_ = UINT32_MAX;
  foreign_ = false;
}

std::expected<void, AnswerFault> Answer::read(const MessageView& response) {
  clear();
  auto read = read_all(response);
  if (!read) clear();
  return read;
}

std::expected<void, AnswerFault> Answer::read_all(const MessageView& response) {
  if (response.header().truncated()) return std::unexpected(AnswerFault::truncated);
  const std::uint16_t rcode = response.rcode();
  const bool nxdomain = rcode == static_cast<std::uint16_t>(Rcode::nxdomain);
  if (rcode != 0 && !nxdomain) return std::unexpected(AnswerFault::rcode);
  if (response.question().klass != kClassIn) return std::unexpected(AnswerFault::not_in);
  if (const auto collected = collect_links(response); !collected) return collected;

  names_[0] = response.question().name;
  chain_ = 1;
  if (follows_links(response.question().type)) {
    for (;;) {
      const auto followed = follow(response);
      if (!followed) return std::unexpected(followed.error());
      if (!*followed) break;
    }
  }
  count_ = chain_;
  if (const auto collected = collect_data(response); !collected) return collected;
  if (nxdomain && data_ != 0) return std::unexpected(AnswerFault::contradiction);
  return {};
}

std::expected<void, AnswerFault> Answer::collect_links(const MessageView& response) {
  for (const Record& record : response.records()) {
    if (record.section != Section::answer) break;
    if (record.klass != kClassIn) return std::unexpected(AnswerFault::not_in);
    if (record.type != type::cname && record.type != type::dname) continue;
    if (link_records_ == links_.size()) return std::unexpected(AnswerFault::too_many_links);
    links_[link_records_++] = {.offset = record.offset,
                               .rdata = record.ttl_offset + 6,
                               .ttl = sane_ttl(record.ttl),
                               .type = record.type};
  }
  return {};
}

// One step from the chain's end; false where no link leads on.
std::expected<bool, AnswerFault> Answer::follow(const MessageView& response) {
  const Bytes message = response.bytes();
  const Name& from = names_[chain_ - 1];
  LinkRecord* cname = nullptr;
  LinkRecord* dname = nullptr;
  Name dname_owner;
  bool dname_here = false;
  for (LinkRecord& link : std::span(links_).first(link_records_)) {
    if (link.type == type::cname) {
      if (!name_at_is(message, link.offset, from)) continue;
      if (!cname) {
        cname = &link;
      } else if (!name_at_is(message, link.rdata, name_at(message, cname->rdata))) {
        return std::unexpected(AnswerFault::cname_conflict);
      }
      continue;
    }
    const Name owner = name_at(message, link.offset);
    dname_here |= owner == from;
    if (!from.is_below(owner)) continue;
    if (!dname) {
      dname = &link;
      dname_owner = owner;
    } else if (owner != dname_owner ||
               !name_at_is(message, link.rdata, name_at(message, dname->rdata))) {
      return std::unexpected(AnswerFault::dname_conflict);
    }
  }
  if (!cname && !dname) return false;
  if (cname && dname_here) return std::unexpected(AnswerFault::dname_conflict);
  if (chain_ > kMostLinks) return std::unexpected(AnswerFault::too_many_links);

  Name& to = names_[chain_];
  if (dname) {
    const auto target = from.substituted(dname_owner, name_at(message, dname->rdata));
    if (!target) return std::unexpected(AnswerFault::name_too_long);
    to = *target;
    if (cname && !name_at_is(message, cname->rdata, to))
      return std::unexpected(AnswerFault::dname_conflict);
  } else {
    to = name_at(message, cname->rdata);
  }
  if (std::ranges::find(chain(), to) != chain().end()) return std::unexpected(AnswerFault::loop);
  for (LinkRecord* link : {cname, dname}) {
    if (!link) continue;
    // A DNAME may serve more than one step; it then keeps the first.
    if (!link->used) link->from = static_cast<std::uint8_t>(chain_ - 1);
    link->used = true;
    least_ttl_ = std::min(least_ttl_, link->ttl);
  }
  ++chain_;
  return true;
}

Answer::Place Answer::place(const MessageView& response, const Record& record) const {
  const Bytes message = response.bytes();
  if (record.section != Section::answer || chain_ == 0) return {};
  if (record.type == type::cname || record.type == type::dname)
    for (const LinkRecord& link : std::span(links_).first(link_records_))
      if (link.offset == record.offset && link.used) return {.part = Part::link, .name = link.from};
  const auto end = static_cast<std::uint16_t>(chain_ - 1);
  const std::uint16_t asked = response.question().type;
  // What was asked for by name is data, also a signature; beside other data it is a signature.
  if (record.type != type::rrsig || asked == type::rrsig) {
    if (answers_type(asked, record.type) && name_at_is(message, record.offset, names_[end]))
      return {.part = Part::data, .name = end};
    return {};
  }
  if (record.rdata.size() < 2) return {};
  const std::uint16_t covered = load16(record.rdata.data());
  if (answers_type(asked, covered) && name_at_is(message, record.offset, names_[end]))
    return {.part = Part::signature, .name = end};
  if (covered != type::cname && covered != type::dname) return {};
  // A link's owner is the name that it leads from, or above it. Read once: there may be thousands
  // of signatures, and names of 127 labels.
  const Name owner = response.owner(record);
  for (const LinkRecord& link : std::span(links_).first(link_records_))
    if (link.used && link.type == covered && names_[link.from].is_same_or_below(owner) &&
        name_at_is(message, link.offset, owner))
      return {.part = Part::signature, .name = link.from};
  return {};
}

bool Answer::add(const std::uint8_t* bytes, std::uint8_t family, std::size_t name, bool hint,
                 std::uint32_t ttl) {
  if (grants_ == storage_.size()) return false;
  Grant& grant = storage_[grants_++];
  grant = {.address = {.family = family},
           .name = static_cast<std::uint16_t>(name),
           .hint = hint,
           .ttl = ttl};
  std::memcpy(grant.address.bytes.data(), bytes, family == 4 ? 4 : 16);
  return true;
}

std::expected<void, AnswerFault> Answer::collect_data(const MessageView& response) {
  const Bytes message = response.bytes();
  const std::uint16_t asked = response.question().type;
  const bool followed = follows_links(asked);
  for (const Record& record : response.records()) {
    if (record.section != Section::answer) break;
    const Place where = place(response, record);
    if (where.part == Part::foreign) {
      foreign_ = true;
      // At a name that a CNAME leads away from, nothing else may be.
      if (!followed || record.type == type::cname || may_join_cname(record.type)) continue;
      for (const LinkRecord& link : std::span(links_).first(link_records_))
        if (link.used && link.type == type::cname &&
            name_at_is(message, record.offset, names_[link.from]))
          return std::unexpected(AnswerFault::cname_and_data);
      continue;
    }
    if (where.part != Part::data) continue;
    ++data_;
    const std::uint32_t ttl = sane_ttl(record.ttl);
    least_ttl_ = std::min(least_ttl_, ttl);
    switch (record.type) {
      case type::a:
      case type::aaaa:
        if (!add(record.rdata.data(), record.type == type::a ? 4 : 6, chain_ - 1, false, ttl))
          return std::unexpected(AnswerFault::too_many_addresses);
        break;
      case type::svcb:
      case type::https:
        if (const auto collected = collect_hints(response, record); !collected) return collected;
        break;
      default:
        break;
    }
  }
  return {};
}

std::expected<void, AnswerFault> Answer::collect_hints(const MessageView& response,
                                                       const Record& record) {
  const std::size_t target_at = record.ttl_offset + 6 + 2;
  Name target;
  const std::size_t params_at =
      read_name(response.bytes(), target_at, target).value_or(record.end());
  Bytes params = response.bytes().subspan(params_at, record.end() - params_at);
  std::size_t name = chain_ - 1;  // "." is the owner itself (RFC 9460 section 2.5.2)
  bool named = target.is_root();
  while (!params.empty()) {
    const SvcParam param = take_svc_param(params);
    if (param.key != kSvcIpv4Hint && param.key != kSvcIpv6Hint) continue;
    if (!named) {
      const auto known = std::ranges::find(names(), target);
      name = static_cast<std::size_t>(known - names().begin());
      if (name == count_) {
        if (count_ == names_.size() || count_ == chain_ + kMostTargets)
          return std::unexpected(AnswerFault::too_many_targets);
        names_[count_++] = target;
      }
      named = true;
    }
    const std::uint8_t family = param.key == kSvcIpv4Hint ? 4 : 6;
    const std::size_t step = family == 4 ? 4 : 16;
    for (std::size_t at = 0; at < param.value.size(); at += step)
      if (!add(param.value.data() + at, family, name, true, sane_ttl(record.ttl)))
        return std::unexpected(AnswerFault::too_many_addresses);
  }
  return {};
}

std::optional<std::uint32_t> negative_ttl(const MessageView& response, const Name& name) {
  for (const Record& record : response.records()) {
    if (record.section == Section::additional) break;
    if (record.section != Section::authority || record.type != type::soa ||
        record.klass != kClassIn)
      continue;
    if (!name.is_same_or_below(response.owner(record))) continue;
    const std::uint32_t minimum = load32(record.rdata.data() + record.rdata.size() - 4);
    return std::min(sane_ttl(record.ttl), sane_ttl(minimum));
  }
  return std::nullopt;
}

}  // namespace sluice::dns
