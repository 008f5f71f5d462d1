// The engine without threads, sockets of guests or a host: what it owes to whoever calls it.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "dns/engine.hpp"

#include <doctest/doctest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <array>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "unit/dns/packets.hpp"

using namespace dns_test;
using namespace sluice;
using namespace sluice::dns;

namespace {

struct QuietHost final : HostSide {
  std::uint64_t boot_now() const noexcept override { return 1; }
  std::uint64_t asker_of_mark(std::uint32_t) noexcept override { return 0; }
  std::uint64_t asker_of_stream(int) noexcept override { return 0; }
  LearnResult learn(std::uint64_t, std::span<const std::string_view>,
                    std::span<const sdk::Grant>) noexcept override {
    ++learned;
    return {};
  }
  AskResult ask(const sdk::Query& query, std::uint64_t) noexcept override {
    if (!has_decider) return AskResult::no_decider;
    asked.push_back(query.id);
    return AskResult::asked;
  }
  void report(std::span<const sluice_query_report> reports) noexcept override {
    for (const auto& report : reports)
      upstreams.emplace_back(report.upstream.data, report.upstream.length);
  }
  void say(sdk::LogLevel, std::string_view) noexcept override {}
  void give_up(std::string_view) noexcept override {}

  std::vector<std::string> upstreams;  // of each report
  bool has_decider = false;
  std::vector<std::uint64_t> asked;  // the decider, by query id
  int learned = 0;
};

struct CountingOutlet final : Outlet {
  Room room(const Client&) override { return buffer; }
  void send(const Client&, std::size_t) override { ++sent; }
  void drop(const Client&) override { ++dropped; }

  std::vector<std::uint8_t> buffer = std::vector<std::uint8_t>(65'535);
  int sent = 0, dropped = 0;
};

SettingsPtr asking(const std::vector<std::string>& servers) {
  auto settings = std::make_shared<dns::Settings>();
  for (const auto& server : servers) settings->upstream.servers.push_back(Endpoint::parse(server));
  return settings;
}

struct Stand {
  explicit Stand(const std::vector<std::string>& servers = {"127.0.0.1:9"})
      : engine({.host = host,
                .outlet = outlet,
                .cache = cache,
                .pushes = pushes,
                .own_addresses = own,
                .epoll = epoll.get(),
                .timers = timers},
               asking(servers), 1) {
    engine.set_time(1, 1);
  }
  void ask(std::uint64_t attachment, std::string_view name) {
    engine.ask(attachment, {}, Build(0x0100).question(name, type::a).done());
  }
  // What a decider is asked about. `stamp`: of the attachment's state.
  void decide_on(std::uint64_t attachment, std::uint64_t stamp) {
    host.has_decider = true;
    engine.set_tenant(
        {.attachment = attachment, .mode = sdk::Mode::allowlist, .pushes = {.stamp = stamp}});
  }
  // The decider takes its time, whatever that is.
  void advance_to(std::uint64_t milliseconds) {
    const auto now = milliseconds * 1'000'000;
    engine.set_time(now, now);
    timers.run(now, [&](const TimerWheel::Entry& entry) {
      if (entry.kind != static_cast<std::uint32_t>(TimerKind::decision)) engine.on_timer(entry);
    });
  }
  // What is answered as upstreams answer, and opens nothing.
  void know(std::uint64_t attachment) {
    engine.set_tenant({.attachment = attachment, .mode = sdk::Mode::denylist});
  }

  Fd epoll{::epoll_create1(EPOLL_CLOEXEC)};
  QuietHost host;
  CountingOutlet outlet;
  AnswerCache cache;
  PushMemory pushes;
  Published<AddressSet> own{std::make_shared<const AddressSet>(std::vector<sdk::Address>())};
  TimerWheel timers{1};
  Engine engine;
};

// "127.0.0.1:<port>", where datagrams to it end.
std::string bound(const Fd& fd) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  REQUIRE(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length) == 0);
  ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length);
  return "127.0.0.1:" + std::to_string(ntohs(address.sin_port));
}

// The upstream at `server` answers the one question that it was asked.
void answer(Stand& stand, const Fd& server) {
  stand.engine.flush();
  Packet question(512);
  sockaddr_in peer{};
  socklen_t length = sizeof peer;
  const auto got = ::recvfrom(server.get(), question.data(), question.size(), MSG_DONTWAIT,
                              reinterpret_cast<sockaddr*>(&peer), &length);
  REQUIRE(got > 12);
  // Its own question, with the id and the case that were sent, and an address.
  Packet answer(question.begin(), question.begin() + 12 + 13 + 4);
  answer[2] |= 0x80;
  answer[7] = 1;
  answer[11] = 0;
  answer =
      joined({answer, {0xc0, 12}, two(type::a), two(1), four(300), two(4), v4("198.51.100.1")});
  REQUIRE(::sendto(server.get(), answer.data(), answer.size(), 0,
                   reinterpret_cast<sockaddr*>(&peer), length) > 0);
  epoll_event event{};
  REQUIRE(::epoll_wait(stand.epoll.get(), &event, 1, 10'000) == 1);
  stand.engine.upstream().on_udp(static_cast<std::uint32_t>(event.data.u64), event.events, 2);
}

// How many questions lie there, and takes them away.
int received(const Fd& server) {
  std::array<std::uint8_t, 512> question;
  int count = 0;
  while (::recv(server.get(), question.data(), question.size(), MSG_DONTWAIT) > 0) ++count;
  return count;
}

DecisionPtr allowing(std::vector<sdk::Address> addresses) {
  sdk::Decision decision;
  decision.action = sdk::Decision::Action::allow;
  decision.ttl = std::chrono::seconds(60);
  decision.addresses = std::move(addresses);
  decision.address_ttl = std::chrono::seconds(60);
  return std::make_shared<const sdk::Decision>(std::move(decision));
}

}  // namespace

TEST_CASE("of attachments that nothing is known of yet none holds the others' place") {
  Stand stand;
  for (int i = 0; i < 2000; ++i) stand.ask(1, "www.example");
  CHECK(stand.outlet.dropped == 2000 - 16);
  stand.ask(2, "www.example");
  CHECK(stand.outlet.dropped == 2000 - 16);
  SUBCASE("what was let go has its place again") {
    stand.know(1);  // asks upstream what was held
    CHECK(stand.outlet.dropped == 2000 - 16);
    stand.engine.remove_tenant(1);
    for (int i = 0; i < 17; ++i) stand.ask(1, "www.example");
    CHECK(stand.outlet.dropped == 2000 - 16 + 1);
  }
  SUBCASE("nor do all of them together take more than there is for a worker") {
    const int before = stand.outlet.dropped;
    for (std::uint64_t id = 10; id < 110; ++id)
      for (int i = 0; i < 16; ++i) stand.ask(id, "www.example");
    CHECK(stand.outlet.dropped - before == 100 * 16 - (1024 - 16 - 1));
  }
}

TEST_CASE("what is to be reported is told before the servers change that it speaks of") {
  const Fd server(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const auto endpoint = bound(server);
  Stand stand({endpoint});
  stand.know(1);
  stand.ask(1, "www.example");
  answer(stand, server);
  REQUIRE(stand.outlet.sent == 1);
  REQUIRE(stand.host.upstreams.empty());

  std::vector<std::string> others;
  for (int i = 1; i < 40; ++i) others.push_back("127.0.0." + std::to_string(i));
  stand.engine.reconfigure(asking(others));
  CHECK(stand.host.upstreams == std::vector{endpoint});
}

TEST_CASE("the word of a decider counts for the state of the attachment that it was asked in") {
  const auto word = allowing({sdk::Address::parse("198.51.100.1")});
  Stand stand;
  stand.decide_on(1, 1);
  stand.ask(1, "www.example");
  REQUIRE(stand.host.asked.size() == 1);
  const auto first = stand.host.asked[0];
  stand.decide_on(1, 2);
  std::uint64_t second = 0;
  SUBCASE("asked anew when it comes") {
    stand.engine.decided(first, word);
    REQUIRE(stand.host.asked.size() == 2);
    second = stand.host.asked[1];
    stand.ask(1, "www.example");
  }
  SUBCASE("asked anew when none comes") {
    stand.engine.decided(first, nullptr);
    REQUIRE(stand.host.asked.size() == 2);
    second = stand.host.asked[1];
    stand.ask(1, "www.example");
  }
  SUBCASE("not waited for by a question that comes later") {
    stand.ask(1, "www.example");
    REQUIRE(stand.host.asked.size() == 2);
    second = stand.host.asked[1];
    stand.engine.decided(first, word);
  }
  CHECK(stand.host.asked.size() == 2);
  CHECK(stand.host.learned == 0);
  CHECK(stand.outlet.sent == 0);
  stand.engine.decided(second, word);
  CHECK(stand.host.learned == 2);
  CHECK(stand.outlet.sent == 2);
  stand.ask(1, "www.example");
  CHECK(stand.host.asked.size() == 2);
  CHECK(stand.outlet.sent == 3);
}

TEST_CASE("nor does it open what the upstream answers after that") {
  const Fd server(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  Stand stand({bound(server)});
  stand.decide_on(1, 1);
  stand.ask(1, "www.example");
  REQUIRE(stand.host.asked.size() == 1);
  stand.engine.decided(stand.host.asked[0], allowing({}));
  SUBCASE("the same state") {
    answer(stand, server);
    CHECK(stand.host.asked.size() == 1);
  }
  SUBCASE("another") {
    stand.decide_on(1, 2);
    answer(stand, server);
    REQUIRE(stand.host.asked.size() == 2);
    CHECK(stand.host.learned == 0);
    CHECK(stand.outlet.sent == 0);
    stand.engine.decided(stand.host.asked[1], allowing({}));
  }
  CHECK(stand.host.learned == 1);
  CHECK(stand.outlet.sent == 1);
}

TEST_CASE("that the time of who asked ran out says nothing of the name, nor of the server") {
  const Fd server(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)),
      next(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  Stand stand({bound(server), bound(next)});
  stand.decide_on(1, 1);
  const auto ask = [&](int number) { stand.ask(1, "n" + std::to_string(number) + ".example"); };
  const int many = 5;  // more than a server may leave without an answer
  for (int i = 0; i < many; ++i) ask(i);
  // Their last word is due 4.8 s after they came.
  stand.advance_to(4'600);
  for (const auto id : std::vector(stand.host.asked)) stand.engine.decided(id, allowing({}));
  stand.engine.flush();
  CHECK(received(server) == many);
  CHECK(stand.outlet.sent == 0);
  stand.advance_to(4'810);
  CHECK(stand.outlet.sent == many);

  for (int i = 0; i < many; ++i) ask(i);
  stand.engine.flush();
  CHECK(stand.outlet.sent == many);
  CHECK(received(server) == many);
  CHECK(received(next) == 0);
}
