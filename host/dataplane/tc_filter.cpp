#include "dataplane/tc_filter.hpp"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>

namespace sluice {
namespace {

// Debian 12's headers end before TCX; the kernel's values (include/uapi/linux/bpf.h, 6.6).
constexpr int kTcxIngress = 46, kTcxEgress = 47;
constexpr std::uint32_t kBefore = 1u << 3;  // BPF_F_BEFORE without a relative: the head of the list

// The tail of bpf_attr.link_create as of 6.6.
struct LinkCreate {
  std::uint32_t program, ifindex, attach_type, flags;
  std::uint32_t relative;
  std::uint32_t padding;
  std::uint64_t expected_revision;
};
// bpf_link_info as of 6.6, for TCX.
struct TcxInfo {
  std::uint32_t type, id, program_id, padding;
  std::uint32_t ifindex, attach_type;
  char rest[64];
};
// bpf_attr.query as of 6.6, for TCX.
struct TcxQuery {
  std::uint32_t ifindex, attach_type, flags, attach_flags;
  std::uint64_t program_ids;
  std::uint32_t count, padding;
  std::uint64_t program_flags, link_ids, link_flags, revision;
};
constexpr std::size_t kMostTcx = 64;   // BPF_MPROG_MAX
constexpr int kReleasePatience = 200;  // ms

TcxInfo tcx_info(int link) {
  TcxInfo info{};
  std::uint32_t length = sizeof(info);
  if (bpf_obj_get_info_by_fd(link, &info, &length) != 0) return {};
  return info;
}

// Ours among a device's filters: a handle that spells its owner, and the place in the chain.
constexpr std::uint32_t kAttachmentPriority = 1, kAttachmentHandle = 0x51c3;
constexpr std::uint32_t kGuardPriority = 2, kGuardHandle = 0x51c4;
// Both uplink programs, as libbpf names a filter: "sluice_uplink_e:[12]", from the name that the
// kernel shortens and the program's id.
constexpr const char* kGuardName = "sluice_uplink_";

bpf_tc_hook make_hook(std::uint32_t ifindex, Hook hook) {
  bpf_tc_hook made{};
  made.sz = sizeof(made);
  made.ifindex = static_cast<int>(ifindex);
  made.attach_point = hook == Hook::ingress ? BPF_TC_INGRESS : BPF_TC_EGRESS;
  return made;
}

bpf_tc_opts make_options(ClsactOwner owner) {
  bpf_tc_opts options{};
  options.sz = sizeof(options);
  const bool guard = owner == ClsactOwner::guard;
  options.handle = guard ? kGuardHandle : kAttachmentHandle;
  options.priority = guard ? kGuardPriority : kAttachmentPriority;
  return options;
}

// The first attribute of `type`, as it is; empty: there is none.
std::string bytes_of(const rtattr* in, int length, int type) {
  for (const auto* at = in; RTA_OK(at, length); at = RTA_NEXT(at, length)) {
    if ((at->rta_type & NLA_TYPE_MASK) != type) continue;
    const auto* data = static_cast<const char*>(RTA_DATA(at));
    return {data, RTA_PAYLOAD(at)};
  }
  return {};
}

// Earlier releases put the guard where an attachment's filter goes. The filter's name says which it
// is; its program has but an id there, which only CAP_SYS_ADMIN may open.
bool is_guard_in_attachments_place(std::uint32_t ifindex) {
  const Fd socket(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  struct {
    nlmsghdr header;
    tcmsg filter;
  } request{};
  request.header.nlmsg_len = sizeof(request);
  request.header.nlmsg_type = RTM_GETTFILTER;
  request.header.nlmsg_flags = NLM_F_REQUEST;
  request.filter.tcm_ifindex = static_cast<int>(ifindex);
  request.filter.tcm_parent = TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS);
  request.filter.tcm_handle = kAttachmentHandle;
  request.filter.tcm_info = TC_H_MAKE(kAttachmentPriority << 16, htons(ETH_P_ALL));
  alignas(nlmsghdr) std::array<char, 16384> buffer;
  if (!socket || send(socket.get(), &request, sizeof(request), 0) < 0) return false;
  const ssize_t got = recv(socket.get(), buffer.data(), buffer.size(), 0);
  const auto* header = reinterpret_cast<const nlmsghdr*>(buffer.data());
  if (got < 0 || !NLMSG_OK(header, static_cast<unsigned>(got)) ||
      header->nlmsg_type != RTM_NEWTFILTER)
    return false;
  const auto* attributes = reinterpret_cast<const rtattr*>(
      static_cast<const char*>(NLMSG_DATA(header)) + NLMSG_ALIGN(sizeof(tcmsg)));
  const auto options =
      bytes_of(attributes, static_cast<int>(NLMSG_PAYLOAD(header, sizeof(tcmsg))), TCA_OPTIONS);
  return bytes_of(reinterpret_cast<const rtattr*>(options.data()), static_cast<int>(options.size()),
                  TCA_BPF_NAME)
      .starts_with(kGuardName);
}

}  // namespace

Result<Fd> attach_tcx(std::uint32_t ifindex, Hook hook, int program,
                      const std::filesystem::path& pin) {
  LinkCreate create{};
  create.program = static_cast<std::uint32_t>(program);
  create.ifindex = ifindex;
  create.attach_type = hook == Hook::ingress ? kTcxIngress : kTcxEgress;
  create.flags = kBefore;
  const auto make = [&] {
    return Fd(static_cast<int>(syscall(SYS_bpf, BPF_LINK_CREATE, &create, sizeof(create))));
  };
  Fd link = make();
  // A program is but once on a device, and a former link whose pin went is gone only some
  // milliseconds later.
  for (int i = 0; i < kReleasePatience && !link && errno == EEXIST; ++i) {
    usleep(1000);
    link = make();
  }
  if (!link)
    return fail_with(errno, "interface {}: cannot attach a TCX link: {}", ifindex, strerror(errno));
  if (bpf_obj_pin(link.get(), pin.c_str()) != 0)
    return fail_with(errno, "interface {}: cannot pin its link at {}: {}", ifindex, pin.string(),
                     strerror(errno));
  return link;
}

Status attach_clsact(std::uint32_t ifindex, Hook hook, int program, ClsactOwner owner) {
  auto place = make_hook(ifindex, hook);
  if (const int error = bpf_tc_hook_create(&place); error != 0 && error != -EEXIST)
    return fail_with(-error, "interface {}: cannot add the clsact qdisc: {}", ifindex,
                     strerror(-error));
  auto options = make_options(owner);
  options.prog_fd = program;
  options.flags = BPF_TC_F_REPLACE;
  if (const int error = bpf_tc_attach(&place, &options); error != 0)
    return fail_with(-error, "interface {}: cannot attach a clsact filter: {}", ifindex,
                     strerror(-error));
  return {};
}

bool has_clsact(std::uint32_t ifindex, Hook hook, ClsactOwner owner) {
  const auto place = make_hook(ifindex, hook);
  auto options = make_options(owner);
  return bpf_tc_query(&place, &options) == 0;
}

void detach_clsact(std::uint32_t ifindex, Hook hook, ClsactOwner owner) {
  const auto place = make_hook(ifindex, hook);
  const auto options = make_options(owner);
  bpf_tc_detach(&place, &options);
}

void detach_clsact_guards(const std::set<std::uint32_t>& wanted) {
  struct if_nameindex* links = if_nameindex();
  if (links == nullptr) return;
  for (const struct if_nameindex* link = links; link->if_index != 0; ++link) {
    if (!wanted.contains(link->if_index) &&
        has_clsact(link->if_index, Hook::egress, ClsactOwner::guard))
      detach_clsact(link->if_index, Hook::egress, ClsactOwner::guard);
    if (is_guard_in_attachments_place(link->if_index)) detach_clsact(link->if_index, Hook::egress);
  }
  if_freenameindex(links);
}

Result<Fd> open_link(const std::filesystem::path& pin) {
  Fd link(bpf_obj_get(pin.c_str()));
  if (!link) return fail_with(errno, "{}: {}", pin.string(), strerror(errno));
  return link;
}

Status update_link(int link, int program) {
  if (bpf_link_update(link, program, nullptr) != 0)
    return fail_with(errno, "cannot update a link: {}", strerror(errno));
  return {};
}

std::uint32_t tcx_ifindex(int link) {
  return tcx_info(link).ifindex;
}

bool has_tcx(std::uint32_t ifindex, Hook hook, int link) {
  const TcxInfo info = tcx_info(link);
  std::array<std::uint32_t, kMostTcx> programs{}, links{};
  TcxQuery query{};
  query.program_ids = reinterpret_cast<std::uint64_t>(programs.data());  // or no answer is given
  query.ifindex = ifindex;
  query.attach_type = hook == Hook::ingress ? kTcxIngress : kTcxEgress;
  query.count = links.size();
  query.link_ids = reinterpret_cast<std::uint64_t>(links.data());
  if (syscall(SYS_bpf, BPF_PROG_QUERY, &query, sizeof(query)) == 0)
    return info.id != 0 && std::ranges::find(links, info.id) != links.end();
  // ENOENT: the device has none. Where the kernel cannot say for another reason, a filter that
  // stands is not taken off for it.
  return errno != ENOENT && errno != ENODEV && info.ifindex == ifindex;
}

}  // namespace sluice
