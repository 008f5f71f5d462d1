// The addresses of one answer on their way into the kernel: vetted for the rules that decided,
// sorted by rule, and learned in one push, all of them or nothing.
//
//   pusher.begin();
//   for (each address) pusher.offer(asked, ruling, address);
//   if (const int error = pusher.push(asked, ruling, &answer, ttl, live_flows))
//     ...                      // nothing was opened: SERVFAIL
//   pusher.granted();          // in the kernel now
//   pusher.sorted_refused();   // must not be in what is sent
//
// Owns the scratch that it needs; one worker's.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dns/asked.hpp"
#include "dns/cache.hpp"
#include "dns/host_side.hpp"
#include "dns/published.hpp"
#include "dns/reserved.hpp"
#include "dns/ruling.hpp"

namespace sluice::dns {

class Pusher {
 public:
  // Both outlive it.
  Pusher(HostSide& host, const Published<AddressSet>& own_addresses)
      : host_(host), own_(own_addresses) {}

  // Of an answer that grants: nothing is offered yet.
  void begin();
  // `ordinary`: one of the rules that decided, or the decision, may grant the address, so it is
  // granted; else why not, and it is refused.
  Reserved offer(const Asked& asked, const Ruling& ruling, const sdk::Address& address);
  // Returns when what is granted is in the kernel: 0, or the positive errno of a push that opened
  // nothing. What an explicit deny forbids moves from granted to refused, which is no error, also
  // where nothing is left. Where denies forbid very many, all of the answer is refused. `answer`:
  // null where the name itself has the addresses. Notes how long it took in `asked`.
  [[nodiscard]] int push(Asked& asked, const Ruling& ruling, const CachedAnswer* answer,
                         std::chrono::nanoseconds ttl, std::chrono::nanoseconds live_flows);

  // How many addresses the last push looked at, each time that it did.
  [[nodiscard]] std::size_t looked_at() const { return looked_at_; }

  [[nodiscard]] std::span<const sdk::Address> granted() const { return granted_; }
  [[nodiscard]] bool any_refused() const { return !refused_.empty(); }
  [[nodiscard]] std::span<const sdk::Address> sorted_refused();

 private:
  struct Batch {  // what one of the rules that decided opens
    sdk::Grant grant;
    std::vector<sdk::Address> addresses;
  };
  void collect_batches(const Asked& asked, const Ruling& ruling, std::chrono::nanoseconds ttl,
                       std::chrono::nanoseconds live_flows);
  void collect_names(const Asked& asked, const CachedAnswer* answer);
  [[nodiscard]] LearnResult learn_batches(std::uint64_t attachment);
  void keep_what_was_taken();
  [[nodiscard]] std::span<Batch> batches() { return std::span(batches_).first(batch_count_); }

  HostSide& host_;
  Published<AddressSet>::Reader own_;
  std::vector<sdk::Address> granted_, refused_;
  std::vector<Batch> batches_;  // more than are in use: their memory is kept
  std::size_t batch_count_ = 0, looked_at_ = 0;
  std::vector<sdk::Grant> pushed_;
  std::string name_texts_;
  std::vector<std::string_view> names_;
};

}  // namespace sluice::dns
