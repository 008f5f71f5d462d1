// SPDX-License-Identifier: Apache-2.0
// What an answer may grant: addresses on one acyclic CNAME/DNAME chain that is rooted in the
// question, in the answer section, of one response. Everything else grants nothing.
//
//   Answer answer(storage);                                 // per worker, used again and again
//   if (const auto read = answer.read(message); !read) ...  // refuse: describe(read.error())
//   for (const Name& name : answer.chain()) ...             // deny rules hold for each link
//   for (Grant& grant : answer.grants())                    // vet each; one that may not pass:
//     grant.refused = true;                                 // rewrite() takes it out of the answer
//
// clang-format off
// | In the response                                   | What becomes of it       |
// |---------------------------------------------------|--------------------------|
// | TC                                                | refuse: ask again by TCP |
// | rcode other than NOERROR and NXDOMAIN             | refuse                   |
// | NXDOMAIN, and yet data at the chain's end         | refuse                   |
// | answer section: class other than IN               | refuse                   |
// | two CNAMEs at a name of the chain, two targets    | refuse                   |
// | CNAME and other data at a name of the chain (*)   | refuse                   |
// | DNAME, and a CNAME that does not agree with it    | refuse                   |
// | two DNAMEs above a name of the chain              | refuse                   |
// | CNAME and DNAME at one name of the chain          | refuse                   |
// | DNAME substitution over 255 bytes                 | refuse                   |
// | a loop                                            | refuse                   |
// | over 16 links, 64 CNAMEs and DNAMEs, 16 targets   | refuse                   |
// | more addresses than the storage holds             | refuse                   |
// | DNAME without its CNAME                           | followed                 |
// | data at a name that only a DNAME leads away from  | foreign                  |
// | the same CNAME or DNAME twice                     | the second is foreign    |
// | CNAME where CNAME or ANY was asked                | the answer; not followed |
// | a record off the chain, whatever its type         | foreign                  |
// | the chain's end: a type that was not asked (*)    | foreign                  |
// | authority and additional section                  | never looked at          |
// | TTL of 2^31 and above                             | 0 (RFC 2181)             |
// clang-format on
// (*) But RRSIG, NSEC, KEY, which may be beside a CNAME; RRSIGs over what is kept are kept.
//
// "Refuse": no grant, the client gets SERVFAIL. "Foreign": grants nothing, and rewrite() leaves it
// out: has_foreign() says that the answer must not go out as it is.
//
// Sources: RFC 1034 section 3.6.2, RFC 6672 (DNAME), RFC 9460 (SVCB, HTTPS).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string_view>

#include "dns/address.hpp"
#include "dns/message.hpp"

namespace sluice::dns {

inline constexpr std::size_t kMostLinks = 16;
inline constexpr std::size_t kMostLinkRecords = 64;
inline constexpr std::size_t kMostTargets = 16;
// More A records than this fit in no message of 64 KiB (hints could: they are refused then).
inline constexpr std::size_t kMostGrants = 4096;

enum class AnswerFault : std::uint8_t {
  truncated,
  rcode,
  contradiction,  // of rcode and data
  not_in,         // class
  cname_conflict,
  cname_and_data,
  dname_conflict,
  name_too_long,
  loop,
  too_many_links,
  too_many_targets,
  too_many_addresses,
};

[[nodiscard]] std::string_view describe(AnswerFault fault);

// An address that the answer would have the client use.
struct Grant {
  Address address{};
  std::uint16_t name = 0;  // whose address it is: index into Answer::names()
  bool hint = false;       // from an SVCB or HTTPS record
  bool refused = false;    // the caller's verdict
  std::uint32_t ttl = 0;   // of its record, seconds, sane
};

class Answer {
 public:
  // `storage` bounds the number of addresses (kMostGrants is always enough for A and AAAA). It
  // stays the caller's, and is written by read().
  explicit Answer(std::span<Grant> storage) : storage_(storage) {}
  Answer(const Answer&) = delete;
  Answer& operator=(const Answer&) = delete;

  // Reads the response to its own question (which match_response() has compared with ours). After
  // an error there is neither chain nor grant.
  [[nodiscard]] std::expected<void, AnswerFault> read(const MessageView& response);

  // The question's name, then each link's target. The last holds the data, if there is any.
  [[nodiscard]] std::span<const Name> chain() const { return {names_.data(), chain_}; }
  // The chain, then target names of SVCB and HTTPS records that are not on it.
  [[nodiscard]] std::span<const Name> names() const { return {names_.data(), count_}; }
  // In the order of the message.
  [[nodiscard]] std::span<Grant> grants() { return storage_.first(grants_); }
  [[nodiscard]] std::span<const Grant> grants() const { return storage_.first(grants_); }
  // Records of the type asked at the chain's end: 0 is NODATA or NXDOMAIN.
  [[nodiscard]] std::size_t data_records() const { return data_; }
  // The smallest TTL of links and data, UINT32_MAX where there is none. Lower all TTLs that are
  // sent to this one: a client that keeps the records one by one then keeps none longer than it may
  // use it.
  [[nodiscard]] std::uint32_t least_ttl() const { return least_ttl_; }
  [[nodiscard]] bool has_foreign() const { return foreign_; }

  // What a record of the answer section is to this answer.
  enum class Part : std::uint8_t { foreign, link, data, signature };
  struct Place {
    Part part = Part::foreign;
    std::uint16_t name =
        0;  // link: which one (index of the name it leads from); data: the chain's end
  };
  [[nodiscard]] Place place(const MessageView& response, const Record& record) const;

 private:
  struct LinkRecord {
    std::uint32_t offset = 0;  // of the record
    std::uint32_t rdata = 0;   // offset
    std::uint32_t ttl = 0;
    std::uint16_t type = 0;
    std::uint8_t from = 0;  // index of the name it leads from, if used
    bool used = false;
  };
  [[nodiscard]] std::expected<void, AnswerFault> read_all(const MessageView& response);
  [[nodiscard]] std::expected<void, AnswerFault> collect_links(const MessageView& response);
  [[nodiscard]] std::expected<bool, AnswerFault> follow(const MessageView& response);
  [[nodiscard]] std::expected<void, AnswerFault> collect_data(const MessageView& response);
  [[nodiscard]] std::expected<void, AnswerFault> collect_hints(const MessageView& response,
                                                               const Record& record);
  [[nodiscard]] bool add(const std::uint8_t* bytes, std::uint8_t family, std::size_t name,
                         bool hint, std::uint32_t ttl);
  void clear();

  std::span<Grant> storage_;
  std::array<Name, 1 + kMostLinks + kMostTargets> names_;
  std::array<LinkRecord, kMostLinkRecords> links_;
  std::size_t chain_ = 0, count_ = 0, grants_ = 0, data_ = 0, link_records_ = 0;
  std::uint32_t least_ttl_ = 0;
  bool foreign_ = false;
};

// How long "no such name" or "no such data" may be kept, in seconds (RFC 2308 section 5): the
// lesser of the SOA's TTL and its MINIMUM, where the authority section has one above `name` (the
// chain's end). Nothing where it has not: not to be kept.
[[nodiscard]] std::optional<std::uint32_t> negative_ttl(const MessageView& response,
                                                        const Name& name);

}  // namespace sluice::dns
