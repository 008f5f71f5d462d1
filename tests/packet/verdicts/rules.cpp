// Modes, explicit rules, the floor, learned addresses and expiry: what the policy says of a packet
// that could be read.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <atomic>
#include <thread>

#include "packet/verdicts/gate.hpp"

using namespace sluice;
using namespace sluice::test;

namespace {

Bytes packet(const std::string& to, std::uint8_t protocol, const Bytes& payload) {
  return framed(to.find(':') == std::string::npos ? ip4("192.0.2.2", to, protocol, payload)
                                                  : ip6("2001:db8::2", to, protocol, payload));
}
Bytes syn(const std::string& to, std::uint16_t port = 443) {
  return packet(to, 6, tcp(40000, port));
}
Bytes segment(const std::string& to, std::uint16_t port = 443) {
  return packet(to, 6, tcp(40000, port, kAck | kPush, zeros(10)));
}
Bytes datagram(const std::string& to, std::uint16_t port = 53) {
  return packet(to, 17, udp(40000, port));
}
Bytes ping(const std::string& to) {
  return to.find(':') == std::string::npos ? packet(to, 1, icmp(8)) : packet(to, 58, icmp(128));
}
// Waits until the kernel's clock has passed `moment`.
void wait_for(BootTime moment) {
  while (boot_now().nanoseconds <= moment.nanoseconds)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
}
Floor metadata() {
  return {
      {Prefix::parse("169.254.169.254/32").value(), Prefix::parse("fd00:ec2::254/128").value()}};
}

}  // namespace

TEST_CASE("modes") {
  Gate gate;
  const std::vector<Rule> rules{allowing("198.51.100.0/24"), allowing("2001:db8:a::/48"),
                                denying("203.0.113.0/24"), denying("2001:db8:b::/48")};
  struct Expectation {
    Mode mode;
    sluice_reason allowed, denied, unnamed;
  };
  for (const auto& [mode, allowed, denied, unnamed] : std::initializer_list<Expectation>{
           {Mode::allowlist, SLUICE_REASON_ALLOW_RULE, SLUICE_REASON_DENY_RULE,
            SLUICE_REASON_DENY_MODE},
           {Mode::denylist, SLUICE_REASON_ALLOW_RULE, SLUICE_REASON_DENY_RULE,
            SLUICE_REASON_ALLOW_MODE},
           {Mode::block_all, SLUICE_REASON_DENY_BLOCK_ALL, SLUICE_REASON_DENY_BLOCK_ALL,
            SLUICE_REASON_DENY_BLOCK_ALL},
           {Mode::disabled, SLUICE_REASON_ALLOW_DISABLED, SLUICE_REASON_ALLOW_DISABLED,
            SLUICE_REASON_ALLOW_DISABLED}}) {
    CAPTURE(to_string(mode));
    gate.publish(rules, mode);
    gate.check({
        {"IPv4, allowed", syn("198.51.100.7"), allowed},
        {"IPv4, denied", syn("203.0.113.7"), denied},
        {"IPv4, not named", syn("192.0.2.77"), unnamed},
        {"IPv6, allowed", syn("2001:db8:a::7"), allowed},
        {"IPv6, denied", syn("2001:db8:b::7"), denied},
        {"IPv6, not named", syn("2001:db8:c::7"), unnamed},
        {"UDP", datagram("192.0.2.77"), unnamed},
        {"ICMP", ping("192.0.2.77"), unnamed},
        {"ICMPv6", ping("2001:db8:c::7"), unnamed},
        {"multicast", datagram("239.1.1.1", 5000), unnamed},
        {"IPv6 multicast", datagram("ff0e::1", 5000), unnamed},
        {"broadcast", datagram("255.255.255.255", 5000), unnamed},
    });
  }
  gate.publish(rules, Mode::disabled);
  gate.check({{"disabled passes what cannot be read", ethernet(0x88cc, zeros(46)),
               SLUICE_REASON_ALLOW_DISABLED},
              {"and what is cut", head(syn("192.0.2.77"), 40), SLUICE_REASON_ALLOW_DISABLED}});
  gate.publish({}, Mode::allowlist);
  gate.check({{"an empty allowlist, IPv4", syn("198.51.100.7"), SLUICE_REASON_DENY_MODE},
              {"an empty allowlist, IPv6", syn("2001:db8:a::7"), SLUICE_REASON_DENY_MODE}});
}

TEST_CASE("audit: the verdict is computed, counted and reported, and the packet passes") {
  Gate gate;
  AttachmentOptions audit = plain();
  audit.audit = true;
  gate.publish({allowing("198.51.100.0/24"), denying("203.0.113.0/24")}, Mode::allowlist, audit);
  const std::vector<std::pair<Bytes, std::string>> cases{
      {syn("192.0.2.77"), "DENY_MODE"},
      {syn("203.0.113.7"), "DENY_RULE"},
      {syn("2001:db8:c::7"), "DENY_MODE"},
      {head(syn("198.51.100.7"), 40), "DENY_TRUNCATED"},
      {ethernet(0x88cc, zeros(46)), "DENY_ETHERTYPE"},
  };
  std::vector<sluice_event> events;
  DataPlaneEvents sink;
  sink.on_denial = [&](const sluice_event& event) { events.push_back(event); };
  for (const auto& [frame, reason] : cases) {
    const auto reasons = gate.plane().reason_counters();
    const Counters before = gate.plane().counters(gate.slot()).value();
    CHECK(gate.from(frame).verdict == kPass);
    CHECK(gate.reason_since(reasons) == reason);
    const Counters after = gate.plane().counters(gate.slot()).value();
    CHECK(after.audited_packets - before.audited_packets == 1);
    CHECK(after.allowed_packets - before.allowed_packets == 1);
    CHECK(after.allowed_bytes - before.allowed_bytes == frame.size());
    CHECK(after.denied_packets == before.denied_packets);
  }
  const Counters before = gate.plane().counters(gate.slot()).value();
  CHECK(gate.from(syn("198.51.100.7")).verdict == kPass);
  CHECK(gate.plane().counters(gate.slot()).value().audited_packets == before.audited_packets);
  gate.plane().poll(sink);
  REQUIRE(events.size() == cases.size());
  for (const sluice_event& event : events) CHECK(event.audited == 1);
  gate.publish({}, Mode::block_all, audit);
  gate.check(
      {{"block-all is not audited away", syn("198.51.100.7"), SLUICE_REASON_DENY_BLOCK_ALL}});
}

TEST_CASE("a denial's event names addresses, ports, reason and generation; losses are counted") {
  Gate gate(3);
  gate.publish({});
  std::vector<sluice_event> events;
  DataPlaneEvents sink;
  sink.on_denial = [&](const sluice_event& event) { events.push_back(event); };
  const auto frame = syn("2001:db8:c::7", 8443);
  CHECK(gate.from(frame).verdict == kDrop);
  CHECK(gate.from(datagram("192.0.2.77", 5353)).verdict == kDrop);
  gate.plane().poll(sink);
  REQUIRE(events.size() == 2);
  CHECK(events[0].slot == gate.slot());
  CHECK(events[0].family == 6);
  CHECK(events[0].protocol == 6);
  CHECK(events[0].reason == SLUICE_REASON_DENY_MODE);
  CHECK(events[0].audited == 0);
  CHECK(events[0].generation == 1);
  CHECK(events[0].ifindex == Gate::ifindex());
  CHECK(events[0].length == frame.size());
  CHECK(ntohs(events[0].source_port_be) == 40000);
  CHECK(ntohs(events[0].destination_port_be) == 8443);
  CHECK(std::memcmp(events[0].source, mapped("2001:db8::2").data(), 16) == 0);
  CHECK(std::memcmp(events[0].destination, mapped("2001:db8:c::7").data(), 16) == 0);
  CHECK(events[1].family == 4);
  CHECK(std::memcmp(events[1].destination, mapped("192.0.2.77").data(), 16) == 0);
  // The bucket refills while this runs, so only the sum is certain: each denial is an event or a
  // loss.
  events.clear();
  const Counters before = gate.plane().counters(gate.slot()).value();
  for (int i = 0; i < 200; ++i) CHECK(gate.from(frame).verdict == kDrop);
  gate.plane().poll(sink);
  const Counters after = gate.plane().counters(gate.slot()).value();
  CHECK(after.denied_packets - before.denied_packets == 200);
  CHECK(after.events_lost > before.events_lost);
  CHECK(events.size() + (after.events_lost - before.events_lost) == 200);
}

TEST_CASE("the most specific prefix wins, in both modes; on a tie deny wins") {
  Gate gate;
  for (const Mode mode : {Mode::allowlist, Mode::denylist}) {
    CAPTURE(to_string(mode));
    gate.publish(
        {allowing("10.0.0.0/8"), denying("10.1.0.0/16"), allowing("10.1.2.0/24"),
         denying("10.1.2.3/32"), allowing("10.9.0.0/16"), denying("10.9.0.0/16"),
         allowing("2001:db8::/32"), denying("2001:db8:1::/48"), allowing("2001:db8:1:2::/64"),
         denying("2001:db8:1:2::3/128"), allowing("2001:db8:9::/48"), denying("2001:db8:9::/48")},
        mode);
    gate.check({
        {"/8 allows", syn("10.200.0.1"), SLUICE_REASON_ALLOW_RULE},
        {"/16 denies", syn("10.1.200.1"), SLUICE_REASON_DENY_RULE},
        {"/24 allows", syn("10.1.2.4"), SLUICE_REASON_ALLOW_RULE},
        {"/32 denies", syn("10.1.2.3"), SLUICE_REASON_DENY_RULE},
        {"a tie", syn("10.9.1.1"), SLUICE_REASON_DENY_RULE},
        {"/32 of IPv6 allows", syn("2001:db8:5::1"), SLUICE_REASON_ALLOW_RULE},
        {"/48 denies", syn("2001:db8:1:3::1"), SLUICE_REASON_DENY_RULE},
        {"/64 allows", syn("2001:db8:1:2::4"), SLUICE_REASON_ALLOW_RULE},
        {"/128 denies", syn("2001:db8:1:2::3"), SLUICE_REASON_DENY_RULE},
        {"a tie in IPv6", syn("2001:db8:9::1"), SLUICE_REASON_DENY_RULE},
    });
  }
}

TEST_CASE("ports: exact, ranges, protocols, and the rule behind a rule that does not speak") {
  Gate gate;
  for (const auto& [wide, host, other] :
       {std::tuple{"203.0.113.0/24", "203.0.113.10/32", "203.0.113.11"},
        std::tuple{"2001:db8:b::/48", "2001:db8:b::10/128", "2001:db8:b::11"}}) {
    const std::string to = std::string(host).substr(0, std::string(host).find('/'));
    const bool six = to.find(':') != std::string::npos;
    CAPTURE(to);
    gate.publish({allowing(host, {"tcp/443", "udp/8000-8100", "sctp/5000"}),
                  allowing(wide, {six ? "icmpv6" : "icmp"}), denying(wide, {"tcp/25"})});
    gate.check({
        {"the port", syn(to, 443), SLUICE_REASON_ALLOW_RULE},
        {"below it", syn(to, 442), SLUICE_REASON_DENY_MODE},
        {"above it", syn(to, 444), SLUICE_REASON_DENY_MODE},
        {"the port by another protocol", datagram(to, 443), SLUICE_REASON_DENY_MODE},
        {"first of a range", datagram(to, 8000), SLUICE_REASON_ALLOW_RULE},
        {"last of a range", datagram(to, 8100), SLUICE_REASON_ALLOW_RULE},
        {"before a range", datagram(to, 7999), SLUICE_REASON_DENY_MODE},
        {"behind a range", datagram(to, 8101), SLUICE_REASON_DENY_MODE},
        {"SCTP", packet(to, 132, be16(1) + be16(5000) + zeros(8)), SLUICE_REASON_ALLOW_RULE},
        {"SCTP, another port", packet(to, 132, be16(1) + be16(5001) + zeros(8)),
         SLUICE_REASON_DENY_MODE},
        {"the source port opens nothing", packet(to, 6, tcp(443, 9)), SLUICE_REASON_DENY_MODE},
        {"port 0", syn(to, 0), SLUICE_REASON_DENY_MODE},
        {"a covering rule speaks where this does not", ping(to), SLUICE_REASON_ALLOW_RULE},
        {"a covering deny too", syn(to, 25), SLUICE_REASON_DENY_RULE},
        {"the neighbour has only the covering rules", syn(other, 443), SLUICE_REASON_DENY_MODE},
        {"which are there", ping(other), SLUICE_REASON_ALLOW_RULE},
    });
  }
}

TEST_CASE("an allow by CIDR ends hard, in the kernel, and its covering decision takes over") {
  Gate gate;
  const BootTime soon = {boot_now().nanoseconds + 1'500'000'000};
  gate.publish({allowing("198.51.100.0/24", {}, soon), denying("203.0.113.0/24"),
                allowing("203.0.113.7/32", {}, soon), allowing("10.0.0.0/8"),
                denying("10.1.0.0/16", {}, soon), allowing("2001:db8:a::/48", {}, soon),
                allowing("2001:db8:b::7/128", {"tcp/443"}, soon)});
  for (const auto& [to, reason] :
       {std::pair{"198.51.100.7", "ALLOW_RULE"}, std::pair{"203.0.113.7", "ALLOW_RULE"},
        std::pair{"2001:db8:a::7", "ALLOW_RULE"}, std::pair{"10.1.0.1", "DENY_RULE"}}) {
    CAPTURE(to);
    const auto found = gate.reason_of(syn(to));
    if (boot_now().nanoseconds < soon.nanoseconds) CHECK(found == reason);  // it has not ended yet
  }
  wait_for(soon);
  gate.check({
      {"an allow ended", syn("198.51.100.7"), SLUICE_REASON_DENY_MODE},
      {"also for a live connection", segment("198.51.100.7"), SLUICE_REASON_DENY_MODE},
      {"an allow ended, the deny around it holds", syn("203.0.113.7"), SLUICE_REASON_DENY_RULE},
      {"a deny ended, the allow around it holds", syn("10.1.0.1"), SLUICE_REASON_ALLOW_RULE},
      {"IPv6", syn("2001:db8:a::7"), SLUICE_REASON_DENY_MODE},
      {"IPv6, with a port", syn("2001:db8:b::7"), SLUICE_REASON_DENY_MODE},
  });
}

TEST_CASE("the floor: loses only to an explicit allow, as long or longer, of the operator's own") {
  Gate gate;
  const auto probe = [&](std::string four, std::string six) {
    CHECK(gate.reason_of(syn("169.254.169.254", 80)) == four);
    CHECK(gate.reason_of(syn("fd00:ec2::254", 80)) == six);
  };
  SUBCASE("nobody says anything") {
    gate.publish({}, Mode::denylist, plain(), metadata());
    probe("DENY_FLOOR", "DENY_FLOOR");
    gate.check({{"its neighbour is not in it", syn("169.254.169.253"), SLUICE_REASON_ALLOW_MODE}});
  }
  SUBCASE("a source's allow, however specific") {
    gate.publish({allowing("169.254.169.254/32"), allowing("fd00:ec2::254/128")}, Mode::allowlist,
                 plain(), metadata(), false);
    probe("DENY_FLOOR", "DENY_FLOOR");
  }
  SUBCASE("the operator's allow of the same prefix") {
    gate.publish({allowing("169.254.169.254/32"), allowing("fd00:ec2::254/128")}, Mode::allowlist,
                 plain(), metadata(), true);
    probe("ALLOW_RULE", "ALLOW_RULE");
  }
  SUBCASE("the operator's allow of a shorter prefix") {
    gate.publish({allowing("0.0.0.0/0"), allowing("::/0")}, Mode::allowlist, plain(), metadata(),
                 true);
    probe("DENY_FLOOR", "DENY_FLOOR");
  }
  SUBCASE("the operator's allow for one port") {
    gate.publish({allowing("169.254.169.254/32", {"tcp/80"})}, Mode::allowlist, plain(), metadata(),
                 true);
    probe("ALLOW_RULE", "DENY_FLOOR");
    gate.check({{"another port", syn("169.254.169.254", 81), SLUICE_REASON_DENY_FLOOR}});
  }
  SUBCASE("a learned address") {
    gate.publish({}, Mode::allowlist, plain(), metadata());
    gate.learn("169.254.169.254", from_now(600), from_now(600));
    gate.learn("fd00:ec2::254", from_now(600), from_now(600));
    probe("DENY_FLOOR", "DENY_FLOOR");
  }
}

TEST_CASE("learned addresses open what they name, and never overrule a deny") {
  Gate gate;
  const std::string open4 = "203.0.113.20", open6 = "2001:db8:b::20";
  gate.publish(
      {denying("10.0.0.0/8"), denying("fd00::/8"), denying("203.0.113.30/32", {"tcp/25"})});
  for (const std::string& to : {open4, open6}) {
    CAPTURE(to);
    gate.check({{"before", syn(to), SLUICE_REASON_DENY_MODE}});
    gate.learn(to, from_now(600), from_now(600), {"tcp/443", "udp/443"});
    gate.check({
        {"the port", syn(to), SLUICE_REASON_ALLOW_LEARNED},
        {"the same of UDP", datagram(to, 443), SLUICE_REASON_ALLOW_LEARNED},
        {"another port", syn(to, 80), SLUICE_REASON_DENY_MODE},
        {"another protocol", ping(to), SLUICE_REASON_DENY_MODE},
    });
  }
  gate.check({
      {"the neighbour", syn("203.0.113.21"), SLUICE_REASON_DENY_MODE},
      {"a later fragment", framed(ip4("192.0.2.2", open4, 17, zeros(16), {.fragment = 8})),
       SLUICE_REASON_DENY_FRAGMENT},
      {"a later fragment in IPv6",
       framed(ip6("2001:db8::2", open6, 44, fragment_header(17, 8, false) + zeros(16))),
       SLUICE_REASON_DENY_FRAGMENT},
  });
  gate.learn("10.0.0.7", from_now(600), from_now(600));
  gate.learn("fd00::7", from_now(600), from_now(600));
  gate.learn("203.0.113.30", from_now(600), from_now(600));
  gate.check({
      {"a deny of a whole network holds, however specific the answer", syn("10.0.0.7"),
       SLUICE_REASON_DENY_RULE},
      {"in IPv6 too", syn("fd00::7"), SLUICE_REASON_DENY_RULE},
      {"a deny of one port holds", syn("203.0.113.30", 25), SLUICE_REASON_DENY_RULE},
      {"and the rest of that address is open", syn("203.0.113.30"), SLUICE_REASON_ALLOW_LEARNED},
      {"every protocol", ping("203.0.113.30"), SLUICE_REASON_ALLOW_LEARNED},
      {"a later fragment, by an answer for all ports",
       framed(ip4("192.0.2.2", "203.0.113.30", 17, zeros(16), {.fragment = 8})),
       SLUICE_REASON_ALLOW_LEARNED},
  });
  gate.publish({}, Mode::block_all);
  gate.check({{"block-all", syn(open4), SLUICE_REASON_DENY_BLOCK_ALL}});
  gate.publish({}, Mode::allowlist);
  const auto all = {mapped(open4), mapped(open6), mapped("203.0.113.30")};
  REQUIRE(gate.plane().learned().revoke(gate.scope(), std::vector(all)));
  gate.check({{"revoked", syn(open4), SLUICE_REASON_DENY_MODE},
              {"revoked", segment(open6), SLUICE_REASON_DENY_MODE}});
}

TEST_CASE("packets that note a live connection, while the ends of its address are moved") {
  Gate gate;
  gate.publish({});
  std::vector<LearnedAddress> all;
  for (unsigned i = 0; i < 4096; ++i) {
    const auto text = i % 2 == 0 ? fmt::format("203.0.{}.{}", i >> 8, i & 255)
                                 : fmt::format("2001:db8:7::{:x}", i);
    all.push_back({mapped(text), from_now(600), from_now(600)});
  }
  constexpr std::uint64_t kLongAgo = 1;
  const Fd learned = gate.map("learned");
  const int program = gate.program("from");
  for (int round = 0; round < 5; ++round) {
    CAPTURE(round);
    REQUIRE(gate.plane().learned().learn(gate.scope(), all, {}));
    for (const auto& one : all) {
      sluice_learned_key key{};
      key.scope = gate.scope();
      std::memcpy(key.address, one.address.data(), 16);
      sluice_learned value{};
      REQUIRE(bpf_map_lookup_elem(learned.get(), &key, &value) == 0);
      value.last_seen = kLongAgo;
      REQUIRE(bpf_map_update_elem(learned.get(), &key, &value, BPF_EXIST) == 0);
    }
    std::atomic<bool> done{false}, wrong{false};
    std::thread packets([&] {
      __sk_buff context{};
      context.ifindex = Gate::ifindex();
      for (unsigned i = 0; i < 4096; ++i) {
        const Bytes frame = segment(i % 2 == 0 ? fmt::format("203.0.{}.{}", i >> 8, i & 255)
                                               : fmt::format("2001:db8:7::{:x}", i));
        LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = frame.data(),
                    .data_size_in = static_cast<std::uint32_t>(frame.size()), .ctx_in = &context,
                    .ctx_size_in = sizeof(context), .repeat = 1);
        if (bpf_prog_test_run_opts(program, &options) != 0 ||
            static_cast<int>(options.retval) != kPass)
          wrong = true;
      }
      done = true;
    });
    std::uint64_t later = 0;
    while (!done) {
      ++later;
      for (std::size_t at = 0; at < all.size(); at += 16) {
        for (std::size_t i = at; i < at + 16; ++i) all[i].active_until.nanoseconds += later;
        if (!gate.plane().learned().learn(gate.scope(), std::span(all).subspan(at, 16), {}))
          wrong = true;
      }
    }
    packets.join();
    CHECK_FALSE(wrong.load());
    std::size_t forgotten = 0, ends = 0;
    for (const auto& one : all) {
      sluice_learned_key key{};
      key.scope = gate.scope();
      std::memcpy(key.address, one.address.data(), 16);
      sluice_learned value{};
      REQUIRE(bpf_map_lookup_elem(learned.get(), &key, &value) == 0);
      forgotten += value.last_seen == kLongAgo ? 1u : 0u;
      ends += value.active_until == one.active_until.nanoseconds ? 1u : 0u;
    }
    CHECK(forgotten == 0);
    CHECK(ends == all.size());
  }
}

TEST_CASE("more port lists over time than their table has places, and none opens another's ports") {
  Gate gate;
  gate.publish({});
  const std::string lasts4 = "203.0.113.7", lasts6 = "2001:db8:7::7", now4 = "203.0.113.8",
                    now6 = "2001:db8:7::8";
  for (const auto& to : {lasts4, lasts6}) gate.learn(to, from_now(600), from_now(600), {"tcp/7"});
  for (std::uint16_t port = 1000; port < 4000; ++port) {
    CAPTURE(port);
    const std::vector<PortRange> list{{6, false, port, port}};
    const std::array addresses{LearnedAddress{mapped(now4), from_now(600), from_now(600)},
                               LearnedAddress{mapped(now6), from_now(600), from_now(600)}};
    auto learned = gate.plane().learned().learn(gate.scope(), addresses, list);
    // The grace period is the kernel's; a daemon's resolver asks again as well.
    for (int i = 0; i < 1000 && !learned && learned.error().code == ENOSPC; ++i) {
      gate.plane().poll({});
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      learned = gate.plane().learned().learn(gate.scope(), addresses, list);
    }
    REQUIRE(learned);
    for (const auto& to : {now4, now6}) {
      CHECK(gate.from(syn(to, port)).verdict == kPass);
      CHECK(gate.from(syn(to, port - 1)).verdict == kDrop);
      CHECK(gate.from(syn(to, 7)).verdict == kDrop);
    }
    for (const auto& to : {lasts4, lasts6}) {
      CHECK(gate.from(syn(to, 7)).verdict == kPass);
      CHECK(gate.from(syn(to, port)).verdict == kDrop);
    }
    REQUIRE(gate.plane().learned().revoke(gate.scope(), std::array{mapped(now4), mapped(now6)}));
    if (port % 64 == 0) gate.plane().poll({});
  }
}

TEST_CASE("learned addresses: active, then grace for live connections only, then nothing") {
  Gate gate;
  gate.publish({});
  const Fd slots = gate.map("slots");
  sluice_slot slot{};
  const std::uint32_t index = gate.slot();
  REQUIRE(bpf_map_lookup_elem(slots.get(), &index, &slot) == 0);
  // Written as the clock would have it later on.
  const auto put = [&](const std::string& text, std::int64_t active, std::int64_t grace,
                       std::int64_t seen) {
    sluice_learned_key key{};
    key.scope = slot.scope;
    std::memcpy(key.address, mapped(text).data(), 16);
    sluice_learned value{};
    value.active_until = from_now(active).nanoseconds;
    value.grace_until = from_now(grace).nanoseconds;
    value.last_seen = from_now(seen).nanoseconds;
    gate.put_learned(key, value);
  };
  for (const auto& [live, idle, gone, fresh] :
       {std::tuple{"203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4"},
        std::tuple{"2001:db8:b::1", "2001:db8:b::2", "2001:db8:b::3", "2001:db8:b::4"}}) {
    CAPTURE(live);
    put(fresh, 60, 90, -1000);
    put(live, -1, 60, -2);
    put(idle, -1, 60, -1000);
    put(gone, -60, -1, -1);
    gate.check({
        {"active: a new connection, however long the last packet is past", syn(fresh),
         SLUICE_REASON_ALLOW_LEARNED},
        {"grace: a new connection needs a new answer", syn(live), SLUICE_REASON_DENY_MODE},
        {"grace: a live one goes on", segment(live), SLUICE_REASON_ALLOW_LEARNED},
        {"grace: an answer to a connection from there",
         packet(live, 6, tcp(443, 40000, kSyn | kAck)), SLUICE_REASON_ALLOW_LEARNED},
        {"grace: datagrams of a live one", datagram(live), SLUICE_REASON_ALLOW_LEARNED},
        {"grace: after a pause, no more", segment(idle), SLUICE_REASON_DENY_MODE},
        {"grace: nor datagrams", datagram(idle), SLUICE_REASON_DENY_MODE},
        {"expired", segment(gone), SLUICE_REASON_DENY_MODE},
        {"expired: datagrams", datagram(gone), SLUICE_REASON_DENY_MODE},
    });
  }
}

TEST_CASE("an expired answer does not come back to life with another one's ports") {
  Gate gate;
  gate.publish({});
  const BootTime past = from_now(-1);
  gate.learn("203.0.113.20", past, past, {"tcp/25"});
  gate.check({{"expired", syn("203.0.113.20", 25), SLUICE_REASON_DENY_MODE}});
  gate.learn("203.0.113.20", from_now(600), from_now(600), {"tcp/443"});
  gate.check({{"the new one", syn("203.0.113.20", 443), SLUICE_REASON_ALLOW_LEARNED},
              {"the old one's port stays shut", syn("203.0.113.20", 25), SLUICE_REASON_DENY_MODE}});
}

TEST_CASE("an entry whose memory another address was given opens nothing") {
  Gate gate;
  gate.publish({});
  const Fd learned = gate.map("learned");
  for (const char* text : {"203.0.113.20", "2001:db8:b::20"}) {
    CAPTURE(text);
    gate.learn(text, from_now(600), from_now(600));
    gate.check({{"its own", syn(text), SLUICE_REASON_ALLOW_LEARNED}});
    sluice_learned_key key{};
    key.scope = gate.scope();
    std::memcpy(key.address, mapped(text).data(), 16);
    sluice_learned value{};
    REQUIRE(bpf_map_lookup_elem(learned.get(), &key, &value) == 0);
    CHECK(value.check == sluice_learned_key_check(&key));
    value.check ^= 1;
    REQUIRE(bpf_map_update_elem(learned.get(), &key, &value, BPF_EXIST) == 0);
    gate.check({{"another's", syn(text), SLUICE_REASON_DENY_MODE}});
  }
}

TEST_CASE("attachments do not share rules or learned addresses") {
  Gate gate;
  const std::uint32_t other = gate.attach("host1");
  gate.publish({allowing("198.51.100.0/24")});
  gate.learn("203.0.113.20", from_now(600), from_now(600));
  gate.publish_at(other, {allowing("203.0.113.99/32")}, Mode::allowlist);
  CHECK(gate.from(syn("198.51.100.7")).verdict == kPass);
  CHECK(gate.from(syn("203.0.113.20")).verdict == kPass);
  CHECK(gate.from(syn("203.0.113.99")).verdict == kDrop);
  CHECK(gate.from(syn("198.51.100.7"), "host1").verdict == kDrop);
  CHECK(gate.from(syn("203.0.113.20"), "host1").verdict == kDrop);
  CHECK(gate.from(syn("203.0.113.99"), "host1").verdict == kPass);
}

TEST_CASE("a large policy, in a map of its own, says what a small one says") {
  Gate gate;
  std::vector<Rule> rules{allowing("203.0.113.10/32", {"tcp/443"}), denying("10.3.0.0/16"),
                          allowing("2001:db8:b::10/128", {"tcp/443"}), denying("2001:db8:9::/48")};
  for (int i = 0; i < 40000; ++i) {
    Rule made;
    made.action = Action::allow;
    Prefix prefix;
    prefix.address = {100, static_cast<std::uint8_t>(i >> 8), static_cast<std::uint8_t>(i), 8};
    prefix.length = 29;
    made.prefix = prefix;
    rules.push_back(made);
  }
  gate.publish(rules);
  gate.check({
      {"in it", syn("100.1.1.9"), SLUICE_REASON_ALLOW_RULE},
      {"beside it", syn("100.1.1.16"), SLUICE_REASON_DENY_MODE},
      {"the last one", syn("100.156.63.15"), SLUICE_REASON_ALLOW_RULE},
      {"behind the last one", syn("100.156.64.8"), SLUICE_REASON_DENY_MODE},
      {"a deny", syn("10.3.1.1"), SLUICE_REASON_DENY_RULE},
      {"a port", syn("203.0.113.10"), SLUICE_REASON_ALLOW_RULE},
      {"another port", syn("203.0.113.10", 80), SLUICE_REASON_DENY_MODE},
      {"IPv6, a port", syn("2001:db8:b::10"), SLUICE_REASON_ALLOW_RULE},
      {"IPv6, a deny", syn("2001:db8:9::1"), SLUICE_REASON_DENY_RULE},
      {"IPv6, nothing", syn("2001:db8:c::1"), SLUICE_REASON_DENY_MODE},
  });
}
