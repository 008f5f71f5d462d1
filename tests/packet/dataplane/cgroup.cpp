// The cgroup programs on the real kernel: a process in a filtered cgroup, its sockets, and those it
// brought along.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <arpa/inet.h>
#include <doctest/doctest.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <fstream>
#include <thread>

#include "dataplane/cgroup_filter.hpp"
#include "dataplane/connection_reset.hpp"
#include "packet/dataplane/lab.hpp"
#include "packet/dataplane/policies.hpp"

using namespace sluice;
using namespace sluice::test;
namespace fs = std::filesystem;

namespace {

constexpr const char* kAllowed = "192.0.2.2";
constexpr const char* kDenied = "192.0.2.3";

// A cgroup of the test's own, removed again with what is in it.
class Cgroup {
 public:
  explicit Cgroup(const std::string& name)
      : path_("/" + name), directory_(find_cgroup2().value() / name) {
    make();
  }
  ~Cgroup() { remove(); }
  void make() const { fs::create_directory(directory_); }
  void remove() const {
    std::ofstream(directory_ / "cgroup.kill") << "1";
    for (int i = 0; i < 100 && rmdir(directory_.c_str()) != 0; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  // Another cgroup of the same name.
  void make_again() const {
    remove();
    make();
  }
  void enter() const { std::ofstream(directory_ / "cgroup.procs") << getpid() << std::flush; }
  [[nodiscard]] CgroupTarget target() const { return {.path = path_}; }

 private:
  std::string path_;
  fs::path directory_;
};

sockaddr_in address(const char* text, std::uint16_t port) {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  inet_pton(AF_INET, text, &to.sin_addr);
  return to;
}

int send_to(int socket, const char* where) {
  const sockaddr_in to = address(where, 4000);
  return sendto(socket, "x", 1, 0, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) == 1 ? 0
                                                                                            : errno;
}

int connect_to(const char* where) {
  const Fd socket(::socket(AF_INET, SOCK_STREAM, 0));
  const sockaddr_in to = address(where, 4000);
  return connect(socket.get(), reinterpret_cast<const sockaddr*>(&to), sizeof(to)) == 0 ? 0 : errno;
}

// Runs `body` in a child that first enters the cgroup; its return value, at most 255.
template <typename Body>
int in_cgroup(const Cgroup& cgroup, const Body& body) {
  const pid_t child = fork();
  if (child == 0) {
    cgroup.enter();
    _exit(body());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WEXITSTATUS(status);
}

struct Filtered {
  Lab lab;
  Cgroup cgroup{fmt::format("sluice-test-{}", getpid())};
  std::unique_ptr<KernelDataPlane> plane = lab.open();
  KernelAttachment attachment;

  Filtered() {
    lab.in_guest("ip addr add 192.0.2.3/24 dev guest0");
    auto attached = plane->attach(cgroup.target(), nullptr);
    REQUIRE_MESSAGE(attached, attached.error().message);
    attachment = *attached;
  }
  void publish(const Layer& layer, bool tightening = false) const {
    const auto policy = compiled(layer);
    auto done = plane->publish({.slot = attachment.slot,
                                .mode = *layer.mode,
                                .policy = &policy,
                                .tightening = tightening});
    REQUIRE_MESSAGE(done, done.error().message);
  }
  // Goes on as a daemon does until the child has ended; its exit status.
  [[nodiscard]] int status_of(pid_t child) const {
    int status = 0;
    while (waitpid(child, &status, WNOHANG) == 0) {
      plane->poll({});
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return WEXITSTATUS(status);
  }
};

// A child and the test wait for each other.
class Turns {
 public:
  Turns() { REQUIRE((pipe(ready_) == 0 && pipe(gate_) == 0)); }
  ~Turns() {
    for (const int end : {ready_[0], gate_[0], gate_[1]}) close(end);
  }
  Turns(const Turns&) = delete;
  Turns& operator=(const Turns&) = delete;

  // In the child: says that it is ready, and waits until it may go on.
  [[nodiscard]] bool ready_and_told() const {
    char go = 0;
    return write(ready_[1], "r", 1) == 1 && read(gate_[0], &go, 1) == 1;
  }
  // Once, after the fork; fails when the child has ended.
  void wait() const {
    close(ready_[1]);
    char made = 0;
    REQUIRE(read(ready_[0], &made, 1) == 1);
  }
  void go() const { CHECK(write(gate_[1], "g", 1) == 1); }

 private:
  int ready_[2], gate_[2];
};

// In a child: until `wanted` is so, or it cannot be expected any more.
template <typename Wanted>
bool comes(const Wanted& wanted, std::chrono::milliseconds patience = std::chrono::minutes(1)) {
  const auto end = std::chrono::steady_clock::now() + patience;
  while (!wanted()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return true;
}

}  // namespace

TEST_CASE(
    "a process in a filtered cgroup reaches what policy allows, and is told EPERM at once for the "
    "rest") {
  Filtered here;
  here.publish(allow({"192.0.2.2/32"}));
  CHECK(in_cgroup(here.cgroup, [] { return connect_to(kAllowed); }) == ECONNREFUSED);
  CHECK(in_cgroup(here.cgroup, [] { return connect_to(kDenied); }) == EPERM);
  CHECK(in_cgroup(here.cgroup,
                  [] { return send_to(Fd(socket(AF_INET, SOCK_DGRAM, 0)).get(), kAllowed); }) == 0);
  CHECK(in_cgroup(here.cgroup, [] {
          return send_to(Fd(socket(AF_INET, SOCK_DGRAM, 0)).get(), kDenied);
        }) == EPERM);
  CHECK(connect_to(kDenied) == ECONNREFUSED);  // outside the cgroup nothing changed
  const auto counters = here.plane->counters(here.attachment.slot);
  REQUIRE(counters);
  CHECK(counters->denied_packets >= 2);
  CHECK(counters->allowed_packets >= 2);
}

TEST_CASE("a child cgroup is under its parent's filter") {
  Filtered here;
  here.publish(allow({"192.0.2.2/32"}));
  const Cgroup child(fmt::format("sluice-test-{}/child", getpid()));
  CHECK(in_cgroup(child, [] { return connect_to(kDenied); }) == EPERM);
  CHECK(in_cgroup(child, [] { return connect_to(kAllowed); }) == ECONNREFUSED);
}

TEST_CASE("a socket made outside and brought into the cgroup is shut") {
  Filtered here;
  here.publish(allow({"192.0.2.2/32"}));
  const pid_t child = fork();
  if (child == 0) {
    const Fd udp(socket(AF_INET, SOCK_DGRAM, 0));
    if (send_to(udp.get(), kDenied) != 0) _exit(1);
    here.cgroup.enter();
    // The move is an event; the sweep runs behind it.
    _exit(comes([&] { return send_to(udp.get(), kDenied) == EPIPE; }) ? 0 : 2);
  }
  CHECK(here.status_of(child) == 0);
}

TEST_CASE("the sockets of a cgroup that has the name of a removed one are its own") {
  Filtered here;
  here.publish(allow({"192.0.2.2/32"}));
  here.plane->poll({});  // which finds by itself that a cgroup is gone, but only after seconds
  here.cgroup.make_again();
  const Turns turns;
  const pid_t child = fork();
  if (child == 0) {
    here.cgroup.enter();
    const Fd udp(socket(AF_INET, SOCK_DGRAM, 0));
    if (!turns.ready_and_told()) _exit(1);
    _exit(send_to(udp.get(), kAllowed) == 0 ? 0 : 2);
  }
  turns.wait();
  for (int i = 0; i < 50; ++i) {
    here.plane->poll({});
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  turns.go();
  CHECK(here.status_of(child) == 0);
}

// Sockets that listen in the guest; nobody has to accept for a connection to stand.
std::array<Fd, 2> listeners_of_guest(const Lab& lab) {
  std::array<Fd, 2> listeners;
  bool good = false;
  std::thread([&] {
    const Fd there(open(("/run/netns/" + lab.name()).c_str(), O_RDONLY | O_CLOEXEC));
    good = setns(there.get(), CLONE_NEWNET) == 0;
    for (const std::size_t i : {0u, 1u}) {
      listeners[i] = Fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      const sockaddr_in at = address(i == 0 ? kAllowed : kDenied, 4001);
      good = good &&
             bind(listeners[i].get(), reinterpret_cast<const sockaddr*>(&at), sizeof(at)) == 0 &&
             listen(listeners[i].get(), 1) == 0;
    }
  }).join();
  REQUIRE(good);
  return listeners;
}

// A process in the cgroup holds two connections meanwhile: the errno of reading from the one to
// kDenied, EAGAIN when nothing becomes of it; 0 when the one to kAllowed was hurt.
template <typename Deed>
int error_after(const Filtered& here, std::chrono::milliseconds patience, const Deed& deed) {
  const auto listeners = listeners_of_guest(here.lab);
  const Turns turns;
  const pid_t child = fork();
  if (child == 0) {
    here.cgroup.enter();
    const Fd kept(socket(AF_INET, SOCK_STREAM, 0)), cut(socket(AF_INET, SOCK_STREAM, 0));
    const sockaddr_in a = address(kAllowed, 4001), b = address(kDenied, 4001);
    if (connect(kept.get(), reinterpret_cast<const sockaddr*>(&a), sizeof(a)) != 0) _exit(0);
    if (connect(cut.get(), reinterpret_cast<const sockaddr*>(&b), sizeof(b)) != 0) _exit(0);
    if (!turns.ready_and_told()) _exit(0);
    int error = 0;
    comes(
        [&] {
          char byte = 0;
          error = recv(cut.get(), &byte, 1, MSG_DONTWAIT) < 0 ? errno : 0;
          return error != EAGAIN;
        },
        patience);
    _exit(send(kept.get(), "x", 1, MSG_NOSIGNAL) == 1 ? error : 0);
  }
  turns.wait();
  deed();
  turns.go();
  return here.status_of(child);
}

int error_after_tightening(const Filtered& here, std::chrono::milliseconds patience) {
  return error_after(here, patience, [&] { here.publish(allow({"192.0.2.2/32"}), true); });
}

TEST_CASE("a tightening resets the connection that it denies, and no other") {
  Filtered here;
  here.publish(allow({"192.0.2.0/24"}));
  const int error = error_after_tightening(here, std::chrono::minutes(1));
  CHECK((error == ECONNABORTED || error == ECONNRESET));
}

TEST_CASE("a tightening resets no connection of a cgroup that has the name of a removed one") {
  Filtered here;
  here.publish(allow({"192.0.2.0/24"}));
  here.plane->poll({});
  here.cgroup.make_again();
  CHECK(error_after_tightening(here, std::chrono::milliseconds(300)) == EAGAIN);
}

TEST_CASE("a tightening resets no connection by the policy of whoever has its slot by then") {
  Filtered here;
  here.publish(allow({"192.0.2.0/24"}));
  const Cgroup other(fmt::format("sluice-other-{}", getpid()));
  const auto features = probe_kernel();
  REQUIRE(features);
  const auto programs =
      Programs::load(here.lab.config.bpffs / "maps-1", {}, here.lab.config, *features);
  REQUIRE_MESSAGE(programs, programs.error().message);
  const auto error = error_after(here, std::chrono::milliseconds(300), [&] {
    REQUIRE(here.plane->detach(here.attachment.slot));
    const auto successor = here.plane->attach(other.target(), nullptr);
    REQUIRE(successor);
    REQUIRE(successor->slot == here.attachment.slot);
    // As it was asked for before, and only now has its turn in the background.
    destroy_denied_sockets({.cgroup_id = here.attachment.cgroup->cgroup_id,
                            .path = here.attachment.cgroup->path,
                            .programs = &*programs,
                            .slot = here.attachment.slot,
                            .incarnation = here.attachment.incarnation});
  });
  CHECK(error == EAGAIN);
}

TEST_CASE("a filtered cgroup stays filtered without the daemon, and is adopted with its path") {
  Filtered here;
  here.publish(allow({"192.0.2.2/32"}));
  here.plane.reset();
  CHECK(in_cgroup(here.cgroup, [] { return connect_to(kDenied); }) == EPERM);
  CHECK(in_cgroup(here.cgroup, [] { return connect_to(kAllowed); }) == ECONNREFUSED);
  here.plane = here.lab.open();
  const auto adopted = here.plane->adopted();
  REQUIRE(adopted.size() == 1);
  REQUIRE(adopted[0].cgroup);
  CHECK(adopted[0].cgroup->path == here.cgroup.target().path);
  CHECK(adopted[0].incarnation == here.attachment.incarnation);
  CHECK(in_cgroup(here.cgroup, [] { return connect_to(kDenied); }) == EPERM);
}

TEST_CASE("a filtered cgroup is adopted while others come and go") {
  Filtered here;
  here.publish(allow({"192.0.2.2/32"}));
  std::jthread churner([](const std::stop_token& end) {
    const fs::path root = find_cgroup2().value();
    const auto each = [&](const auto& deed) {
      for (int i = 0; i < 100; ++i) deed(root / fmt::format("sluice-passing-{}-{}", getpid(), i));
    };
    while (!end.stop_requested()) {
      each([](const fs::path& passing) { mkdir(passing.c_str(), 0755); });
      each([](const fs::path& passing) { rmdir(passing.c_str()); });
    }
  });
  for (int i = 0; i < 10; ++i) {
    here.plane.reset();
    here.plane = here.lab.open();
    REQUIRE(here.plane->adopted().size() == 1);
  }
}

TEST_CASE("the cgroup guard drops what an unattached child sends") {
  Lab lab;
  auto plane = lab.open();
  const Cgroup parent(fmt::format("sluice-guard-{}", getpid()));
  const Cgroup child(fmt::format("sluice-guard-{}/child", getpid()));
  auto guarded =
      plane->set_guards({.uplinks = {}, .trusted = {}, .parent_cgroups = {parent.target().path}});
  REQUIRE_MESSAGE(guarded, guarded.error().message);
  const auto send_udp = [] { return send_to(Fd(socket(AF_INET, SOCK_DGRAM, 0)).get(), kAllowed); };
  CHECK(in_cgroup(child, send_udp) == EPERM);
  auto attached = plane->attach(child.target(), nullptr);
  REQUIRE(attached);
  const auto policy = compiled(allow({"192.0.2.2/32"}));
  REQUIRE(plane->publish({.slot = attached->slot, .mode = Mode::allowlist, .policy = &policy}));
  CHECK(in_cgroup(child, send_udp) == 0);
  REQUIRE(plane->set_guards({}));
}

TEST_CASE("the cgroup guard is there again when its cgroup is removed and made anew") {
  Lab lab;
  auto plane = lab.open();
  const Cgroup parent(fmt::format("sluice-guard-{}", getpid()));
  REQUIRE(
      plane->set_guards({.uplinks = {}, .trusted = {}, .parent_cgroups = {parent.target().path}}));
  plane->poll({});  // nothing but the new name is left to be noticed by the next
  parent.remove();
  plane->poll({});
  parent.make();
  const Cgroup child(fmt::format("sluice-guard-{}/child", getpid()));
  plane->poll({});
  const auto send_udp = [] { return send_to(Fd(socket(AF_INET, SOCK_DGRAM, 0)).get(), kAllowed); };
  CHECK(in_cgroup(child, send_udp) == EPERM);
  REQUIRE(plane->set_guards({}));
  CHECK(in_cgroup(child, send_udp) == 0);
}
