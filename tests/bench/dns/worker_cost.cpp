// What one question costs the resolver's thread, apart from the kernel's share of the push: a
// worker on loopback with a host that says yes, asked in batches by another thread. CPU from the
// thread's schedstat, system calls included.
//
//   worker_cost [questions]
//
// hot: a hundred names again and again. cold: each name once, answered by an upstream in this
// process.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "unit/dns/resolver_lab.hpp"

using namespace dns_test;

namespace {

struct YesHost final : dns::HostSide {
  std::atomic<std::uint64_t> learned{0}, reported{0};
  std::uint64_t boot_now() const noexcept override {
    timespec time{};
    ::clock_gettime(CLOCK_BOOTTIME, &time);
    return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 +
           static_cast<std::uint64_t>(time.tv_nsec);
  }
  std::uint64_t asker_of_mark(std::uint32_t mark) noexcept override { return mark; }
  std::uint64_t asker_of_stream(int) noexcept override { return 1; }
  dns::LearnResult learn(std::uint64_t, std::span<const std::string_view>,
                         std::span<const sdk::Grant> grants) noexcept override {
    for (const auto& grant : grants) learned += grant.addresses.size();
    return {};
  }
  dns::AskResult ask(const sdk::Query&, std::uint64_t) noexcept override {
    return dns::AskResult::no_decider;
  }
  void report(std::span<const sluice_query_report> reports) noexcept override {
    reported += reports.size();
  }
  void say(sdk::LogLevel, std::string_view) noexcept override {}
  void give_up(std::string_view why) noexcept override {
    std::printf("%.*s\n", static_cast<int>(why.size()), why.data());
    std::abort();
  }
};

// Of this process's thread of that name, ns.
std::uint64_t cpu_of(std::string_view name) {
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string comm;
    std::getline(std::ifstream(task.path() / "comm"), comm);
    std::uint64_t ns = 0;
    if (comm == name && std::ifstream(task.path() / "schedstat") >> ns) return ns;
  }
  return 0;
}

// Asks `count` questions, at most `window` unanswered; how many came back.
std::size_t ask(int fd, std::size_t count, std::size_t window,
                const std::function<std::string(std::size_t)>& name) {
  constexpr std::size_t kBatch = 32;
  std::size_t sent = 0, got = 0;
  std::array<std::array<std::uint8_t, 2048>, kBatch> buffers;
  std::array<Packet, kBatch> packets;
  std::array<mmsghdr, kBatch> headers{};
  std::array<iovec, kBatch> parts{};
  while (got < count) {
    std::size_t batch = 0;
    while (batch < kBatch && sent + batch < count && sent + batch - got < window) {
      packets[batch] = Build(0x0100, static_cast<unsigned>(sent + batch) & 0xffff)
                           .question(name(sent + batch), type::a)
                           .opt(1232)
                           .done();
      parts[batch] = {packets[batch].data(), packets[batch].size()};
      headers[batch] = {};
      headers[batch].msg_hdr.msg_iov = &parts[batch];
      headers[batch].msg_hdr.msg_iovlen = 1;
      ++batch;
    }
    if (batch != 0)
      sent += static_cast<std::size_t>(
          std::max(0, ::sendmmsg(fd, headers.data(), static_cast<unsigned>(batch), 0)));
    pollfd polled{fd, POLLIN, 0};
    if (::poll(&polled, 1, 1000) <= 0) return got;
    for (std::size_t i = 0; i < kBatch; ++i) {
      parts[i] = {buffers[i].data(), buffers[i].size()};
      headers[i] = {};
      headers[i].msg_hdr.msg_iov = &parts[i];
      headers[i].msg_hdr.msg_iovlen = 1;
    }
    const int answers = ::recvmmsg(fd, headers.data(), kBatch, MSG_DONTWAIT, nullptr);
    if (answers > 0) got += static_cast<std::size_t>(answers);
  }
  return got;
}

}  // namespace

int main(int argc, char** argv) {
  const std::size_t count = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 200'000;
  if (!enter_namespace()) {
    std::puts("needs CAP_SYS_ADMIN");
    return 1;
  }
  ScriptedUpstream upstream;
  upstream.handle([](const Seen& seen) {
    return std::vector<Packet>{
        reply_to(seen.packet).answer(seen.name(), type::a, 3600, v4("198.51.100.1")).done()};
  });
  YesHost host;
  dns::AnswerCache cache;
  dns::PushMemory pushes;
  dns::Published<dns::AddressSet> own(std::make_shared<const dns::AddressSet>());
  auto settings = std::make_shared<dns::Settings>();
  settings->upstream.servers = {dns::Endpoint::parse(upstream.endpoint())};
  unsigned first = 1;
  const auto sockets = dns::open_listeners(first);
  dns::Worker worker(0, {host, cache, pushes, own}, settings, sockets.listeners());
  std::vector<sdk::Rule> rules;
  for (int i = 0; i < 1000; ++i)
    rules.push_back(
        {.action = sdk::Action::allow, .domain = "*.d" + std::to_string(i) + ".example"});
  worker.set_tenant({.attachment = 1,
                     .mode = sdk::Mode::allowlist,
                     .rules = std::make_shared<const dns::RuleSet>(rules),
                     .ids = std::make_shared<const std::vector<std::uint32_t>>(rules.size()),
                     .pushes = pushes.ticket({1})});
  worker.start();

  sockaddr_in6 address{};
  socklen_t length = sizeof address;
  ::getsockname(sockets.lanes[0].udp4.get(), reinterpret_cast<sockaddr*>(&address), &length);
  Fd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const std::uint32_t mark = 1;
  require(::setsockopt(fd.get(), SOL_SOCKET, SO_MARK, &mark, sizeof mark) == 0, "SO_MARK");
  require(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), length) == 0, "connect");

  const auto measure = [&](const char* what, std::size_t questions, std::size_t window,
                           const std::function<std::string(std::size_t)>& name) {
    const auto cpu = cpu_of("dns");
    const auto learned = host.learned.load();
    const auto began = std::chrono::steady_clock::now();
    const auto got = ask(fd.get(), questions, window, name);
    const auto took = std::chrono::steady_clock::now() - began;
    const auto spent = static_cast<double>(cpu_of("dns") - cpu);
    std::printf(
        "%-28s %8zu of %zu answered, %6.0f ns of the thread's CPU each, %7.0f/s, %zu pushed\n",
        what, got, questions, spent / static_cast<double>(std::max<std::size_t>(got, 1)),
        static_cast<double>(got) / std::chrono::duration<double>(took).count(),
        host.learned.load() - learned);
  };
  const auto hot = [](std::size_t i) {
    return "n" + std::to_string(i % 100) + ".d" + std::to_string(i % 10) + ".example";
  };
  measure("warming up", 1000, 8, hot);
  measure("hot, 1 in flight", count / 10, 1, hot);
  measure("hot, 64 in flight", count, 64, hot);
  measure("denied, 64 in flight", count, 64,
          [](std::size_t i) { return "x" + std::to_string(i) + ".other.test"; });
  measure("cold, 32 in flight", count / 4, 32,
          [](std::size_t i) { return "c" + std::to_string(i) + ".d7.example"; });
  worker.stop();
  return 0;
}
