// One thread of the resolver: epoll over the sockets that the kernel brings questions to, datagrams
// in batches, an engine that makes answers of them.
//
// Who asks is what the kernel says: the mark of the datagram (SO_RCVMARK), or the accepted
// connection. Nothing that a guest can write is looked at. A datagram without an asker is dropped.
//
// [strand] functions put a letter into the worker's mailbox; it acts on them in order, before the
// questions that it reads next.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <variant>
#include <vector>

#include "base/fd.hpp"
#include "dns/engine.hpp"

namespace sluice::dns {

// The sockets of one worker: bound, transparent, non-blocking; -1: none. They stay the caller's,
// which keeps them open until stop() has returned.
//
// The kernel brings all datagrams of one workload to one socket, and of each socket a few are read
// in turn. So a flood waits in its own queue, and a neighbour's question behind a few of it at
// most, unless the two share a socket.
struct Listeners {
  std::vector<int> udp4, udp6;
  int tcp4 = -1, tcp6 = -1;
};

class Worker {
 public:
  // What all workers share; outlives them.
  struct Shared {
    HostSide& host;
    AnswerCache& cache;
    PushMemory& pushes;
    const Published<AddressSet>& own_addresses;
  };
  // `index`: below 256. Throws std::system_error.
  Worker(unsigned index, const Shared& shared, SettingsPtr settings, const Listeners& listeners);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // [strand]
  void start();
  // Joins. Who waits gets no answer. Idempotent.
  void stop();
  void set_tenant(TenantState state);
  void remove_tenant(std::uint64_t attachment);
  void decided(std::uint64_t query_id, DecisionPtr decision);
  void reconfigure(SettingsPtr settings);

  // [any] As of the end of some recent turn.
  struct Counters {
    std::uint64_t queries = 0;
    Upstream::Counters upstream;
    std::uint64_t unknown_askers = 0, unsent = 0;
  };
  [[nodiscard]] Counters counters() const;

 private:
  struct Removed {
    std::uint64_t attachment;
  };
  struct Decided {
    std::uint64_t query_id;
    DecisionPtr decision;
  };
  struct Stop {};
  using Letter = std::variant<TenantState, Removed, Decided, SettingsPtr, Stop>;
  void post(Letter letter);

  class Loop;
  Fd bell_;  // eventfd
  std::atomic<bool> rung_{false};
  std::mutex mutex_;
  std::vector<Letter> letters_;
  mutable std::mutex counters_mutex_;
  Counters counters_;
  std::unique_ptr<Loop> loop_;
  std::thread thread_;
};

}  // namespace sluice::dns
