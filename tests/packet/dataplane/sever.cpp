// A tightening on an interface: both ends of the connection that it cuts are told, by a reset.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
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

// One end: "host" serves, "guest" connects. Behind the cut the one that `sends` does so until it is
// told that the connection is gone; the other holds it as long. They wait for each other and for
// the test by files in a folder.
constexpr const char* kEnd = R"(
import os, socket, sys, time
me, address, folder, sends = sys.argv[1:]
def tell(what): open(folder + "/" + what, "w").close()
def wait(what):
    for _ in range(1200):
        if os.path.exists(folder + "/" + what): return
        time.sleep(0.05)
    sys.exit(me + ": no word of " + what)
s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
if me == "host":
    s.setsockopt(1, 2, 1); s.bind((address, 4002)); s.listen(); tell("listening")
    s, _ = s.accept(); s.sendall(s.recv(5))
else:
    wait("listening"); s.connect((address, 4002)); s.sendall(b"hello"); s.recv(5); tell("connected")
wait("cut")
if me == sends:
    try:
        for _ in range(600): s.sendall(b"more"); time.sleep(0.1)
        print(me + ": alive")
    except OSError as e: print(me + ":", type(e).__name__)
    tell("over")
else: wait("over")
)";

struct Cut {
  Lab lab;
  std::unique_ptr<KernelDataPlane> plane = lab.open();
  std::filesystem::path folder = fmt::format("/tmp/sluice-sever-{}", getpid());
  std::uint32_t slot = 0;

  Cut() {
    std::filesystem::remove_all(folder);
    std::filesystem::create_directory(folder);
    auto attached =
        plane->attach(InterfaceTarget{.name = "host0", .ifindex = Lab::ifindex("host0")}, nullptr);
    REQUIRE(attached);
    slot = attached->slot;
    publish(allow({"192.0.2.1/32", "2001:db8::1/128"}), false);
  }
  ~Cut() { std::filesystem::remove_all(folder); }
  void publish(const Layer& layer, bool tightening) const {
    const auto policy = compiled(layer);
    REQUIRE(plane->publish(
        {.slot = slot, .mode = Mode::allowlist, .policy = &policy, .tightening = tightening}));
  }
  // Who sends after the cut is told of it.
  std::string run(const char* address, const char* sends) const {
    const std::string command = fmt::format(
        "(timeout 200 python3 -c '{0}' host {1} {2} {3} & timeout 200 nsenter "
        "--net=/run/netns/{4} python3 -c '{0}' guest {1} {2} {3}; wait) 2>&1",
        kEnd, address, folder.string(), sends, lab.name());
    std::string text;
    std::jthread both([&] { text = output_of(command); });
    for (int i = 0; i < 1200 && !std::filesystem::exists(folder / "connected"); ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    publish(allow({"198.51.100.0/24"}), true);
    std::ofstream(folder / "cut").close();
    both.join();
    return text;
  }
};

}  // namespace

TEST_CASE("the workload that goes on sending into a cut connection is reset") {
  for (const char* address : {"192.0.2.1", "2001:db8::1"}) {
    CAPTURE(address);
    Cut cut;
    const std::string text = cut.run(address, "guest");
    CHECK_MESSAGE(text.find("guest: ConnectionResetError") != std::string::npos, text);
  }
}

TEST_CASE("the other end that goes on sending into a cut connection is reset") {
  for (const char* address : {"192.0.2.1", "2001:db8::1"}) {
    CAPTURE(address);
    Cut cut;
    const std::string text = cut.run(address, "host");
    CHECK_MESSAGE((text.find("host: ConnectionResetError") != std::string::npos ||
                   text.find("host: BrokenPipeError") != std::string::npos),
                  text);
  }
}
