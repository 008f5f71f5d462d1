// One workload's flood and another's question, both in the worker's sockets before it reads: how
// many of the one are answered before the other. The worker is held, so that nothing depends on
// time.
#include "unit/dns/in_namespace.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <condition_variable>
#include <filesystem>
#include <fstream>

using namespace dns_test;

namespace {

constexpr std::uint64_t kGate = 1, kFlooder = 2, kNeighbour = 3;  // attachments, by their mark
constexpr int kFlood = 200;

// Holds the worker when the gate's question was answered, until open().
class Host final : public dns::HostSide {
 public:
  std::uint64_t boot_now() const noexcept override { return 1'000'000'000'000; }
  std::uint64_t asker_of_mark(std::uint32_t mark) noexcept override { return mark; }
  std::uint64_t asker_of_stream(int) noexcept override { return kFlooder; }
  dns::LearnResult learn(std::uint64_t, std::span<const std::string_view>,
                         std::span<const sdk::Grant>) noexcept override {
    return {};
  }
  dns::AskResult ask(const sdk::Query&, std::uint64_t) noexcept override {
    return dns::AskResult::no_decider;
  }
  void report(std::span<const sluice_query_report> reports) noexcept override {
    std::unique_lock lock(mutex_);
    for (const auto& report : reports) {
      if (report.attachment != kGate) {
        answered_.push_back(report.attachment);
      } else {
        held_ = true;
        changed_.notify_all();
        changed_.wait(lock, [&] { return opened_; });
      }
    }
    changed_.notify_all();
  }
  void say(sdk::LogLevel, std::string_view) noexcept override {}
  void give_up(std::string_view) noexcept override { std::abort(); }

  void await_held() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return held_; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    opened_ = true;
    changed_.notify_all();
  }
  // Whose questions were answered, in order, once there are so many.
  std::vector<std::uint64_t> answered(std::size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return answered_.size() >= count; });
    return answered_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false, opened_ = false;
  std::vector<std::uint64_t> answered_;
};

// One worker with all its lanes, and attachments that may ask for nothing: each question is
// answered at once.
struct Scene {
  Host host;
  dns::AnswerCache cache;
  dns::PushMemory pushes;
  dns::Published<dns::AddressSet> own{std::make_shared<const dns::AddressSet>()};
  unsigned first = 1;
  dns::ListenerSet sockets = dns::open_listeners(first, dns::kLanes);
  dns::Worker worker{
      0, {host, cache, pushes, own}, std::make_shared<dns::Settings>(), sockets.listeners()};

  Scene() {
    for (const auto id : {kGate, kFlooder, kNeighbour})
      worker.set_tenant({.attachment = id, .mode = sdk::Mode::allowlist});
    worker.start();
  }
  ~Scene() { worker.stop(); }

  Fd client(const Fd& served, std::uint64_t attachment, int type = SOCK_DGRAM) {
    sockaddr_in6 address{};
    socklen_t length = sizeof address;
    require(::getsockname(served.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0,
            "getsockname");
    Fd fd(::socket(address.sin6_family, type | SOCK_CLOEXEC, 0));
    const auto mark = static_cast<std::uint32_t>(attachment);
    require(::setsockopt(fd.get(), SOL_SOCKET, SO_MARK, &mark, sizeof mark) == 0, "SO_MARK");
    require(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), length) == 0, "connect");
    return fd;
  }
  static Packet question(int number) {
    return Build(0x0100, static_cast<unsigned>(number)).question("denied.example", type::a).done();
  }
  static void send(const Fd& fd, const Packet& packet) {
    require(::send(fd.get(), packet.data(), packet.size(), MSG_NOSIGNAL) ==
                static_cast<ssize_t>(packet.size()),
            "send");
  }
  // How many of the flood were answered before the neighbour. `gate`: a lane that is neither's.
  std::ptrdiff_t before_the_neighbour() {
    host.open();
    const auto order = host.answered(kFlood + 1);
    return std::ranges::find(order, kNeighbour) - order.begin();
  }
  void hold() {
    gate = client(sockets.lanes.back().udp4, kGate);
    send(gate, question(1));
    host.await_held();
  }
  Fd gate;
};

}  // namespace

TEST_CASE("a question is answered behind a few of a flood, not behind all of it") {
  for (const bool v6 : {false, true}) {
    CAPTURE(v6);
    Scene scene;
    const auto lane = [&](std::size_t number) -> const Fd& {
      return v6 ? scene.sockets.lanes[number].udp6 : scene.sockets.lanes[number].udp4;
    };
    const auto flooder = scene.client(lane(1), kFlooder);
    const auto neighbour = scene.client(lane(2), kNeighbour);
    scene.hold();
    for (int i = 0; i < kFlood; ++i) scene.send(flooder, scene.question(i));
    scene.send(neighbour, scene.question(0));
    CHECK(scene.before_the_neighbour() < 32);
  }
}

TEST_CASE("nor behind all that was written into a connection") {
  Scene scene;
  const auto flooder = scene.client(scene.sockets.tcp4, kFlooder, SOCK_STREAM);
  const auto neighbour = scene.client(scene.sockets.lanes[4].udp4, kNeighbour);
  // Its first question is answered: the worker has the connection.
  const auto framed = [&](int number) {
    const auto packet = scene.question(number);
    return joined({two(static_cast<unsigned>(packet.size())), packet});
  };
  scene.send(flooder, framed(0));
  REQUIRE(scene.host.answered(1).size() == 1);
  scene.hold();
  Packet flood;  // in one segment: all of it is there when the worker reads
  for (int i = 1; i < kFlood; ++i) flood = joined({flood, framed(i)});
  scene.send(flooder, flood);
  scene.send(neighbour, scene.question(0));
  CHECK(scene.before_the_neighbour() < 33);
}

TEST_CASE("the worker runs before those who keep the processor busy") {
  Scene scene;
  scene.hold();  // it is past its start
  int nice = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string name;
    std::getline(std::ifstream(task.path() / "comm"), name);
    if (name == "dns")
      nice = ::getpriority(PRIO_PROCESS, static_cast<id_t>(std::stoi(task.path().filename())));
  }
  scene.host.open();
  CHECK(nice == -10);
}
