// A workload and a host end in namespaces of the test process's own: "host0" here, "guest0" in a
// child namespace.
#pragma once

#include <doctest/doctest.h>
#include <net/if.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>

#include "dataplane/kernel_data_plane.hpp"

namespace sluice::test {

class Lab {
 public:
  HostConfig config;

  Lab() : name_(fmt::format("sluice-packet-{}", getpid())) {
    REQUIRE(unshare(CLONE_NEWNET) == 0);
    config.bpffs = fmt::format("/sys/fs/bpf/{}", name_);
    config.max_attachments = 256;
    config.heap_kib = 1024;
    std::filesystem::remove_all(config.bpffs);
    run("ip link set lo up");
    make_guest();
  }
  // Or another one in the place of the former, on request with a certain number for "host0".
  void make_guest(std::uint32_t ifindex = 0) const {
    run("ip link del host0 2>/dev/null; ip netns del " + name_ + " 2>/dev/null; ip netns add " +
        name_);
    run("ip link add host0 " + (ifindex == 0 ? "" : fmt::format("index {} ", ifindex)) +
        "type veth peer name guest0 netns " + name_);
    run("ip addr add 192.0.2.1/24 dev host0; ip addr add 2001:db8::1/64 dev "
        "host0 nodad; "
        "ip link set host0 up");
    in_guest(
        "ip addr add 192.0.2.2/24 dev guest0; ip addr add 2001:db8::2/64 dev guest0 nodad; ip link "
        "set guest0 up");
  }
  ~Lab() {
    std::filesystem::remove_all(config.bpffs);
    run("ip netns del " + name_);
  }

  [[nodiscard]] std::unique_ptr<KernelDataPlane> open() const {
    auto plane = KernelDataPlane::open(config);
    REQUIRE_MESSAGE(plane, plane.error().message);
    return std::move(*plane);
  }
  static int run(const std::string& command) { return std::system(command.c_str()); }
  int in_guest(const std::string& command) const {
    return run("nsenter --net=/run/netns/" + name_ + " sh -c '" + command + "'");
  }
  [[nodiscard]] bool ping4() const {
    return in_guest("ping -q -c4 -i0.3 -W1 192.0.2.1 >/dev/null 2>&1") == 0;
  }
  [[nodiscard]] bool ping6() const {
    return in_guest("ping -q -c4 -i0.3 -W1 2001:db8::1 >/dev/null 2>&1") == 0;
  }
  [[nodiscard]] const std::string& name() const { return name_; }  // of the guest's namespace
  [[nodiscard]] static std::uint32_t ifindex(const char* name) { return if_nametoindex(name); }

 private:
  std::string name_;
};

}  // namespace sluice::test
