#include "dataplane/dns_route.hpp"

#include <arpa/inet.h>
#include <linux/fib_rules.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <vector>

#include "base/fd.hpp"
#include "layout.h"

namespace sluice {
namespace {

// Of rules and routes that we made, where the kernel keeps it: others then know that they are not
// theirs. Not in any list of assigned numbers.
constexpr std::uint8_t kProtocol = 83;
constexpr int kLoopback = 1;

// One rtnetlink request: a header, the family's own header, attributes.
class Request {
 public:
  template <typename Header>
  Request(std::uint16_t type, std::uint16_t flags, const Header& header) {
    bytes_.resize(NLMSG_SPACE(sizeof(header)));
    auto* start = reinterpret_cast<nlmsghdr*>(bytes_.data());
    start->nlmsg_type = type;
    start->nlmsg_flags = static_cast<std::uint16_t>(NLM_F_REQUEST | flags);
    std::memcpy(NLMSG_DATA(start), &header, sizeof(header));
  }
  Request& add(std::uint16_t type, const void* data, std::size_t size) {
    rtattr attribute{.rta_len = static_cast<std::uint16_t>(RTA_LENGTH(size)), .rta_type = type};
    const std::size_t at = bytes_.size();
    bytes_.resize(at + RTA_SPACE(size));
    std::memcpy(&bytes_[at], &attribute, sizeof(attribute));
    std::memcpy(&bytes_[at + RTA_LENGTH(0)], data, size);
    return *this;
  }
  Request& add(std::uint16_t type, std::uint32_t value) { return add(type, &value, sizeof(value)); }
  [[nodiscard]] std::vector<char>& bytes() {
    reinterpret_cast<nlmsghdr*>(bytes_.data())->nlmsg_len =
        static_cast<std::uint32_t>(bytes_.size());
    return bytes_;
  }

 private:
  std::vector<char> bytes_;
};

class Netlink {
 public:
  [[nodiscard]] static Result<Netlink> open() {
    Fd socket(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
    if (!socket) return fail_with(errno, "cannot open rtnetlink: {}", strerror(errno));
    return Netlink(std::move(socket));
  }
  // 0, or the errno that the kernel answered with.
  [[nodiscard]] int ask(Request request, std::uint16_t flags = NLM_F_ACK,
                        const std::function<void(const nlmsghdr*)>& each = {}) {
    auto& bytes = request.bytes();
    auto* header = reinterpret_cast<nlmsghdr*>(bytes.data());
    header->nlmsg_flags |= flags;
    header->nlmsg_seq = ++sequence_;
    if (send(socket_.get(), bytes.data(), bytes.size(), 0) < 0) return errno;
    alignas(nlmsghdr) char buffer[32768];
    while (true) {
      const ssize_t got = recv(socket_.get(), buffer, sizeof(buffer), 0);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) return got == 0 ? EIO : errno;
      auto length = static_cast<unsigned>(got);
      for (const auto* part = reinterpret_cast<const nlmsghdr*>(buffer); NLMSG_OK(part, length);
           part = NLMSG_NEXT(part, length)) {
        if (part->nlmsg_seq != sequence_) continue;
        if (part->nlmsg_type == NLMSG_DONE) return 0;
        if (part->nlmsg_type == NLMSG_ERROR)
          return -static_cast<const nlmsgerr*>(NLMSG_DATA(part))->error;
        if (each) each(part);
      }
    }
  }

 private:
  explicit Netlink(Fd socket) : socket_(std::move(socket)) {}
  Fd socket_;
  std::uint32_t sequence_ = 0;
};

struct Rule {
  std::uint8_t action;
  bool from_host;        // iif lo
  std::uint32_t target;  // goto
};
constexpr Rule kRules[] = {
    {FR_ACT_GOTO, true, kDnsRulePriority + 2}, {FR_ACT_TO_TBL, false, 0}, {FR_ACT_NOP, false, 0}};

Request rule_request(std::uint16_t type, std::uint16_t flags, int family, std::uint32_t number) {
  const Rule& rule = kRules[number];
  fib_rule_hdr header{};
  header.family = static_cast<std::uint8_t>(family);
  header.action = rule.action;
  Request request(type, flags, header);
  request.add(FRA_PRIORITY, kDnsRulePriority + number).add(FRA_PROTOCOL, &kProtocol, 1);
  if (rule.action == FR_ACT_NOP) return request;
  request.add(FRA_FWMARK, SLUICE_ASKER_TAG).add(FRA_FWMASK, SLUICE_ASKER_TAG_MASK);
  if (rule.from_host) request.add(FRA_IIFNAME, "lo", 3);
  return rule.action == FR_ACT_GOTO ? request.add(FRA_GOTO, rule.target)
                                    : request.add(FRA_TABLE, kDnsTable);
}

// Is `message` the rule `number` of ours?
bool is_rule(const nlmsghdr* message, std::uint32_t number) {
  const auto* header = static_cast<const fib_rule_hdr*>(NLMSG_DATA(message));
  std::uint32_t priority = 0, mark = 0, mask = 0, table = header->table, target = 0;
  std::string iif;
  auto length = static_cast<int>(message->nlmsg_len - NLMSG_LENGTH(sizeof(*header)));
  for (const auto* at = reinterpret_cast<const rtattr*>(
           static_cast<const char*>(NLMSG_DATA(message)) + NLMSG_ALIGN(sizeof(*header)));
       RTA_OK(at, length); at = RTA_NEXT(at, length)) {
    const auto number_of = [&](std::uint32_t& into) {
      if (RTA_PAYLOAD(at) >= sizeof(into)) std::memcpy(&into, RTA_DATA(at), sizeof(into));
    };
    switch (at->rta_type) {
      case FRA_PRIORITY:
        number_of(priority);
        break;
      case FRA_FWMARK:
        number_of(mark);
        break;
      case FRA_FWMASK:
        number_of(mask);
        break;
      case FRA_TABLE:
        number_of(table);
        break;
      case FRA_GOTO:
        number_of(target);
        break;
      case FRA_IIFNAME:
        iif.assign(static_cast<const char*>(RTA_DATA(at)),
                   strnlen(static_cast<const char*>(RTA_DATA(at)), RTA_PAYLOAD(at)));
        break;
      default:
        break;
    }
  }
  const Rule& rule = kRules[number];
  if (priority != kDnsRulePriority + number || header->action != rule.action ||
      (header->flags & FIB_RULE_INVERT) != 0 || header->src_len != 0 || header->dst_len != 0)
    return false;
  if (rule.action == FR_ACT_NOP) return true;
  return mark == SLUICE_ASKER_TAG && mask == SLUICE_ASKER_TAG_MASK &&
         iif == (rule.from_host ? "lo" : "") &&
         (rule.action == FR_ACT_GOTO ? target == rule.target : table == kDnsTable);
}

struct Route {
  int family;
  std::uint32_t table;
  std::uint8_t length;
  std::array<std::uint8_t, 16> prefix;
};
constexpr Route kRoutes[] = {
    {AF_INET, kDnsTable, 0, {}},
    {AF_INET6, kDnsTable, 0, {}},
    {AF_INET6, RT_TABLE_LOCAL, 64, {0xfd, 0x53, 0x6c, 0x75, 0x69, 0x63, 0x00, 0x65}},
};

Request route_request(std::uint16_t type, std::uint16_t flags, const Route& route) {
  rtmsg header{};
  header.rtm_family = static_cast<std::uint8_t>(route.family);
  header.rtm_dst_len = route.length;
  header.rtm_table = RT_TABLE_UNSPEC;
  header.rtm_protocol = kProtocol;
  header.rtm_scope = route.family == AF_INET ? RT_SCOPE_HOST : RT_SCOPE_UNIVERSE;
  header.rtm_type = RTN_LOCAL;
  Request request(type, flags, header);
  request.add(RTA_TABLE, route.table).add(RTA_OIF, kLoopback);
  if (route.length != 0) request.add(RTA_DST, route.prefix.data(), route.prefix.size());
  return request;
}

// EEXIST: somebody made it between our look and now, or it was there.
bool fine(int error) {
  return error == 0 || error == EEXIST;
}
// This host has no IPv6.
bool is_absent(int family, int error) {
  return family == AF_INET6 &&
         (error == EAFNOSUPPORT || error == EOPNOTSUPP || error == ENODEV || error == EACCES);
}

}  // namespace

Result<int> ensure_dns_routes() {
  auto netlink = Netlink::open();
  if (!netlink) return std::unexpected(netlink.error());
  int made = 0;
  for (const int family : {AF_INET, AF_INET6}) {
    bool found[std::size(kRules)] = {};
    fib_rule_hdr any{};
    any.family = static_cast<std::uint8_t>(family);
    const int listed =
        netlink->ask(Request(RTM_GETRULE, 0, any), NLM_F_DUMP, [&](const nlmsghdr* message) {
          if (message->nlmsg_type != RTM_NEWRULE) return;
          for (std::uint32_t i = 0; i < std::size(kRules); ++i) found[i] |= is_rule(message, i);
        });
    if (is_absent(family, listed)) continue;
    if (listed != 0) return fail_with(listed, "cannot list routing rules: {}", strerror(listed));
    // The last first: a goto whose target is missing does nothing.
    for (std::uint32_t i = std::size(kRules); i-- > 0;) {
      if (found[i]) continue;
      const int error =
          netlink->ask(rule_request(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, family, i));
      if (is_absent(family, error)) break;
      if (!fine(error))
        return fail_with(error, "cannot make the routing rule with priority {}: {}",
                         kDnsRulePriority + i, strerror(error));
      ++made;
    }
  }
  for (const Route& route : kRoutes) {
    const int error = netlink->ask(route_request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, route));
    if (error == 0) ++made;
    if (!fine(error) && !is_absent(route.family, error))
      return fail_with(error, "cannot make a local route in table {}: {}", route.table,
                       strerror(error));
  }
  return made;
}

Status remove_dns_routes() {
  auto netlink = Netlink::open();
  if (!netlink) return std::unexpected(netlink.error());
  int failed = 0;
  const auto gone = [&](int family, int error) {
    if (error != 0 && error != ENOENT && error != ESRCH && !is_absent(family, error))
      failed = error;
  };
  for (const int family : {AF_INET, AF_INET6})
    for (std::uint32_t i = 0; i < std::size(kRules); ++i)
      gone(family, netlink->ask(rule_request(RTM_DELRULE, 0, family, i)));
  for (const Route& route : kRoutes)
    gone(route.family, netlink->ask(route_request(RTM_DELROUTE, 0, route)));
  if (failed != 0)
    return fail_with(failed, "cannot remove the routing rules for DNS: {}", strerror(failed));
  return {};
}

}  // namespace sluice
