// A folder with a configuration, and a daemon on a kernel in memory that runs it.
#pragma once

#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "daemon/daemon.hpp"
#include "dataplane/fake/fake_data_plane.hpp"

namespace sluice::test {

using Lines = std::vector<std::string>;

class Folder {
 public:
  Folder() {
    char pattern[] = "/tmp/sluice-daemon-XXXXXX";
    path_ = ::mkdtemp(pattern);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  // The file is the [host] table and then `text`.
  std::filesystem::path write(const std::string& text) const {
    std::ofstream file(config());
    file << "[host]\nplugin_path = [\"" STAGE_PLUGINS "\"]\nstate_dir = \""
         << (path_ / "state").string() << "\"\n"
         << text;
    return config();
  }
  void write_whole(const std::string& text) const { std::ofstream(config()) << text; }
  [[nodiscard]] std::string text() const {
    std::ifstream file(config());
    return {std::istreambuf_iterator<char>(file), {}};
  }
  [[nodiscard]] std::filesystem::path config() const { return path_ / "sluice.toml"; }
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline std::string plain(const std::string& interfaces = "[\"tap1:7\"]", int allow = 1,
                         const std::string& more = "") {
  return "[plugin.finder]\nlibrary = \"stage_discovery\"\ninterfaces = " + interfaces +
         "\n[plugin.rules]\nlibrary = \"stage_source\"\nallow = " + std::to_string(allow) + "\n" +
         more + "\n[[wire]]\nsources = [\"rules\"]\n";
}

inline bool mentions(const Lines& lines, const std::string& text) {
  for (const auto& line : lines) {
    if (line.find(text) != std::string::npos) return true;
  }
  return false;
}

struct Stage {
  DaemonParts parts() {
    DaemonParts made;
    made.check_privileges = [this] { return privileges; };
    made.open_plane = [this](const HostConfig&) -> Result<DaemonParts::Plane> {
      opened += 1;
      if (!open) return std::unexpected(open.error());
      auto fresh = std::make_unique<FakeDataPlane>(kernel);
      plane = fresh.get();
      if (prepare) prepare(*plane);
      return DaemonParts::Plane{std::move(fresh), "kernel in memory"};
    };
    made.program = STAGE_CHECK;
    made.library_owner = ::getuid();
    return made;
  }

  // One life of a daemon: runs, calls `act` on the loop when it is ready, ends when `act` has asked
  // for it. Returns the exit status.
  int live(const std::function<void(Daemon&)>& act) {
    auto daemon = Daemon::start(folder.config(), parts());
    if (!daemon) errors = daemon.error();
    REQUIRE(daemon);
    (*daemon)->on_ready([&] {
      ready += 1;
      act(**daemon);
    });
    return run(**daemon);
  }
  // What does not come within a minute never will.
  static int run(Daemon& daemon) {
    bool waited_in_vain = false;
    daemon.loop().after(std::chrono::minutes(1), [&] {
      waited_in_vain = true;
      daemon.request_stop();
    });
    const int status = daemon.run();
    CHECK_FALSE(waited_in_vain);
    return status;
  }

  // Calls `then` on the loop once `condition` holds there; plugins answer in their own time.
  static void once(Daemon& daemon, std::function<bool()> condition, std::function<void()> then) {
    if (condition()) return then();
    daemon.loop().after(std::chrono::milliseconds(1),
                        [&daemon, condition, then] { once(daemon, condition, then); });
  }

  [[nodiscard]] bool passes(std::uint8_t third_byte, std::uint32_t ifindex = 7) const {
    const auto* slot = kernel->find_interface(ifindex, 0);
    if (slot == nullptr) return false;
    FakePacket packet;
    packet.destination = {10, 0, third_byte, 5};
    return FakeDataPlane(kernel).passes(slot->attachment.slot, packet, boot_now());
  }
  [[nodiscard]] std::size_t attached() const {
    std::size_t count = 0;
    for (const auto& slot : kernel->slots) count += slot.live ? 1 : 0;
    return count;
  }

  Folder folder;
  std::shared_ptr<FakeKernel> kernel = std::make_shared<FakeKernel>();
  FakeDataPlane* plane = nullptr;
  std::function<void(FakeDataPlane&)> prepare;
  Status privileges{};
  Status open{};
  int opened = 0, ready = 0;
  Lines errors;
};

}  // namespace sluice::test
