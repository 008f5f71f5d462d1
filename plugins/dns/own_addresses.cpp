#include "dns/own_addresses.hpp"

#include <linux/if_addr.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <system_error>
#include <utility>

namespace sluice::dns {
namespace {

// The kernel fills dumps in chunks of up to the size of the reader's buffer, 32 KiB at most.
constexpr std::size_t kBufferSize = 32768;

[[noreturn]] void fail(int error, const char* what) {
  throw std::system_error(error, std::generic_category(), what);
}

// The host's side of an address message. On a point-to-point link IFA_ADDRESS is the other end and
// IFA_LOCAL this one; IPv6 without a peer, and IPv4 always, says IFA_LOCAL or IFA_ADDRESS alone.
std::optional<sdk::Address> local_address(const nlmsghdr& header, const ifaddrmsg& info) {
  const std::size_t size = info.ifa_family == AF_INET ? 4 : info.ifa_family == AF_INET6 ? 16 : 0;
  if (size == 0) return {};
  const void* local = nullptr;
  const void* address = nullptr;
  auto left = static_cast<unsigned>(header.nlmsg_len - NLMSG_LENGTH(sizeof(info)));
  for (const rtattr* attribute = IFA_RTA(&info); RTA_OK(attribute, left);
       attribute = RTA_NEXT(attribute, left)) {
    if (RTA_PAYLOAD(attribute) < size) continue;
    if (attribute->rta_type == IFA_LOCAL) local = RTA_DATA(attribute);
    if (attribute->rta_type == IFA_ADDRESS) address = RTA_DATA(attribute);
  }
  if (local == nullptr) local = address;
  if (local == nullptr) return {};
  sdk::Address found{.family = static_cast<std::uint8_t>(size == 4 ? 4 : 6)};
  std::memcpy(found.bytes.data(), local, size);
  return found;
}

}  // namespace

OwnAddresses::~OwnAddresses() {
  if (fd_ >= 0) close(fd_);
}

void OwnAddresses::open() {
  if (fd_ >= 0) fail(EALREADY, "the host's addresses are watched already");
  fd_ = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
  if (fd_ < 0) fail(errno, "cannot open an rtnetlink socket");
  // The forced size needs CAP_NET_ADMIN; without it net.core.rmem_max is the limit, and a listing
  // more is only more likely.
  const int size = settings_.receive_buffer;
  if (setsockopt(fd_, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) != 0)
    setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
  if (bind(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
    fail(errno, "cannot subscribe to address events");
  socklen_t length = sizeof(address);
  if (getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &length) != 0)
    fail(errno, "cannot read the netlink address");
  port_ = address.nl_pid;
  buffer_.resize(kBufferSize);
  request_listing();
  const auto deadline = std::chrono::steady_clock::now() + settings_.patience;
  for (read(); listing_; read()) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) fail(ETIME, "the kernel did not list the host's addresses");
    pollfd readable{.fd = fd_, .events = POLLIN, .revents = 0};
    if (poll(&readable, 1, static_cast<int>(left.count())) < 0 && errno != EINTR)
      fail(errno, "cannot wait for the list of addresses");
  }
}

void OwnAddresses::request_listing() {
  struct {
    nlmsghdr header;
    ifaddrmsg info;
  } request{};
  request.header.nlmsg_len = NLMSG_LENGTH(sizeof(request.info));
  request.header.nlmsg_type = RTM_GETADDR;
  request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  request.header.nlmsg_seq = ++sequence_;
  request.info.ifa_family = AF_UNSPEC;
  lost_ = false;
  listing_ = true;
  if (sequence_ > 1) ++relistings_;
  sockaddr_nl kernel{};
  kernel.nl_family = AF_NETLINK;
  if (sendto(fd_, &request, request.header.nlmsg_len, 0, reinterpret_cast<const sockaddr*>(&kernel),
             sizeof(kernel)) < 0)
    fail(errno, "cannot ask for the list of addresses");
}

void OwnAddresses::read() {
  while (receive()) {
  }
  if (std::exchange(changed_, false)) publish();
}

// Takes one datagram. False: there is none.
bool OwnAddresses::receive() {
  sockaddr_nl sender{};
  iovec place{buffer_.data(), buffer_.size()};
  msghdr message{};
  message.msg_name = &sender;
  message.msg_namelen = sizeof(sender);
  message.msg_iov = &place;
  message.msg_iovlen = 1;
  const ssize_t got = recvmsg(fd_, &message, MSG_TRUNC);
  if (got < 0) {
    if (errno == EINTR) return true;
    if (errno == EAGAIN) return false;
    if (errno != ENOBUFS) fail(errno, "cannot read address events");
    // The kernel refuses a second listing while one is under way: that one ends first.
    if (listing_)
      lost_ = true;
    else
      request_listing();
    return true;
  }
  // Only the kernel is believed: any process may send to our address.
  if (sender.nl_pid != 0) return true;
  if (static_cast<std::size_t>(got) > buffer_.size()) {
    // A message larger than any the kernel sends today: make room and list again.
    buffer_.resize(static_cast<std::size_t>(got));
    if (listing_)
      lost_ = true;
    else
      request_listing();
    return true;
  }
  take(static_cast<std::size_t>(got));
  return true;
}

void OwnAddresses::take(std::size_t length) {
  auto left = static_cast<unsigned>(length);
  for (auto* header = reinterpret_cast<const nlmsghdr*>(buffer_.data()); NLMSG_OK(header, left);
       header = NLMSG_NEXT(header, left)) {
    const bool is_of_listing =
        listing_ && header->nlmsg_pid == port_ && header->nlmsg_seq == sequence_;
    if (is_of_listing && (header->nlmsg_flags & NLM_F_DUMP_INTR) != 0) lost_ = true;
    if (header->nlmsg_type == NLMSG_ERROR && is_of_listing) {
      int error = EIO;
      if (header->nlmsg_len >= NLMSG_LENGTH(sizeof(nlmsgerr)))
        error = -static_cast<const nlmsgerr*>(NLMSG_DATA(header))->error;
      fail(error, "the kernel refused to list the host's addresses");
    }
    if (header->nlmsg_type == NLMSG_DONE && is_of_listing) {
      listing_ = false;
      int error = 0;
      if (header->nlmsg_len >= NLMSG_LENGTH(sizeof(error)))
        std::memcpy(&error, NLMSG_DATA(header), sizeof(error));
      if (lost_ || error < 0) {
        request_listing();
        return;
      }
      // What the listing has not seen, and no event since, is gone.
      changed_ |=
          std::erase_if(places_, [&](const auto& one) { return one.second != sequence_; }) != 0;
      continue;
    }
    if (header->nlmsg_type != RTM_NEWADDR && header->nlmsg_type != RTM_DELADDR) continue;
    if (header->nlmsg_len < NLMSG_LENGTH(sizeof(ifaddrmsg))) continue;
    const auto& info = *static_cast<const ifaddrmsg*>(NLMSG_DATA(header));
    const auto address = local_address(*header, info);
    if (!address) continue;
    const Place place{*address, info.ifa_index, info.ifa_prefixlen};
    if (header->nlmsg_type == RTM_NEWADDR)
      changed_ |= !std::exchange(places_[place], sequence_);
    else
      changed_ |= places_.erase(place) != 0;
  }
}

void OwnAddresses::publish() {
  std::vector<sdk::Address> all;
  all.reserve(places_.size());
  for (const auto& [place, listing] : places_) all.push_back(place.address);
  auto set = std::make_shared<const AddressSet>(std::move(all));
  if (*set != *published_.load().value) published_.publish(std::move(set));
}

}  // namespace sluice::dns
