// One worker's way to the upstream servers: a question goes out with an unpredictable id, case and
// port, and one answer comes back, or a failure, within a deadline.
//
//   UDP   connected sockets on ports that the kernel picks, replaced after some hundreds of
//         queries. The kernel drops what does not come from the server; what comes with another id
//         or another question (case included) is counted and grants nothing. With the right id and
//         the wrong question, it is asked again by TCP, where nobody can guess.
//   TCP   for truncated answers: one persistent pipelined connection per server, replaced when a
//         question on it had no answer in time and nothing else came since either.
//   Failover  in the configured order, past servers that did not answer lately; each of those is
//         tried again after a pause that grows.
//
// Single-threaded; sockets report to the worker's epoll instance.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "dns/endpoint.hpp"
#include "dns/flat_map.hpp"
#include "dns/random.hpp"
#include "dns/timer_wheel.hpp"
#include "names/name.hpp"

namespace sluice::dns {

// How a worker's parts tell their fds apart in epoll_event.data and their timers in Entry.kind.
enum class Source : std::uint8_t {
  mailbox = 1,
  udp_listener,
  tcp_listener,
  client_stream,
  upstream_udp,
  upstream_tcp,
};
[[nodiscard]] constexpr std::uint64_t event_tag(Source source, std::uint32_t index,
                                                std::uint32_t generation = 0) {
  return static_cast<std::uint64_t>(source) << 56 |
         static_cast<std::uint64_t>(generation & 0xffffff) << 32 | index;
}

enum class TimerKind : std::uint32_t {
  exchange,
  upstream_stream,
  client_stream,
  decision,
  held,
  dropped
};

struct UpstreamSettings {
  std::vector<Endpoint> servers;
  std::uint64_t deadline = 4'000'000'000;   // ns, from the question to the last answer taken
  std::uint64_t first_try = 1'000'000'000;  // ns until a question is sent again, at most
  std::uint32_t in_flight = 8192;           // questions at once; more fail at once
};

enum class UpstreamFailure : std::uint8_t {
  timed_out,
  cut_short,  // by its `last`, before the deadline: says nothing of the name or the server
  refused,
  overloaded,
  garbled
};

class UpstreamOwner {
 public:
  virtual ~UpstreamOwner() = default;
  // `message` answers the question that `token` asked; it lives for the call. Its id is whatever.
  // `server`: which one, as text; it lives until the next change of configuration.
  virtual void upstream_answered(std::uint32_t token, std::span<const std::uint8_t> message,
                                 std::string_view server) = 0;
  virtual void upstream_failed(std::uint32_t token, UpstreamFailure why) = 0;
};

class Upstream {
 public:
  // `epoll`, `timers` and `owner` outlive it.
  Upstream(UpstreamSettings settings, int epoll, TimerWheel& timers, UpstreamOwner& owner,
           std::uint64_t now);
  ~Upstream();
  Upstream(const Upstream&) = delete;
  Upstream& operator=(const Upstream&) = delete;

  // Asks `query`: one question in wire form (its id is replaced), `question_length` bytes of it the
  // question after the header. It ends at the deadline, and at `last` at the latest (monotonic ns).
  // The answer or the failure comes later, never from inside.
  // False: too much is in flight.
  [[nodiscard]] bool ask(std::uint32_t token, std::span<const std::uint8_t> query,
                         std::size_t question_length, std::uint64_t now, std::uint64_t last);
  // Sends what ask() collected. Once a turn of the loop.
  void flush(std::uint64_t now);

  void on_udp(std::uint32_t index, std::uint32_t events, std::uint64_t now);
  void on_tcp(std::uint32_t index, std::uint32_t events, std::uint64_t now);
  void on_timer(const TimerWheel::Entry& entry, std::uint64_t now);

  // Servers and limits of a new configuration. What is out at a server that is no longer named is
  // asked of one that is, in what is left of its time: no answer of the former comes any more.
  void reconfigure(UpstreamSettings settings, std::uint64_t now);

  struct Counters {
    std::uint64_t asked = 0, sent_udp = 0, sent_tcp = 0, answered = 0, timed_out = 0, failed = 0;
    std::uint64_t foreign = 0;  // wrong id, wrong question: dropped
    std::uint64_t truncated = 0, failed_over = 0;
  };
  [[nodiscard]] const Counters& counters() const { return counters_; }
  [[nodiscard]] Random& random() { return random_; }
  [[nodiscard]] std::size_t in_flight() const { return used_; }

 private:
  static constexpr std::size_t kLargestQuery = 320;  // header, 255 of name, type, class, OPT
  static constexpr std::uint32_t kNone = UINT32_MAX;
  static constexpr std::size_t kBatch = 64;

  struct Exchange {
    std::uint32_t token = 0;
    std::uint32_t server = 0;
    std::uint32_t socket = kNone;  // of UDP; kNone: by TCP, or between two tries
    std::uint16_t id = 0;
    std::uint16_t length = 0, question_length = 0;
    std::uint16_t tries = 0;
    bool live = false, by_tcp = false, queued = false;
    bool cut_short = false;  // it ends before the deadline
    bool on_stream = false;  // its id is known to the stream of its server
    std::uint64_t generation = 0;
    std::uint64_t ends_at = 0, sent_at = 0;
    std::uint32_t next_free = kNone;
    std::array<std::uint8_t, kLargestQuery> query{};
  };
  struct UdpSocket {
    Fd fd;
    std::uint32_t server = 0, uses = 0, in_flight = 0, foreign = 0;
    bool retired = false;
  };
  struct Stream {
    Fd fd;
    bool connecting = false, wants_write = false;
    std::uint32_t in_flight = 0;
    std::uint64_t generation = 0, last_used = 0;
    std::uint64_t last_heard = 0;  // when the server last sent anything
    std::vector<std::uint8_t> out, in;
    std::size_t out_at = 0;
  };
  struct Server {
    Endpoint endpoint;
    std::string text;
    std::array<std::uint32_t, 4> sockets{kNone, kNone, kNone, kNone};
    bool enabled = true;                       // false: not in the configuration any more
    std::uint64_t smoothed = 0, variance = 0;  // of the round trip, ns; 0: not known yet
    std::uint32_t failures = 0;                // in a row
    std::uint64_t last_answer = 0;
    std::uint64_t quiet_until = 0;  // not chosen before that, while another can be
    Stream stream;
  };

  Exchange& at(std::uint32_t index) { return exchanges_[index]; }
  std::uint32_t choose_server(std::uint64_t now, std::uint32_t tries, std::uint32_t last);
  void start_try(std::uint32_t index, std::uint64_t now);
  void send_batch(std::uint32_t server, std::span<const std::uint32_t> batch, std::uint64_t now);
  bool send_tcp(std::uint32_t index, std::uint64_t now);
  void leave_socket(Exchange& exchange);
  std::uint32_t socket_of(std::uint32_t server, std::uint64_t now);
  void retire(std::uint32_t socket);
  void close_socket(std::uint32_t socket);
  void received(std::uint32_t socket, std::span<const std::uint8_t> message, std::uint64_t now);
  void received_tcp(std::uint32_t server, std::span<const std::uint8_t> message, std::uint64_t now);
  void answered(std::uint32_t index, std::span<const std::uint8_t> message, std::uint64_t now);
  void ask_by_tcp(std::uint32_t index, std::uint64_t now);
  [[nodiscard]] std::size_t enabled_servers() const;
  void fail(std::uint32_t index, UpstreamFailure why);
  void release(std::uint32_t index);
  void worked(Server& server, std::uint64_t round_trip);
  void did_not_work(Server& server, std::uint64_t now);
  [[nodiscard]] std::uint64_t patience(const Server& server, std::uint32_t tries) const;
  bool open_stream(std::uint32_t server, std::uint64_t now);
  void write_stream(std::uint32_t server, std::uint64_t now);
  void drop_stream(std::uint32_t server, std::uint64_t now);
  void watch_stream(std::uint32_t server, bool write);
  void set_timer(std::uint32_t index, std::uint64_t due);
  [[nodiscard]] static std::uint64_t udp_key(std::uint32_t socket, std::uint16_t id) {
    return static_cast<std::uint64_t>(socket) << 16 | id;
  }
  [[nodiscard]] static std::uint64_t tcp_key(std::uint32_t server, std::uint16_t id) {
    return 1ULL << 62 | static_cast<std::uint64_t>(server) << 16 | id;
  }

  UpstreamSettings settings_;
  int epoll_;
  TimerWheel& timers_;
  UpstreamOwner& owner_;
  Random random_;
  Counters counters_;

  std::vector<Server> servers_;
  std::vector<UdpSocket> sockets_;
  std::vector<Exchange> exchanges_;
  std::uint32_t free_ = kNone;
  std::uint32_t used_ = 0;
  std::uint64_t generation_ = 0;
  FlatMap<std::uint32_t> by_id_;
  std::vector<std::uint32_t> queue_;   // to be sent by UDP
  std::vector<std::uint8_t> receive_;  // kBatch datagrams
};

}  // namespace sluice::dns
