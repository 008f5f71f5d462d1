// The plugin through its C table, under FakeHost, against the real kernel in namespaces of this
// process.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "interfaces/plugin.hpp"

#include <doctest/doctest.h>
#include <net/if.h>

#include <algorithm>
#include <sluice/fake_host.hpp>

#include "unit/interfaces/throwaway_netns.hpp"

using namespace std::chrono_literals;
using sluice::interfaces::InterfacesPlugin;
using sluice::sdk::Error;
using sluice::sdk::FakeHost;
using sluice::sdk::InterfaceTarget;
using sluice::sdk::Labels;
using sluice::sdk::LogLevel;
using sluice::sdk::Side;
using sluice::test::ip;
using Strings = std::vector<std::string>;

namespace {

// Everything that the kernel has said by now, and what follows from it at once.
void settle(FakeHost& host) {
  do host.advance(0ns);
  while (host.run_ready_fds() > 0);
}

std::map<std::string, unsigned> attached(FakeHost& host) {
  settle(host);
  std::map<std::string, unsigned> result;
  for (const auto& [id, attached] : host.attachments()) {
    const auto& target = std::get<InterfaceTarget>(attached.target);
    REQUIRE(result.emplace(target.name, target.ifindex).second);
  }
  return result;
}

Strings names(FakeHost& host) {
  Strings result;
  for (const auto& [name, ifindex] : attached(host)) result.push_back(name);
  return result;
}

const FakeHost::Attached& attachment_of(FakeHost& host, const std::string& name) {
  for (const auto& [id, attached] : host.attachments())
    if (std::get<InterfaceTarget>(attached.target).name == name) return attached;
  FAIL("not attached: " << name);
  std::abort();
}

// What it asked of the core, without timers and watches.
Strings asked(const FakeHost& host) {
  Strings result;
  for (const auto& call : host.calls())
    if (!call.starts_with("fd_") && !call.starts_with("timer_")) result.push_back(call);
  return result;
}

std::size_t lines_at(const FakeHost& host, LogLevel level) {
  const auto lines = host.lines();
  return static_cast<std::size_t>(std::count_if(
      lines.begin(), lines.end(), [&](const auto& line) { return line.level == level; }));
}

std::string refusal_of(const std::function<void(FakeHost&)>& configure) {
  FakeHost host("taps");
  configure(host);
  try {
    host.create<InterfacesPlugin>();
  } catch (const Error& error) {
    return error.what();
  }
  return "accepted";
}

bool mentions(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("options that cannot be meant are refused before anything is opened") {
  CHECK(mentions(refusal_of([](FakeHost&) {}), "taps: nothing selects an interface"));
  CHECK(mentions(refusal_of([](FakeHost& host) { host.configure("match", Strings{"tap["}); }),
                 "taps: match: pattern \"tap[\""));
  CHECK(mentions(refusal_of([](FakeHost& host) {
                   host.configure("match", Strings{"*"});
                   host.configure("side", "left");
                 }),
                 "taps: side: \"left\" is not a side"));
  CHECK(mentions(refusal_of([](FakeHost& host) {
                   host.configure("match", Strings{"*"});
                   host.configure("labels", Labels{{"vm", "$name"}});
                 }),
                 "taps: labels.vm: nothing is called $name"));
  CHECK(mentions(refusal_of([](FakeHost& host) {
                   host.configure("match", Strings{"*"});
                   host.configure("event_buffer", 1);
                 }),
                 "taps: event_buffer: 1 bytes"));
}

TEST_CASE("existing links are attached after start, then it is said that all are listed") {
  SLUICE_NEEDS_NETNS();
  ip("link add br0 type bridge\nlink add vm-acme-0 type veth peer name other\n"
     "link set vm-acme-0 master br0\n");
  FakeHost host;
  host.configure("match", Strings{"vm-{tenant}-{nic}"});
  host.configure("side", "ingress");
  host.configure("labels", Labels{{"class", "vm"}, {"port", "$bridge/$interface"}});
  host.create<InterfacesPlugin>();
  host.start();
  CHECK(names(host) == Strings{"vm-acme-0"});
  CHECK(asked(host) == Strings{"attach vm-acme-0", "listed"});
  const auto& attached = attachment_of(host, "vm-acme-0");
  CHECK(attached.labels == Labels{{"interface", "vm-acme-0"},
                                  {"kind", "veth"},
                                  {"bridge", "br0"},
                                  {"tenant", "acme"},
                                  {"nic", "0"},
                                  {"class", "vm"},
                                  {"port", "br0/vm-acme-0"}});
  const auto& target = std::get<InterfaceTarget>(attached.target);
  CHECK(target.ifindex == if_nametoindex("vm-acme-0"));
  CHECK(target.side == Side::workload_ingress);
}

TEST_CASE("a star takes in workloads only; lo never") {
  SLUICE_NEEDS_NETNS();
  ip("link add br0 type bridge\nlink add v0 type veth peer name v1\ntuntap add t0 mode tap\n"
     "link set lo up\n");
  FakeHost host;
  host.configure("match", Strings{"*"});
  host.create<InterfacesPlugin>();
  host.start();
  CHECK(names(host) == Strings{"t0", "v0", "v1"});
}

TEST_CASE("new, renamed in and out, relabelled by bridge, deleted") {
  SLUICE_NEEDS_NETNS();
  FakeHost host;
  host.configure("match", Strings{"tap*"});
  host.create<InterfacesPlugin>();
  host.start();
  CHECK(names(host).empty());
  ip("link add tap0 type veth peer name other\nlink add br0 type bridge\n");
  CHECK(names(host) == Strings{"tap0"});
  ip("link set tap0 master br0\n");
  CHECK(names(host) == Strings{"tap0"});
  CHECK(attachment_of(host, "tap0").labels.at("bridge") == "br0");
  ip("link set tap0 nomaster\nlink set other name tap1\n");
  CHECK(names(host) == Strings{"tap0", "tap1"});
  CHECK_FALSE(attachment_of(host, "tap0").labels.contains("bridge"));
  ip("link set tap0 name away\n");
  CHECK(names(host) == Strings{"tap1"});
  ip("link set tap1 name tap2\n");
  CHECK(names(host) == Strings{"tap2"});
  ip("link del tap2\n");
  CHECK(names(host).empty());
  CHECK(host.count_calls("listed") == 1);
}

TEST_CASE("a link that disappears while it is attached is a debug line") {
  SLUICE_NEEDS_NETNS();
  ip("link add tap0 type veth peer name other\n");
  FakeHost host;
  host.configure("match", Strings{"tap*"});
  host.create<InterfacesPlugin>();
  host.refuse("attach", ENODEV, "tap0: no such device");
  host.start();
  settle(host);
  CHECK(host.count_calls("attach") == 1);
  CHECK(lines_at(host, LogLevel::debug) == 1);
  CHECK(lines_at(host, LogLevel::warning) == 0);
  CHECK(host.count_calls("listed") == 1);
  CHECK_FALSE(host.failure().has_value());
}

TEST_CASE("50 links that cannot be attached make one line, and are attached when it works again") {
  SLUICE_NEEDS_NETNS();
  std::string batch;
  for (int i = 0; i < 50; ++i)
    batch +=
        "link add tap" + std::to_string(i) + " type veth peer name p" + std::to_string(i) + "\n";
  ip(batch);
  FakeHost host;
  host.configure("match", Strings{"tap*"});
  host.create<InterfacesPlugin>();
  host.refuse("attach", ENOSPC, "all 16 slots are taken; raise host.max_attachments");
  host.start();
  settle(host);
  host.advance(1min);
  CHECK(lines_at(host, LogLevel::warning) == 1);
  // 250 ms, 500 ms, 1 s ... 32 s: eight tries in the first minute.
  CHECK(host.count_calls("attach") == 8 * 50);
  host.allow("attach");
  host.advance(1min);
  CHECK(names(host).size() == 50);
  CHECK(lines_at(host, LogLevel::warning) == 1);
  CHECK(lines_at(host, LogLevel::info) == 1);
}

TEST_CASE("many links are attached in bounded turns, so that the host can call in between") {
  SLUICE_NEEDS_NETNS();
  std::string batch;
  for (int i = 0; i < 200; ++i)
    batch +=
        "link add tap" + std::to_string(i) + " type veth peer name p" + std::to_string(i) + "\n";
  ip(batch);
  FakeHost host;
  host.configure("match", Strings{"tap*"});
  host.create<InterfacesPlugin>();
  host.start();
  while (host.count_calls("attach") == 0) REQUIRE(host.run_ready_fds() > 0);
  CHECK(host.count_calls("attach") <= 64);
  CHECK(host.count_calls("listed") == 0);
  CHECK(names(host).size() == 200);
  CHECK(host.count_calls("listed") == 1);
  CHECK(asked(host).back() == "listed");
}

TEST_CASE("200 times the same name is 200 devices; a number given again is another device") {
  SLUICE_NEEDS_NETNS();
  FakeHost host;
  host.configure("match", Strings{"tap0"});
  host.create<InterfacesPlugin>();
  host.start();
  for (int i = 0; i < 200; ++i) {
    ip(i % 2 == 0 ? "link add tap0 type veth peer name other\n"
                  : "link add tap0 index 4711 type veth peer name other\n");
    REQUIRE(attached(host) == std::map<std::string, unsigned>{{"tap0", if_nametoindex("tap0")}});
    ip("link del tap0\n");
  }
  CHECK(names(host).empty());
  CHECK(host.count_calls("attach") == 200);
  CHECK(host.count_calls("detach") == 200);
}

TEST_CASE("500 links through a buffer that holds a few: equal in the end, and said once") {
  SLUICE_NEEDS_NETNS();
  FakeHost host;
  host.configure("match", Strings{"tap*"});
  host.configure("event_buffer", 4096);
  host.create<InterfacesPlugin>();
  host.start();
  settle(host);
  std::string batch;
  for (int i = 0; i < 250; ++i)
    batch +=
        "link add tap" + std::to_string(i) + " type veth peer name tapx" + std::to_string(i) + "\n";
  ip(batch);
  CHECK(names(host).size() == 500);
  batch.clear();
  for (int i = 0; i < 250; i += 2) batch += "link del tap" + std::to_string(i) + "\n";
  batch += "link add tap0 type veth peer name tapx0\n";
  ip(batch);
  const auto now = attached(host);
  CHECK(now.size() == 252);
  for (const auto& [name, ifindex] : now) REQUIRE(ifindex == if_nametoindex(name.c_str()));
  CHECK(lines_at(host, LogLevel::warning) == 2);  // once for each storm
  CHECK(host.count_calls("listed") == 3);
  CHECK(host.watched().size() == 1);
}

TEST_CASE("after a resync everything is asked for again, which repairs what died unseen") {
  SLUICE_NEEDS_NETNS();
  ip("link add tap0 type veth peer name tap1\n");
  FakeHost host;
  host.configure("match", Strings{"tap*"});
  host.create<InterfacesPlugin>();
  host.start();
  CHECK(names(host) == Strings{"tap0", "tap1"});
  host.forget_calls();
  host.resync();
  settle(host);
  CHECK(host.count_calls("attach") == 2);
  CHECK(host.count_calls("detach") == 0);
  CHECK(asked(host).back() == "listed");
}

TEST_CASE("stop leaves every filter where it is and nothing watched") {
  SLUICE_NEEDS_NETNS();
  ip("link add tap0 type veth peer name other\n");
  FakeHost host;
  host.configure("match", Strings{"tap*"});
  host.create<InterfacesPlugin>();
  host.start();
  CHECK(names(host) == Strings{"tap0"});
  host.stop();
  CHECK(host.count_calls("detach") == 0);
  CHECK(host.watched().empty());
}
