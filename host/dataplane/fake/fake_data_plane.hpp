// The kernel, kept in memory: what a DataPlane must do, without root. FakeKernel is what outlives a
// daemon (pinned links and maps); FakeDataPlane is one daemon's hold on it, so a restart is a
// second FakeDataPlane over the same FakeKernel.
//
//   auto kernel = std::make_shared<FakeKernel>();
//   FakeDataPlane plane(kernel);
//   plane.refuse("publish", {.message = "the heap is full", .code = ENOSPC});
//   plane.publish(request);   // fails once
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "dataplane/data_plane.hpp"

namespace sluice {

struct FakeKernel {
  struct Learned {
    LearnedAddress address;
    std::vector<PortRange> ports;
  };
  struct Slot {
    bool live = false;
    bool target_exists = true;
    KernelAttachment attachment;
    AttachmentOptions options;
    std::shared_ptr<const CompiledPolicy> policy;
    Counters counters;
    std::uint32_t publishes = 0, severings = 0;
  };
  std::vector<Slot> slots{1};  // slot 0 is never used
  // Equal policies exist once, as in the kernel.
  std::map<std::array<std::uint64_t, 2>, std::weak_ptr<const CompiledPolicy>> policies;
  // By scope; one that is not here is closed. Under the mutex, as any thread learns.
  std::map<std::uint32_t, std::map<Address, Learned>> learned;
  std::set<Address> in_use;  // by live connections, though their grace has begun
  mutable std::mutex learned_mutex;
  std::uint32_t next_scope = 1;
  std::uint64_t next_incarnation = 0x9e3779b97f4a7c15ull;
  GuardSettings guards;
  std::map<std::uint32_t, std::vector<int>> served;  // by resolver: fds
  std::map<int, DataPlane::Asker> streams;           // by accepted fd: what asker_of_stream() says
  std::uint32_t next_asker_mark = SLUICE_ASKER_TAG | 1;

  [[nodiscard]] Slot* find_interface(std::uint32_t ifindex, std::uint64_t netns_cookie);
  [[nodiscard]] Slot* find_cgroup(std::uint64_t cgroup_id, const std::string& path);
};

// What a packet to `destination` meets, by the rules of DESIGN section 4.
struct FakePacket {
  std::array<std::uint8_t, 16> destination{};  // network order, IPv4 in the first four
  std::uint8_t family = 4;
  std::uint8_t protocol = 6;
  std::uint16_t port = 443;
};

// Calls that are to fail, and those that did not.
class FakeScript {
 public:
  void refuse(const std::string& call, Error error, std::uint32_t after);
  [[nodiscard]] std::uint32_t calls(const std::string& call) const;
  [[nodiscard]] Status allowed_to(const std::string& call);

 private:
  struct Refusal {
    Error error;
    std::uint32_t after;
  };
  mutable std::mutex mutex_;
  std::map<std::string, Refusal> refusals_;
  std::map<std::string, std::uint32_t> calls_;
};

class FakeLearnedMap final : public LearnedMap {
 public:
  FakeLearnedMap(std::shared_ptr<FakeKernel> kernel, std::shared_ptr<FakeScript> script)
      : kernel_(std::move(kernel)), script_(std::move(script)) {}
  using LearnedMap::learn;
  Status learn(std::uint32_t scope, std::span<const LearnedPart> parts) override;
  Status revoke(std::uint32_t scope, std::span<const Address> addresses) override;
  std::vector<Address> unused(std::uint32_t scope, std::span<const Address> addresses) override;
  std::vector<KnownAddress> all(std::uint32_t scope) override;

 private:
  std::shared_ptr<FakeKernel> kernel_;
  std::shared_ptr<FakeScript> script_;
};

class FakeDataPlane final : public DataPlane {
 public:
  explicit FakeDataPlane(std::shared_ptr<FakeKernel> kernel);

  std::vector<KernelAttachment> adopted() override;
  Result<KernelAttachment> attach(const InterfaceTarget& target,
                                  const PublishRequest* initial) override;
  Result<KernelAttachment> attach(const CgroupTarget& target,
                                  const PublishRequest* initial) override;
  Status detach(std::uint32_t slot) override;
  Result<Generation> publish(const PublishRequest& request) override;
  LearnedMap& learned() override { return learned_; }
  Result<Counters> counters(std::uint32_t slot) override;
  std::vector<std::uint64_t> reason_counters() override;
  Status serve(std::uint32_t resolver, std::span<const int> sockets) override;
  Status end_serving() override;
  Result<Asker> asker_of_stream(int accepted) const override;
  Status set_guards(const GuardSettings& guards) override;
  std::vector<int> poll_fds() override { return {}; }
  void poll(const DataPlaneEvents& events) override;

  // The next call of that name ("attach", "publish", "learn", ...) after `after` good ones fails
  // with `error`, once.
  void refuse(const std::string& call, Error error, std::uint32_t after = 0) {
    script_->refuse(call, std::move(error), after);
  }
  // How often `call` reached the kernel and succeeded.
  [[nodiscard]] std::uint32_t calls(const std::string& call) const { return script_->calls(call); }
  // The device or cgroup vanishes; poll() reports it.
  void remove_target(std::uint32_t slot, const std::string& reason = "the device was removed");
  // Keeps what poll() would report about targets until told otherwise.
  void withhold_news(bool withheld) { withheld_ = withheld; }
  // poll() reports a denial of this packet.
  void deny(std::uint32_t slot, const FakePacket& packet, sluice_reason reason);
  // True when the packet passes, at `now`, judged by what was published.
  [[nodiscard]] bool passes(std::uint32_t slot, const FakePacket& packet, BootTime now) const;
  [[nodiscard]] FakeKernel& kernel() { return *kernel_; }

 private:
  [[nodiscard]] Status allowed_to(const std::string& call) { return script_->allowed_to(call); }
  [[nodiscard]] FakeKernel::Slot* live(std::uint32_t slot);
  [[nodiscard]] Result<KernelAttachment> bring_up(FakeKernel::Slot* existing,
                                                  KernelAttachment fresh,
                                                  const PublishRequest* initial);
  void store(FakeKernel::Slot& slot, const PublishRequest& request);

  std::shared_ptr<FakeKernel> kernel_;
  std::shared_ptr<FakeScript> script_ = std::make_shared<FakeScript>();
  FakeLearnedMap learned_;
  std::vector<std::pair<std::uint32_t, std::string>> gone_;
  std::vector<sluice_event> denials_;
  bool withheld_ = false;
};

}  // namespace sluice
