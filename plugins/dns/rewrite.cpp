// SPDX-License-Identifier: Apache-2.0
#include "dns/rewrite.hpp"

#include <cstring>

#include "dns/rdata.hpp"

namespace sluice::dns {
namespace {

constexpr std::size_t kFarthestPointer = 0x3fff;
constexpr std::uint8_t kAdBit = 0x20;  // byte 3 of the header

// A cursor that remembers whether everything fitted.
class Writer {
 public:
  explicit Writer(Room out) : out_(out) {}

  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] bool failed() const { return failed_; }
  void fail() { failed_ = true; }
  void back_to(std::size_t size) { size_ = size; }

  void bytes(Bytes from) {
    if (failed_ || from.size() > out_.size() - size_) return fail();
    if (!from.empty()) std::memcpy(out_.data() + size_, from.data(), from.size());
    size_ += from.size();
  }
  void two(std::size_t value) {
    std::uint8_t both[2];
    store16(both, value);
    bytes(both);
  }
  // Overwrites two bytes that were written at `at`.
  void two_at(std::size_t at, std::size_t value) {
    if (!failed_) store16(out_.data() + at, value);
  }
  void clear_bits(std::size_t at, std::uint8_t bits) {
    if (!failed_) out_[at] = static_cast<std::uint8_t>(out_[at] & ~bits);
  }

 private:
  Room out_;
  std::size_t size_ = 0;
  bool failed_ = false;
};

// Which types of address records lose something: what signs them no longer verifies.
struct Changed {
  bool a = false, aaaa = false, hints = false;

  [[nodiscard]] bool any() const { return a || aaaa || hints; }
  [[nodiscard]] bool covers(std::uint16_t type) const {
    return (type == type::a && a) || (type == type::aaaa && aaaa) ||
           ((type == type::svcb || type == type::https) && hints);
  }
};

Changed changed_by(std::span<const Grant> grants) {
  Changed changed;
  for (const Grant& grant : grants) {
    if (!grant.refused) continue;
    (grant.hint ? changed.hints : grant.address.family == 4 ? changed.a : changed.aaaa) = true;
  }
  return changed;
}

class Rewriter {
 public:
  Rewriter(const MessageView& response, const Answer& answer, Room out)
      : response_(response),
        answer_(answer),
        grants_(answer.grants()),
        changed_(changed_by(grants_)),
        writer_(out) {}

  Rewritten run() {
    const Bytes message = response_.bytes();
    writer_.bytes(message.first(response_.question_end()));
    chain_at_[0] = kHeaderSize;
    std::size_t answers = 0, authorities = 0, data = 0;
    const bool explains = answer_.data_records() == 0;
    for (const Record& record : response_.records()) {
      if (record.section == Section::additional || writer_.failed()) break;
      if (record.section == Section::answer) {
        const auto place = answer_.place(response_, record);
        if (!answer_record(record, place)) continue;
        ++answers;
        data += place.part == Answer::Part::data;
      } else if (explains && authority_record(record)) {
        ++authorities;
      }
    }
    if (writer_.failed()) return {};
    writer_.two_at(6, answers);
    writer_.two_at(8, authorities);
    writer_.two_at(10, 0);
    if (changed_.any()) writer_.clear_bits(3, kAdBit);
    return {.size = writer_.size(), .data_records = data};
  }

 private:
  // Whether the record was written.
  bool answer_record(const Record& record, Answer::Place place) {
    switch (place.part) {
      case Answer::Part::foreign:
        return false;
      case Answer::Part::signature:
        if (changed_.covers(load16(record.rdata.data()))) return false;
        break;
      case Answer::Part::link:
        break;
      case Answer::Part::data:
        if (record.type == type::a || record.type == type::aaaa) {
          if (next_grant().refused) return false;
        } else if (record.type == type::svcb || record.type == type::https) {
          service_record(record, place.name);
          return true;
        }
        break;
    }
    const std::size_t length_at = front(record, place.name);
    if (record.type == type::cname && place.part == Answer::Part::link)
      note_name(place.name + std::size_t{1});
    plain_rdata(record);
    writer_.two_at(length_at, writer_.size() - length_at - 2);
    return true;
  }

  // Only what says that there is nothing (RFC 2308, RFC 4035).
  bool authority_record(const Record& record) {
    if (record.klass != kClassIn || (record.type != type::soa && record.type != type::nsec &&
                                     record.type != type::nsec3 && record.type != type::rrsig))
      return false;
    const std::size_t length_at = front(record, answer_.chain().size() - 1);
    plain_rdata(record);
    writer_.two_at(length_at, writer_.size() - length_at - 2);
    return true;
  }

  // Owner, type, class, TTL, room for the length. Returns where that is.
  std::size_t front(const Record& record, std::size_t name) {
    owner(record, name);
    writer_.bytes(response_.bytes().subspan(record.ttl_offset - 4, 8));
    const std::size_t length_at = writer_.size();
    writer_.two(0);
    return length_at;
  }

  // The owner is a chain's name or one above it: a pointer into that name where it has been
  // written.
  void owner(const Record& record, std::size_t name) {
    const Name owner = response_.owner(record);
    const Name& below = answer_.chain()[name];
    if (chain_at_[name] != 0 && !owner.is_root() && below.is_same_or_below(owner)) {
      const std::size_t target = chain_at_[name] + (below.size() - owner.size());
      if (target <= kFarthestPointer) return writer_.two(0xc000 | target);
    }
    if (owner == below) note_name(name);
    expanded(record.offset);
  }

  // The name that is written next is chain()[name], in full.
  void note_name(std::size_t name) {
    if (name < chain_at_.size() && chain_at_[name] == 0) chain_at_[name] = writer_.size();
  }

  // Returns the offset behind the name where it stands.
  std::size_t expanded(std::size_t offset) {
    std::array<std::uint8_t, kLongestName> name;
    const auto read = expand_name(response_.bytes(), offset, name);
    if (!read) {
      writer_.fail();
      return offset;
    }
    writer_.bytes(Bytes(name).first(read->size));
    return read->next;
  }

  // As it stands, but each name in full: what its pointers pointed to has moved.
  void plain_rdata(const Record& record) {
    const Bytes message = response_.bytes();
    std::size_t at = record.ttl_offset + std::size_t{6};
    for (const char part : rdata_layout(record.type)) {
      std::size_t size = 0;
      switch (part) {
        case '1':
        case '2':
        case '4':
          size = static_cast<std::size_t>(part - '0');
          break;
        case 'i':
          size = 16;
          break;
        case 's':
          size = 1 + std::size_t{message[at]};
          break;
        case 'n':
          at = expanded(at);
          continue;
        default:
          size = record.end() - at;
          break;
      }
      writer_.bytes(message.subspan(at, size));
      at += size;
      if (writer_.failed()) return;
    }
    writer_.bytes(message.subspan(at, record.end() - at));
  }

  const Grant& next_grant() {
    static constexpr Grant kNone{.refused = true};
    if (next_ == grants_.size()) {
      writer_.fail();  // another response than the one that was read
      return kNone;
    }
    return grants_[next_++];
  }

  void service_record(const Record& record, std::size_t name) {
    const Bytes message = response_.bytes();
    const std::size_t rdata = record.ttl_offset + std::size_t{6};
    const auto target_end = skip_name(message, rdata + 2);
    if (!target_end) return writer_.fail();
    const std::size_t length_at = front(record, name);
    writer_.bytes(message.subspan(rdata, *target_end - rdata));
    const Bytes params = message.subspan(*target_end, record.end() - *target_end);

    // "mandatory" comes first and must not name what is gone: look ahead.
    bool gone4 = false, gone6 = false;
    const std::size_t first = next_;
    for (Bytes left = params; !left.empty();) {
      const SvcParam param = take_svc_param(left);
      if (param.key == kSvcIpv4Hint) gone4 = kept_hints(param, 4, false) == 0;
      if (param.key == kSvcIpv6Hint) gone6 = kept_hints(param, 16, false) == 0;
    }
    next_ = first;
    for (Bytes left = params; !left.empty();) {
      const SvcParam param = take_svc_param(left);
      const std::size_t param_at = writer_.size();
      writer_.two(param.key);
      writer_.two(0);
      if (param.key == kSvcIpv4Hint) {
        kept_hints(param, 4, true);
      } else if (param.key == kSvcIpv6Hint) {
        kept_hints(param, 16, true);
      } else if (param.key == kSvcMandatory) {
        for (std::size_t at = 0; at < param.value.size(); at += 2) {
          const std::uint16_t key = load16(param.value.data() + at);
          if ((key == kSvcIpv4Hint && gone4) || (key == kSvcIpv6Hint && gone6)) continue;
          writer_.two(key);
        }
      } else {
        writer_.bytes(param.value);
      }
      if (writer_.failed()) return;
      const std::size_t length = writer_.size() - param_at - 4;
      if (length == 0 && !param.value.empty())
        writer_.back_to(param_at);
      else
        writer_.two_at(param_at + 2, length);
    }
    writer_.two_at(length_at, writer_.size() - length_at - 2);
  }

  // How many addresses of a hint stay; written if `write`.
  std::size_t kept_hints(const SvcParam& param, std::size_t step, bool write) {
    std::size_t kept = 0;
    for (std::size_t at = 0; at < param.value.size(); at += step) {
      if (next_grant().refused) continue;
      ++kept;
      if (write) writer_.bytes(param.value.subspan(at, step));
    }
    return kept;
  }

  const MessageView& response_;
  const Answer& answer_;
  const std::span<const Grant> grants_;
  const Changed changed_;
  Writer writer_;
  std::size_t next_ = 0;  // grant
  std::array<std::size_t, 1 + kMostLinks>
      chain_at_{};  // where each is written in full, 0: nowhere yet
};

}  // namespace

Rewritten rewrite(const MessageView& response, const Answer& answer, Room out) {
  if (answer.chain().empty()) return {};
  return Rewriter(response, answer, out).run();
}

}  // namespace sluice::dns
