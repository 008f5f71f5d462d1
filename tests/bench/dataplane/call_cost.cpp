// Socket calls in a filtered cgroup and in one without a filter, taken in turns by two processes.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "bench/dataplane/sandbox.hpp"
#include "bench/dataplane/sections.hpp"
#include "bench/dataplane/sets.hpp"

namespace sluice::bench {
namespace {

enum class Call : std::uint8_t { udp_connect, udp_send, tcp_connect };

constexpr std::uint16_t kPort = 4000;
constexpr const char* kHere = "192.0.2.1";

sockaddr_in here() {
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(kPort);
  inet_pton(AF_INET, kHere, &to.sin_addr);
  return to;
}

// Nanoseconds of CPU per call: over loopback, the receiving side included.
double make_calls(Call call, int count) {
  const sockaddr_in to = here();
  const auto* address = reinterpret_cast<const sockaddr*>(&to);
  if (call == Call::tcp_connect) {
    double total = 0;
    for (int i = 0; i < count; ++i) {
      const Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      const double start = cpu_now();
      if (connect(socket.get(), address, sizeof(to)) != 0)
        give_up(fmt::format("connect: {}", strerror(errno)));
      total += cpu_now() - start;
      const linger reset{1, 0};
      setsockopt(socket.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    }
    return total / count;
  }
  const Fd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const double start = cpu_now();
  for (int i = 0; i < count; ++i) {
    const auto done = call == Call::udp_connect
                          ? connect(socket.get(), address, sizeof(to))
                          : sendto(socket.get(), "x", 1, 0, address, sizeof(to)) - 1;
    if (done != 0) give_up(fmt::format("UDP: {}", strerror(errno)));
  }
  return (cpu_now() - start) / count;
}

// A process in a cgroup that makes calls when it is told to.
class Worker {
 public:
  explicit Worker(const std::filesystem::path& cgroup) {
    int down[2], up[2];
    if (pipe(down) != 0 || pipe(up) != 0) give_up("pipe");
    pid_ = fork();
    if (pid_ == 0) {
      std::ofstream(cgroup / "cgroup.procs") << getpid() << std::flush;
      close(down[1]);
      close(up[0]);
      struct {
        Call call;
        int count;
      } order{};
      while (read(down[0], &order, sizeof(order)) == sizeof(order)) {
        const double took = make_calls(order.call, order.count);
        if (write(up[1], &took, sizeof(took)) != sizeof(took)) break;
      }
      _exit(0);
    }
    close(down[0]);
    close(up[1]);
    orders_ = Fd(down[1]);
    answers_ = Fd(up[0]);
  }
  ~Worker() {
    orders_.reset();
    waitpid(pid_, nullptr, 0);
  }
  double calls(Call call, int count) const {
    struct {
      Call call;
      int count;
    } const order{call, count};
    double took = 0;
    if (write(orders_.get(), &order, sizeof(order)) != sizeof(order) ||
        read(answers_.get(), &took, sizeof(took)) != sizeof(took))
      give_up("a worker ended early");
    return took;
  }

 private:
  pid_t pid_ = 0;
  Fd orders_, answers_;
};

void measure(const char* what, Call call, int count, double budget, const Worker& bare,
             const Worker& filtered, int listener, const Options& options) {
  std::vector<double> without, with;
  const auto drain = [&] {
    for (int fd; (fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK)) >= 0;) close(fd);
  };
  for (int round = 0; round < (options.quick ? 11 : 41); ++round) {
    without.push_back(bare.calls(call, count));
    drain();
    with.push_back(filtered.calls(call, count));
    drain();
  }
  const double base = undisturbed(without);
  row(what, undisturbed(with) - base, budget, {{"without a filter", base}});
}

}  // namespace

void call_cost(const Options& options) {
  heading("Cgroup, allow", "what the filter adds to a call, over loopback, 1,000 prefixes");
  shell(fmt::format("ip addr add {}/32 dev lo", kHere));
  const auto bare = cgroup("bare"), filtered = cgroup("filtered");
  const Worker without(bare), with(filtered);
  const auto plane = open_plane(host_config("auto"));
  auto set = mixed_prefixes(1000, 4);
  Layer layer = layer_of(set, Action::allow);
  Rule here_too;
  here_too.action = Action::allow;
  here_too.prefix = *Prefix::parse("192.0.2.0/24");
  layer.rules.push_back(here_too);
  const CompiledPolicy policy = must_compile(layer);
  const PublishRequest request{.mode = Mode::allowlist, .policy = &policy};
  const auto attachment =
      need(plane->attach(CgroupTarget{.path = cgroup_target(filtered)}, &request), "attach");

  const sockaddr_in to = here();
  const Fd receiver(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));  // never read: it drops
  const Fd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  for (const int fd : {receiver.get(), listener.get()})
    if (bind(fd, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) != 0) give_up("bind");
  shell("sysctl -q net.core.somaxconn=4096");
  if (listen(listener.get(), 4096) != 0) give_up("listen");

  measure("UDP connect", Call::udp_connect, 20000, 200, without, with, listener.get(), options);
  measure("UDP sendto", Call::udp_send, 20000, 250, without, with, listener.get(), options);
  measure("TCP connect", Call::tcp_connect, 500, 0, without, with, listener.get(), options);
  need(plane->detach(attachment.slot), "detach");
}

}  // namespace sluice::bench
