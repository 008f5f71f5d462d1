// sluiced. See command_line.cpp for what it can be asked.

#include <malloc.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/resource.h>
#include <sys/signalfd.h>

#include <cstdio>

#include "daemon/capabilities.hpp"
#include "daemon/check.hpp"
#include "daemon/command_line.hpp"
#include "daemon/daemon.hpp"
#include "daemon/logging.hpp"
#include "daemon/state_lock.hpp"
#include "dataplane/kernel_data_plane.hpp"
#include "dataplane/pinned_tree.hpp"

namespace sluice {
namespace {

void print_errors(const std::vector<std::string>& errors) {
  for (const auto& error : errors) std::fprintf(stderr, "%s\n", error.c_str());
}

// Before 5.11 maps count against it. A container may forbid to raise it, and newer kernels do not
// care: so try, and let the load of the programs say whether it was needed.
void raise_locked_memory() {
  const rlimit unlimited{RLIM_INFINITY, RLIM_INFINITY};
  if (::setrlimit(RLIMIT_MEMLOCK, &unlimited) != 0) {
    spdlog::debug("the limit of locked memory cannot be raised; kernels since 5.11 do not need it");
  }
}

Status check_privileges() {
  const auto missing = missing_capabilities();
  if (!missing) return std::unexpected(missing.error());
  if (auto status = check_capabilities(*missing); !status) return status;
  for (const auto& capability : *missing) {
    spdlog::info("without {}: cannot {}", capability.name, capability.purpose);
  }
  return {};
}

DaemonParts kernel_parts() {
  DaemonParts parts;
  parts.check_privileges = check_privileges;
  parts.open_plane = [](const HostConfig& config) -> Result<DaemonParts::Plane> {
    raise_locked_memory();
    auto lock = PinnedTree::lock(config.bpffs);
    if (!lock) return std::unexpected(lock.error());
    auto plane = KernelDataPlane::open(config);
    if (!plane) return std::unexpected(plane.error());
    const auto& features = (*plane)->features();
    const bool tcx = features.tcx && config.tc_mechanism != "clsact";
    auto description = fmt::format("kernel {}, {}", features.release, tcx ? "tcx" : "clsact");
    return DaemonParts::Plane{std::move(*plane), std::move(description), std::move(*lock)};
  };
  return parts;
}

int check(const CommandLine& line) {
  const int status = print(check_configuration(line.config, 0));
  if (status != 0) return status;
  std::printf("%s: fine\n", line.config.c_str());
  return 0;
}

int detach_all(const CommandLine& line) {
  auto config = load_config(line.config);
  if (!config) {
    for (const auto& error : config.error()) std::fprintf(stderr, "%s\n", error.message().c_str());
    return 1;
  }
  auto status = [&]() -> Status {
    if (auto allowed = check_privileges(); !allowed) return allowed;
    auto lock = StateLock::take(config->host.state_dir);
    if (!lock) return std::unexpected(lock.error());
    auto tree = PinnedTree::lock(config->host.bpffs);
    if (!tree) return std::unexpected(tree.error());
    return KernelDataPlane::detach_all(config->host);
  }();
  if (!status) {
    print_errors({status.error().message});
    return 1;
  }
  std::printf("every filter is removed, and so is %s\n", config->host.bpffs.c_str());
  return 0;
}

int run(const CommandLine& line) {
  // Strands allocate little: an arena for each would only keep what they have freed.
  ::mallopt(M_ARENA_MAX, 1);
  start_logging(stderr_is_journal());
  // Before any thread: they all inherit the mask, and signals arrive at the loop only.
  sigset_t ours;
  sigemptyset(&ours);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&ours, signal);
  ::sigprocmask(SIG_BLOCK, &ours, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  const Fd signals(::signalfd(-1, &ours, SFD_CLOEXEC | SFD_NONBLOCK));

  auto parts = kernel_parts();
  parts.fds = FdStore::inherit();  // before there are threads: it changes the environment
  auto daemon = Daemon::start(line.config, std::move(parts));
  if (!daemon) {
    for (const auto& error : daemon.error()) spdlog::error("{}", error);
    spdlog::error("not started; nothing was attached or changed");
    return 1;
  }
  auto& host = **daemon;
  int stops = 0;
  auto watched = host.loop().watch(signals.get(), [&] {
    signalfd_siginfo info{};
    while (::read(signals.get(), &info, sizeof info) == sizeof info) {
      if (info.ssi_signo == SIGHUP) {
        host.request_reload();
      } else if (++stops == 1) {
        host.request_stop();
      } else {
        std::_Exit(1);  // asked twice: somebody is in a hurry, and the kernel needs nothing of us
      }
    }
  });
  if (!watched) {
    spdlog::error("{}", watched.error().message);
    return 1;
  }
  const int status = host.run();
  if (host.has_lost_threads()) std::_Exit(status);
  return status;
}

}  // namespace
}  // namespace sluice

int main(int argc, char* argv[]) {
  using namespace sluice;
  const auto line = parse_command_line(argc, argv);
  if (!line) {
    std::fprintf(stderr, "sluiced: %s\n%s", line.error().c_str(), usage().c_str());
    return 2;
  }
  switch (line->action) {
    case CommandLine::Action::run:
      return run(*line);
    case CommandLine::Action::check:
      return check(*line);
    case CommandLine::Action::detach_all:
      return detach_all(*line);
    case CommandLine::Action::version:
      std::printf("sluiced %s\n", SLUICE_VERSION);
      return 0;
    case CommandLine::Action::help:
      break;
  }
  std::fputs(usage().c_str(), stdout);
  return 0;
}
