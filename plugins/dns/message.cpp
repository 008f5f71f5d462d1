// SPDX-License-Identifier: Apache-2.0
#include "dns/message.hpp"

#include "dns/rdata.hpp"

namespace sluice::dns {
namespace {

constexpr std::size_t kRecordFixed = 10;  // type, class, TTL, length
constexpr std::uint16_t kMostQueryAdditionals = 4;

// Whether the options of an OPT fill its data: code, length, value, again and again.
bool options_fill(Bytes options) {
  std::size_t at = 0;
  while (at != options.size()) {
    if (options.size() - at < 4) return false;
    at += 4;
    const std::size_t length = load16(options.data() + at - 2);
    if (options.size() - at < length) return false;
    at += length;
  }
  return true;
}

// Owner names are mostly a pointer to the question, which has been read.
std::expected<std::size_t, NameError> skip_owner(Bytes message, std::size_t offset,
                                                 NamePlaces& places) {
  if (message.size() - offset >= 2 && message[offset] == 0xc0 &&
      message[offset + 1] == kHeaderSize) {
    places.mark(offset);
    return offset + 2;
  }
  return skip_name(message, offset, places);
}

}  // namespace

std::string_view describe(ParseError error) {
  switch (error) {
    case ParseError::too_short:
      return "shorter than a header";
    case ParseError::no_question:
      return "no question";
    case ParseError::many_questions:
      return "more than one question";
    case ParseError::question:
      return "the question does not read";
    case ParseError::too_long:
      return "longer than 65535 bytes";
    case ParseError::rdata:
      return "a record's data does not read";
    case ParseError::record:
      return "a record does not read";
    case ParseError::two_opts:
      return "two OPT records";
    case ParseError::misplaced_opt:
      return "an OPT record outside the additional section or with an owner";
    case ParseError::bad_options:
      return "EDNS options that do not fill their record";
    case ParseError::trailing:
      return "bytes behind the last record";
  }
  return "?";
}

std::expected<MessageView, ParseError> MessageView::parse(Bytes message) {
  if (message.size() < kHeaderSize) return std::unexpected(ParseError::too_short);
  if (message.size() > UINT16_MAX) return std::unexpected(ParseError::too_long);
  const Header header(message);
  if (header.questions() != 1)
    return std::unexpected(header.questions() == 0 ? ParseError::no_question
                                                   : ParseError::many_questions);
  MessageView view;
  view.message_ = message;
  // No pointer can be right in the first name: nothing but the header is in front of it.
  const auto name_end = read_name(message, kHeaderSize, view.question_.name);
  if (!name_end || message.size() - *name_end < 4) return std::unexpected(ParseError::question);
  NamePlaces places(message.size());
  (void)skip_name(message, kHeaderSize, places);
  view.question_.type = load16(message.data() + *name_end);
  view.question_.klass = load16(message.data() + *name_end + 2);
  view.question_.wire = message.subspan(kHeaderSize, *name_end + 4 - kHeaderSize);

  std::size_t at = *name_end + 4;
  const std::uint32_t counts[3] = {header.answers(), header.authorities(), header.additionals()};
  for (int section = 0; section < 3; ++section) {
    if (section == 1) view.authority_ = static_cast<std::uint32_t>(at);
    if (section == 2) view.additional_ = static_cast<std::uint32_t>(at);
    for (std::uint32_t i = 0; i < counts[section]; ++i) {
      const std::size_t start = at;
      const auto owner_end = skip_owner(message, at, places);
      if (!owner_end || message.size() - *owner_end < kRecordFixed)
        return std::unexpected(ParseError::record);
      const std::uint8_t* fixed = message.data() + *owner_end;
      const std::size_t length = load16(fixed + 8);
      at = *owner_end + kRecordFixed;
      if (message.size() - at < length) return std::unexpected(ParseError::record);
      const std::uint16_t kind = load16(fixed);
      if (!rdata_is_sound(message, kind, at, length, places))
        return std::unexpected(ParseError::rdata);
      at += length;
      if (kind != type::opt) continue;
      if (section != 2 || message[start] != 0) return std::unexpected(ParseError::misplaced_opt);
      if (view.edns_.present) return std::unexpected(ParseError::two_opts);
      if (!options_fill(message.subspan(at - length, length)))
        return std::unexpected(ParseError::bad_options);
      const std::uint16_t size = load16(fixed + 2);
      view.edns_ = {.present = true,
                    .version = fixed[5],
                    .extended_rcode = fixed[4],
                    .dnssec_ok = (fixed[6] & 0x80) != 0,
                    .udp_size = size < 512 ? std::uint16_t{512} : size};
    }
  }
  if (at != message.size()) return std::unexpected(ParseError::trailing);
  return view;
}

MessageView::Iterator::Iterator(Bytes message, std::size_t offset)
    : message_(message), next_(static_cast<std::uint32_t>(offset)) {
  const Header header(message);
  left_[0] = header.answers();
  left_[1] = header.authorities();
  left_[2] = header.additionals();
  read();
}

MessageView::Iterator& MessageView::Iterator::operator++() {
  read();
  return *this;
}

// parse() has checked all of it.
void MessageView::Iterator::read() {
  const int section = left_[0] != 0 ? 0 : left_[1] != 0 ? 1 : 2;
  done_ = left_[section] == 0;
  if (done_) return;
  --left_[section];
  std::size_t at = next_;
  for (;;) {  // the owner, where it stands
    const std::uint8_t length = message_[at];
    if (length >= 0xc0) {
      at += 2;
      break;
    }
    at += 1 + std::size_t{length};
    if (length == 0) break;
  }
  const std::uint8_t* fixed = message_.data() + at;
  record_ = {.section = static_cast<Section>(section),
             .type = load16(fixed),
             .klass = load16(fixed + 2),
             .ttl = load32(fixed + 4),
             .offset = next_,
             .ttl_offset = static_cast<std::uint32_t>(at + 4),
             .rdata = message_.subspan(at + kRecordFixed, load16(fixed + 8))};
  next_ = record_.end();
}

MessageView::Records MessageView::records() const {
  return {Iterator(message_, question_end())};
}

Name MessageView::owner(const Record& record) const {
  Name name;
  (void)read_name(message_, record.offset, name);  // parse() has
  return name;
}

std::expected<MessageView, QueryFault> read_query(Bytes message) {
  if (message.size() < kHeaderSize) return std::unexpected(QueryFault{});
  const Header header(message);
  if (header.response()) return std::unexpected(QueryFault{});
  if (header.opcode() != opcode::query)
    return std::unexpected(QueryFault{.answer = true, .rcode = Rcode::notimp});
  if (header.answers() != 0 || header.authorities() != 0 ||
      header.additionals() > kMostQueryAdditionals)
    return std::unexpected(QueryFault{.answer = true, .rcode = Rcode::formerr});
  const auto view = MessageView::parse(message);
  if (!view) return std::unexpected(QueryFault{.answer = true, .rcode = Rcode::formerr});
  if (view->edns().version != 0)
    return std::unexpected(QueryFault{.answer = true, .rcode = Rcode::badvers});
  return *view;
}

}  // namespace sluice::dns
