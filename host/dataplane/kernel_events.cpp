// What the kernel tells: denials, tasks that enter cgroups, devices that go. And the slow work
// beside: grace periods, expired learned addresses, an audit of what should be attached.

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/membarrier.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "dataplane/cgroup_filter.hpp"
#include "dataplane/connection_reset.hpp"
#include "dataplane/kernel_data_plane.hpp"
#include "dataplane/socket_sweep.hpp"
#include "dataplane/tc_filter.hpp"

namespace sluice {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;
constexpr std::uint64_t kAuditInterval = 5 * kSecond, kSweepInterval = 10 * kSecond,
                        kUnsettledInterval = kSecond / 10;
// As many as half the ring holds: whoever fills it all the time does not keep this thread.
constexpr unsigned kEventsPerTurn = 1024;
// Some 30 us each, for the kernel's lock on devices: a thousand at once would keep this thread.
constexpr unsigned kAuditedPerTurn = 64;

}  // namespace

void KernelDataPlane::watch_links() {
  link_events_ = Fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE));
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  // Rules too: another tool that replaces all of them takes ours along.
  address.nl_groups = RTMGRP_LINK | RTMGRP_IPV4_RULE | 1u << (RTNLGRP_IPV6_RULE - 1);
  if (!link_events_ ||
      bind(link_events_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0)
    spdlog::warn("cannot watch links: {}; devices that go are noticed by the audit, every 5 s",
                 strerror(errno));
}

// Returns a negative errno to end the turn.
int KernelDataPlane::take_event(const sluice_event& event) {
  if (event.type == SLUICE_EVENT_DENIAL && sink_ != nullptr && sink_->on_denial)
    sink_->on_denial(event);
  else if (event.type == SLUICE_EVENT_TASK_MOVED)
    moves_.add_task(event.pid);
  return events_left_ == 0 || --events_left_ == 0 ? -EAGAIN : 0;
}

std::vector<int> KernelDataPlane::poll_fds() {
  return {ring_buffer__epoll_fd(events_), link_events_.get(), background_.fd()};
}

void KernelDataPlane::target_gone(std::uint32_t index, const std::string& reason,
                                  const DataPlaneEvents& events) {
  forget(index);
  if (events.on_target_gone) events.on_target_gone(index, reason);
}

void KernelDataPlane::read_link_events(const DataPlaneEvents& events) {
  alignas(nlmsghdr) char buffer[32768];
  while (true) {
    const ssize_t got = recv(link_events_.get(), buffer, sizeof(buffer), 0);
    if (got < 0 && errno == ENOBUFS) {
      last_audit_ = 0;  // messages were lost: look at everything
      lost_link_events_ = true;
      continue;
    }
    if (got <= 0) return;
    auto length = static_cast<unsigned>(got);
    for (const auto* header = reinterpret_cast<const nlmsghdr*>(buffer); NLMSG_OK(header, length);
         header = NLMSG_NEXT(header, length)) {
      if (header->nlmsg_type == RTM_DELRULE) last_dns_check_ = 0;
      if (header->nlmsg_type != RTM_DELLINK && header->nlmsg_type != RTM_NEWLINK) continue;
      const auto* info = static_cast<const ifinfomsg*>(NLMSG_DATA(header));
      if (info->ifi_family == AF_BRIDGE)
        continue;  // a port left its bridge; the device is still there
      if (header->nlmsg_type == RTM_NEWLINK) {
        if (guards_.uplinks.empty()) continue;
        char name[IF_NAMESIZE];
        if (if_indextoname(static_cast<unsigned>(info->ifi_index), name) == nullptr) continue;
        if (std::ranges::find(guards_.uplinks, name) != guards_.uplinks.end())
          if (auto guarded = guard_uplink(name); !guarded)
            spdlog::error("guard: {}", guarded.error().message);
        // By its name: one that has it now, and one that had it and goes by another.
        const auto at = static_cast<std::uint32_t>(info->ifi_index);
        std::uint32_t trusted = 0;
        const bool was_trusted =
            bpf_map_lookup_elem(programs_.map(Map::trusted_interfaces), &at, &trusted) == 0;
        const bool is_named = std::ranges::find(guards_.trusted, name) != guards_.trusted.end();
        if (was_trusted != is_named) {
          if (auto done = trust(guards_.trusted); !done)
            spdlog::error("guard: {}", done.error().message);
        }
        continue;
      }
      const auto ifindex = static_cast<std::uint32_t>(info->ifi_index);
      bpf_map_delete_elem(programs_.map(Map::trusted_interfaces), &ifindex);
      clsact_guards_.erase(ifindex);  // went with the device
      for (const auto& [index, live] : live_) {
        const sluice_slot& slot = slots_.at(index);
        if (slot.type != SLUICE_TYPE_INTERFACE || slot.ifindex != ifindex ||
            slot.netns_cookie != own_netns_)
          continue;
        if (is_filtered(index, live)) break;  // it was another's that had the number before
        target_gone(index, "the interface is gone", events);
        break;
      }
    }
  }
}

// What netlink does not tell, some at a time; or told while nobody could listen: all at once.
void KernelDataPlane::audit(const DataPlaneEvents& events) {
  std::vector<std::pair<std::uint32_t, std::string>> gone;
  const bool events_lost = std::exchange(lost_link_events_, false) || !link_events_;
  const auto root = find_cgroup2();
  if (events_lost) audited_below_ = 0;
  auto at = live_.lower_bound(audited_below_);
  for (unsigned seen = 0; at != live_.end() && (events_lost || seen < kAuditedPerTurn);
       ++at, ++seen) {
    auto& [index, live] = *at;
    const sluice_slot& slot = slots_.at(index);
    if (slot.type == SLUICE_TYPE_CGROUP) {
      struct stat info {};
      const auto path =
          root ? *root / std::filesystem::path(live.name).relative_path() : std::filesystem::path{};
      if (root && (stat(path.c_str(), &info) != 0 || info.st_ino != slot.cgroup_id))
        gone.emplace_back(index, "the cgroup is gone");
      continue;
    }
    if (slot.netns_cookie != own_netns_) {
      auto link = open_link(pin(index, "from"));
      if (live.tcx && (!link || tcx_ifindex(link->get()) == 0))
        gone.emplace_back(index, "the interface is gone");
      continue;
    }
    char name[IF_NAMESIZE];
    if (if_indextoname(slot.ifindex, name) == nullptr) {
      gone.emplace_back(index, "the interface is gone");
    } else if (!live.converting && !is_filtered(index, live)) {
      // Another tool may have deleted the qdisc and our filter with it. Or nobody told that the
      // device went and another came under its number: that is for whoever attaches it to say.
      spdlog::error("{}: its filter was removed by someone else; attaching it again", live.name);
      live.doubtful |= events_lost;
      unfilter_interface(index, live);
      live.tcx = live.clsact = false;
      if (auto attached = filter_interface(index, live); !attached)
        spdlog::error("{}: unfiltered: {}", live.name, attached.error().message);
      else if (live.clsact && features_.tcx && config_.tc_mechanism == "auto")
        to_convert_.push_back(index);
    }
  }
  audited_below_ = at == live_.end() ? 0 : at->first;
  for (const auto& [index, reason] : gone) target_gone(index, reason, events);
  if (audited_below_ == 0) audit_guards();
}

// Heap space that no word refers to may still be read by a program that began before the flip, and
// a port list by one that began before its last address was taken out.
// MEMBARRIER_CMD_GLOBAL waits for an RCU grace period, which no such program outlives.
void KernelDataPlane::start_grace_period() {
  if (grace_running_) return;
  auto retired = policies_.take_retired();
  auto idle = learned_.idle_port_sets();
  if (retired.empty() && idle.empty()) return;
  grace_running_ = true;
  background_.run(
      [this, retired = std::move(retired), idle = std::move(idle)]() -> Background::Completion {
        if (syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) != 0)
          sleep(1);  // nohz_full kernels refuse it
        return [this, retired, idle] {
          policies_.reclaim(retired);
          learned_.reclaim_port_sets(idle);
          grace_running_ = false;
        };
      });
}

void KernelDataPlane::poll(const DataPlaneEvents& events) {
  sink_ = &events;
  events_left_ = kEventsPerTurn;
  ring_buffer__consume(events_);  // the rest keeps poll_fds() readable
  sink_ = nullptr;
  background_.complete();
  read_link_events(events);
  follow_guarded_cgroups();
  const std::uint64_t now = boot_now().nanoseconds;
  if (audited_below_ != 0 || now - last_audit_ > kAuditInterval) {
    if (audited_below_ == 0 || lost_link_events_) last_audit_ = now;
    audit(events);
  }
  const std::uint32_t zero = 0;
  std::uint64_t lost = 0;
  bpf_map_lookup_elem(programs_.map(Map::lost_moves), &zero, &lost);
  if (lost != lost_moves_) {
    lost_moves_ = lost;
    moves_.add_everything();
  }
  start_socket_sweep();
  if (dns_routes_ && now - last_dns_check_ > kAuditInterval) {
    last_dns_check_ = now;
    if (auto kept = keep_dns_routes(); !kept) spdlog::error("{}", kept.error().message);
  }
  if (now - last_sweep_ > kSweepInterval) {
    last_sweep_ = now;
    learned_.sweep({now});
  }
  start_grace_period();
  convert_next();
}

// One sweep at a time; what moves meanwhile is for the next.
void KernelDataPlane::start_socket_sweep() {
  if (socket_sweep_running_ || !features_.task_events) return;
  // What cannot be settled now is not looked at without a pause.
  if (!unsettled_.empty() && boot_now().nanoseconds > last_socket_sweep_ + kUnsettledInterval)
    for (const auto& [cgroup_id, waiting] : unsettled_) moves_.add_cgroup(cgroup_id);
  if (moves_.empty()) return;
  SocketSweep sweep;
  sweep.programs = &programs_;
  sweep.stop_pin = stop_pin();
  sweep.moves = moves_.take();
  for (const auto& [index, live] : live_)
    if (slots_.at(index).type == SLUICE_TYPE_CGROUP)
      sweep.attached[slots_.at(index).cgroup_id] = live.name;
  sweep.unsettled = std::exchange(unsettled_, {});
  std::erase_if(sweep.unsettled,
                [&](const auto& entry) { return !sweep.attached.contains(entry.first); });
  if (sweep.attached.empty()) return;
  socket_sweep_running_ = true;
  background_.run([this, sweep = std::move(sweep)]() mutable -> Background::Completion {
    shut_foreign_sockets(sweep);
    return [this, unsettled = std::move(sweep.unsettled)]() mutable {
      socket_sweep_running_ = false;
      last_socket_sweep_ = boot_now().nanoseconds;
      unsettled_ = std::move(unsettled);
    };
  });
}

// A tightening: the next packet is judged afresh anyway; this lets applications notice.
void KernelDataPlane::sever(std::uint32_t index) {
  const sluice_slot& slot = slots_.at(index);
  slots_.set_sever_until(index, boot_now().nanoseconds + 60 * kSecond);
  if (slot.type != SLUICE_TYPE_CGROUP) return;
  SeverRequest request;
  request.cgroup_id = slot.cgroup_id;
  request.path = live_.at(index).name;
  request.programs = &programs_;
  request.slot = index;
  request.incarnation = slot.incarnation;
  // The walk reads the policy as it is when it begins.
  const auto name = fmt::format("sever {} {}", index, slot.incarnation);
  background_.run_once(name, [request]() -> Background::Completion {
    destroy_denied_sockets(request);
    return {};
  });
}

}  // namespace sluice
