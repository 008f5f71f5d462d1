#include "dns/upstream.hpp"

#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "dns/message.hpp"
#include "dns/upstream_query.hpp"

namespace sluice::dns {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000, kMillisecond = 1'000'000;
constexpr std::uint64_t kLeastPatience = 400 * kMillisecond;
constexpr std::uint64_t kStreamIdle = 10 * kSecond;
constexpr std::uint32_t kUsesOfSocket = 512;
constexpr std::uint32_t kForeignOfSocket = 256;  // then somebody is guessing at this port
constexpr std::uint32_t kFailuresUntilQuiet = 3;
constexpr std::size_t kDatagram = 4096;  // we say 1232; a server that sends more is cut
constexpr std::size_t kStreamOut = 256 * 1024;
constexpr int kBatchesAWake = 4;  // a flooding server gets no more of a turn than this

constexpr std::size_t kHeader = kHeaderSize;

std::uint8_t lower(std::uint8_t c) {
  return c >= 'A' && c <= 'Z' ? static_cast<std::uint8_t>(c + 32) : c;
}
bool is_letter(std::uint8_t c) {
  return lower(c) >= 'a' && lower(c) <= 'z';
}

// Letters of the name get a random case: bits that a forger would have to guess.
void scramble(std::span<std::uint8_t> question, Random& random) {
  std::uint64_t bits = 0;
  unsigned left = 0;
  std::size_t at = 0;
  while (at < question.size() && question[at] != 0) {
    const std::size_t end = std::min(at + 1 + question[at], question.size());
    for (++at; at < end; ++at) {
      if (!is_letter(question[at])) continue;
      if (left == 0) {
        bits = random.next64();
        left = 64;
      }
      question[at] =
          static_cast<std::uint8_t>((question[at] & ~0x20) | ((bits & 1) != 0 ? 0x20 : 0));
      bits >>= 1;
      --left;
    }
  }
}

// The server could not, or would not: another may.
bool is_failure(std::uint8_t rcode) {
  return rcode != static_cast<std::uint8_t>(Rcode::noerror) &&
         rcode != static_cast<std::uint8_t>(Rcode::nxdomain);
}

void watch(int epoll, int operation, int fd, std::uint32_t events, std::uint64_t tag) {
  epoll_event event{.events = events, .data = {.u64 = tag}};
  if (::epoll_ctl(epoll, operation, fd, &event) < 0)
    throw std::system_error(errno, std::generic_category(), "epoll_ctl");
}

}  // namespace

Upstream::Upstream(UpstreamSettings settings, int epoll, TimerWheel& timers, UpstreamOwner& owner,
                   std::uint64_t now)
    : epoll_(epoll), timers_(timers), owner_(owner), receive_(kBatch * kDatagram) {
  reconfigure(std::move(settings), now);
}

Upstream::~Upstream() = default;

void Upstream::reconfigure(UpstreamSettings settings, std::uint64_t now) {
  settings_ = std::move(settings);
  for (auto& server : servers_) server.enabled = false;
  for (const auto& endpoint : settings_.servers) {
    const auto known = std::ranges::find(servers_, endpoint, &Server::endpoint);
    if (known != servers_.end()) {
      known->enabled = true;
      continue;
    }
    servers_.emplace_back();
    servers_.back().endpoint = endpoint;
    servers_.back().text = endpoint.text();
  }
  for (std::uint32_t i = 0; i < exchanges_.size(); ++i)
    if (at(i).live && !servers_[at(i).server].enabled) start_try(i, now);
  for (auto& server : servers_)
    if (!server.enabled)
      for (auto& place : server.sockets)
        if (place != kNone) retire(std::exchange(place, kNone));
}

std::size_t Upstream::enabled_servers() const {
  return static_cast<std::size_t>(std::ranges::count_if(servers_, &Server::enabled));
}

// ---- one question -------------------------------------------------------------------------------

bool Upstream::ask(std::uint32_t token, std::span<const std::uint8_t> query,
                   std::size_t question_length, std::uint64_t now, std::uint64_t last) {
  if (query.size() > kLargestQuery || query.size() < kHeader + question_length ||
      question_length < 5)
    return false;
  if (used_ >= settings_.in_flight || enabled_servers() == 0) return false;
  std::uint32_t index = free_;
  if (index != kNone) {
    free_ = at(index).next_free;
  } else {
    index = static_cast<std::uint32_t>(exchanges_.size());
    exchanges_.emplace_back();
  }
  ++used_;
  ++counters_.asked;
  auto& exchange = at(index);
  exchange.token = token;
  exchange.socket = kNone;
  exchange.server = kNone;
  exchange.length = static_cast<std::uint16_t>(query.size());
  exchange.question_length = static_cast<std::uint16_t>(question_length);
  exchange.tries = 0;
  exchange.live = true;
  exchange.by_tcp = exchange.queued = exchange.on_stream = false;
  exchange.generation = ++generation_;
  exchange.cut_short = last < now + settings_.deadline;
  exchange.ends_at = std::min(now + settings_.deadline, last);
  std::memcpy(exchange.query.data(), query.data(), query.size());
  start_try(index, now);
  return true;
}

std::uint32_t Upstream::choose_server(std::uint64_t now, std::uint32_t tries, std::uint32_t last) {
  const auto count = static_cast<std::uint32_t>(servers_.size());
  const std::uint32_t from = tries == 0 || last == kNone ? 0 : last + 1;
  std::uint32_t quietest = kNone;
  for (std::uint32_t i = 0; i < count; ++i) {
    const std::uint32_t candidate = (from + i) % count;
    const auto& server = servers_[candidate];
    if (!server.enabled) continue;
    if (server.quiet_until <= now) return candidate;
    if (quietest == kNone || server.quiet_until < servers_[quietest].quiet_until)
      quietest = candidate;
  }
  return quietest;
}

std::uint64_t Upstream::patience(const Server& server, std::uint32_t tries) const {
  std::uint64_t first = settings_.first_try;
  if (server.smoothed != 0)
    first = std::min(first, std::max(kLeastPatience, server.smoothed + 4 * server.variance));
  else if (servers_.size() > 1)
    first = std::min(first, kLeastPatience);
  return first << std::min(tries, 4u);
}

void Upstream::set_timer(std::uint32_t index, std::uint64_t due) {
  timers_.add({.due = due,
               .kind = static_cast<std::uint32_t>(TimerKind::exchange),
               .index = index,
               .generation = at(index).generation << 8 | (at(index).tries & 0xff)});
}

// The next try: by UDP with the next flush, or by TCP at once.
void Upstream::start_try(std::uint32_t index, std::uint64_t now) {
  auto& exchange = at(index);
  const std::uint32_t before = exchange.server;
  const std::uint32_t server = choose_server(now, exchange.tries, before);
  if (server == kNone) return fail(index, UpstreamFailure::refused);
  if (before != kNone && before != server) ++counters_.failed_over;
  // The same question to the same server goes out unchanged: then an answer to either counts.
  if (before != server) leave_socket(exchange);
  exchange.server = server;
  ++exchange.tries;
  exchange.sent_at = now;
  set_timer(index,
            std::min(exchange.ends_at, now + patience(servers_[server], exchange.tries - 1u)));
  if (exchange.by_tcp) {
    (void)send_tcp(index, now);
  } else if (!exchange.queued) {
    exchange.queued = true;
    queue_.push_back(index);
  }
}

void Upstream::leave_socket(Exchange& exchange) {
  if (exchange.on_stream) {
    exchange.on_stream = false;
    by_id_.erase(tcp_key(exchange.server, exchange.id));
    --servers_[exchange.server].stream.in_flight;
  }
  if (exchange.socket == kNone) return;
  by_id_.erase(udp_key(exchange.socket, exchange.id));
  auto& socket = sockets_[exchange.socket];
  --socket.in_flight;
  if (socket.retired && socket.in_flight == 0) close_socket(exchange.socket);
  exchange.socket = kNone;
}

void Upstream::release(std::uint32_t index) {
  auto& exchange = at(index);
  leave_socket(exchange);
  exchange.live = false;
  exchange.generation = 0;
  if (exchange.queued) return;  // the queue still names it; flush() frees it
  exchange.next_free = free_;
  free_ = index;
  --used_;
}

void Upstream::fail(std::uint32_t index, UpstreamFailure why) {
  if (why == UpstreamFailure::timed_out || why == UpstreamFailure::cut_short)
    ++counters_.timed_out;
  else
    ++counters_.failed;
  const auto token = at(index).token;
  release(index);
  owner_.upstream_failed(token, why);
}

void Upstream::on_timer(const TimerWheel::Entry& entry, std::uint64_t now) {
  if (entry.kind == static_cast<std::uint32_t>(TimerKind::upstream_stream)) {
    auto& stream = servers_[entry.index].stream;
    if (stream.generation != entry.generation || !stream.fd) return;
    if (stream.in_flight == 0 && now - stream.last_used >= kStreamIdle)
      return drop_stream(entry.index, now);
    timers_.add({.due = now + kStreamIdle,
                 .kind = entry.kind,
                 .index = entry.index,
                 .generation = entry.generation});
    return;
  }
  if (entry.index >= exchanges_.size()) return;
  auto& exchange = at(entry.index);
  if (!exchange.live || entry.generation != (exchange.generation << 8 | (exchange.tries & 0xff)))
    return;
  if (exchange.cut_short && now >= exchange.ends_at)
    return fail(entry.index, UpstreamFailure::cut_short);
  const std::uint32_t index = exchange.server;
  auto& server = servers_[index];
  // One that answers others is alive; this name is slow.
  if (server.last_answer < exchange.sent_at) did_not_work(server, now);
  // A connection that was silent all the while is not waited for: one that a firewall has forgotten
  // would swallow every question for as long as there are any.
  const bool silent = exchange.on_stream && server.stream.last_heard <= exchange.sent_at;
  if (silent) {
    leave_socket(exchange);            // its own next step is below
    server.stream.connecting = false;  // the server was judged above, once is enough
    drop_stream(index, now);
  }
  if (now >= at(entry.index).ends_at) return fail(entry.index, UpstreamFailure::timed_out);
  start_try(entry.index, now);
}

void Upstream::worked(Server& server, std::uint64_t round_trip) {
  server.failures = 0;
  server.quiet_until = 0;
  if (server.smoothed == 0) {
    server.smoothed = std::max<std::uint64_t>(round_trip, 1);
    server.variance = round_trip / 2;
    return;
  }
  const std::uint64_t error =
      round_trip > server.smoothed ? round_trip - server.smoothed : server.smoothed - round_trip;
  server.variance = server.variance - server.variance / 4 + error / 4;  // RFC 6298
  server.smoothed =
      std::max<std::uint64_t>(server.smoothed - server.smoothed / 8 + round_trip / 8, 1);
}

void Upstream::did_not_work(Server& server, std::uint64_t now) {
  ++server.failures;
  if (server.failures < kFailuresUntilQuiet) return;
  const auto doublings = std::min(server.failures - kFailuresUntilQuiet, 5u);
  server.quiet_until = now + (kSecond << doublings);
}

// ---- UDP ----------------------------------------------------------------------------------------

std::uint32_t Upstream::socket_of(std::uint32_t server_index, std::uint64_t now) {
  auto& server = servers_[server_index];
  auto& place = server.sockets[random_.below(static_cast<std::uint32_t>(server.sockets.size()))];
  if (place != kNone &&
      (sockets_[place].uses >= kUsesOfSocket || sockets_[place].foreign >= kForeignOfSocket)) {
    retire(place);
    place = kNone;
  }
  if (place != kNone) return place;

  Fd fd(::socket(server.endpoint.family(), SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd || ::connect(fd.get(), &server.endpoint.any, server.endpoint.length) < 0) {
    did_not_work(server, now);
    return kNone;
  }
  // Room for a burst of answers; what the limits refuse is lost like any datagram.
  const int room = 1 << 20;
  (void)::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
  std::uint32_t index = 0;
  while (index < sockets_.size() && sockets_[index].fd) ++index;
  if (index == sockets_.size()) sockets_.emplace_back();
  watch(epoll_, EPOLL_CTL_ADD, fd.get(), EPOLLIN, event_tag(Source::upstream_udp, index));
  sockets_[index] = UdpSocket{.fd = std::move(fd), .server = server_index};
  place = index;
  return index;
}

void Upstream::retire(std::uint32_t index) {
  sockets_[index].retired = true;
  if (sockets_[index].in_flight == 0) close_socket(index);
}

void Upstream::close_socket(std::uint32_t index) {
  sockets_[index].fd.reset();  // epoll forgets it with its last descriptor
}

void Upstream::flush(std::uint64_t now) {
  if (queue_.empty()) return;
  std::array<std::uint32_t, kBatch> batch;
  for (std::uint32_t server = 0; server < servers_.size(); ++server) {
    std::size_t count = 0;
    for (const auto index : queue_) {
      if (!at(index).live || at(index).server != server) continue;
      batch[count++] = index;
      if (count == kBatch) {
        send_batch(server, batch, now);
        count = 0;
      }
    }
    if (count != 0) send_batch(server, std::span(batch).first(count), now);
  }
  for (const auto index : queue_) {
    auto& exchange = at(index);
    exchange.queued = false;
    if (exchange.live) continue;
    exchange.next_free = free_;
    free_ = index;
    --used_;
  }
  queue_.clear();
}

// All of a batch leave by one socket: its port is as unpredictable for each, and one call sends
// all.
void Upstream::send_batch(std::uint32_t server, std::span<const std::uint32_t> batch,
                          std::uint64_t now) {
  const std::uint32_t fresh = socket_of(server, now);
  std::array<mmsghdr, kBatch> headers;
  std::array<iovec, kBatch> parts;
  std::size_t count = 0;
  for (const auto index : batch) {
    auto& exchange = at(index);
    if (exchange.by_tcp) continue;
    if (exchange.socket != kNone) {  // again, unchanged
      ++counters_.sent_udp;
      (void)::send(sockets_[exchange.socket].fd.get(), exchange.query.data(), exchange.length,
                   MSG_NOSIGNAL);
      continue;
    }
    if (fresh == kNone) continue;  // its timer tries again
    do {
      exchange.id = random_.next16();
    } while (by_id_.contains(udp_key(fresh, exchange.id)));
    store16(exchange.query.data(), exchange.id);
    scramble(std::span(exchange.query).subspan(kHeader, exchange.question_length - 4u), random_);
    exchange.socket = fresh;
    by_id_.put(udp_key(fresh, exchange.id), index);
    ++sockets_[fresh].uses;
    ++sockets_[fresh].in_flight;
    parts[count] = {exchange.query.data(), exchange.length};
    headers[count] = {};
    headers[count].msg_hdr.msg_iov = &parts[count];
    headers[count].msg_hdr.msg_iovlen = 1;
    ++count;
  }
  for (std::size_t sent = 0; sent < count;) {
    const int result = ::sendmmsg(sockets_[fresh].fd.get(), headers.data() + sent,
                                  static_cast<unsigned>(count - sent), MSG_NOSIGNAL);
    if (result < 0) {
      if (errno == EINTR) continue;
      // A pending ICMP error is reported once and then the call works; anything else is a lost
      // datagram, which timers know how to handle.
      if (errno == ECONNREFUSED) {
        did_not_work(servers_[server], now);
        continue;
      }
      break;
    }
    sent += static_cast<std::size_t>(result);
    counters_.sent_udp += static_cast<std::uint64_t>(result);
  }
}

void Upstream::on_udp(std::uint32_t index, std::uint32_t /*events*/, std::uint64_t now) {
  if (index >= sockets_.size()) return;
  std::array<mmsghdr, kBatch> headers;
  std::array<iovec, kBatch> parts;
  for (int round = 0; round < kBatchesAWake && sockets_[index].fd; ++round) {
    for (std::size_t i = 0; i < kBatch; ++i) {
      parts[i] = {receive_.data() + i * kDatagram, kDatagram};
      headers[i] = {};
      headers[i].msg_hdr.msg_iov = &parts[i];
      headers[i].msg_hdr.msg_iovlen = 1;
    }
    const int got =
        ::recvmmsg(sockets_[index].fd.get(), headers.data(), kBatch, MSG_DONTWAIT, nullptr);
    if (got < 0) {
      if (errno == EINTR) continue;
      if (errno != ECONNREFUSED) return;
      // Nobody listens there: what waits for this server goes to the next at once.
      const auto server = sockets_[index].server;
      did_not_work(servers_[server], now);
      if (enabled_servers() < 2) return;
      for (std::uint32_t i = 0; i < exchanges_.size(); ++i)
        if (at(i).live && at(i).socket == index && at(i).tries < enabled_servers())
          start_try(i, now);
      return;
    }
    const auto socket = &sockets_[index];
    const int fd = socket->fd.get();
    for (int i = 0; i < got; ++i) {
      if ((headers[i].msg_hdr.msg_flags & MSG_TRUNC) != 0) {
        ++counters_.foreign;
        continue;
      }
      received(index,
               {receive_.data() + static_cast<std::size_t>(i) * kDatagram, headers[i].msg_len},
               now);
      if (!sockets_[index].fd || sockets_[index].fd.get() != fd) return;  // retired meanwhile
    }
    if (got < static_cast<int>(kBatch)) return;
  }
}

void Upstream::received(std::uint32_t socket, std::span<const std::uint8_t> message,
                        std::uint64_t now) {
  const auto foreign = [&] {
    ++counters_.foreign;
    ++sockets_[socket].foreign;
  };
  if (message.size() < kHeader) return foreign();
  const auto* found = by_id_.find(udp_key(socket, load16(message.data())));
  if (found == nullptr) return foreign();
  const std::uint32_t index = *found;
  auto& exchange = at(index);
  switch (match_response({exchange.query.data(), exchange.length}, message)) {
    case Mismatch::none:
      break;
    case Mismatch::refused_whole:
      return answered(index, message, now);
    case Mismatch::question:
      // A server that does not keep the case, or a forger who has guessed the id: TCP tells.
      foreign();
      return ask_by_tcp(index, now);
    default:
      return foreign();
  }
  worked(servers_[exchange.server], exchange.tries == 1 ? now - exchange.sent_at : kMillisecond);
  servers_[exchange.server].last_answer = now;
  if (Header(message).truncated()) {
    ++counters_.truncated;
    return ask_by_tcp(index, now);
  }
  answered(index, message, now);
}

void Upstream::answered(std::uint32_t index, std::span<const std::uint8_t> message,
                        std::uint64_t now) {
  auto& exchange = at(index);
  // Another server may know better, once each.
  if (is_failure(Header(message).rcode()) && exchange.tries < enabled_servers()) {
    const auto before = exchange.server;
    const auto next = choose_server(now, exchange.tries, before);
    if (next != kNone && next != before) {
      start_try(index, now);
      return;
    }
  }
  ++counters_.answered;
  const auto token = exchange.token;
  const std::string_view server = servers_[exchange.server].text;
  release(index);
  owner_.upstream_answered(token, message, server);
}

// ---- TCP ----------------------------------------------------------------------------------------

void Upstream::ask_by_tcp(std::uint32_t index, std::uint64_t now) {
  auto& exchange = at(index);
  leave_socket(exchange);
  exchange.by_tcp = true;
  // Plain letters: there is nobody to confuse, and servers that change the case can answer.
  for (std::size_t i = kHeader; i + 4 < kHeader + exchange.question_length; ++i)
    exchange.query[i] = lower(exchange.query[i]);
  exchange.tries = static_cast<std::uint16_t>(exchange.tries + 1);
  exchange.sent_at = now;
  set_timer(index, std::min(exchange.ends_at, now + settings_.first_try));
  (void)send_tcp(index, now);
}

bool Upstream::send_tcp(std::uint32_t index, std::uint64_t now) {
  auto& exchange = at(index);
  const auto server = exchange.server;
  auto& stream = servers_[server].stream;
  if (exchange.on_stream) return true;  // on its way already
  if (!stream.fd && !open_stream(server, now)) return false;
  if (stream.out.size() - stream.out_at > kStreamOut || stream.in_flight >= 0x8000) return false;
  do {
    exchange.id = random_.next16();
  } while (by_id_.contains(tcp_key(server, exchange.id)));
  store16(exchange.query.data(), exchange.id);
  by_id_.put(tcp_key(server, exchange.id), index);
  exchange.on_stream = true;
  ++stream.in_flight;
  ++counters_.sent_tcp;
  stream.last_used = now;
  std::array<std::uint8_t, 2> length;
  store16(length.data(), exchange.length);
  stream.out.insert(stream.out.end(), length.begin(), length.end());
  stream.out.insert(stream.out.end(), exchange.query.begin(),
                    exchange.query.begin() + exchange.length);
  if (!stream.connecting) write_stream(server, now);
  return true;
}

bool Upstream::open_stream(std::uint32_t index, std::uint64_t now) {
  auto& server = servers_[index];
  Fd fd(::socket(server.endpoint.family(), SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return false;
  const int on = 1;
  (void)::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  // Nobody waits for longer; else the kernel sends again for a quarter of an hour, closed or not.
  const auto most = static_cast<unsigned>(settings_.deadline / kMillisecond);
  (void)::setsockopt(fd.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, &most, sizeof most);
  if (::connect(fd.get(), &server.endpoint.any, server.endpoint.length) < 0 &&
      errno != EINPROGRESS) {
    did_not_work(server, now);
    return false;
  }
  server.stream.generation = ++generation_;
  watch(epoll_, EPOLL_CTL_ADD, fd.get(), EPOLLIN | EPOLLOUT,
        event_tag(Source::upstream_tcp, index));
  server.stream.fd = std::move(fd);
  server.stream.connecting = true;
  server.stream.wants_write = true;
  server.stream.out.clear();
  server.stream.out_at = 0;
  server.stream.in.clear();
  server.stream.last_used = now;
  server.stream.last_heard = 0;
  timers_.add({.due = now + kStreamIdle,
               .kind = static_cast<std::uint32_t>(TimerKind::upstream_stream),
               .index = index,
               .generation = server.stream.generation});
  return true;
}

void Upstream::watch_stream(std::uint32_t index, bool write) {
  auto& stream = servers_[index].stream;
  if (stream.wants_write == write) return;
  stream.wants_write = write;
  watch(epoll_, EPOLL_CTL_MOD, stream.fd.get(), EPOLLIN | (write ? EPOLLOUT : 0u),
        event_tag(Source::upstream_tcp, index));
}

void Upstream::write_stream(std::uint32_t index, std::uint64_t now) {
  auto& stream = servers_[index].stream;
  while (stream.out_at < stream.out.size()) {
    const ssize_t sent = ::send(stream.fd.get(), stream.out.data() + stream.out_at,
                                stream.out.size() - stream.out_at, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) return watch_stream(index, true);
    if (sent <= 0) return drop_stream(index, now);
    stream.out_at += static_cast<std::size_t>(sent);
  }
  stream.out.clear();
  stream.out_at = 0;
  watch_stream(index, false);
}

// What waited on it is asked again on a fresh connection, or of the next server, while time is
// left.
void Upstream::drop_stream(std::uint32_t index, std::uint64_t now) {
  auto& server = servers_[index];
  if (server.stream.connecting) did_not_work(server, now);
  server.stream.fd.reset();
  server.stream.connecting = false;
  server.stream.out.clear();
  server.stream.out_at = 0;
  server.stream.in.clear();
  server.stream.generation = 0;
  if (server.stream.in_flight == 0) return;
  for (std::uint32_t i = 0; i < exchanges_.size(); ++i) {
    auto& exchange = at(i);
    if (!exchange.live || !exchange.on_stream || exchange.server != index) continue;
    leave_socket(exchange);
    if (exchange.tries < 4) start_try(i, now);  // else its timer ends it
  }
}

void Upstream::on_tcp(std::uint32_t index, std::uint32_t events, std::uint64_t now) {
  if (index >= servers_.size()) return;
  auto* stream = &servers_[index].stream;
  if (!stream->fd) return;
  if (stream->connecting) {
    int error = 0;
    socklen_t length = sizeof error;
    if (::getsockopt(stream->fd.get(), SOL_SOCKET, SO_ERROR, &error, &length) < 0 || error != 0)
      return drop_stream(index, now);
    if ((events & EPOLLOUT) == 0) return;
    stream->connecting = false;
  }
  if ((events & EPOLLOUT) != 0) {
    write_stream(index, now);
    if (!stream->fd) return;
  }
  if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) == 0) return;
  constexpr std::size_t kRead = 64 * 1024;
  for (int round = 0; round < kBatchesAWake; ++round) {
    const std::size_t have = stream->in.size();
    stream->in.resize(have + kRead);
    const ssize_t got = ::recv(stream->fd.get(), stream->in.data() + have, kRead, MSG_DONTWAIT);
    const int error = errno;
    stream->in.resize(have + (got > 0 ? static_cast<std::size_t>(got) : 0));
    if (got < 0 && error == EINTR) continue;
    if (got < 0 && error == EAGAIN) return;
    if (got <= 0) return drop_stream(index, now);
    stream->last_heard = now;
    const auto generation = stream->generation;
    std::size_t used = 0;
    while (stream->in.size() - used >= 2) {
      const std::size_t length = load16(stream->in.data() + used);
      if (stream->in.size() - used - 2 < length) break;
      received_tcp(index, {stream->in.data() + used + 2, length}, now);
      stream = &servers_[index].stream;
      if (!stream->fd || stream->generation != generation) return;
      used += 2 + length;
    }
    stream->in.erase(stream->in.begin(), stream->in.begin() + static_cast<std::ptrdiff_t>(used));
    if (got < static_cast<ssize_t>(kRead)) return;
  }
}

void Upstream::received_tcp(std::uint32_t server, std::span<const std::uint8_t> message,
                            std::uint64_t now) {
  if (message.size() < kHeader) {
    ++counters_.foreign;
    return;
  }
  const auto* found = by_id_.find(tcp_key(server, load16(message.data())));
  if (found == nullptr) {
    ++counters_.foreign;
    return;
  }
  const std::uint32_t index = *found;
  auto& exchange = at(index);
  const auto mismatch = match_response({exchange.query.data(), exchange.length}, message);
  if (mismatch != Mismatch::none && mismatch != Mismatch::refused_whole) {
    ++counters_.foreign;
    return;
  }
  servers_[server].stream.last_used = now;
  servers_[server].last_answer = now;
  servers_[server].failures = 0;
  servers_[server].quiet_until = 0;
  if (Header(message).truncated()) return fail(index, UpstreamFailure::garbled);
  answered(index, message, now);
}

}  // namespace sluice::dns
