// Where a section runs: network namespace, bpffs tree, cgroup and files of its own, all gone
// afterwards. A section is a child process, so that one that fails leaves the rest and no trace.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "bench/dataplane/report.hpp"
#include "dataplane/kernel_data_plane.hpp"

namespace sluice::bench {

using Section = void (*)(const Options&);

// True when the section ran to its end.
[[nodiscard]] bool run_section(const char* name, Section section, const Options& options);

// Inside a section:
[[nodiscard]] HostConfig host_config(const char* mechanism);
[[nodiscard]] std::unique_ptr<KernelDataPlane> open_plane(const HostConfig& config);
[[nodiscard]] std::filesystem::path scratch();                        // an empty directory on disk
[[nodiscard]] std::filesystem::path cgroup(const std::string& name);  // made, below the section's
[[nodiscard]] std::string cgroup_target(const std::filesystem::path& directory);
// Ends the section when the command fails.
void shell(const std::string& command);
[[noreturn]] void give_up(const std::string& why);

template <typename T>
T need(Result<T> result, const char* what) {
  if (!result) give_up(std::string(what) + ": " + result.error().message);
  return std::move(*result);
}
inline void need(const Status& status, const char* what) {
  if (!status) give_up(std::string(what) + ": " + status.error().message);
}

// The program of a pinned link.
[[nodiscard]] Fd linked_program(const HostConfig& config, std::uint32_t slot);

// A tap device, up. What is written to it arrives as its ingress.
class Tap {
 public:
  explicit Tap(const std::string& name);
  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] std::uint32_t ifindex() const { return ifindex_; }
  [[nodiscard]] const std::array<std::uint8_t, 6>& mac() const { return mac_; }

 private:
  Fd fd_;
  std::uint32_t ifindex_ = 0;
  std::array<std::uint8_t, 6> mac_{};
};

// Ethernet, IP and transport headers of a packet from the workload; checksums are not computed, no
// one on its way looks at them.
[[nodiscard]] std::vector<std::uint8_t> packet(std::uint8_t family, std::uint8_t protocol,
                                               const std::array<std::uint8_t, 6>& to_mac,
                                               const std::array<std::uint8_t, 16>& destination);

}  // namespace sluice::bench
