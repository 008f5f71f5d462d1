// The resolver as a guest meets it: questions over UDP on loopback, and what the kernel would have
// been told by the time an answer comes.
#include "unit/dns/in_namespace.hpp"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <future>

using namespace dns_test;

TEST_CASE("an allowed name is resolved, opened, and then answered") {
  Lab lab;
  lab.upstream.add("www.example", type::a, 300, v4("198.51.100.1"));
  lab.attach(1, {allow("www.example")});
  Guest guest(lab, 1);
  std::atomic<bool> answered_before{false};
  lab.host.on_learn([&](const auto&) { answered_before = guest.has_answer(); });

  const auto reply = guest.ask("www.example", type::a);
  CHECK(reply.rcode == 0);
  CHECK(reply.answers == std::vector<std::string>{"www.example 1 300 c6336401"});
  CHECK_FALSE(answered_before);
  const auto learned = lab.host.learned();
  REQUIRE(learned.size() == 1);
  CHECK(learned[0].attachment.value == 1);
  CHECK(learned[0].addresses.at(0).text() == "198.51.100.1");
  CHECK(learned[0].rule == 0);
  CHECK(learned[0].ttl == 330s);  // what was sent, and the grace
  CHECK(learned[0].grace == 1h);  // connections that live then
  CHECK(lab.host.wait_until([&] { return lab.host.reports().size() == 1; }));
  const auto kept = lab.host.reports().at(0);
  const auto report = kept.get();
  CHECK(report.attachment.value == 1);
  CHECK(report.name == "www.example");
  CHECK(report.verdict == sdk::QueryVerdict::allowed);
  CHECK(report.rule == "www.example");
  CHECK(report.upstream == lab.upstream.endpoint());
  CHECK(report.upstream_time > 0s);
  CHECK_FALSE(report.cached);
  REQUIRE(report.addresses.size() == 1);
  CHECK(report.addresses[0].text() == "198.51.100.1");
}

TEST_CASE("the case of the question comes back as it was asked") {
  Lab lab;
  lab.upstream.add("www.example", type::a, 300, v4("198.51.100.1"));
  lab.attach(1, {allow("WWW.example")});
  Guest guest(lab, 1);
  const auto reply = guest.ask("wWw.ExAmple", type::a);
  CHECK(reply.rcode == 0);
  const auto question = wire("wWw.ExAmple");
  CHECK(std::equal(question.begin(), question.end(), reply.packet.begin() + 12));
}

TEST_CASE("IPv6: over IPv6, an AAAA") {
  Lab lab;
  lab.upstream.add("www.example", type::aaaa, 300, v6("2001:db8::1"));
  lab.attach(1, {allow("www.example")});
  Guest guest(lab, 1, false, true);
  CHECK(guest.ask("www.example", type::aaaa).answers.size() == 1);
  CHECK(lab.learned(1) == std::vector<std::string>{"2001:db8::1"});
}

TEST_CASE("a denied name is denied at once, says why, and the upstream hears nothing") {
  struct Case {
    const char* what;
    const char* denied;
    unsigned rcode;
  };
  for (const auto& [what, denied, rcode] :
       {Case{"NXDOMAIN", "nxdomain", 3}, Case{"REFUSED", "refused", 5},
        Case{"NODATA", "nodata", 0}}) {
    CAPTURE(what);
    Lab lab([&](auto& host) { host.configure("denied", denied); });
    lab.attach(1, {allow("*.example"), deny("bad.example")});
    Guest guest(lab, 1);
    const auto unknown = guest.ask("www.other", type::a);
    CHECK(unknown.rcode == rcode);
    CHECK(unknown.answers.empty());
    CHECK(unknown.ede == 15u);
    CHECK(unknown.ede_text == "no rule allows this name");
    const auto bad = guest.ask("bad.example", type::a);
    CHECK(bad.rcode == rcode);
    CHECK(bad.ede_text == "a rule denies this name");
    CHECK_FALSE(guest.ask("www.other", type::a, 0).ede);  // no EDNS, no words
    CHECK(lab.upstream.count() == 0);
    CHECK(lab.host.learned().empty());
    CHECK(lab.host.wait_until([&] { return lab.host.reports().size() == 3; }));
    const auto reports = lab.host.reports();
    CHECK(reports[0].get().name == "www.other");
    CHECK(reports[0].get().verdict == sdk::QueryVerdict::denied);
    CHECK(reports[1].get().rule == "bad.example");
  }
}

TEST_CASE("nobody's datagram is answered") {
  Lab lab;
  lab.upstream.add("www.example", type::a, 300, v4("198.51.100.1"));
  lab.attach(1, {allow("www.example")});
  Guest stranger(lab, 2), guest(lab, 1);
  stranger.send("www.example", type::a);
  CHECK(guest.ask("www.example", type::a).rcode == 0);
  CHECK_FALSE(stranger.has_answer());
  CHECK(lab.upstream.count() == 1);
}

TEST_CASE("chains: each link is judged by the deny rules") {
  Lab lab;
  lab.upstream.link("www.example", "edge.cdn.test");
  lab.upstream.link("edge.cdn.test", "pop.cdn.test");
  lab.upstream.add("pop.cdn.test", type::a, 60, v4("198.51.100.7"));
  lab.attach(1, {allow("www.example")});
  lab.attach(2, {allow("www.example"), deny("*.cdn.test")});
  lab.attach(3, {allow("www.example"), deny("pop.cdn.test")});

  const auto good = Guest(lab, 1).ask("www.example", type::a);
  CHECK(good.answers.size() == 3);
  CHECK(lab.learned(1) == std::vector<std::string>{"198.51.100.7"});
  for (const std::uint64_t id : {2, 3}) {
    const auto bad = Guest(lab, id).ask("www.example", type::a);
    CHECK(bad.rcode == 3);
    CHECK(bad.answers.empty());
    CHECK(bad.ede == 15u);
    CHECK(lab.learned(id).empty());
  }
}

TEST_CASE("reserved addresses are not opened and not told, unless the rule names their range") {
  Lab lab;
  lab.upstream.add("mixed.example", type::a, 300, v4("10.0.0.7"));
  lab.upstream.add("mixed.example", type::a, 300, v4("198.51.100.1"));
  lab.upstream.add("private.example", type::a, 300, v4("10.0.0.7"));
  lab.upstream.add("metadata.example", type::a, 300, v4("169.254.169.254"));
  lab.upstream.add("own.example", type::aaaa, 300, v6("fd53:6c75:6963:65::1"));
  lab.attach(1, {allow("*.example")});
  Guest guest(lab, 1);

  const auto mixed = guest.ask("mixed.example", type::a);
  CHECK(mixed.answers == std::vector<std::string>{"mixed.example 1 300 c6336401"});
  CHECK(lab.learned(1) == std::vector<std::string>{"198.51.100.1"});
  for (const auto* name : {"private.example", "metadata.example"}) {
    CAPTURE(name);
    const auto reply = guest.ask(name, type::a);
    CHECK(reply.rcode == 0);
    CHECK(reply.answers.empty());
    CHECK(reply.ede == 17u);
  }
  CHECK(guest.ask("own.example", type::aaaa).answers.empty());
  CHECK(lab.learned(1).size() == 1);

  auto wide = allow("private.example");
  wide.ranges = {sdk::Prefix::parse("10.0.0.0/8")};
  lab.attach(2, {wide});
  CHECK(Guest(lab, 2).ask("private.example", type::a).answers.size() == 1);
  CHECK(lab.learned(2) == std::vector<std::string>{"10.0.0.7"});
}

TEST_CASE("TTL 0 works: the address stays for the floor and the grace") {
  Lab lab;
  lab.upstream.add("www.example", type::a, 0, v4("198.51.100.1"));
  lab.attach(1, {allow("www.example")});
  Guest guest(lab, 1);
  const auto reply = guest.ask("www.example", type::a);
  CHECK(reply.ttls == std::vector<std::uint32_t>{0});
  CHECK(lab.host.learned().at(0).ttl >= 90s);
  CHECK(guest.ask("www.example", type::a).answers.size() == 1);
  CHECK(lab.upstream.count() == 2);  // not kept
}

TEST_CASE("from memory: no upstream, the TTL that is left, and every attachment has it opened") {
  Lab lab;
  lab.upstream.add("www.example", type::a, 300, v4("198.51.100.1"));
  lab.attach(1, {allow("www.example")});
  lab.attach(2, {allow("*.example")});
  Guest first(lab, 1), second(lab, 2);
  CHECK(first.ask("www.example", type::a).ttls.at(0) == 300);
  lab.host.advance(100s);
  CHECK(second.ask("www.example", type::a).ttls.at(0) == 200);
  CHECK(lab.upstream.count() == 1);
  CHECK(lab.learned(2) == std::vector<std::string>{"198.51.100.1"});
  CHECK(lab.host.learned().back().ttl == 230s);

  SUBCASE("what the kernel has for long enough is not pushed again") {
    CHECK(first.ask("www.example", type::a).ttls.at(0) == 200);
    CHECK(lab.learned(1).size() == 1);
  }
  SUBCASE("with little left the floor is pushed anew") {
    lab.host.advance(190s);
    CHECK(first.ask("www.example", type::a).ttls.at(0) == 10);
    CHECK(lab.learned(1).size() == 2);
    CHECK(lab.host.learned().back().ttl >= 90s);
    CHECK(first.ask("www.example", type::a).ttls.at(0) == 10);
    CHECK(lab.learned(1).size() == 2);
  }
  SUBCASE("after a change of rules it is") {
    lab.host.domain_rules({1}, {allow("www.example"), allow("other.example")});
    CHECK(first.ask("www.example", type::a).rcode == 0);
    CHECK(lab.learned(1).size() == 2);
  }
  SUBCASE("and not once the rule is gone") {
    lab.host.domain_rules({1}, {});
    CHECK(first.ask("www.example", type::a).rcode == 3);
    CHECK(lab.learned(1).size() == 1);
  }
}

TEST_CASE("the kernel refuses: SERVFAIL, and no address is told") {
  Lab lab;
  lab.upstream.add("www.example", type::a, 300, v4("198.51.100.1"));
  lab.upstream.add("www.example", type::a, 300, v4("198.51.100.2"));
  lab.attach(1, {allow("www.example")});
  Guest guest(lab, 1);
  for (const int code : {ENOSPC, ESTALE, EIO}) {
    CAPTURE(code);
    lab.host.refuse("learn", code, "no");
    const auto reply = guest.ask("www.example", type::a);
    CHECK(reply.rcode == 2);
    CHECK(reply.answers.empty());
    CHECK(reply.ede);
  }
  lab.host.allow("learn");
  CHECK(guest.ask("www.example", type::a).answers.size() == 2);
}

TEST_CASE("what two equal rules open is one push: all of it, or none") {
  Lab lab;
  lab.upstream.add("www.example", type::a, 300, v4("198.51.100.1"));
  lab.upstream.add("www.example", type::a, 300, v4("10.0.0.7"));
  auto web = allow("*.example"), mail = allow("*.example");
  web.ports = {{6, false, 443, 443}};
  mail.ports = {{6, false, 25, 25}};
  mail.ranges = {sdk::Prefix::parse("10.0.0.0/8")};
  lab.attach(1, {web, mail});
  Guest guest(lab, 1);
  SUBCASE("all") {
    CHECK(guest.ask("www.example", type::a).answers.size() == 2);
    const auto learned = lab.host.learned();
    REQUIRE(learned.size() == 2);
    CHECK(learned[0].push == learned[1].push);
    CHECK(learned[0].addresses.size() == 1);  // the range is the other rule's
    CHECK(learned[1].addresses.size() == 2);
    CHECK(learned[0].names == std::vector<std::string>{"www.example"});
  }
  SUBCASE("nothing comes between its parts") {
    lab.host.on_learn([&](const auto&) { lab.host.refuse("learn", ENOSPC, "full"); });
    CHECK(guest.ask("www.example", type::a).rcode == 0);
    CHECK(lab.host.learned().size() == 2);
  }
  SUBCASE("none") {
    lab.host.refuse_times(1, "learn", ENOSPC, "full");
    CHECK(guest.ask("www.example", type::a).rcode == 2);
    CHECK(lab.learned(1).empty());
    CHECK(guest.ask("www.example", type::a).rcode == 0);
  }
  SUBCASE("a deny on the ports of one rule leaves what the other opens") {
    lab.host.refuse_times(1, "learn", EACCES, "198.51.100.1 is denied on tcp/25", 2);
    CHECK(guest.ask("www.example", type::a).answers.size() == 2);
    const auto learned = lab.host.learned();
    REQUIRE(learned.size() == 2);
    CHECK(learned[0].addresses.size() == 1);
    CHECK(learned[1].addresses.size() == 1);
  }
}

TEST_CASE("an explicit deny takes its address out of the answer, and no other") {
  Lab lab;
  lab.upstream.add("www.example", type::a, 300, v4("198.51.100.1"));
  lab.upstream.add("www.example", type::a, 300, v4("198.51.100.2"));
  lab.upstream.add("one.example", type::a, 300, v4("198.51.100.2"));
  lab.attach(1, {allow("*.example")});
  Guest guest(lab, 1);
  SUBCASE("one of two") {
    lab.host.refuse_times(1, "learn", EACCES, "198.51.100.2 is denied", 1);
    CHECK(guest.ask("www.example", type::a).answers.size() == 1);
    CHECK(lab.learned(1) == std::vector<std::string>{"198.51.100.1"});
  }
  SUBCASE("one that the host does not name: nothing is opened") {
    lab.host.refuse_times(1, "learn", EACCES, "one is denied");
    CHECK(guest.ask("www.example", type::a).rcode == 2);
    CHECK(lab.learned(1).empty());
  }
  SUBCASE("the only one") {
    lab.host.refuse_times(1, "learn", EACCES, "198.51.100.2 is denied", 0);
    const auto reply = guest.ask("one.example", type::a);
    CHECK(reply.rcode == 0);
    CHECK(reply.answers.empty());
    CHECK(reply.ede == 17u);
  }
}

TEST_CASE("a name with very many denied addresses opens nothing, for little work") {
  Lab lab([](auto& host) { host.configure("limit.rate", 100); });
  for (unsigned i = 0; i < 30; ++i)
    lab.upstream.add("many.example", type::a, 0, v4(("198.51.100." + std::to_string(i)).c_str()));
  lab.attach(1, {allow("*.example")});
  Guest guest(lab, 1);
  lab.host.refuse("learn", EACCES, "198.51.100.0 is denied",
                  0);  // and the next first one, for ever
  const auto reply = guest.ask("many.example", type::a);
  CHECK(reply.rcode == 0);
  CHECK(reply.answers.empty());
  CHECK_FALSE(reply.truncated);
  CAPTURE(reply.ede_text);
  CHECK(reply.ede == 17u);
  CHECK(lab.learned(1).empty());
  CHECK(lab.host.count_calls("learn") <= 16);
}

TEST_CASE("what takes no UDP is opened when it comes by TCP") {
  Lab lab;
  for (unsigned i = 0; i < 200; ++i)
    lab.upstream.add("big.example", type::a, 300, v4(("198.51.100." + std::to_string(i)).c_str()));
  lab.attach(1, {allow("*.example")});
  lab.host.set_streams({1});
  Guest guest(lab, 1), stream(lab, 1, true);
  for (int i = 0; i < 3; ++i) CHECK(guest.ask("big.example", type::a).truncated);
  CHECK(lab.host.count_calls("learn") == 0);
  CHECK(stream.ask("big.example", type::a).answers.size() == 200);
  CHECK(lab.learned(1).size() == 200);
}

TEST_CASE("an answer says nothing that lasts longer than the rule that allows it") {
  Lab lab;
  lab.upstream.add("www.example", type::a, 3600, v4("198.51.100.1"));
  auto brief = allow("www.example");
  brief.expires = lab.host.now() + 10s;
  auto other = brief;
  SUBCASE("one rule") {}
  SUBCASE("the last of two") {
    other.expires = lab.host.now() + 20s;
  }
  lab.attach(1, {brief, other});
  Guest guest(lab, 1);
  const auto most = other.expires == brief.expires ? 10u : 20u;
  for (int i = 0; i < 2; ++i) {
    const auto reply = guest.ask("www.example", type::a);
    REQUIRE(reply.ttls.size() == 1);
    CHECK(reply.ttls[0] <= most);
    CHECK(reply.ttls[0] + 2 >= most);
  }
}

TEST_CASE("types: A, AAAA, HTTPS and SVCB by default, the rest by rule") {
  Lab lab([](auto& host) { host.configure("types", std::vector<std::string>{"SRV"}); });
  lab.upstream.add("www.example", type::mx, 300, joined({two(10), wire("mail.example")}));
  lab.upstream.add("www.example", type::txt, 300, joined({{2}, bytes("hi")}));
  lab.upstream.add("www.example", type::srv, 300,
                   joined({two(1), two(1), two(443), wire("mail.example")}));
  auto with_mail = allow("www.example");
  with_mail.types = {type::mx};
  lab.attach(1, {with_mail});
  lab.attach(2, {}, sdk::Mode::denylist);
  Guest guest(lab, 1);
  CHECK(guest.ask("www.example", type::mx).answers.size() == 1);
  CHECK(guest.ask("www.example", type::srv).answers.size() == 1);
  CHECK(lab.upstream.count() == 2);
  for (const unsigned kind : {unsigned{type::txt}, unsigned{type::any}}) {
    const auto reply = guest.ask("www.example", kind);
    CHECK(reply.rcode == 0);
    CHECK(reply.answers.empty());
    CHECK(reply.ede == 17u);
  }
  CHECK(lab.upstream.count() == 2);
  CHECK(Guest(lab, 2).ask("www.example", type::txt).answers.size() == 1);
}

TEST_CASE("HTTPS: hints are opened like addresses, and those that may not be are stripped") {
  Lab lab;
  lab.upstream.add("www.example", type::https, 300,
                   svc(1, ".", param(4, joined({v4("198.51.100.1"), v4("10.0.0.1")}))));
  lab.attach(1, {allow("www.example")});
  const auto reply = Guest(lab, 1).ask("www.example", type::https);
  REQUIRE(reply.answers.size() == 1);
  CHECK(reply.answers[0].find("c6336401") != std::string::npos);
  CHECK(reply.answers[0].find("0a000001") == std::string::npos);
  CHECK(lab.learned(1) == std::vector<std::string>{"198.51.100.1"});
}

TEST_CASE("a denylist answers what no rule denies, and opens nothing") {
  Lab lab;
  lab.upstream.add("www.example", type::a, 300, v4("10.0.0.1"));
  lab.upstream.link("alias.example", "bad.example");
  lab.upstream.add("bad.example", type::a, 300, v4("198.51.100.1"));
  lab.attach(1, {deny("bad.example")}, sdk::Mode::denylist);
  Guest guest(lab, 1);
  CHECK(guest.ask("www.example", type::a).answers.size() == 1);
  CHECK(guest.ask("bad.example", type::a).rcode == 3);
  CHECK(guest.ask("alias.example", type::a).rcode == 3);
  CHECK(lab.host.learned().empty());
}

TEST_CASE("audit: what would be denied is answered, opens nothing, and is reported") {
  Lab lab;
  lab.upstream.add("www.example", type::a, 300, v4("198.51.100.1"));
  lab.attach(1, {deny("www.example")}, sdk::Mode::allowlist, true);
  const auto reply = Guest(lab, 1).ask("www.example", type::a);
  CHECK(reply.answers.size() == 1);
  CHECK(lab.host.learned().empty());
  CHECK(lab.host.wait_until([&] { return lab.host.reports().size() == 1; }));
  CHECK(lab.host.reports()[0].get().verdict == sdk::QueryVerdict::denied);
  CHECK(lab.host.reports()[0].get().audited);
}

TEST_CASE(
    "identical questions in flight are asked once; each attachment is judged and opened by "
    "itself") {
  Lab lab;
  std::mutex held;
  held.lock();
  lab.upstream.add("www.example", type::a, 300, v4("198.51.100.1"));
  lab.upstream.handle([&](const Seen&) -> std::optional<std::vector<Packet>> {
    const std::lock_guard wait(held);
    return std::nullopt;
  });
  lab.attach(1, {allow("www.example")});
  lab.attach(2, {allow("*.example")});
  lab.attach(3, {allow("www.example")});
  Guest one(lab, 1), again(lab, 1), two(lab, 2), three(lab, 3), probe(lab, 1);
  one.send("www.example", type::a);
  CHECK(lab.upstream.wait_for(1));
  again.send("WWW.example", type::a);
  two.send("www.example", type::a);
  three.send("www.example", type::a);
  CHECK(probe.ask("denied.test", type::a).rcode == 3);  // behind them: they have been read
  lab.host.domain_rules({3}, {});                       // while it waits, its rule goes
  held.unlock();
  CHECK(one.receive().answers.size() == 1);
  CHECK(again.receive().answers.size() == 1);
  CHECK(two.receive().answers.size() == 1);
  CHECK(three.receive().rcode == 3);
  CHECK(lab.upstream.count() == 1);
  CHECK(lab.learned(1).size() >= 1);
  CHECK(lab.learned(2).size() == 1);
  CHECK(lab.learned(3).empty());
}

TEST_CASE("what was pushed by former rules is not taken for pushed by these") {
  Lab lab;
  std::mutex held, pushing;
  held.lock();
  pushing.lock();
  lab.upstream.add("www.example", type::a, 300, v4("198.51.100.1"));
  lab.upstream.handle([&](const Seen&) -> std::optional<std::vector<Packet>> {
    const std::lock_guard wait(held);
    return std::nullopt;
  });
  lab.attach(1, {allow("www.example")});
  lab.attach(2, {allow("www.example")});
  std::promise<std::uint64_t> first_pushed;
  std::atomic<bool> is_first{true};
  lab.host.on_learn([&](const auto& learned) {
    if (!is_first.exchange(false)) return;
    first_pushed.set_value(learned.attachment.value);
    const std::lock_guard wait(pushing);
  });
  Guest one(lab, 1), two(lab, 2), probe(lab, 1);
  one.send("www.example", type::a);
  CHECK(lab.upstream.wait_for(1));
  two.send("www.example", type::a);
  CHECK(probe.ask("denied.test", type::a).rcode == 3);  // behind them: they have been read
  held.unlock();
  auto pushed_for = first_pushed.get_future();
  REQUIRE(pushed_for.wait_for(10s) == std::future_status::ready);
  // The worker pushes for one of them. The other is next, and the worker knows its former rules.
  const std::uint64_t next = 3 - pushed_for.get();
  lab.host.domain_rules({next}, {allow("www.example"), allow("other.example")});
  pushing.unlock();
  CHECK(one.receive().rcode == 0);
  CHECK(two.receive().rcode == 0);
  CHECK(lab.learned(next).size() == 1);
  Guest& again = next == 1 ? one : two;
  CHECK(again.ask("www.example", type::a).rcode == 0);
  CHECK(lab.learned(next).size() == 2);
  CHECK(again.ask("www.example", type::a).rcode == 0);
  CHECK(lab.learned(next).size() == 2);
}

TEST_CASE("a name that does not exist: said, kept, with its SOA") {
  Lab lab;
  lab.attach(1, {allow("*.example")});
  Guest guest(lab, 1);
  CHECK(guest.ask("none.example", type::a).rcode == 3);
  CHECK(guest.ask("none.example", type::a).rcode == 3);
  CHECK(lab.upstream.count() == 1);
}

TEST_CASE(
    "big answers: truncated by UDP, whole and opened by TCP; a truncated upstream is asked "
    "by TCP") {
  Lab lab;
  for (int i = 0; i < 1000; ++i)
    lab.upstream.add("many.example", type::a, 300,
                     v4("198.18." + std::to_string(i / 250) + "." + std::to_string(i % 250 + 1)));
  lab.attach(1, {allow("many.example")});
  lab.host.set_streams({1});
  Guest udp(lab, 1), tcp(lab, 1, true);
  const auto cut = udp.ask("many.example", type::a);
  CHECK(cut.truncated);
  CHECK(cut.answers.empty());
  CHECK(tcp.ask("many.example", type::a).answers.size() == 1000);
  CHECK(lab.learned(1).size() == 1000);
  const auto seen = lab.upstream.seen();
  REQUIRE(seen.size() == 2);
  CHECK_FALSE(seen[0].by_tcp);
  CHECK(seen[1].by_tcp);
}

TEST_CASE("without EDNS 512 bytes, with it what the client takes, up to 1232") {
  Lab lab;
  for (int i = 0; i < 40; ++i)
    lab.upstream.add("some.example", type::a, 300, v4("198.51.100." + std::to_string(i + 1)));
  lab.attach(1, {allow("some.example")});
  Guest guest(lab, 1);
  CHECK(guest.ask("some.example", type::a, 0).truncated);
  CHECK(guest.ask("some.example", type::a, 800).truncated);
  CHECK(guest.ask("some.example", type::a, 1232).answers.size() == 40);
  CHECK(guest.ask("some.example", type::a, 4096).answers.size() == 40);
}

TEST_CASE("what is no good question is told so, and goes nowhere") {
  Lab lab;
  lab.attach(1, {allow("*.example")});
  Guest guest(lab, 1);
  const auto rcode = [&](const Packet& packet) {
    guest.send_raw(packet);
    const auto reply = guest.receive_raw();
    return reply && reply->size() >= 12 ? (*reply)[3] & 15 : -1;
  };
  const auto question = [](unsigned flags) {
    return Build(flags, 7).question("www.example", type::a);
  };
  CHECK(rcode(Build(0x0100, 7).done()) == 1);                                      // QDCOUNT 0
  CHECK(rcode(question(0x0100).question("b.example", type::a).done()) == 1);       // and 2
  CHECK(rcode(question(0x0100 | 4 << 11).done()) == 4);                            // NOTIFY
  CHECK(rcode(question(0x0100 | 5 << 11).done()) == 4);                            // UPDATE
  CHECK(rcode(Build(0x0100, 7).question("www.example", type::a, 3).done()) == 5);  // CHAOS
  CHECK(rcode(Build(0x0100, 7).question("www.example", type::axfr).done()) == 4);
  CHECK(rcode(question(0x0100).opt(1232, false, 1).done()) == 0);  // BADVERS: 16, the low bits
  CHECK(lab.upstream.count() == 0);
  guest.send_raw(question(0x8100).done());  // a response: no answer to that
  CHECK(guest.ask("denied.test", type::a).rcode == 3);
  CHECK_FALSE(guest.has_answer());
}

TEST_CASE("a decider: asked where no rule speaks; its word counts for as long as it says") {
  Lab lab([](auto& host) { host.set_decider(true); });
  lab.upstream.add("www.example", type::a, 300, v4("198.51.100.1"));
  lab.upstream.add("ruled.example", type::a, 300, v4("198.51.100.2"));
  lab.attach(1, {allow("ruled.example"), deny("bad.example")});
  Guest guest(lab, 1), other(lab, 1);

  CHECK(guest.ask("ruled.example", type::a).answers.size() == 1);
  CHECK(guest.ask("bad.example", type::a).rcode == 3);
  CHECK(lab.host.asked().empty());

  guest.send("www.example", type::a);
  CHECK(lab.host.wait_until([&] { return lab.host.asked().size() == 1; }));
  const auto asked = lab.host.asked().at(0);
  CHECK(asked.query.name == "www.example");
  CHECK(asked.query.attachment.value == 1);
  CHECK(asked.query.type == type::a);
  const auto upstream_before = lab.upstream.count();

  SUBCASE("allow") {
    other.send("www.example", type::a);  // the same question, not asked twice
    lab.host.decided(
        asked.query.id,
        {.action = sdk::Decision::Action::allow, .ttl = 60s, .ports = {{6, false, 443, 443}}});
    CHECK(guest.receive().answers.size() == 1);
    CHECK(other.receive().answers.size() == 1);
    const auto learned = lab.host.learned().back();
    CHECK(learned.rule == SLUICE_NO_RULE);
    CHECK(learned.ports.size() == 1);
    CHECK(learned.addresses.at(0).text() == "198.51.100.1");
    CHECK(guest.ask("www.example", type::a).answers.size() == 1);
    CHECK(lab.host.asked().size() == 1);
    lab.host.advance(61s);
    guest.send("www.example", type::a);
    CHECK(lab.host.wait_until([&] { return lab.host.asked().size() == 2; }));
  }
  SUBCASE("deny") {
    lab.host.decided(asked.query.id,
                     {.action = sdk::Decision::Action::deny, .reason = "not on Sundays"});
    const auto reply = guest.receive();
    CHECK(reply.rcode == 3);
    CHECK(reply.ede_text == "not on Sundays");
    CHECK(lab.upstream.count() == upstream_before);
  }
  SUBCASE("no word in time: closed") {
    lab.host.decided(asked.query.id, {.reason = "too slow"});
    const auto reply = guest.receive();
    CHECK(reply.rcode == 2);
    CHECK(lab.learned(1).size() == 1);
    CHECK(lab.upstream.count() == upstream_before);
  }
  SUBCASE("addresses of its own, vetted and opened") {
    lab.host.decided(asked.query.id, {.action = sdk::Decision::Action::allow,
                                      .addresses = {sdk::Address::parse("192.0.2.9"),
                                                    sdk::Address::parse("10.1.1.1"),
                                                    sdk::Address::parse("2001:db8::9")},
                                      .address_ttl = 30s});
    const auto reply = guest.receive();
    CHECK(reply.answers == std::vector<std::string>{"www.example 1 30 c0000209"});
    CHECK(lab.learned(1).back() == "192.0.2.9");
    CHECK(lab.upstream.count() == upstream_before);
  }
  SUBCASE("a decider that does not run: closed") {
    lab.host.decided(asked.query.id, {.action = sdk::Decision::Action::deny});
    (void)guest.receive();
    lab.host.refuse("ask", EHOSTDOWN);
    CHECK(guest.ask("third.example", type::a).rcode == 2);
  }
}

TEST_CASE("a decider's word ends when the wire may name another, though the mode stays") {
  Lab lab([](auto& host) { host.set_decider(true); });
  lab.upstream.add("www.example", type::a, 300, v4("198.51.100.1"));
  lab.upstream.add("ruled.example", type::a, 300, v4("198.51.100.2"));
  lab.attach(1, {allow("ruled.example")});
  Guest guest(lab, 1);
  guest.send("www.example", type::a);
  REQUIRE(lab.host.wait_until([&] { return lab.host.asked().size() == 1; }));
  lab.host.decided(lab.host.asked().at(0).query.id,
                   {.action = sdk::Decision::Action::allow, .ttl = 3600s});
  CHECK(guest.receive().answers.size() == 1);
  CHECK(guest.ask("ruled.example", type::a).answers.size() == 1);
  CHECK(lab.host.asked().size() == 1);
  const auto learned = lab.learned(1).size();

  lab.host.change_attachment(
      {.id = {1}, .mode = sdk::Mode::allowlist, .target = sdk::InterfaceTarget{"tap1", 7}});
  CHECK(guest.ask("ruled.example", type::a).answers.size() == 1);
  CHECK(lab.learned(1).size() == learned + 1);  // nor is what was opened taken to be open still
  guest.send("www.example", type::a);
  REQUIRE(lab.host.wait_until([&] { return lab.host.asked().size() == 2; }));
  CHECK(lab.learned(1).size() == learned + 1);
  lab.host.decided(lab.host.asked().at(1).query.id, {.action = sdk::Decision::Action::deny});
  CHECK(guest.receive().rcode == 3);
}

TEST_CASE("budgets: a name too many under a wildcard, and a flood") {
  Lab lab([](auto& host) {
    host.configure("limit.names_per_wildcard", 10);
    host.configure("limit.burst", 100);
    host.configure("limit.rate", 1);
  });
  lab.upstream.handle([&](const Seen& seen) {
    return std::vector<Packet>{
        reply_to(seen.packet).answer(seen.name(), type::a, 300, v4("198.51.100.1")).done()};
  });
  lab.attach(1, {allow("*.example"), allow("exact.test")});
  lab.attach(2, {allow("*.example")});
  Guest guest(lab, 1);
  for (int i = 0; i < 10; ++i)
    CHECK(guest.ask("n" + std::to_string(i) + ".example", type::a).rcode == 0);
  const auto refused = guest.ask("n10.example", type::a);
  CHECK(refused.rcode == 2);
  CHECK(lab.upstream.count() == 10);
  CHECK(guest.ask("n3.example", type::a).rcode == 0);  // known already
  CHECK(guest.ask("exact.test", type::a).rcode == 0);  // not under the wildcard
  CHECK(Guest(lab, 2).ask("n10.example", type::a).rcode == 0);
  for (int i = 0; i < 200; ++i) guest.send("n3.example", type::a);
  CHECK(Guest(lab, 2).ask("n3.example", type::a).rcode == 0);
  // What was dropped is told, in one report.
  const auto dropped = [&] {
    std::uint32_t count = 0;
    for (const auto& kept : lab.host.reports())
      if (kept.get().verdict == sdk::QueryVerdict::limited && kept.get().name == ".")
        count += kept.get().count;
    return count;
  };
  unsigned answered = 0;
  const auto all_known = [&] {
    while (guest.has_answer()) answered += guest.receive_raw() ? 1u : 0u;
    return dropped() + answered == 200;
  };
  const auto end = std::chrono::steady_clock::now() + 60s;
  while (!lab.host.wait_until(all_known, 50ms) && std::chrono::steady_clock::now() < end) {
  }
  CHECK(all_known());
  CHECK(answered < 100);
}

TEST_CASE("an answer that another server found is judged and opened the same way") {
  Lab lab;
  lab.attach(1, {allow("www.example"), deny("evil.test")});
  const auto push = [&](sdk::Answer answer) {
    answer.attachment = {1};
    const auto id = lab.host.push_answer(answer);
    CHECK(lab.host.wait_until([&] { return lab.host.push_result(id).has_value(); }));
    return lab.host.push_result(id)->code;
  };
  const auto address = [](const char* text, std::uint32_t ttl) {
    return sdk::Answer::Record{sdk::Address::parse(text), ttl};
  };
  CHECK(push({.name = "www.example",
              .chain = {"edge.test"},
              .addresses = {address("198.51.100.1", 120)}}) == 0);
  CHECK(lab.learned(1) == std::vector<std::string>{"198.51.100.1"});
  CHECK(lab.host.learned().at(0).ttl == 150s);
  CHECK(push({.name = "other.example", .addresses = {address("198.51.100.2", 120)}}) == EACCES);
  CHECK(push({.name = "www.example",
              .chain = {"evil.test"},
              .addresses = {address("198.51.100.2", 120)}}) == EACCES);
  CHECK(push({.name = "www.example", .addresses = {address("10.0.0.1", 120)}}) == EACCES);
  CHECK(push({.name = "a..b", .addresses = {}}) == EINVAL);
  CHECK(lab.host.learned().size() == 1);
}

TEST_CASE("what waited for its attachment is answered before its client gives up") {
  Lab lab([](auto& host) { host.configure("upstream_deadline", 4800ms); });
  lab.upstream.handle([](const Seen&) { return std::vector<Packet>{}; });  // says nothing
  lab.host.set_mark(101, {1});
  lab.attach(2, {allow("ftp.example")});
  Guest guest(lab, 1), other(lab, 2);
  guest.send("www.example", type::a);
  CHECK_FALSE(guest.receive_raw(500ms));
  other.send("ftp.example", type::a);
  CHECK_FALSE(guest.receive_raw(500ms));
  lab.attach(1, {allow("www.example")});
  // 4.8 seconds after its question, before who asked later; a deadline counted from here would end
  // behind that one's.
  CHECK(guest.receive().rcode == 2);
  CHECK(other.receive().rcode == 2);
  REQUIRE(lab.host.wait_until([&] { return lab.host.reports().size() == 2; }));
  CHECK(lab.host.reports()[0].get().name == "www.example");
}

TEST_CASE("several workers, other servers while it runs, and a resync") {
  ScriptedUpstream second;
  second.add("www.example", type::a, 300, v4("198.51.100.2"));
  Lab lab([](auto& host) { host.configure("workers", 3); });
  lab.upstream.add("www.example", type::a, 0, v4("198.51.100.1"));
  lab.attach(1, {allow("www.example")});
  CHECK(lab.host.served().size() == 3 * (5 * 2 + 2));
  Guest guest(lab, 1);
  CHECK(guest.ask("www.example", type::a).answers.at(0).ends_with("c6336401"));
  lab.host.configure("upstreams", std::vector<std::string>{second.endpoint()});
  CHECK(lab.host.reconfigure());
  CHECK(guest.ask("www.example", type::a).answers.at(0).ends_with("c6336402"));
  lab.host.resync();
  CHECK(guest.ask("www.example", type::a).rcode == 0);
  lab.host.configure("upstreams", std::vector<std::string>{"nonsense"});
  CHECK_THROWS_WITH(lab.host.reconfigure(), doctest::Contains("upstreams"));
}

TEST_CASE("a question that comes before its attachment's rules waits for them") {
  Lab lab;
  lab.upstream.add("www.example", type::a, 300, v4("198.51.100.1"));
  lab.host.set_mark(101, {1});
  lab.attach(2, {allow("www.example")});
  Guest guest(lab, 1), other(lab, 2);
  guest.send("www.example", type::a);
  CHECK(other.ask("www.example", type::a).rcode == 0);
  SUBCASE("known, then ruled") {
    lab.host.add_attachment({.id = {1}, .mode = sdk::Mode::block_all});
    lab.host.domain_rules({1}, {});
    CHECK(other.ask("www.example", type::a).rcode == 0);
    CHECK_FALSE(guest.has_answer());
    lab.host.change_attachment({.id = {1}, .mode = sdk::Mode::allowlist});
    lab.host.domain_rules({1}, {allow("www.example")});
    CHECK(guest.receive().answers.size() == 1);
  }
  SUBCASE("by TCP too") {
    lab.host.set_streams({1});
    Guest stream(lab, 1, true);
    stream.send("www.example", type::a);
    CHECK(other.ask("www.example", type::a).rcode == 0);
    lab.attach(1, {allow("www.example")});
    CHECK(stream.receive().answers.size() == 1);
    CHECK(guest.receive().answers.size() == 1);
  }
  SUBCASE("never ruled: after a while that is the answer") {
    lab.host.add_attachment({.id = {1}, .mode = sdk::Mode::block_all});
    lab.host.domain_rules({1}, {});
    lab.host.advance(3s);
    CHECK(guest.receive().rcode == 3);
  }
  SUBCASE("never known: no answer") {
    CHECK_FALSE(guest.receive_raw(3s));
    CHECK(other.ask("www.example", type::a).rcode == 0);
  }
}

TEST_CASE(
    "what is asked while no resolver lives waits in its sockets, and is answered by the next") {
  Lab lab;
  lab.upstream.add("www.example", type::a, 300, v4("198.51.100.1"));
  lab.attach(1, {allow("www.example")});
  Guest guest(lab, 1);
  CHECK(guest.ask("www.example", type::a).rcode == 0);
  lab.host.stop();
  lab.host.destroy();
  guest.send("www.example", type::a);
  lab.plugin = &lab.host.create<dns::DnsPlugin>();
  lab.host.start();
  lab.host.domain_rules({1}, {allow("www.example")});
  CHECK(guest.receive().answers.size() == 1);
  CHECK(lab.learned(1).size() == 2);  // the new one knows of no push and makes it
}

TEST_CASE("DNAME: its chain is followed and judged") {
  Lab lab;
  lab.upstream.handle([&](const Seen& seen) {
    return std::vector<Packet>{reply_to(seen.packet)
                                   .link("old.example", type::dname, 300, "new.test")
                                   .link("www.old.example", type::cname, 300, "www.new.test")
                                   .answer("www.new.test", type::a, 300, v4("198.51.100.1"))
                                   .done()};
  });
  lab.attach(1, {allow("www.old.example")});
  lab.attach(2, {allow("www.old.example"), deny(".new.test")});
  CHECK(Guest(lab, 1).ask("www.old.example", type::a).answers.size() == 3);
  CHECK(lab.learned(1).size() == 1);
  CHECK(Guest(lab, 2).ask("www.old.example", type::a).rcode == 3);
  CHECK(lab.learned(2).empty());
}

TEST_CASE("a kernel without IPv6: IPv4 is served") {
  const pid_t child = ::fork();
  if (child == 0) {
    // socket(AF_INET6, ...) is EAFNOSUPPORT.
    std::array<sock_filter, 6> code{{
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AF_INET6, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAFNOSUPPORT),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    }};
    const sock_fprog program{static_cast<unsigned short>(code.size()), code.data()};
    bool good = ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
                ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
    try {
      Lab lab;
      lab.upstream.add("www.example", type::a, 300, v4("198.51.100.1"));
      lab.attach(1, {allow("www.example")});
      good = good && lab.host.served().size() == 16 + 1 &&
             Guest(lab, 1).ask("www.example", type::a).answers.size() == 1;
    } catch (const std::exception& error) {
      std::puts(error.what());
      good = false;
    }
    ::_exit(good ? 0 : 1);
  }
  int status = -1;
  CHECK(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
}
