// The feed against the real kernel, in network namespaces of this process.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "interfaces/link_feed.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cerrno>
#include <set>

#include "interfaces/link_book.hpp"
#include "unit/discovery/scripted_host.hpp"
#include "unit/interfaces/throwaway_netns.hpp"

using namespace sluice::interfaces;
using namespace sluice::discovery;
using sluice::test::ip;
using Strings = std::vector<std::string>;

namespace {

// Feed, book, keeper and host, driven as the plugin drives them.
struct Bench {
  ScriptedHost host;
  Keeper keeper{host, {.calls_per_turn = 100000}};
  LinkBook book;
  LinkFeed feed;
  int overflows = 0;

  explicit Bench(SelectionOptions options, LinkFeed::Settings settings = {})
      : book(Selection(std::move(options)), keeper), feed(book, settings) {
    feed.open();
    catch_up();
  }
  // Reads until nothing is left: what the kernel has said by now has then been dealt with.
  void catch_up() {
    for (;;) {
      switch (feed.read()) {
        case LinkFeed::Outcome::overflow:
          ++overflows;
          feed.open();
          continue;
        case LinkFeed::Outcome::more:
          continue;
        case LinkFeed::Outcome::drained:
          break;
      }
      break;
    }
    book.settle();
    run_out(keeper);
  }
  Strings names() {
    catch_up();
    return host.names();
  }
};

}  // namespace

TEST_CASE("links that exist are listed, with kind, bridge and name") {
  SLUICE_NEEDS_NETNS();
  ip("link add br0 type bridge\n"
     "link add tap0 type veth peer name peer0\n"
     "link set tap0 master br0\n"
     "tuntap add l2 mode tap\n"
     "tuntap add l3 mode tun\n");
  Bench bench({.match = {"*"}, .labels = {{"class", "vm"}}});
  CHECK(bench.names() == Strings{"l2", "l3", "peer0", "tap0"});
  CHECK(bench.host.listed_calls == 1);
  std::map<std::string, Labels> labels;
  for (const auto& [id, attached] : bench.host.attachments)
    labels[attached.target.name] = attached.labels;
  CHECK(labels["tap0"] ==
        Labels{{"interface", "tap0"}, {"kind", "veth"}, {"bridge", "br0"}, {"class", "vm"}});
  CHECK(labels["l2"].at("kind") == "tap");
  CHECK(labels["l3"].at("kind") == "tun");
  CHECK_FALSE(labels["peer0"].contains("bridge"));
}

TEST_CASE("new, renamed in, renamed out, deleted") {
  SLUICE_NEEDS_NETNS();
  Bench bench({.match = {"tap*"}});
  CHECK(bench.names().empty());
  ip("link add tap0 type veth peer name other\n");
  CHECK(bench.names() == Strings{"tap0"});
  ip("link set other name tap1\n");
  CHECK(bench.names() == Strings{"tap0", "tap1"});
  ip("link set tap0 name away\n");
  CHECK(bench.names() == Strings{"tap1"});
  // A device that is up is renamed as well (since kernel 6.2; before it has to be down).
  ip("link set away up\nlink set away down\nlink set away name tap7\n");
  CHECK(bench.names() == Strings{"tap1", "tap7"});
  ip("link del tap1\n");
  CHECK(bench.names().empty());
}

TEST_CASE("a device that leaves for another namespace is detached, one that comes is attached") {
  SLUICE_NEEDS_NETNS();
  const int first = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
  REQUIRE(first >= 0);
  Bench bench({.match = {"tap*"}});
  ip("link add tap0 type veth peer name tap1\n");
  CHECK(bench.names() == Strings{"tap0", "tap1"});

  // Another namespace, held by a file descriptor; ip(8) reaches the first by this process' fd.
  REQUIRE(unshare(CLONE_NEWNET) == 0);
  const int second = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
  REQUIRE(setns(first, CLONE_NEWNET) == 0);
  const std::string process = "/proc/" + std::to_string(getpid()) + "/fd/";
  ip("link set tap1 netns " + process + std::to_string(second) + "\n");
  CHECK(bench.names() == Strings{"tap0"});
  REQUIRE(setns(second, CLONE_NEWNET) == 0);
  ip("link set tap1 netns " + process + std::to_string(first) + "\n");
  REQUIRE(setns(first, CLONE_NEWNET) == 0);
  CHECK(bench.names() == Strings{"tap0", "tap1"});
  close(second);
  close(first);
}

TEST_CASE("a port is wanted as long as it is a port: master, nomaster, another master, no bridge") {
  SLUICE_NEEDS_NETNS();
  ip("link add br0 type bridge\nlink add br1 type bridge\nlink add tap0 type veth peer name "
     "tap1\n");
  Bench bench({.bridge = {"br0"}});
  CHECK(bench.names().empty());
  ip("link set tap0 master br0\nlink set tap0 up\nlink set br0 up\n");
  CHECK(bench.names() == Strings{"tap0"});
  ip("link set tap0 nomaster\n");
  CHECK(bench.names().empty());
  CHECK(bench.book.links().size() == 5);  // lo too: nothing was taken for deleted
  ip("link set tap0 master br0\n");
  CHECK(bench.names() == Strings{"tap0"});
  ip("link set tap0 master br1\n");
  CHECK(bench.names().empty());
  ip("link set tap0 master br0\nlink set br0 down\nlink set br0 name br9\n");
  CHECK(bench.names().empty());
  ip("link set br9 name br0\n");
  CHECK(bench.names() == Strings{"tap0"});
  ip("link del br0\n");
  CHECK(bench.names().empty());
}

TEST_CASE("200 times the same name is 200 devices, each detached before the next") {
  SLUICE_NEEDS_NETNS();
  Bench bench({.match = {"tap0"}});
  std::string batch;
  for (int i = 0; i < 200; ++i) batch += "link add tap0 type veth peer name other\nlink del tap0\n";
  SUBCASE("all at once") {
    ip(batch);
    CHECK(bench.names().empty());
    ip("link add tap0 type veth peer name other\n");
    CHECK(bench.names() == Strings{"tap0"});
    CHECK(bench.host.attachments.begin()->second.target.ifindex == if_nametoindex("tap0"));
  }
  SUBCASE("one by one") {
    for (int i = 0; i < 200; ++i) {
      ip("link add tap0 type veth peer name other\n");
      bench.catch_up();
      REQUIRE(bench.host.attachments.size() == 1);
      REQUIRE(bench.host.attachments.begin()->second.target.ifindex == if_nametoindex("tap0"));
      ip("link del tap0\n");
    }
    CHECK(bench.names().empty());
    std::size_t standing = 0;
    for (const auto& call : bench.host.calls) {
      if (call == "attach tap0") REQUIRE(++standing == 1);
      if (call.starts_with("detach")) --standing;
    }
  }
}

TEST_CASE("a number that is given again is another device") {
  SLUICE_NEEDS_NETNS();
  Bench bench({.match = {"tap*"}});
  ip("link add tap0 index 4711 type veth peer name other\n");
  CHECK(bench.names() == Strings{"tap0"});
  const auto before = bench.host.attachments.begin()->first;
  ip("link del tap0\nlink add tap0 index 4711 type veth peer name other\n");
  CHECK(bench.names() == Strings{"tap0"});
  CHECK(bench.host.attachments.begin()->first != before);
}

TEST_CASE(
    "500 links through a socket that holds a few: overflow, and both sides equal in the end") {
  SLUICE_NEEDS_NETNS();
  Bench bench({.match = {"tap*"}}, {.receive_buffer = 8192});
  std::string batch;
  Strings expected;
  for (int i = 0; i < 250; ++i) {
    const std::string number = std::to_string(1000 + i);
    batch += "link add tap" + number + " type veth peer name tapx" + number + "\n";
  }
  ip(batch);
  CHECK(bench.names().size() == 500);
  CHECK(bench.overflows >= 1);
  const int after_creation = bench.overflows;
  // Every second pair goes, and a name comes back as another device.
  batch.clear();
  for (int i = 0; i < 250; i += 2) batch += "link del tap" + std::to_string(1000 + i) + "\n";
  batch += "link add tap1000 type veth peer name tapx1000\n";
  ip(batch);
  for (int i = 0; i < 250; ++i)
    if (i % 2 == 1 || i == 0) {
      expected.push_back("tap" + std::to_string(1000 + i));
      expected.push_back("tapx" + std::to_string(1000 + i));
    }
  std::sort(expected.begin(), expected.end());
  CHECK(bench.names() == expected);
  CHECK(bench.overflows > after_creation);
  for (const auto& [id, attached] : bench.host.attachments)
    REQUIRE(attached.target.ifindex == if_nametoindex(attached.target.name.c_str()));
  CHECK(bench.host.listed_calls >= 3);
}

TEST_CASE("a storm beside the listing: what is read in between ends up right") {
  SLUICE_NEEDS_NETNS();
  std::string batch;
  for (int i = 0; i < 200; ++i)
    batch +=
        "link add tap" + std::to_string(i) + " type veth peer name p" + std::to_string(i) + "\n";
  ip(batch);
  batch.clear();
  for (int i = 0; i < 200; ++i)
    batch += i % 3 == 0 ? "link del tap" + std::to_string(i) + "\n"
                        : "link set tap" + std::to_string(i) + " name x" + std::to_string(i) + "\n";
  // ip(8) works while the dump is read in chunks: interrupted dumps are asked for again.
  FILE* pipe = popen("ip -batch -", "w");
  REQUIRE(pipe != nullptr);
  REQUIRE(fwrite(batch.data(), 1, batch.size(), pipe) == batch.size());
  REQUIRE(fflush(pipe) == 0);
  Bench bench({.match = {"tap*", "x*"}});
  for (int i = 0; i < 50; ++i) bench.catch_up();
  REQUIRE(pclose(pipe) == 0);
  Strings expected;
  for (int i = 0; i < 200; ++i)
    if (i % 3 != 0) expected.push_back("x" + std::to_string(i));
  std::sort(expected.begin(), expected.end());
  CHECK(bench.names() == expected);
}

TEST_CASE("a dump that the kernel could not keep consistent is asked for again") {
  SLUICE_NEEDS_NETNS();
  struct Counter final : LinkSink {
    int started = 0, completed = 0;
    std::set<std::uint32_t> seen;
    void listing_started() override { ++started; }
    void listing_complete() override { ++completed; }
    void changed(const Link& link) override { seen.insert(link.ifindex); }
    void removed(std::uint32_t) override {}
    void left_bridge(std::uint32_t, std::uint32_t) override {}
  } sink;
  std::string batch;
  for (int i = 0; i < 150; ++i)
    batch +=
        "link add tap" + std::to_string(i) + " type veth peer name p" + std::to_string(i) + "\n";
  ip(batch);
  LinkFeed feed(sink);
  feed.open();
  // Parts of the dump have been made; the list of links changes before the rest is.
  CHECK(feed.read(1) == LinkFeed::Outcome::more);
  ip("link del tap140\nlink add late type veth peer name later\n");
  while (feed.read() == LinkFeed::Outcome::more) {
  }
  CHECK(sink.started == 2);
  CHECK(sink.completed == 1);
  CHECK(sink.seen.contains(if_nametoindex("late")));
}

TEST_CASE(
    "a tun device made by its owner process is seen, and is gone when the process closes it") {
  SLUICE_NEEDS_NETNS();
  Bench bench({.kinds = {"tun"}});
  const int device = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
  if (device < 0) {
    MESSAGE("not run: no /dev/net/tun");
    return;
  }
  ifreq request{};
  strcpy(request.ifr_name, "guest0");
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  REQUIRE(ioctl(device, TUNSETIFF, &request) == 0);
  CHECK(bench.names() == Strings{"guest0"});
  close(device);
  CHECK(bench.names().empty());
}
