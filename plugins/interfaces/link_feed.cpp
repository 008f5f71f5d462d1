#include "interfaces/link_feed.hpp"

#include <linux/if_link.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

namespace sluice::interfaces {
namespace {

// The kernel fills dumps in chunks of up to the size of the reader's buffer, 32 KiB at most.
constexpr std::size_t kBufferSize = 32768;

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

}  // namespace

LinkFeed::~LinkFeed() {
  if (fd_ >= 0) close(fd_);
}

void LinkFeed::open() {
  if (fd_ >= 0) close(std::exchange(fd_, -1));
  fd_ = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
  if (fd_ < 0) fail("cannot open an rtnetlink socket");
  // The forced size needs CAP_NET_ADMIN; without it net.core.rmem_max is the limit, and an overflow
  // is only more likely.
  const int size = settings_.receive_buffer;
  if (setsockopt(fd_, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) != 0)
    setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = RTMGRP_LINK;
  if (bind(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
    fail("cannot subscribe to link events");
  socklen_t length = sizeof(address);
  if (getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &length) != 0)
    fail("cannot read the netlink address");
  port_ = address.nl_pid;
  buffer_.resize(kBufferSize);
  request_dump();
}

void LinkFeed::request_dump() {
  struct {
    nlmsghdr header;
    ifinfomsg info;
    rtattr mask_header;
    std::uint32_t mask;
  } request{};
  static_assert(
      sizeof(request) == NLMSG_LENGTH(sizeof(ifinfomsg)) + RTA_LENGTH(sizeof(request.mask)),
      "an rtnetlink request has no padding before its attributes");
  request.header.nlmsg_len = sizeof(request);
  request.header.nlmsg_type = RTM_GETLINK;
  request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  request.header.nlmsg_seq = ++sequence_;
  request.info.ifi_family = AF_UNSPEC;
  request.mask_header.rta_type = IFLA_EXT_MASK;
  request.mask_header.rta_len = RTA_LENGTH(sizeof(request.mask));
  request.mask = RTEXT_FILTER_SKIP_STATS;
  interrupted_ = false;
  sink_.listing_started();
  sockaddr_nl kernel{};
  kernel.nl_family = AF_NETLINK;
  if (sendto(fd_, &request, sizeof(request), 0, reinterpret_cast<const sockaddr*>(&kernel),
             sizeof(kernel)) < 0)
    fail("cannot ask for the list of links");
}

LinkFeed::Outcome LinkFeed::read(std::size_t datagrams) {
  for (std::size_t i = 0; i < datagrams; ++i) {
    sockaddr_nl sender{};
    iovec place{buffer_.data(), buffer_.size()};
    msghdr message{};
    message.msg_name = &sender;
    message.msg_namelen = sizeof(sender);
    message.msg_iov = &place;
    message.msg_iovlen = 1;
    const ssize_t got = recvmsg(fd_, &message, MSG_TRUNC);
    if (got < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) return Outcome::drained;
      if (errno == ENOBUFS) return Outcome::overflow;
      fail("cannot read link events");
    }
    // Only the kernel is believed: any process may send to our address.
    if (sender.nl_pid != 0) continue;
    if (static_cast<std::size_t>(got) > buffer_.size()) {
      // An event larger than any the kernel sends today: make room and list again.
      buffer_.resize(static_cast<std::size_t>(got));
      return Outcome::overflow;
    }
    if (take(static_cast<std::size_t>(got)) == Outcome::overflow) return Outcome::overflow;
  }
  return Outcome::more;
}

LinkFeed::Outcome LinkFeed::take(std::size_t length) {
  auto left = static_cast<unsigned>(length);
  for (auto* header = reinterpret_cast<const nlmsghdr*>(buffer_.data()); NLMSG_OK(header, left);
       header = NLMSG_NEXT(header, left)) {
    const bool is_of_dump = header->nlmsg_pid == port_ && header->nlmsg_seq == sequence_;
    if (is_of_dump && (header->nlmsg_flags & NLM_F_DUMP_INTR) != 0) interrupted_ = true;
    if (header->nlmsg_type == NLMSG_ERROR || header->nlmsg_type == NLMSG_OVERRUN) {
      // The kernel gave up on the dump; only a fresh socket is sure to have none under way.
      return Outcome::overflow;
    }
    if (header->nlmsg_type == NLMSG_DONE) {
      if (!is_of_dump) continue;
      int error = 0;
      if (header->nlmsg_len >= NLMSG_LENGTH(sizeof(error)))
        std::memcpy(&error, NLMSG_DATA(header), sizeof(error));
      if (error < 0 || interrupted_)
        request_dump();
      else
        sink_.listing_complete();
      continue;
    }
    const auto message = read_link_message(*header);
    if (!message) continue;
    switch (message->what) {
      case LinkMessage::What::changed:
        sink_.changed(message->link);
        break;
      case LinkMessage::What::removed:
        sink_.removed(message->link.ifindex);
        break;
      case LinkMessage::What::left_bridge:
        sink_.left_bridge(message->link.ifindex, message->link.master);
        break;
    }
  }
  return Outcome::drained;
}

}  // namespace sluice::interfaces
