// Clients that ask by TCP: pipelined, half closed, or reading nothing.
#include "unit/dns/in_namespace.hpp"

using namespace dns_test;

TEST_CASE("TCP: pipelined, answered out of order, and to nobody who is not known") {
  Lab lab;
  std::mutex held;
  held.lock();
  lab.upstream.add("slow.example", type::a, 300, v4("198.51.100.1"));
  lab.upstream.handle([&](const Seen& seen) -> std::optional<std::vector<Packet>> {
    if (seen.name() == "slow.example") const std::lock_guard wait(held);
    return std::nullopt;
  });
  lab.attach(1, {allow("*.example")});
  {
    Guest nobody(lab, 1, true);
    nobody.send("slow.example", type::a);
    CHECK_FALSE(nobody.receive_raw());
  }
  lab.host.set_streams({1});
  Guest guest(lab, 1, true);
  const auto slow = guest.send("slow.example", type::a);
  const auto quick = guest.send("denied.test", type::a);
  const auto first = guest.receive();
  CHECK(view(first.packet).header().id() == quick);
  CHECK(first.rcode == 3);
  held.unlock();
  const auto second = guest.receive();
  CHECK(view(second.packet).header().id() == slow);
  CHECK(second.answers.size() == 1);
  CHECK(lab.learned(1).size() == 1);

  SUBCASE("half closed: what was asked is answered") {
    guest.send("slow.example", type::a);
    guest.half_close();
    CHECK(guest.receive().answers.size() == 1);
    CHECK_FALSE(guest.receive_raw());
  }
  SUBCASE("a frame that is no question ends it") {
    const Packet huge = joined({two(5000), Packet(100)});
    CHECK(::send(guest.fd(), huge.data(), huge.size(), MSG_NOSIGNAL) > 0);
    CHECK_FALSE(guest.receive_raw());
  }
  SUBCASE("many at once") {
    for (int i = 0; i < 500; ++i) guest.send("slow.example", type::a);
    for (int i = 0; i < 500; ++i) CHECK(guest.receive().answers.size() == 1);
  }
}

// The answer to one frees the place of another, which is answered before the first has returned.
TEST_CASE("TCP: a question that had to wait does not disturb the report of the one before") {
  Lab lab;
  std::mutex held;
  lab.upstream.add("slow.example", type::a, 300, v4("198.51.100.1"));
  lab.upstream.add("slow.example", type::a, 300, v4("10.0.0.1"));
  lab.upstream.add("kept.example", type::a, 300, v4("198.51.100.2"));
  for (unsigned i = 0; i < 100; ++i)
    lab.upstream.add("kept.example", type::a, 300, v4(("192.168.0." + std::to_string(i)).c_str()));
  lab.upstream.handle([&](const Seen& seen) -> std::optional<std::vector<Packet>> {
    if (seen.name() == "slow.example") const std::lock_guard wait(held);
    return std::nullopt;
  });
  lab.attach(1, {allow("*.example")});
  lab.host.set_streams({1});
  Guest guest(lab, 1, true);
  CHECK(guest.ask("kept.example", type::a).answers.size() == 1);
  lab.host.forget_reports();
  held.lock();
  for (int i = 0; i < 64; ++i) guest.send("slow.example", type::a);
  guest.send("kept.example", type::a);
  CHECK_FALSE(guest.has_answer());
  held.unlock();
  for (int i = 0; i < 65; ++i) CHECK(guest.receive().answers.size() == 1);
  REQUIRE(lab.host.wait_until([&] { return lab.host.reports().size() >= 65; }));
  const auto reports = lab.host.reports();
  for (const auto& reported : reports) {
    const auto report = reported.get();
    CAPTURE(report.name);
    REQUIRE(report.addresses.size() == 1);
    CHECK(report.addresses[0].text() ==
          (report.name == "slow.example" ? "198.51.100.1" : "198.51.100.2"));
  }
}

TEST_CASE("a client that asks by TCP and reads nothing is cut off, and others are served") {
  Lab lab;
  for (int i = 0; i < 1000; ++i)
    lab.upstream.add("many.example", type::a, 300,
                     v4("198.18." + std::to_string(i / 250) + "." + std::to_string(i % 250 + 1)));
  lab.attach(1, {allow("many.example")});
  lab.host.set_streams({1});
  Guest greedy(lab, 1, true), modest(lab, 1, true);
  const Packet question = Build(0x0100, 1).question("many.example", type::a).done();
  const auto frame = joined({two(static_cast<unsigned>(question.size())), question});
  bool cut = false;
  for (int i = 0; i < 100'000 && !cut; ++i)
    cut = ::send(greedy.fd(), frame.data(), frame.size(), MSG_NOSIGNAL) < 0;
  CHECK(cut);
  CHECK(modest.ask("many.example", type::a).answers.size() == 1000);
}

namespace {

// Whether the other side has ended the connection.
bool is_closed(const Guest& guest) {
  char byte;
  return ::recv(guest.fd(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

}  // namespace

TEST_CASE("TCP: who connects before it is known has a few connections, and then what it may have") {
  Lab lab([](auto& host) { host.configure("limit.connections", 2); });
  lab.attach(2, {allow("www.example")});
  lab.host.set_streams({1});
  std::vector<Guest> guests;
  // How many are open once the worker has seen all that was done before.
  const auto open = [&] {
    Guest probe(lab, 2);
    for (int i = 0; i < 2; ++i) CHECK(probe.ask("denied.test", type::a).rcode == 3);
    std::erase_if(guests, is_closed);
    return guests.size();
  };
  for (int i = 0; i < 20; ++i) guests.emplace_back(lab, 1, true);
  CHECK(open() == 16);
  SUBCASE("one that ends has its place taken by the next") {
    guests.pop_back();
    CHECK(open() == 15);
    for (int i = 0; i < 2; ++i) guests.emplace_back(lab, 1, true);
    CHECK(open() == 16);
  }
  lab.attach(1, {allow("www.example")});
  CHECK(open() == 2);
  guests.emplace_back(lab, 1, true);
  CHECK(open() == 2);
  guests.pop_back();
  CHECK(open() == 1);
  for (int i = 0; i < 2; ++i) guests.emplace_back(lab, 1, true);
  CHECK(open() == 2);
  CHECK(guests.back().ask("denied.test", type::a).rcode == 3);
}
