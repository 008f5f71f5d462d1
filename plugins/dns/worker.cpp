#include "dns/worker.hpp"

#include <netinet/in.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>
#include <string>
#include <system_error>
#include <utility>

#ifndef SO_RCVMARK
#define SO_RCVMARK 75  // Linux 5.19
#endif

namespace sluice::dns {
namespace {

constexpr std::size_t kReadAtOnce = 16;      // datagrams of a socket: what all others wait for
constexpr std::size_t kBatch = 64;           // answers
constexpr std::size_t kLargestQuery = 2048;  // a datagram that is longer asks nothing sensible
constexpr int kAcceptsATurn = 64;
constexpr std::size_t kLargestAnswer = 65'535;
constexpr std::uint32_t kLoopback = 1;
constexpr std::uint64_t kCountersEvery = 100'000'000;  // ns
constexpr int kNice = -10;
constexpr std::uint64_t kSlice = 100'000;  // ns; the shortest there is

std::uint64_t monotonic() {
  timespec time{};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 +
         static_cast<std::uint64_t>(time.tv_nsec);
}

// What it does takes microseconds, and the filters bound how much of it there is. A flooder that
// runs on the same processor would otherwise keep it from reading for a tick at a time (measured: 4
// ms), and all others' questions wait. Where this is not allowed it goes on as it is.
void take_precedence() {
  (void)::setpriority(PRIO_PROCESS, 0, kNice);  // on Linux of this thread alone
  struct {                                      // struct sched_attr of Linux 3.14
    std::uint32_t size, policy;
    std::uint64_t flags;
    std::int32_t nice;
    std::uint32_t priority;
    std::uint64_t runtime, deadline, period;
  } attributes{};
  if (::syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return;
  attributes.runtime = kSlice;  // of an ordinary task: Linux 6.12, ignored before
  (void)::syscall(SYS_sched_setattr, 0, &attributes, 0);
}

Fd checked(int fd, const char* call) {
  if (fd < 0) throw std::system_error(errno, std::generic_category(), call);
  return Fd(fd);
}

// Datagrams to be answered, of one family: collected, then sent by one call.
class Outbox {
 public:
  Outbox(int fd, bool v6) : fd_(fd), v6_(v6) {}

  [[nodiscard]] bool full() const { return count_ == kBatch; }
  [[nodiscard]] Room room() { return slots_[count_].bytes; }
  void add(const Client& client, std::size_t size) {
    auto& slot = slots_[count_];
    slot.peer = client.peer;
    slot.part = {slot.bytes.data(), size};
    auto& header = headers_[count_].msg_hdr;
    header = {};
    header.msg_name = &slot.peer.any;
    header.msg_namelen = slot.peer.length;
    header.msg_iov = &slot.part;
    header.msg_iovlen = 1;
    header.msg_control = slot.control.data();
    // Back by the link it came from, whatever address the asker wrote: no guest can have answers
    // sent to its neighbour. What came over lo is from a socket of this host, and routed.
    const std::uint32_t link = client.ifindex == kLoopback ? 0 : client.ifindex;
    if (v6_) {
      in6_pktinfo from{};
      std::memcpy(&from.ipi6_addr, client.asked, 16);
      from.ipi6_ifindex = link;
      header.msg_controllen = write(slot, IPPROTO_IPV6, IPV6_PKTINFO, &from, sizeof from);
    } else {
      in_pktinfo from{};
      std::memcpy(&from.ipi_spec_dst, client.asked, 4);
      from.ipi_ifindex = static_cast<int>(link);
      header.msg_controllen = write(slot, IPPROTO_IP, IP_PKTINFO, &from, sizeof from);
    }
    ++count_;
  }
  // How many could not be sent.
  std::size_t flush() {
    std::size_t lost = 0;
    for (std::size_t sent = 0; sent < count_;) {
      const int result =
          ::sendmmsg(fd_, headers_.data() + sent, static_cast<unsigned>(count_ - sent),
                     MSG_DONTWAIT | MSG_NOSIGNAL);
      if (result > 0) {
        sent += static_cast<std::size_t>(result);
      } else if (errno != EINTR) {
        // The first of the rest is at fault (no route back, a full buffer): the others have their
        // try.
        ++sent;
        ++lost;
      }
    }
    count_ = 0;
    return lost;
  }

 private:
  struct Slot {
    Endpoint peer;
    iovec part{};
    alignas(cmsghdr) std::array<std::uint8_t, 64> control{};
    std::array<std::uint8_t, kUdpPayload> bytes;
  };
  static std::size_t write(Slot& slot, int level, int kind, const void* data, std::size_t size) {
    auto* const message = reinterpret_cast<cmsghdr*>(slot.control.data());
    message->cmsg_level = level;
    message->cmsg_type = kind;
    message->cmsg_len = CMSG_LEN(size);
    std::memcpy(CMSG_DATA(message), data, size);
    return CMSG_SPACE(size);
  }

  int fd_;
  bool v6_;
  std::size_t count_ = 0;
  std::array<mmsghdr, kBatch> headers_;
  std::array<Slot, kBatch> slots_;
};

// A batch of datagrams as they come in.
struct Inbox {
  struct Slot {
    Endpoint peer;
    iovec part{};
    alignas(cmsghdr) std::array<std::uint8_t, 192> control;
    std::array<std::uint8_t, kLargestQuery> bytes;
  };
  std::array<mmsghdr, kReadAtOnce> headers;
  std::array<Slot, kReadAtOnce> slots;

  int receive(int fd) {
    for (std::size_t i = 0; i < kReadAtOnce; ++i) {
      auto& slot = slots[i];
      slot.part = {slot.bytes.data(), slot.bytes.size()};
      auto& header = headers[i].msg_hdr;
      header = {};
      header.msg_name = &slot.peer.any;
      header.msg_namelen = sizeof slot.peer.v6;
      header.msg_iov = &slot.part;
      header.msg_iovlen = 1;
      header.msg_control = slot.control.data();
      header.msg_controllen = slot.control.size();
    }
    return ::recvmmsg(fd, headers.data(), kReadAtOnce, MSG_DONTWAIT, nullptr);
  }
};

}  // namespace

class Worker::Loop final : private Outlet, private StreamOwner {
 public:
  Loop(Worker& worker, unsigned index, const Shared& shared, const SettingsPtr& settings,
       const Listeners& listeners)
      : worker_(worker),
        host_(shared.host),
        listeners_(listeners),
        epoll_(checked(::epoll_create1(EPOLL_CLOEXEC), "epoll_create1")),
        now_(monotonic()),
        timers_(now_),
        engine_({.worker = index,
                 .host = shared.host,
                 .outlet = *this,
                 .cache = shared.cache,
                 .pushes = shared.pushes,
                 .own_addresses = shared.own_addresses,
                 .epoll = epoll_.get(),
                 .timers = timers_},
                settings, now_),
        streams_(settings->stream, epoll_.get(), timers_, *this),
        outboxes_{Outbox(listeners.udp4.empty() ? -1 : listeners.udp4.front(), false),
                  Outbox(listeners.udp6.empty() ? -1 : listeners.udp6.front(), true)},
        answer_(kLargestAnswer) {
    watch(worker.bell_.get(), Source::mailbox, 0);
    for (std::size_t i = 0; i < listeners.udp4.size(); ++i) prepare(i, false);
    for (std::size_t i = 0; i < listeners.udp6.size(); ++i) prepare(i, true);
    if (listeners.tcp4 >= 0) watch(listeners.tcp4, Source::tcp_listener, 0);
    if (listeners.tcp6 >= 0) watch(listeners.tcp6, Source::tcp_listener, 1);
  }

  void run() {
    try {
      while (!stopped_) turn();
    } catch (const std::exception& error) {
      host_.give_up(std::string("a worker cannot go on: ") + error.what());
    }
  }

 private:
  void watch(int fd, Source source, std::uint32_t index) {
    epoll_event event{.events = EPOLLIN, .data = {.u64 = event_tag(source, index)}};
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) < 0)
      throw std::system_error(errno, std::generic_category(), "epoll_ctl");
  }
  void prepare(std::size_t number, bool v6) {
    const int fd = (v6 ? listeners_.udp6 : listeners_.udp4)[number];
    const int on = 1, room = 1 << 20;
    const auto set = [&](int level, int option, const char* what) {
      if (::setsockopt(fd, level, option, &on, sizeof on) < 0)
        throw std::system_error(errno, std::generic_category(), what);
    };
    set(SOL_SOCKET, SO_RCVMARK, "SO_RCVMARK (needs Linux 5.19)");
    if (v6)
      set(IPPROTO_IPV6, IPV6_RECVPKTINFO, "IPV6_RECVPKTINFO");
    else
      set(IPPROTO_IP, IP_PKTINFO, "IP_PKTINFO");
    // Room for what a burst brings while a turn lasts; without the privilege, what is allowed.
    if (::setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room) < 0)
      (void)::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    watch(fd, Source::udp_listener, static_cast<std::uint32_t>(number << 1 | (v6 ? 1 : 0)));
  }

  void turn() {
    std::array<epoll_event, 128> events;
    const int count =
        ::epoll_wait(epoll_.get(), events.data(), events.size(), timers_.wait_ms(now_));
    if (count < 0 && errno != EINTR)
      throw std::system_error(errno, std::generic_category(), "epoll_wait");
    now_ = monotonic();
    engine_.set_time(now_, host_.boot_now());
    // First what the strand said: a question that came behind it is judged by it.
    if (worker_.rung_.load(std::memory_order_acquire)) open_letters();
    for (int i = 0; i < count && !stopped_; ++i) take(events[i]);
    timers_.run(now_, [&](const TimerWheel::Entry& entry) {
      if (entry.kind == static_cast<std::uint32_t>(TimerKind::client_stream))
        streams_.on_timer(entry, now_);
      else
        engine_.on_timer(entry);
    });
    finish();
  }

  void finish() {
    unsent_ += outboxes_[0].flush() + outboxes_[1].flush();
    engine_.flush();
    if (now_ - counted_at_ >= kCountersEvery) count_up();
  }

  void count_up() {
    counted_at_ = now_;
    const std::lock_guard lock(worker_.counters_mutex_);
    worker_.counters_ = {.queries = engine_.queries(),
                         .upstream = engine_.upstream().counters(),
                         .unknown_askers = unknown_,
                         .unsent = unsent_};
  }

  void take(const epoll_event& event) {
    const auto source = static_cast<Source>(event.data.u64 >> 56);
    const auto index = static_cast<std::uint32_t>(event.data.u64);
    const auto generation = static_cast<std::uint32_t>(event.data.u64 >> 32) & 0xffffff;
    switch (source) {
      case Source::mailbox:
        return open_letters();
      case Source::udp_listener:
        return receive(index >> 1, (index & 1) != 0);
      case Source::tcp_listener:
        return accept(index == 1 ? listeners_.tcp6 : listeners_.tcp4);
      case Source::client_stream:
        return streams_.on_event(index, generation, event.events, now_);
      case Source::upstream_udp:
        return engine_.upstream().on_udp(index, event.events, now_);
      case Source::upstream_tcp:
        return engine_.upstream().on_tcp(index, event.events, now_);
    }
  }

  void open_letters() {
    std::uint64_t rings = 0;
    (void)!::read(worker_.bell_.get(), &rings, sizeof rings);
    std::vector<Letter> letters;
    {
      const std::lock_guard lock(worker_.mutex_);
      letters.swap(worker_.letters_);
      worker_.rung_.store(false, std::memory_order_relaxed);
    }
    for (auto& letter : letters) {
      if (auto* const state = std::get_if<TenantState>(&letter)) {
        engine_.set_tenant(*state);
        streams_.take_places(state->attachment, state->budget);
      } else if (const auto* const removed = std::get_if<Removed>(&letter)) {
        streams_.drop_attachment(removed->attachment);
        engine_.remove_tenant(removed->attachment);
      } else if (const auto* const decided = std::get_if<Decided>(&letter)) {
        engine_.decided(decided->query_id, decided->decision);
      } else if (auto* const settings = std::get_if<SettingsPtr>(&letter)) {
        streams_.reconfigure((*settings)->stream);
        engine_.reconfigure(std::move(*settings));
      } else {
        stopped_ = true;
      }
    }
  }

  // ---- UDP ----

  // What is left is there in the next turn: epoll tells of each socket that has something, in turn.
  void receive(std::uint32_t number, bool v6) {
    const int count = inbox_.receive((v6 ? listeners_.udp6 : listeners_.udp4)[number]);
    for (int i = 0; i < count; ++i) take_datagram(static_cast<std::size_t>(i), v6);
    // The answers leave before another socket is read.
    unsent_ += outboxes_[v6 ? 1 : 0].flush();
  }

  void take_datagram(std::size_t index, bool v6) {
    auto& header = inbox_.headers[index];
    auto& slot = inbox_.slots[index];
    if ((header.msg_hdr.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) return;
    Client client;
    client.peer = slot.peer;
    client.peer.length = header.msg_hdr.msg_namelen;
    std::uint32_t mark = 0;
    bool marked = false, addressed = false;
    for (auto* control = CMSG_FIRSTHDR(&header.msg_hdr); control != nullptr;
         control = CMSG_NXTHDR(&header.msg_hdr, control)) {
      if (control->cmsg_level == SOL_SOCKET && control->cmsg_type == SO_MARK) {
        std::memcpy(&mark, CMSG_DATA(control), sizeof mark);
        marked = true;
      } else if (v6 && control->cmsg_level == IPPROTO_IPV6 && control->cmsg_type == IPV6_PKTINFO) {
        in6_pktinfo info;
        std::memcpy(&info, CMSG_DATA(control), sizeof info);
        std::memcpy(client.asked, &info.ipi6_addr, 16);
        client.ifindex = info.ipi6_ifindex;
        addressed = true;
      } else if (!v6 && control->cmsg_level == IPPROTO_IP && control->cmsg_type == IP_PKTINFO) {
        in_pktinfo info;
        std::memcpy(&info, CMSG_DATA(control), sizeof info);
        std::memcpy(client.asked, &info.ipi_addr, 4);
        client.ifindex = static_cast<std::uint32_t>(info.ipi_ifindex);
        addressed = true;
      }
    }
    if (!marked || !addressed) {
      ++unknown_;
      return;
    }
    const auto attachment = host_.asker_of_mark(mark);
    if (attachment == 0) {
      ++unknown_;
      return;
    }
    engine_.ask(attachment, client, Bytes(slot.bytes).first(header.msg_len));
  }

  // ---- TCP ----

  void accept(int listener) {
    for (int i = 0; i < kAcceptsATurn; ++i) {
      Fd fd(::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!fd) {
        if (errno == EINTR || errno == ECONNABORTED) continue;
        return;
      }
      const auto attachment = host_.asker_of_stream(fd.get());
      if (attachment == 0) {
        ++unknown_;
        continue;
      }
      const auto* const tenant = engine_.tenant(attachment);
      if (tenant == nullptr) {
        // Its questions are held, like those by UDP.
        streams_.add_early(std::move(fd), attachment, now_);
        continue;
      }
      StreamPlace place{.budget = tenant->state.budget, .place = {}};
      if (place.budget) {
        place.place = place.budget->connect();
        if (!place.place) continue;
      }
      streams_.add(std::move(fd), attachment, std::move(place), now_);
    }
  }

  void stream_query(StreamRef stream, std::uint64_t attachment, Bytes message) override {
    Client client;
    client.by_stream = true;
    client.stream = stream;
    engine_.ask(attachment, client, message);
  }

  // ---- answers ----

  Room room(const Client& client) override {
    if (client.by_stream) return answer_;
    auto& outbox = outboxes_[client.peer.family() == AF_INET6 ? 1 : 0];
    if (outbox.full()) unsent_ += outbox.flush();
    return outbox.room();
  }
  void send(const Client& client, std::size_t size) override {
    if (client.by_stream)
      streams_.answered(client.stream, Bytes(answer_).first(size), now_);
    else
      outboxes_[client.peer.family() == AF_INET6 ? 1 : 0].add(client, size);
  }
  void drop(const Client& client) override {
    if (client.by_stream) streams_.answered(client.stream, {}, now_);
  }

  Worker& worker_;
  HostSide& host_;
  Listeners listeners_;
  Fd epoll_;
  std::uint64_t now_;
  std::uint64_t counted_at_ = 0;
  TimerWheel timers_;
  Engine engine_;
  Streams streams_;
  std::array<Outbox, 2> outboxes_;
  Inbox inbox_;
  std::vector<std::uint8_t> answer_;
  std::uint64_t unknown_ = 0, unsent_ = 0;
  bool stopped_ = false;
};

Worker::Worker(unsigned index, const Shared& shared, SettingsPtr settings,
               const Listeners& listeners)
    : bell_(checked(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), "eventfd")),
      loop_(std::make_unique<Loop>(*this, index, shared, std::move(settings), listeners)) {}

Worker::~Worker() {
  stop();
}

void Worker::start() {
  thread_ = std::thread([this] {
    (void)::pthread_setname_np(::pthread_self(), "dns");
    take_precedence();
    loop_->run();
  });
}

void Worker::stop() {
  if (!thread_.joinable()) return;
  post(Stop{});
  thread_.join();
}

void Worker::post(Letter letter) {
  {
    const std::lock_guard lock(mutex_);
    letters_.push_back(std::move(letter));
    rung_.store(true, std::memory_order_release);
  }
  const std::uint64_t one = 1;
  (void)!::write(bell_.get(), &one, sizeof one);
}

void Worker::set_tenant(TenantState state) {
  post(std::move(state));
}
void Worker::remove_tenant(std::uint64_t attachment) {
  post(Removed{attachment});
}
void Worker::decided(std::uint64_t query_id, DecisionPtr decision) {
  post(Decided{query_id, std::move(decision)});
}
void Worker::reconfigure(SettingsPtr settings) {
  post(std::move(settings));
}

Worker::Counters Worker::counters() const {
  const std::lock_guard lock(counters_mutex_);
  return counters_;
}

}  // namespace sluice::dns
