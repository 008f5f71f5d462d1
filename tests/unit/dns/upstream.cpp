// The resolver and its upstream servers: how they are asked, and those that lie, are dead, silent
// or slow.
#include "unit/dns/in_namespace.hpp"

using namespace dns_test;

TEST_CASE("an upstream that lies grants nothing") {
  struct Case {
    const char* what;
    std::function<std::vector<Packet>(const Seen&)> says;
    bool then_good;  // the true answer follows
  };
  const auto good = [](const Seen& seen) {
    return reply_to(seen.packet).answer("www.example", type::a, 300, v4("198.51.100.1")).done();
  };
  const auto evil = v4("203.0.113.66");
  const std::vector<Case> cases{
      {"another id, then the truth",
       [&](const Seen& seen) -> std::vector<Packet> {
         if (seen.by_tcp) return {good(seen)};
         auto forged = reply_to(seen.packet).answer("www.example", type::a, 300, evil).done();
         forged[0] ^= 0x55;
         return {forged, good(seen)};
       },
       true},
      {"another case, then the truth by TCP",
       [&](const Seen& seen) -> std::vector<Packet> {
         if (seen.by_tcp) return {good(seen)};
         auto forged = reply_to(seen.packet).answer("www.example", type::a, 300, evil).done();
         for (std::size_t i = 13; i < 16; ++i) forged[i] ^= 0x20;
         return {forged};
       },
       true},
      {"another question",
       [&](const Seen& seen) -> std::vector<Packet> {
         if (seen.by_tcp) return {good(seen)};
         return {Build(0x8180, static_cast<unsigned>(seen.packet[0]) << 8 | seen.packet[1])
                     .question("evil.test", type::a)
                     .answer("evil.test", type::a, 300, evil)
                     .done()};
       },
       true},
      {"an address for another name beside the answer",
       [&](const Seen& seen) -> std::vector<Packet> {
         return {reply_to(seen.packet)
                     .answer("www.example", type::a, 300, v4("198.51.100.1"))
                     .answer("other.test", type::a, 300, evil)
                     .done()};
       },
       true},
      {"addresses in authority and additional",
       [&](const Seen& seen) -> std::vector<Packet> {
         return {reply_to(seen.packet)
                     .answer("www.example", type::a, 300, v4("198.51.100.1"))
                     .authority("www.example", type::a, 300, evil)
                     .additional("www.example", type::a, 300, evil)
                     .done()};
       },
       true},
      {"two CNAMEs",
       [&](const Seen& seen) -> std::vector<Packet> {
         return {reply_to(seen.packet)
                     .link("www.example", type::cname, 300, "a.test")
                     .link("www.example", type::cname, 300, "b.test")
                     .answer("a.test", type::a, 300, evil)
                     .done()};
       },
       false},
      {"a loop",
       [&](const Seen& seen) -> std::vector<Packet> {
         return {reply_to(seen.packet)
                     .link("www.example", type::cname, 300, "a.test")
                     .link("a.test", type::cname, 300, "www.example")
                     .done()};
       },
       false},
      {"rubbish behind the header",
       [&](const Seen& seen) -> std::vector<Packet> {
         auto packet = reply_to(seen.packet).done();
         packet[7] = 9;
         return {packet};
       },
       false},
      {"SERVFAIL",
       [&](const Seen& seen) -> std::vector<Packet> {
         return {reply_to(seen.packet, 0x8182).done()};
       },
       false},
      {"a flood of forgeries before the truth",
       [&](const Seen& seen) -> std::vector<Packet> {
         std::vector<Packet> packets;
         for (unsigned i = 1; i < 200; ++i) {
           auto forged = reply_to(seen.packet).answer("www.example", type::a, 300, evil).done();
           forged[1] = static_cast<std::uint8_t>(forged[1] ^ i);
           packets.push_back(forged);
         }
         packets.push_back(good(seen));
         return packets;
       },
       true},
  };
  for (const auto& entry : cases) {
    CAPTURE(entry.what);
    Lab lab;
    lab.upstream.handle([&](const Seen& seen) { return std::optional(entry.says(seen)); });
    lab.attach(1, {allow("www.example")});
    const auto reply = Guest(lab, 1).ask("www.example", type::a);
    if (entry.then_good) {
      CHECK(reply.rcode == 0);
      CHECK(reply.answers == std::vector<std::string>{"www.example 1 300 c6336401"});
      CHECK(lab.learned(1) == std::vector<std::string>{"198.51.100.1"});
    } else {
      CHECK(reply.rcode == 2);
      CHECK(reply.ede);
      CHECK(lab.host.learned().empty());
    }
  }
}

TEST_CASE("a dead upstream: the next one answers; all dead: SERVFAIL, and that is remembered") {
  ScriptedUpstream second;
  second.add("www.example", type::a, 300, v4("198.51.100.1"));
  SUBCASE("one of two, silent") {
    Lab lab([&](auto& host) {
      ScriptedUpstream gone;
      host.configure("upstreams", std::vector<std::string>{gone.endpoint(), second.endpoint()});
      host.configure("upstream_timeout", 100ms);
    });
    lab.attach(1, {allow("www.example")});
    CHECK(Guest(lab, 1).ask("www.example", type::a).answers.size() == 1);
  }
  SUBCASE("one of two, mute") {
    ScriptedUpstream mute;
    mute.handle([](const Seen&) { return std::vector<Packet>{}; });
    Lab lab([&](auto& host) {
      host.configure("upstreams", std::vector<std::string>{mute.endpoint(), second.endpoint()});
      host.configure("upstream_timeout", 100ms);
    });
    lab.attach(1, {allow("www.example")});
    CHECK(Guest(lab, 1).ask("www.example", type::a).answers.size() == 1);
    CHECK(mute.count() >= 1);
  }
  SUBCASE("one of two fails: the other may know") {
    ScriptedUpstream broken;
    broken.handle(
        [](const Seen& seen) { return std::vector<Packet>{reply_to(seen.packet, 0x8182).done()}; });
    Lab lab([&](auto& host) {
      host.configure("upstreams", std::vector<std::string>{broken.endpoint(), second.endpoint()});
    });
    lab.attach(1, {allow("www.example")});
    CHECK(Guest(lab, 1).ask("www.example", type::a).answers.size() == 1);
  }
  SUBCASE("all") {
    Lab lab([](auto& host) {
      host.configure("upstream_timeout", 50ms);
      host.configure("upstream_deadline", 1s);
    });
    lab.upstream.handle([](const Seen& seen) -> std::optional<std::vector<Packet>> {
      if (seen.name() == "www.example") return std::vector<Packet>{};
      return std::nullopt;
    });
    lab.attach(1, {allow("*.example")});
    Guest guest(lab, 1);
    // How often the upstream was asked for it: once it has answered what was sent later.
    int probes = 0;
    const auto tries = [&] {
      CHECK(guest.ask("n" + std::to_string(++probes) + ".example", type::a).rcode == 3);
      return std::ranges::count(lab.upstream.seen(), "www.example", &Seen::name);
    };
    const auto reply = guest.ask("www.example", type::a);
    CHECK(reply.rcode == 2);
    CHECK(reply.ede == 22u);
    const auto asked = tries();
    CHECK(asked >= 2);  // tried again
    CHECK(guest.ask("www.example", type::a).rcode == 2);
    CHECK(tries() == asked);
    // For no longer than five seconds, however often it is asked for.
    for (int i = 0; i < 3; ++i) {
      lab.host.advance(6s);
      const auto before = tries();
      CHECK(guest.ask("www.example", type::a).rcode == 2);
      CHECK(tries() > before);
    }
  }
  SUBCASE("all that answer, with nothing of use: longer each time") {
    Lab lab;
    lab.upstream.handle(
        [](const Seen& seen) { return std::vector<Packet>{reply_to(seen.packet, 0x8182).done()}; });
    lab.attach(1, {allow("*.example")});
    Guest guest(lab, 1);
    for (const std::size_t asked : {1, 2, 2, 3}) {
      CHECK(guest.ask("www.example", type::a).rcode == 2);
      CHECK(lab.upstream.count() == asked);
      lab.host.advance(6s);
    }
  }
}

TEST_CASE("after a change of servers nothing is told that a former one has said") {
  ScriptedUpstream second;
  second.add("www.example", type::a, 300, v4("198.51.100.2"));
  Lab lab;
  lab.attach(1, {allow("www.example")});
  Guest guest(lab, 1);
  const auto change = [&] {
    lab.host.configure("upstreams", std::vector<std::string>{second.endpoint()});
    REQUIRE(lab.host.reconfigure());
    CHECK(Guest(lab, 1).ask("denied.test", type::a).rcode == 3);  // the worker has taken it
  };
  SUBCASE("an answer") {
    lab.upstream.add("www.example", type::a, 300, v4("198.51.100.1"));
    CHECK(guest.ask("www.example", type::a).answers.at(0).ends_with("c6336401"));
    change();
    guest.send("www.example", type::a);
  }
  SUBCASE("a failure") {
    lab.upstream.handle(
        [](const Seen& seen) { return std::vector<Packet>{reply_to(seen.packet, 0x8182).done()}; });
    CHECK(guest.ask("www.example", type::a).rcode == 2);
    change();
    guest.send("www.example", type::a);
  }
  SUBCASE("an answer that was under way") {
    lab.upstream.handle([](const Seen&) { return std::vector<Packet>{}; });
    guest.send("www.example", type::a);
    REQUIRE(lab.upstream.wait_for(1));
    change();
    lab.upstream.send_late(reply_to(lab.upstream.seen().at(0).packet)
                               .answer("www.example", type::a, 300, v4("198.51.100.1"))
                               .done());
  }
  SUBCASE("nor one by TCP") {
    lab.upstream.handle([](const Seen& seen) {
      std::vector<Packet> said;
      if (!seen.by_tcp) said = {reply_to(seen.packet, 0x8380).done()};
      return said;
    });
    guest.send("www.example", type::a);
    REQUIRE(lab.upstream.wait_for(2));
    change();
  }
  CHECK(guest.receive().answers.at(0).ends_with("c6336402"));
  CHECK(guest.ask("www.example", type::a).answers.at(0).ends_with("c6336402"));
  CHECK(second.count() == 1);
}

TEST_CASE("a truncated answer whose server takes no TCP fails, and opens nothing of what it held") {
  ScriptedUpstream only_udp(false);
  only_udp.handle([](const Seen& seen) {
    return std::vector<Packet>{reply_to(seen.packet, 0x8380)
                                   .answer("www.example", type::a, 300, v4("198.51.100.1"))
                                   .done()};
  });
  Lab lab([&](auto& host) {
    host.configure("upstreams", std::vector<std::string>{only_udp.endpoint()});
    host.configure("upstream_timeout", 50ms);
    host.configure("upstream_deadline", 300ms);
  });
  lab.attach(1, {allow("www.example")});
  const auto reply = Guest(lab, 1).ask("www.example", type::a);
  CHECK(reply.rcode == 2);
  CHECK(lab.host.learned().empty());
}

// An upstream whose answers need TCP, and a lab that is quick to ask again.
struct LargeAnswers {
  // Whether a question that came by TCP is answered.
  explicit LargeAnswers(std::function<bool(const Seen&)> answers, std::chrono::milliseconds again)
      : lab([&](auto& host) { host.configure("upstream_timeout", again); }) {
    lab.upstream.handle([answers = std::move(answers)](const Seen& seen) {
      std::vector<Packet> said;
      if (!seen.by_tcp)
        said = {reply_to(seen.packet, 0x8380).done()};
      else if (answers(seen))
        said = {reply_to(seen.packet).answer(seen.name(), type::a, 300, v4("198.51.100.1")).done()};
      return said;
    });
    lab.attach(1, {allow("*.example")});
  }
  // How many questions came by this connection.
  [[nodiscard]] std::size_t asked_on(std::size_t connection) const {
    const auto seen = lab.upstream.seen();
    return static_cast<std::size_t>(
        std::ranges::count_if(seen, [&](const Seen& one) { return one.connection == connection; }));
  }
  Lab lab;
};

TEST_CASE("an upstream's TCP connection that says nothing is replaced, however much waits on it") {
  std::atomic<bool> silent{false};
  LargeAnswers test([&](const Seen& seen) { return seen.connection > 1 || !silent; }, 100ms);
  SUBCASE("silent from the first") {
    silent = true;
    CHECK(Guest(test.lab, 1).ask("www.example", type::a).answers.size() == 1);
  }
  SUBCASE("after it has worked, under load") {
    CHECK(Guest(test.lab, 1).ask("www.example", type::a).answers.size() == 1);
    silent = true;
    Guest guest(test.lab, 1);
    for (int i = 0; i < 20; ++i) guest.send("n" + std::to_string(i) + ".example", type::a);
    for (int i = 0; i < 20; ++i) CHECK(guest.receive().answers.size() == 1);
  }
  CHECK(test.asked_on(1) >= 1);
  CHECK(test.asked_on(2) >= 1);
}

TEST_CASE("an upstream's TCP connection on which one name is slow and others are not is kept") {
  LargeAnswers test([](const Seen& seen) { return seen.name() != "slow.example"; }, 1s);
  Guest slow(test.lab, 1), guest(test.lab, 1);
  slow.send("slow.example", type::a);
  for (int i = 0; !slow.has_answer(); ++i) {
    CHECK(guest.ask("n" + std::to_string(i) + ".example", type::a).answers.size() == 1);
    std::this_thread::sleep_for(10ms);
  }
  CHECK(slow.receive().rcode == 2);
  CHECK(test.asked_on(1) >= 2);
  CHECK(test.asked_on(2) == 0);
}

TEST_CASE(
    "questions to the upstream: random ports, ids and cases; our own EDNS, nothing of the "
    "client's") {
  Lab lab;
  lab.upstream.handle([&](const Seen& seen) {
    return std::vector<Packet>{
        reply_to(seen.packet).answer(seen.name(), type::a, 300, v4("198.51.100.1")).done()};
  });
  lab.attach(1, {allow("*.example")});
  Guest guest(lab, 1);
  std::set<std::uint16_t> ids, ports;
  std::set<Packet> cases;
  for (int i = 0; i < 64; ++i) {
    // With a cookie, which goes nowhere.
    guest.send_raw(Build(0x0110, 9)
                       .question("aaaaaaaaaaaaaaaaaaaa" + std::to_string(i) + ".example", type::a)
                       .opt(4096, true, 0, 0, joined({two(10), two(8), bytes("12345678")}))
                       .done());
    CHECK(guest.receive().rcode == 0);
  }
  for (const auto& seen : lab.upstream.seen()) {
    const auto query = view(seen.packet);
    ids.insert(query.header().id());
    ports.insert(seen.from);
    cases.insert(Packet(seen.packet.begin() + 13, seen.packet.begin() + 33));
    CHECK(query.edns().present);
    CHECK(query.edns().udp_size == 1232);
    CHECK(query.edns().dnssec_ok);
    CHECK(query.header().checking_disabled());
    CHECK(seen.packet.size() == 12 + query.question().wire.size() + 11);
  }
  CHECK(ids.size() >= 60);
  CHECK(ports.size() >= 2);
  CHECK(cases.size() >= 60);
}
