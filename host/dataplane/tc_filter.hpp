// One program on one side of one device: a TCX link (kernel 6.6) or a clsact filter.
//
// A TCX link is pinned, so it outlives the daemon, survives renames and namespace moves, and is
// updated in place. Attaching it waits for RCU under the RTNL lock, about 13 ms; a clsact filter is
// there in 0.15 ms, belongs to the device, and is lost when the device moves to another namespace.
#pragma once

#include <cstdint>
#include <filesystem>
#include <set>

#include "base/fd.hpp"
#include "base/result.hpp"

namespace sluice {

enum class Hook : std::uint8_t { ingress, egress };  // as the kernel means them, of the device

// Attaches at the head of the device's TCX list and pins. In the calling thread's network
// namespace.
[[nodiscard]] Result<Fd> attach_tcx(std::uint32_t ifindex, Hook hook, int program,
                                    const std::filesystem::path& pin);

// Whose clsact filter: each has a priority and a handle of its own, so that a device may be a
// target and a guarded uplink, and losing the one leaves the other.
enum class ClsactOwner : std::uint8_t { attachment, guard };

// Makes the clsact qdisc where there is none, and puts the program into its chain: attachments
// first, the guard behind them. Replaces our own filter when it is already there, atomically.
[[nodiscard]] Status attach_clsact(std::uint32_t ifindex, Hook hook, int program,
                                   ClsactOwner owner = ClsactOwner::attachment);
// True when our filter is there (whatever the program's version).
[[nodiscard]] bool has_clsact(std::uint32_t ifindex, Hook hook,
                              ClsactOwner owner = ClsactOwner::attachment);
void detach_clsact(std::uint32_t ifindex, Hook hook, ClsactOwner owner = ClsactOwner::attachment);
// A clsact filter has no pin to find it by: removes the guards of every device of this namespace
// except `wanted`.
void detach_clsact_guards(const std::set<std::uint32_t>& wanted);

// A link's fd from its pin; ENOENT when there is none.
[[nodiscard]] Result<Fd> open_link(const std::filesystem::path& pin);
// ENOLINK: the target is gone and the link with it.
[[nodiscard]] Status update_link(int link, int program);
// The device a TCX link is on; 0 when the device is gone.
[[nodiscard]] std::uint32_t tcx_ifindex(int link);
// Is the link on this device of the calling thread's network namespace? The number alone does not
// say: a device keeps it when it moves to another namespace, and others come under it here.
[[nodiscard]] bool has_tcx(std::uint32_t ifindex, Hook hook, int link);

}  // namespace sluice
