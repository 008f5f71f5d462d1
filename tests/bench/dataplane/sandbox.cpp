#include "bench/dataplane/sandbox.hpp"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <spdlog/spdlog.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "dataplane/cgroup_filter.hpp"
#include "dataplane/tc_filter.hpp"

namespace sluice::bench {
namespace fs = std::filesystem;
namespace {

std::string unique(pid_t pid) {
  return fmt::format("sluice-bench-{}", pid);
}
fs::path tree_of(pid_t pid) {
  return fs::path("/sys/fs/bpf") / unique(pid);
}
fs::path scratch_of(pid_t pid) {
  return fs::temp_directory_path() / unique(pid);
}

void remove_cgroups(const fs::path& top) {
  std::error_code error;
  if (!fs::exists(top, error)) return;
  std::ofstream(top / "cgroup.kill") << "1";
  std::vector<fs::path> directories{top};
  for (fs::recursive_directory_iterator at(top, error), end; at != end && !error;
       at.increment(error))
    if (at->is_directory(error)) directories.push_back(at->path());
  for (int attempt = 0; attempt < 50; ++attempt) {
    std::erase_if(directories, [&](const fs::path& path) {
      return rmdir(path.c_str()) == 0 || errno == ENOENT;
    });
    if (directories.empty()) return;
    usleep(20000);
  }
}

void clean_up(pid_t pid) {
  std::error_code error;
  fs::remove_all(tree_of(pid), error);
  fs::remove_all(scratch_of(pid), error);
  if (auto root = find_cgroup2(); root) remove_cgroups(*root / unique(pid));
}

volatile std::sig_atomic_t running = 0;  // the section's process

// An interrupted run cleans up as well: the section ends, and the wait for it returns.
void stop_section(int /*signal*/) {
  if (running != 0) kill(static_cast<pid_t>(running), SIGKILL);
}
}  // namespace

bool run_section(const char* name, Section section, const Options& options) {
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    std::signal(SIGINT, SIG_DFL);
    std::signal(SIGTERM, SIG_DFL);
    if (unshare(CLONE_NEWNET) != 0)
      give_up(fmt::format("cannot make a network namespace: {}; run it as root", strerror(errno)));
    spdlog::set_level(spdlog::level::warn);
    shell("ip link set lo up");
    section(options);
    std::fflush(stdout);
    _exit(0);
  }
  running = child;
  std::signal(SIGINT, stop_section);
  std::signal(SIGTERM, stop_section);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
  running = 0;
  clean_up(child);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return true;
  std::fprintf(stderr, "section %s did not finish\n", name);
  return false;
}

HostConfig host_config(const char* mechanism) {
  HostConfig config;
  config.bpffs = tree_of(getpid());
  config.tc_mechanism = mechanism;
  return config;
}

std::unique_ptr<KernelDataPlane> open_plane(const HostConfig& config) {
  return need(KernelDataPlane::open(config), "data plane");
}

fs::path scratch() {
  const fs::path path = scratch_of(getpid());
  fs::create_directories(path);
  return path;
}

fs::path cgroup(const std::string& name) {
  const fs::path path = need(find_cgroup2(), "cgroup2") / unique(getpid()) / name;
  fs::create_directories(path);
  return path;
}

std::string cgroup_target(const fs::path& directory) {
  return (fs::path("/") / directory.lexically_relative(need(find_cgroup2(), "cgroup2"))).string();
}

void shell(const std::string& command) {
  if (std::system(command.c_str()) != 0) give_up("failed: " + command.substr(0, 200));
}

void give_up(const std::string& why) {
  std::fflush(stdout);
  std::fprintf(stderr, "%s\n", why.c_str());
  _exit(1);
}

Fd linked_program(const HostConfig& config, std::uint32_t slot) {
  const auto link =
      need(open_link(config.bpffs / "links" / fmt::format("{}-from", slot)), "pinned link");
  bpf_link_info info{};
  std::uint32_t length = sizeof(info);
  if (bpf_obj_get_info_by_fd(link.get(), &info, &length) != 0) give_up("cannot read the link");
  Fd program(bpf_prog_get_fd_by_id(info.prog_id));
  if (!program) give_up(fmt::format("cannot open program {}: {}", info.prog_id, strerror(errno)));
  return program;
}

Tap::Tap(const std::string& name) : fd_(open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK)) {
  ifreq request{};
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  name.copy(request.ifr_name, IFNAMSIZ - 1);
  if (!fd_ || ioctl(fd_.get(), TUNSETIFF, &request) != 0)
    give_up(fmt::format("{}: cannot make a tap device: {}", name, strerror(errno)));
  shell("ip link set " + name + " up");
  ifindex_ = if_nametoindex(name.c_str());
  const Fd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ioctl(socket.get(), SIOCGIFHWADDR, &request);
  std::memcpy(mac_.data(), request.ifr_hwaddr.sa_data, mac_.size());
}

std::vector<std::uint8_t> packet(std::uint8_t family, std::uint8_t protocol,
                                 const std::array<std::uint8_t, 6>& to_mac,
                                 const std::array<std::uint8_t, 16>& destination) {
  const unsigned transport = family == 4 ? 34 : 54;
  std::vector<std::uint8_t> frame(transport + 40);
  std::copy(to_mac.begin(), to_mac.end(), frame.begin());
  frame[6] = 0x02;  // locally administered sender
  const auto rest = static_cast<std::uint8_t>(frame.size() - 14);
  if (family == 4) {
    frame[12] = 0x08;
    frame[14] = 0x45;
    frame[17] = rest;
    frame[22] = 64;
    frame[23] = protocol;
    const std::uint8_t source[] = {192, 0, 2, 2};
    std::copy(std::begin(source), std::end(source), frame.begin() + 26);
    std::copy_n(destination.begin(), 4, frame.begin() + 30);
  } else {
    frame[12] = 0x86;
    frame[13] = 0xdd;
    frame[14] = 0x60;
    frame[19] = static_cast<std::uint8_t>(rest - 40);
    frame[20] = protocol;
    frame[21] = 64;
    const std::uint8_t source[] = {0x20, 0x01, 0x0d, 0xb8};
    std::copy(std::begin(source), std::end(source), frame.begin() + 22);
    frame[37] = 2;
    std::copy(destination.begin(), destination.end(), frame.begin() + 38);
  }
  frame[transport] = 0xc0;  // source port 49152
  frame[transport + 2] = 443 >> 8;
  frame[transport + 3] = 443 & 0xff;
  if (protocol == IPPROTO_TCP) {
    frame[transport + 12] = 5 << 4;
    frame[transport + 13] = 0x10;  // ACK: a segment of a live connection
  } else {
    frame[transport + 5] = 40;
  }
  return frame;
}

}  // namespace sluice::bench
