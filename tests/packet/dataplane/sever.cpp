// A tightening on an interface: both ends of the connection that it cuts are told, by a reset.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <thread>

#include "packet/dataplane/lab.hpp"
#include "packet/dataplane/policies.hpp"

using namespace sluice;
using namespace sluice::test;

namespace {

// Runs python3 and gives what it printed.
std::string output_of(const std::string& command) {
  std::string text;
  FILE* pipe = popen(command.c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::array<char, 256> buffer{};
  while (fgets(buffer.data(), buffer.size(), pipe) != nullptr) text += buffer.data();
  pclose(pipe);
  return text;
}

constexpr const char* kGuestConnects = R"(
import socket, sys, time
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
s.connect((sys.argv[1], 4002)); s.sendall(b"hello"); s.recv(5); open(sys.argv[2], "w").write("ready")
time.sleep(float(sys.argv[3]))
try:
    s.sendall(b"more"); time.sleep(0.3); s.sendall(b"more"); print("guest: alive")
except OSError as e: print("guest:", type(e).__name__)
)";
constexpr const char* kHostServes = R"(
import socket, sys, time
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET); s.setsockopt(1, 2, 1)
s.bind((sys.argv[1], 4002)); s.listen(); c, _ = s.accept(); c.sendall(c.recv(5))
time.sleep(float(sys.argv[2]))
try:
    c.sendall(b"news"); time.sleep(0.3); c.sendall(b"news"); print("host: alive")
except OSError as e: print("host:", type(e).__name__)
)";

struct Cut {
  Lab lab;
  std::unique_ptr<KernelDataPlane> plane = lab.open();
  std::string flag = fmt::format("/tmp/sluice-sever-{}", getpid());
  std::uint32_t slot = 0;

  Cut() {
    std::filesystem::remove(flag);
    auto attached =
        plane->attach(InterfaceTarget{.name = "host0", .ifindex = Lab::ifindex("host0")}, nullptr);
    REQUIRE(attached);
    slot = attached->slot;
    publish(allow({"192.0.2.1/32", "2001:db8::1/128"}), false);
  }
  ~Cut() { std::filesystem::remove(flag); }
  void publish(const Layer& layer, bool tightening) const {
    const auto policy = compiled(layer);
    REQUIRE(plane->publish(
        {.slot = slot, .mode = Mode::allowlist, .policy = &policy, .tightening = tightening}));
  }
  // Who sends first after the cut decides who is told first; the delays choose.
  std::string run(const char* address, const char* guest_delay, const char* host_delay) const {
    const std::string command = fmt::format(
        "(timeout 20 python3 -c '{}' {} {} & sleep 0.5; timeout 20 nsenter "
        "--net=/run/netns/sluice-packet-{} python3 "
        "-c '{}' {} {} {}; wait) 2>&1",
        kHostServes, address, host_delay, getpid(), kGuestConnects, address, flag, guest_delay);
    std::string text;
    std::jthread both([&] { text = output_of(command); });
    for (int i = 0; i < 100 && !std::filesystem::exists(flag); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    publish(allow({"198.51.100.0/24"}), true);
    both.join();
    return text;
  }
};

}  // namespace

TEST_CASE("the workload that goes on sending into a cut connection is reset") {
  for (const char* address : {"192.0.2.1", "2001:db8::1"}) {
    CAPTURE(address);
    Cut cut;
    const std::string text = cut.run(address, "1", "8");
    CHECK_MESSAGE(text.find("guest: ConnectionResetError") != std::string::npos, text);
  }
}

TEST_CASE("the other end that goes on sending into a cut connection is reset") {
  for (const char* address : {"192.0.2.1", "2001:db8::1"}) {
    CAPTURE(address);
    Cut cut;
    const std::string text = cut.run(address, "8", "1");
    CHECK_MESSAGE((text.find("host: ConnectionResetError") != std::string::npos ||
                   text.find("host: BrokenPipeError") != std::string::npos),
                  text);
  }
}
