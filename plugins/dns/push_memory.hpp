// Which answers are in an attachment's kernel map, and until when: a cache hit whose addresses stay
// there long enough needs no push.
//
//   tenant.ticket = memory.ticket(id);              // with the rules that will decide
//   ...
//   if (!memory.suffices(id, answer.id, now + ttl_sent + grace)) {
//     host.learn(...);
//     memory.record(id, tenant.ticket, answer.id, until);  // after it
//   }
//
// Whoever takes addresses out of the kernel or changes what is judged by (rules, modes, the host's
// addresses) calls clear() *after* it and hands out a new ticket with the change. A record with an
// older ticket is refused. So a push that crossed with a revocation is never taken for one that
// stands, nor one that was judged by former rules for one judged by these. What is forgotten costs
// a push more, nothing else.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#ifndef SLUICE_SDK_QUALIFIED
#define SLUICE_SDK_QUALIFIED
#endif
#include <sluice/types.hpp>

namespace sluice::dns {

class PushMemory {
 public:
  struct Settings {
    std::size_t most_answers = 1024;  // per attachment, 16 bytes each; a power of two, 8 at least
    unsigned shards = 16;             // a power of two
  };
  struct Ticket {
    std::uint64_t stamp = 0;  // 0: none, refused
  };

  PushMemory() : PushMemory(Settings{}) {}
  explicit PushMemory(Settings settings);

  // All [any].

  // Whether every address of the answer stays in the attachment's map until then at least.
  [[nodiscard]] bool suffices(sdk::AttachmentId attachment, std::uint64_t answer,
                              sdk::Time until) const;
  // Good until the next clear() or forget(). Begins the attachment's memory where there is none.
  [[nodiscard]] Ticket ticket(sdk::AttachmentId attachment);
  // `answer` is not 0. Of two records of one answer the later `until` counts.
  void record(sdk::AttachmentId attachment, Ticket ticket, std::uint64_t answer, sdk::Time until);
  void clear(sdk::AttachmentId attachment);
  // The attachment is gone: as clear(), and its memory is given back.
  void forget(sdk::AttachmentId attachment);

  [[nodiscard]] std::size_t bytes() const;

 private:
  static constexpr std::size_t kWays = 8;
  struct Push {
    std::uint64_t answer = 0;
    sdk::Time until{};
  };
  // Sets of eight, the one that ends first gives way: no order to keep, one cache line pair to look
  // at.
  struct Table {
    std::uint64_t stamp = 0;  // of its beginning or last clear
    std::size_t used = 0;
    std::vector<Push> pushes{};  // grows by doubling
  };
  struct Shard {
    mutable std::mutex mutex;
    std::uint64_t stamps =
        0;  // given so far: none is given twice, also where an attachment comes back
    std::unordered_map<std::uint64_t, Table> tables;
  };
  [[nodiscard]] Shard& shard_of(sdk::AttachmentId attachment) const;
  static Push* way(Table& table, std::uint64_t answer);
  void grow(Table& table) const;

  Settings settings_;
  std::vector<std::unique_ptr<Shard>> shards_;
};

}  // namespace sluice::dns
