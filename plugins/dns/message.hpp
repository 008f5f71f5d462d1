// SPDX-License-Identifier: Apache-2.0
// Reading a DNS message: a view over bytes that somebody else owns. parse() checks the whole frame
// once (header, one question, every record's bounds and owner name, at most one OPT, nothing
// behind), so that everything after it is infallible and reads nothing outside.
//
//   const auto message = MessageView::parse(datagram);
//   if (!message) return;  // describe(message.error())
//   for (const Record& record : message->records())
//     if (record.section == Section::answer && record.type == type::a) use(record.rdata);
//
// Sources: RFC 1035 section 4, RFC 6891 (EDNS), RFC 9619 (one question).
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <iterator>
#include <string_view>

#include "names/bytes.hpp"
#include "names/name.hpp"

namespace sluice::dns {

namespace type {
inline constexpr std::uint16_t a = 1, ns = 2, cname = 5, soa = 6, ptr = 12, mx = 15, txt = 16,
                               aaaa = 28, srv = 33, dname = 39, opt = 41, ds = 43, rrsig = 46,
                               nsec = 47, nsec3 = 50, svcb = 64, https = 65, tsig = 250, ixfr = 251,
                               axfr = 252, any = 255;
}  // namespace type

inline constexpr std::uint16_t kClassIn = 1;

namespace opcode {
inline constexpr std::uint8_t query = 0;
}

// Header rcodes, and BADVERS, which takes EDNS to say.
enum class Rcode : std::uint16_t {
  noerror = 0,
  formerr = 1,
  servfail = 2,
  nxdomain = 3,
  notimp = 4,
  refused = 5,
  badvers = 16,
};

// Fields of the 12 bytes in front. Reads a copy of nothing: valid while the bytes are.
class Header {
 public:
  // `message` holds kHeaderSize bytes at least.
  explicit Header(Bytes message) : at_(message.data()) {}

  [[nodiscard]] std::uint16_t id() const { return load16(at_); }
  [[nodiscard]] bool response() const { return (at_[2] & 0x80) != 0; }
  [[nodiscard]] std::uint8_t opcode() const { return at_[2] >> 3 & 0xf; }
  [[nodiscard]] bool authoritative() const { return (at_[2] & 0x04) != 0; }
  [[nodiscard]] bool truncated() const { return (at_[2] & 0x02) != 0; }
  [[nodiscard]] bool recursion_desired() const { return (at_[2] & 0x01) != 0; }
  [[nodiscard]] bool recursion_available() const { return (at_[3] & 0x80) != 0; }
  [[nodiscard]] bool authentic_data() const { return (at_[3] & 0x20) != 0; }
  [[nodiscard]] bool checking_disabled() const { return (at_[3] & 0x10) != 0; }
  [[nodiscard]] std::uint8_t rcode() const { return at_[3] & 0xf; }  // the low four bits
  [[nodiscard]] std::uint16_t questions() const { return load16(at_ + 4); }
  [[nodiscard]] std::uint16_t answers() const { return load16(at_ + 6); }
  [[nodiscard]] std::uint16_t authorities() const { return load16(at_ + 8); }
  [[nodiscard]] std::uint16_t additionals() const { return load16(at_ + 10); }

 private:
  const std::uint8_t* at_;
};

enum class Section : std::uint8_t { answer, authority, additional };

enum class ParseError : std::uint8_t {
  too_short,       // less than a header: nothing can be answered
  no_question,     // QDCOUNT 0
  many_questions,  // QDCOUNT over 1
  question,        // the question's name, type or class does not read
  too_long,        // over 65535 bytes
  record,          // a record's name does not read, or it ends outside
  rdata,           // a known type's data does not read, or does not fill its length
  two_opts,        // RFC 6891 section 6.1.1
  misplaced_opt,   // outside the additional section, or its owner is not the root
  bad_options,     // the OPT's options do not fill its data exactly
  trailing,        // bytes behind the last record
};

[[nodiscard]] std::string_view describe(ParseError error);

struct Question {
  Name name;  // lower case
  std::uint16_t type = 0;
  std::uint16_t klass = 0;
  Bytes wire;  // name as it was asked (its case kept), type, class: within the message
};

// The OPT record, options left out: none is understood here, and none is passed on.
struct Edns {
  bool present = false;
  std::uint8_t version = 0;
  std::uint8_t extended_rcode = 0;  // the high eight bits
  bool dnssec_ok = false;
  std::uint16_t udp_size = 512;  // what the sender takes by UDP: 512 at least, whatever it says
};

struct Record {
  Section section;
  std::uint16_t type;
  std::uint16_t klass;
  std::uint32_t ttl;     // as it stands; see sane_ttl()
  std::uint32_t offset;  // of the owner name in the message, = of the record
  std::uint32_t ttl_offset;
  Bytes rdata;  // within the message

  [[nodiscard]] std::uint32_t end() const {
    return ttl_offset + 6 + static_cast<std::uint32_t>(rdata.size());
  }
};

// RFC 2181 section 8: a TTL with the high bit set is 0.
[[nodiscard]] inline std::uint32_t sane_ttl(std::uint32_t ttl) {
  return ttl >> 31 ? 0 : ttl;
}

class MessageView {
 public:
  // `message` stays the caller's and must outlive the view.
  [[nodiscard]] static std::expected<MessageView, ParseError> parse(Bytes message);

  // All records in the order of the message, the OPT among them.
  class Iterator {
   public:
    using value_type = Record;
    using difference_type = std::ptrdiff_t;
    using iterator_category = std::input_iterator_tag;
    Iterator() = default;
    const Record& operator*() const { return record_; }
    const Record* operator->() const { return &record_; }
    Iterator& operator++();
    Iterator operator++(int) {
      Iterator before = *this;
      ++*this;
      return before;
    }
    bool operator==(std::default_sentinel_t) const { return done_; }

   private:
    friend class MessageView;
    Iterator(Bytes message, std::size_t offset);
    void read();
    Bytes message_;
    std::uint32_t left_[3] = {};
    std::uint32_t next_ = 0;
    bool done_ = true;
    Record record_{};
  };
  struct Records {
    Iterator first;
    [[nodiscard]] Iterator begin() const { return first; }
    [[nodiscard]] std::default_sentinel_t end() const { return {}; }
  };

  [[nodiscard]] Bytes bytes() const { return message_; }
  [[nodiscard]] Header header() const { return Header(message_); }
  [[nodiscard]] const Question& question() const { return question_; }
  [[nodiscard]] const Edns& edns() const { return edns_; }
  [[nodiscard]] Records records() const;
  // EDNS bits included: 16 is BADVERS.
  [[nodiscard]] std::uint16_t rcode() const {
    return static_cast<std::uint16_t>(edns_.extended_rcode << 4 | header().rcode());
  }
  // Where the first record stands: right behind the question.
  [[nodiscard]] std::size_t question_end() const { return kHeaderSize + question_.wire.size(); }
  // Where a section's first record stands (or would).
  [[nodiscard]] std::size_t authority_offset() const { return authority_; }
  [[nodiscard]] std::size_t additional_offset() const { return additional_; }

  [[nodiscard]] Name owner(const Record& record) const;
  [[nodiscard]] bool owner_is(const Record& record, const Name& name) const {
    return name_at_is(message_, record.offset, name);
  }

 private:
  MessageView() = default;

  Bytes message_;
  Question question_;
  Edns edns_;
  std::uint32_t authority_ = 0;
  std::uint32_t additional_ = 0;
};

// What is to be done with a client's message.
struct QueryFault {
  bool answer = false;           // false: drop it in silence (it is no query, or not even a header)
  Rcode rcode = Rcode::formerr;  // of the answer, by make_fault_reply()
};

// A client's query, checked further than parse() does: QR is 0 (else dropped, or two resolvers
// could answer each other for ever), the opcode is QUERY (else NOTIMP), EDNS version 0 (else
// BADVERS), class is for the caller to judge; no answer or authority records and at most 4
// additional ones (else FORMERR: no query needs them, and they would cost time).
[[nodiscard]] std::expected<MessageView, QueryFault> read_query(Bytes message);

}  // namespace sluice::dns
