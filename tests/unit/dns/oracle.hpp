// A second opinion on messages: libldns. Each check throws Disagreement where the two differ; what
// only we refuse is no disagreement, since we are stricter on purpose (pointers, trailing bytes,
// one question).
#pragma once

// Says that there is a bool; else ldns makes macros of bool, true and false.
#include <stdbool.h>

#include <ldns/ldns.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>
#include <stdexcept>

#include "dns/answer.hpp"
#include "dns/patch.hpp"
#include "dns/rdata.hpp"
#include "dns/respond.hpp"
#include "dns/rewrite.hpp"
#include "dns/upstream_query.hpp"
#include "unit/dns/packets.hpp"

namespace dns_test {

using namespace sluice::dns;

struct Disagreement : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void agree(bool same, const std::string& what) {
  if (!same) throw Disagreement(what);
}

struct FreePacket {
  void operator()(ldns_pkt* packet) const { ldns_pkt_free(packet); }
};
using LdnsPacket = std::unique_ptr<ldns_pkt, FreePacket>;

inline Packet exactly(Bytes bytes_of) {
  return Packet(bytes_of.begin(), bytes_of.end());
}

inline Packet ldns_data(const ldns_rdf* field) {
  const auto* data = ldns_rdf_data(field);
  return Packet(data, data + ldns_rdf_size(field));
}

inline Packet lower(Packet bytes_of) {
  for (std::uint8_t& byte : bytes_of)
    if (byte >= 'A' && byte <= 'Z') byte |= 0x20;
  return bytes_of;
}

// The data of a record with each name in full.
inline Packet full_rdata(const MessageView& message, const Record& record) {
  Packet all;
  const Bytes whole = message.bytes();
  std::size_t at = record.ttl_offset + 6;
  for (const char part : rdata_layout(record.type)) {
    std::size_t size = part == 'i'                  ? 16
                       : part >= '1' && part <= '4' ? static_cast<std::size_t>(part - '0')
                                                    : 0;
    if (part == 's') size = 1u + whole[at];
    if (part == 'n' || part == 'u') {
      std::array<std::uint8_t, kLongestName> name_of;
      const auto read = expand_name(whole, at, name_of);
      agree(read.has_value(), "a sound name does not expand");
      all.insert(all.end(), name_of.begin(),
                 name_of.begin() + static_cast<std::ptrdiff_t>(read->size));
      at = read->next;
    }
    all.insert(all.end(), whole.begin() + static_cast<std::ptrdiff_t>(at),
               whole.begin() + static_cast<std::ptrdiff_t>(at + size));
    at += size;
  }
  all.insert(all.end(), whole.begin() + static_cast<std::ptrdiff_t>(at),
             whole.begin() + static_cast<std::ptrdiff_t>(record.end()));
  return all;
}

inline constexpr std::uint16_t kOpaqueType = 65399;  // private use: nobody looks inside

// Whether both we and ldns look inside the data of this type. ldns knows more types than we do.
inline bool both_look_inside(const Record& record) {
  return !rdata_layout(record.type).empty();
}

// The message with every record of a type that we do not look into, or whose data is malformed,
// made opaque.
inline Packet opaque(const MessageView& message) {
  Packet packet = exactly(message.bytes());
  for (const Record& record : message.records())
    if (record.type != type::opt && !both_look_inside(record))
      store16(packet.data() + record.ttl_offset - 4, kOpaqueType);
  return packet;
}

inline LdnsPacket ldns_parse(const Packet& packet, const std::string& whose) {
  ldns_pkt* read = nullptr;
  const ldns_status status = ldns_wire2pkt(&read, packet.data(), packet.size());
  agree(status == LDNS_STATUS_OK,
        whose + ": ldns does not read it: " + ldns_get_errorstr_by_id(status));
  return LdnsPacket(read);
}

inline void compare_record(const MessageView& message, const Record& record, ldns_rr* rr) {
  agree(lower(ldns_data(ldns_rr_owner(rr))) == exactly(message.owner(record).wire()), "owner");
  std::array<std::uint8_t, kLongestName> owner;
  const auto expanded = expand_name(message.bytes(), record.offset, owner);
  agree(expanded && ldns_data(ldns_rr_owner(rr)) == exactly(Bytes(owner).first(expanded->size)),
        "owner's case");
  agree(ldns_rr_get_class(rr) == record.klass, "class");
  agree(ldns_rr_ttl(rr) == record.ttl, "TTL");
  const bool inside = both_look_inside(record);
  agree(ldns_rr_get_type(rr) == (inside ? record.type : kOpaqueType), "type");
  Packet theirs;
  for (std::size_t i = 0; i < ldns_rr_rd_count(rr); ++i) {
    const Packet field = ldns_data(ldns_rr_rdf(rr, i));
    theirs.insert(theirs.end(), field.begin(), field.end());
  }
  agree(theirs == (inside ? full_rdata(message, record) : exactly(record.rdata)), "data");
}

// Frame, question, records, EDNS.
inline void compare(const MessageView& message, const std::string& whose) try {
  const LdnsPacket packet = ldns_parse(opaque(message), whose);
  const Header header = message.header();
  agree(ldns_pkt_id(packet.get()) == header.id(), "id");
  agree(ldns_pkt_qr(packet.get()) == header.response(), "QR");
  agree(ldns_pkt_get_opcode(packet.get()) == header.opcode(), "opcode");
  agree(ldns_pkt_aa(packet.get()) == header.authoritative(), "AA");
  agree(ldns_pkt_tc(packet.get()) == header.truncated(), "TC");
  agree(ldns_pkt_rd(packet.get()) == header.recursion_desired(), "RD");
  agree(ldns_pkt_ra(packet.get()) == header.recursion_available(), "RA");
  agree(ldns_pkt_ad(packet.get()) == header.authentic_data(), "AD");
  agree(ldns_pkt_cd(packet.get()) == header.checking_disabled(), "CD");
  agree(ldns_pkt_get_rcode(packet.get()) == header.rcode(), "rcode");

  const ldns_rr_list* questions = ldns_pkt_question(packet.get());
  agree(ldns_rr_list_rr_count(questions) == 1, "one question");
  ldns_rr* asked = ldns_rr_list_rr(questions, 0);
  const Question& question = message.question();
  agree(lower(ldns_data(ldns_rr_owner(asked))) == exactly(question.name.wire()), "question's name");
  agree(ldns_rr_get_type(asked) == question.type, "question's type");
  agree(ldns_rr_get_class(asked) == question.klass, "question's class");

  const ldns_rr_list* sections[] = {ldns_pkt_answer(packet.get()), ldns_pkt_authority(packet.get()),
                                    ldns_pkt_additional(packet.get())};
  std::size_t next[3] = {};
  for (const Record& record : message.records()) {
    if (record.type == type::opt) continue;
    const auto section = static_cast<std::size_t>(record.section);
    agree(next[section] < ldns_rr_list_rr_count(sections[section]), "a record more than ldns has");
    compare_record(message, record, ldns_rr_list_rr(sections[section], next[section]++));
  }
  for (std::size_t section = 0; section < 3; ++section)
    agree(next[section] == ldns_rr_list_rr_count(sections[section]), "a record less than ldns has");

  const Edns& edns = message.edns();
  agree(ldns_pkt_edns(packet.get()) == edns.present, "EDNS");
  if (edns.present) {
    agree(std::max<std::uint16_t>(512, ldns_pkt_edns_udp_size(packet.get())) == edns.udp_size,
          "EDNS size");
    agree(ldns_pkt_edns_version(packet.get()) == edns.version, "EDNS version");
    agree(ldns_pkt_edns_extended_rcode(packet.get()) == edns.extended_rcode, "extended rcode");
    agree(ldns_pkt_edns_do(packet.get()) == edns.dnssec_ok, "DO");
  }
} catch (const Disagreement& difference) {
  throw Disagreement(whose + ": " + difference.what());
}

// A record as it is told apart from others: all of it but the section and the spelling of the
// owner.
inline Packet identity(const MessageView& message, const Record& record, bool with_ttl = true) {
  return joined({exactly(message.owner(record).wire()), two(record.type), two(record.klass),
                 four(with_ttl ? record.ttl : 0), full_rdata(message, record)});
}

// Grants are right if each is a record that a naive reading, by ldns, finds at the end of the
// chain, each link of the chain is in the answer section, and no two records disagree about a link.
inline void check_grants(const MessageView& message, const Answer& answer) {
  const LdnsPacket packet = ldns_parse(opaque(message), "answer");
  const ldns_rr_list* records = ldns_pkt_answer(packet.get());
  const auto chain = answer.chain();
  agree(chain[0] == message.question().name, "the chain is not rooted in the question");
  const std::uint16_t asked = message.question().type;
  const bool follows = asked != type::cname && asked != type::any;
  agree(follows || chain.size() == 1, "a link that was asked for was followed");
  const auto wire_of = [](const ldns_rdf* field) {
    return *Name::from_wire(lower(ldns_data(field)));
  };

  std::multiset<Packet> data;  // addresses at the chain's end
  for (std::size_t i = 0; i < chain.size(); ++i) {
    const bool last = i + 1 == chain.size();
    bool led_on = false;
    for (std::size_t j = 0; j < ldns_rr_list_rr_count(records); ++j) {
      ldns_rr* rr = ldns_rr_list_rr(records, j);
      const Name owner = wire_of(ldns_rr_owner(rr));
      const auto kind = ldns_rr_get_type(rr);
      agree(ldns_rr_get_class(rr) == LDNS_RR_CLASS_IN, "a class that is not IN was not refused");
      if (follows && kind == LDNS_RR_TYPE_CNAME && owner == chain[i]) {
        agree(!last, "a CNAME was not followed");
        agree(wire_of(ldns_rr_rdf(rr, 0)) == chain[i + 1], "a CNAME that leads elsewhere");
        led_on = true;
      }
      if (follows && kind == LDNS_RR_TYPE_DNAME && chain[i].is_below(owner)) {
        agree(!last, "a DNAME was not followed");
        const auto target = chain[i].substituted(owner, wire_of(ldns_rr_rdf(rr, 0)));
        agree(target && *target == chain[i + 1], "a DNAME that leads elsewhere");
        led_on = true;
      }
      if (last && owner == chain[i] && (kind == asked || asked == type::any) &&
          (kind == LDNS_RR_TYPE_A || kind == LDNS_RR_TYPE_AAAA))
        data.insert(joined({ldns_data(ldns_rr_rdf(rr, 0)), four(sane_ttl(ldns_rr_ttl(rr)))}));
    }
    agree(last || led_on, "a link that nothing made");
    for (std::size_t j = 0; j < i; ++j) agree(chain[j] != chain[i], "a name twice on the chain");
  }
  std::multiset<Packet> granted;
  for (const Grant& grant : answer.grants()) {
    if (grant.hint) continue;
    const Bytes address(grant.address.bytes.data(), grant.address.family == 4 ? 4 : 16);
    granted.insert(joined({exactly(address), four(grant.ttl)}));
  }
  agree(granted == data, "other addresses than are at the chain's end");
  agree(message.header().rcode() == 0 ||
            (message.header().rcode() == 3 && answer.data_records() == 0),
        "an rcode that grants nothing");
  agree(!message.header().truncated(), "a truncated answer was read");
}

// Whether a rewritten answer is the old one without what was refused.
inline void check_rewrite(const MessageView& message, Answer& answer) {
  for (Grant& grant : answer.grants())
    grant.refused = (grant.address.bytes[3] ^ grant.address.bytes[15]) & 1;
  Packet room(65535);
  const Rewritten done = rewrite(message, answer, room);
  agree(done.size != 0, "a rewrite that does not fit 64 KiB");
  const Packet packet(room.begin(), room.begin() + static_cast<std::ptrdiff_t>(done.size));
  const auto again = MessageView::parse(packet);
  agree(again.has_value(), "what was rewritten does not parse");
  compare(*again, "rewritten");
  std::vector<Grant> storage(kMostGrants);
  Answer second(storage);
  // The extended rcode is in the OPT, which is gone: it was 0, or the answer would not have been
  // read.
  agree(second.read(*again).has_value(), "what was rewritten is refused");
  agree(std::ranges::equal(second.chain(), answer.chain()), "rewritten: another chain");
  agree(!second.has_foreign(), "rewritten: something foreign");
  agree(second.data_records() == done.data_records, "rewritten: another number of data records");
  std::vector<Grant> left;
  for (const Grant& grant : answer.grants())
    if (!grant.refused) left.push_back(grant);
  agree(std::ranges::equal(second.grants(), left,
                           [](const Grant& a, const Grant& b) {
                             return a.address == b.address && a.ttl == b.ttl && a.hint == b.hint;
                           }),
        "rewritten: other grants");
  std::multiset<Packet> before;
  for (const Record& record : message.records())
    if (record.type != type::opt) before.insert(identity(message, record));
  for (const Record& record : again->records()) {
    if (record.type == type::svcb || record.type == type::https) continue;
    agree(before.contains(identity(*again, record)), "rewritten: a record that was not there");
  }
}

// What a forwarder does to an answer, and what must not change by it.
inline void check_patches(const MessageView& original) {
  Packet packet = exactly(original.bytes());
  packet.reserve(packet.size() + 512);
  std::vector<std::uint16_t> offsets(6000);
  const auto count = find_ttls(original, offsets);
  agree(count.has_value(), "more TTLs than fit");
  offsets.resize(*count);

  Packet spelled = exactly(original.question().wire);
  for (std::size_t i = 0; i + 4 < spelled.size(); ++i)
    if (spelled[i] >= 'a' && spelled[i] <= 'z' && i % 3 == 0) spelled[i] &= 0xdf;
  agree(set_question(packet, spelled), "the question in other letters is another");
  set_id(packet, 0x5aa5);
  age_ttls(packet, offsets, 59, 100000);
  const auto aged = MessageView::parse(packet);
  agree(aged.has_value(), "patched: does not parse");
  compare(*aged, "patched");
  agree(aged->header().id() == 0x5aa5, "patched: id");
  agree(exactly(aged->question().wire) == spelled, "patched: the client's spelling");
  auto theirs = aged->records().begin();
  for (const Record& record : original.records()) {
    const std::uint32_t old = sane_ttl(record.ttl);
    if (record.type == type::opt)
      agree(theirs->ttl == record.ttl, "patched: the OPT's flags");
    else
      agree(theirs->ttl == std::min<std::uint32_t>(old > 59 ? old - 59 : 0, 100000),
            "patched: TTL");
    agree(theirs->type == record.type && exactly(theirs->rdata) == exactly(record.rdata) &&
              aged->owner(*theirs) == original.owner(record),
          "patched: another record");
    ++theirs;
  }
  // Nothing but question, id and TTLs.
  std::vector<bool> may(packet.size(), false);
  may[0] = may[1] = true;
  for (std::size_t i = 0; i < spelled.size(); ++i) may[12 + i] = true;
  for (const std::uint16_t offset : offsets)
    for (int i = 0; i < 4; ++i) may[offset + static_cast<std::size_t>(i)] = true;
  for (std::size_t i = 0; i < packet.size(); ++i)
    agree(may[i] || packet[i] == original.bytes()[i], "patched: a byte elsewhere");

  for (const bool answer_only : {false, true}) {
    Packet cut = exactly(original.bytes());
    const std::size_t size =
        answer_only ? strip_to_answer(original, cut) : strip_additional(original, cut);
    cut.resize(size + 200);
    cut.resize(append_opt(cut, size, {.dnssec_ok = true, .ede = ExtendedError{ede::other, "why"}}));
    const auto stripped = MessageView::parse(cut);
    agree(stripped.has_value(), "stripped: does not parse");
    compare(*stripped, "stripped");
    agree(stripped->edns().present && stripped->edns().dnssec_ok, "stripped: no OPT of ours");
    agree(stripped->header().answers() == original.header().answers(),
          "stripped: an answer is gone");
  }
}

// What `write(room)` made of a room.
template <typename Write>
Packet written(std::size_t size_of_room, Write&& write) {
  Packet room(size_of_room);
  const std::size_t size = write(Room(room));
  agree(size != 0, "a reply that does not fit");
  room.resize(size);
  return room;
}

inline void check_replies(const Packet& packet) {
  Packet room(kReplyRoom);
  const auto query = read_query(packet);
  if (!query) {
    const std::size_t size = make_fault_reply(packet, query.error(), room);
    agree((size != 0) == query.error().answer, "fault: an answer where none is due, or none");
    if (size == 0) return;
    room.resize(size);
    ldns_parse(room, "fault");
    agree(Header(room).response() && Header(room).id() == Header(packet).id(), "fault: id and QR");
    return;
  }
  const Question& question = query->question();
  for (const Rcode rcode :
       {Rcode::noerror, Rcode::nxdomain, Rcode::servfail, Rcode::refused, Rcode::badvers}) {
    const Packet reply = written(kReplyRoom, [&](Room out) {
      return make_reply(*query, rcode, {.ede = ExtendedError{ede::blocked, "no rule allows it"}},
                        out);
    });
    const auto read = MessageView::parse(reply);
    agree(read.has_value(), "reply: does not parse");
    compare(*read, "reply");
    agree(exactly(read->question().wire) == exactly(question.wire), "reply: question");
    agree(read->edns().present == query->edns().present, "reply: EDNS");
    agree(read->rcode() == static_cast<unsigned>(rcode) || !query->edns().present, "reply: rcode");
  }
  std::vector<Address> addresses(5);
  addresses[2].family = addresses[3].family = 6;
  const Packet reply =
      written(kReplyRoom, [&](Room out) { return make_address_reply(*query, addresses, 60, out); });
  const auto read = MessageView::parse(reply);
  agree(read.has_value(), "address reply: does not parse");
  compare(*read, "address reply");

  std::array<std::uint8_t, kUpstreamQueryRoom> upstream;
  const CaseBits letters{0x0123456789abcdef, 0xfedcba9876543210, 0x5555aaaa5555aaaa,
                         0x3333cccc3333cccc};
  const std::size_t size =
      make_upstream_query({.name = question.name,
                           .type = question.type,
                           .checking_disabled = query->header().checking_disabled(),
                           .dnssec_ok = query->edns().dnssec_ok},
                          7, letters, upstream);
  const Packet sent(upstream.begin(), upstream.begin() + static_cast<std::ptrdiff_t>(size));
  const auto asked = MessageView::parse(sent);
  agree(asked.has_value(), "upstream query: does not parse");
  compare(*asked, "upstream query");
  agree(asked->question().name == question.name && asked->question().type == question.type,
        "upstream query: another question");
  agree(match_response(sent, sent) == Mismatch::no_response, "upstream query: matches itself");
  Packet echoed = sent;
  echoed[2] |= 0x80;
  agree(match_response(sent, echoed) == Mismatch::none, "upstream query: its echo does not match");
}

struct Seen {
  std::size_t parsed = 0, answers = 0, refused = 0, grants = 0, links = 0, queries = 0;
};

// All of it, for one message.
inline void check_message(const Packet& packet, Seen& seen) {
  check_replies(packet);
  seen.queries += read_query(packet).has_value();
  const auto message = MessageView::parse(packet);
  if (!message) return;
  ++seen.parsed;
  compare(*message, "message");
  check_patches(*message);
  static std::vector<Grant> storage(kMostGrants);
  Answer answer(storage);
  if (!answer.read(*message)) {
    agree(answer.grants().empty() && answer.chain().empty(), "refused, and yet granted");
    ++seen.refused;
    return;
  }
  ++seen.answers;
  seen.grants += answer.grants().size();
  seen.links += answer.chain().size() - 1;
  check_grants(*message, answer);
  check_rewrite(*message, answer);
}

}  // namespace dns_test
