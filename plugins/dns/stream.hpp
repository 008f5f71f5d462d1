// DNS over TCP from workloads (RFC 7766): frames of two length bytes and a message, pipelined,
// answered in whatever order answers come. A worker's part; single-threaded.
//
// What a client can hold is bounded: connections per attachment (a few while nothing is known of it
// yet, and then by its budget, the early ones too) and in all, questions in flight per
// connection (then it is not read from until some are answered), bytes that wait to be sent (then
// the connection ends), and the time without a whole question or with an unread answer.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/fd.hpp"
#include "dns/budget.hpp"
#include "dns/timer_wheel.hpp"

namespace sluice::dns {

struct StreamSettings {
  std::uint64_t idle = 10'000'000'000;  // ns
  std::uint32_t connections = 4096;     // of a worker
  std::uint32_t in_flight = 64;         // questions of one connection
  std::size_t unsent = 256 * 1024;      // bytes of one connection
  std::size_t largest_query = 4096;     // bytes; who sends more asks nothing sensible
};

// Names one connection and never a later one in the same place.
struct StreamRef {
  std::uint32_t index = UINT32_MAX;
  std::uint32_t generation = 0;
};

class StreamOwner {
 public:
  virtual ~StreamOwner() = default;
  // One whole message. Owes one answered() for it, now or later.
  virtual void stream_query(StreamRef stream, std::uint64_t attachment,
                            std::span<const std::uint8_t> message) = 0;
};

// A connection's place in what its attachment may have; given back with it.
struct StreamPlace {
  std::shared_ptr<AttachmentBudget> budget;  // outlives `place`
  AttachmentBudget::Place place;
};

class Streams {
 public:
  // `epoll`, `timers` and `owner` outlive it.
  Streams(StreamSettings settings, int epoll, TimerWheel& timers, StreamOwner& owner);
  ~Streams();
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;

  // Takes an accepted connection, non-blocking, of that attachment; closes it where there are too
  // many.
  void add(Fd fd, std::uint64_t attachment, StreamPlace place, std::uint64_t now);
  // The same where nothing is known of the attachment yet.
  void add_early(Fd fd, std::uint64_t attachment, std::uint64_t now);
  // It is known now: each early connection of it takes a place in the budget, or is closed. Null:
  // there are no limits.
  void take_places(std::uint64_t attachment, const std::shared_ptr<AttachmentBudget>& budget);
  // Ends the connections of an attachment that is gone.
  void drop_attachment(std::uint64_t attachment);

  // Sends an answer of up to 64 KiB; empty: there is none, but the question is dealt with. Nothing
  // happens when the connection is gone.
  void answered(StreamRef stream, std::span<const std::uint8_t> message, std::uint64_t now);

  void on_event(std::uint32_t index, std::uint32_t generation, std::uint32_t events,
                std::uint64_t now);
  void on_timer(const TimerWheel::Entry& entry, std::uint64_t now);
  void reconfigure(const StreamSettings& settings) { settings_ = settings; }

  [[nodiscard]] std::size_t open() const { return open_; }

 private:
  struct Stream {
    StreamPlace place;
    Fd fd;
    std::uint64_t attachment = 0;
    std::uint32_t generation = 0, in_flight = 0, watched = 0;
    std::uint64_t last_progress = 0;
    std::vector<std::uint8_t> in, out;
    std::size_t out_at = 0;
    bool early = false;   // counted in early_, with no place yet
    bool ended = false;   // the client will send no more
    bool taking = false;  // take_messages() is at work on `in`
  };
  // Null: there are too many.
  Stream* open(Fd fd, std::uint64_t attachment, StreamPlace place, std::uint64_t now);
  void no_longer_early(Stream& stream);
  Stream* find(StreamRef stream);
  void read(std::uint32_t index, std::uint64_t now);
  void take_messages(std::uint32_t index, std::uint64_t now);
  void write(std::uint32_t index, std::uint64_t now);
  void watch(std::uint32_t index);
  void close(std::uint32_t index);

  StreamSettings settings_;
  int epoll_;
  TimerWheel& timers_;
  StreamOwner& owner_;
  std::vector<std::unique_ptr<Stream>> streams_;
  std::vector<std::uint32_t> free_;
  std::uint32_t generation_ = 0;
  std::size_t open_ = 0;
  std::unordered_map<std::uint64_t, std::uint32_t> early_;  // by attachment; none is 0
};

}  // namespace sluice::dns
