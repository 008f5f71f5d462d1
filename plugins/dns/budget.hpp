// What one attachment may take of the resolver, so that one guest's flood is not its neighbours':
// queries at once and per second, TCP connections, questions to upstreams, and different names
// under a wildcard.
//
//   auto budget = budgets.of(id);                 // once per worker and attachment, kept
//   auto admitted = budget->admit(now);
//   if (!admitted) return refuse(describe(admitted.cap()));
//   ...                                           // the place is given back when `admitted` ends
//
// The last is a tunnelling budget: what a guest asks for under "*.example.org" reaches whoever
// serves example.org, so each new name carries data out. Names are counted exactly, each until a
// window after it was first asked for: at no time do more than `names_per_wildcard` of one wildcard
// fall into any window.
//
// All [any] thread, without a lock but for names. An idle attachment takes about 200 bytes.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>
#include <unordered_map>
#include <utility>

#ifndef SLUICE_SDK_QUALIFIED
#define SLUICE_SDK_QUALIFIED
#endif
#include <sluice/types.hpp>

#include "names/name.hpp"

namespace sluice::dns {

enum class Cap : std::uint8_t {
  none,
  in_flight,
  rate,
  connections,
  upstream_rate,
  wildcard_names,  // of one wildcard
  names,           // of all wildcards together
};
inline constexpr std::size_t kCaps = 7;

// "too many queries at once": for an Extended DNS Error's text and for reports.
[[nodiscard]] std::string_view describe(Cap cap);
// "in_flight": for counters.
[[nodiscard]] std::string_view name_of(Cap cap);

struct BudgetOptions {
  std::uint32_t in_flight = 256;      // queries that wait for an answer
  std::uint32_t rate = 1000;          // queries per second, over time
  std::uint32_t burst = 2000;         // queries at once after a pause
  std::uint32_t connections = 32;     // TCP
  std::uint32_t upstream_rate = 200;  // questions to upstreams per second, over time
  std::uint32_t upstream_burst = 1000;
  std::uint32_t names_per_wildcard = 1000;  // different ones in a window
  std::uint32_t names = 4000;  // the same over all wildcards; at most 65,000: bounds memory
  std::chrono::seconds window{600};
};

// A token bucket in one word: the time at which it would be full again (GCRA). What it refuses puts
// it in no debt, so a flood does not lengthen the wait for whoever comes after it.
class RateLimit {
 public:
  RateLimit(std::uint32_t per_second, std::uint32_t burst);
  [[nodiscard]] bool take(sdk::Time now);
  // For what turned out to be dearer than one: `count` more, in debt by at most the burst.
  void spend(std::uint64_t count, sdk::Time now);

 private:
  std::int64_t interval_, tolerance_;  // ns
  std::atomic<std::int64_t> full_at_{INT64_MIN / 2};
};

class AttachmentBudget : public std::enable_shared_from_this<AttachmentBudget> {
 public:
  // Held by a shared_ptr: admit() and connect() give parts of it away.
  AttachmentBudget(std::shared_ptr<const BudgetOptions> options, std::uint64_t seed);
  ~AttachmentBudget();
  AttachmentBudget(const AttachmentBudget&) = delete;
  AttachmentBudget& operator=(const AttachmentBudget&) = delete;

  // A place in a count that ends with it, or the cap that stood in the way. Keeps its budget alive.
  class [[nodiscard]] Place {
   public:
    Place() = default;
    explicit Place(Cap cap) : cap_(cap) {}
    explicit Place(std::shared_ptr<std::atomic<std::uint32_t>> count) : count_(std::move(count)) {}
    Place(Place&& other) noexcept = default;
    Place& operator=(Place&& other) noexcept {
      if (this != &other) {
        release();
        count_ = std::move(other.count_);
        cap_ = other.cap_;
      }
      return *this;
    }
    ~Place() { release(); }

    explicit operator bool() const { return count_ != nullptr; }
    [[nodiscard]] Cap cap() const { return cap_; }
    void release() {
      if (count_ != nullptr)
        std::exchange(count_, nullptr)->fetch_sub(1, std::memory_order_relaxed);
    }

   private:
    std::shared_ptr<std::atomic<std::uint32_t>> count_;
    Cap cap_ = Cap::none;
  };

  // A query. One that is refused for its number has taken from the rate: refusing is work too.
  Place admit(sdk::Time now);
  // An admitted query that made as much work as `queries` more.
  void spend(std::uint64_t queries, sdk::Time now) { queries_.spend(queries, now); }
  // A TCP connection.
  Place connect();
  // A question to an upstream, retries included. Cap::none: go ahead.
  [[nodiscard]] Cap ask_upstream(sdk::Time now);
  // A name under the wildcard `base` (RuleSet::base_key), which is about to go upstream: an answer
  // from the cache tells nobody anything. Cap::none: counted, or counted already.
  [[nodiscard]] Cap ask_name(std::uint64_t base, const Name& name, sdk::Time now);

  // Refused so far, by cap.
  [[nodiscard]] std::uint64_t refused(Cap cap) const {
    return refused_[static_cast<std::size_t>(cap)].load(std::memory_order_relaxed);
  }
  [[nodiscard]] std::uint32_t in_flight() const {
    return in_flight_.load(std::memory_order_relaxed);
  }
  // Gives back the memory of names whose window has passed.
  void sweep(sdk::Time now);
  [[nodiscard]] std::size_t bytes() const;

 private:
  class Names;
  Place enter(std::atomic<std::uint32_t>& count, std::uint32_t most, Cap cap);
  Cap refuse(Cap cap);

  std::shared_ptr<const BudgetOptions> options_;
  std::uint64_t seed_;
  std::atomic<std::uint32_t> in_flight_{0}, connections_{0};
  RateLimit queries_, questions_;
  std::array<std::atomic<std::uint64_t>, kCaps> refused_{};
  mutable std::mutex names_mutex_;
  std::unique_ptr<Names> names_;  // none: no name counted
};

// The budgets of all attachments.
class Budgets {
 public:
  explicit Budgets(const BudgetOptions& options);

  // [any] Made at the first call. Kept by the caller: it takes a lock.
  [[nodiscard]] std::shared_ptr<AttachmentBudget> of(sdk::AttachmentId attachment);
  // [any] The attachment is gone.
  void forget(sdk::AttachmentId attachment);
  // [any] Now and then: gives back the memory of what is over.
  void sweep(sdk::Time now);

  struct Size {
    std::size_t attachments = 0, bytes = 0;
  };
  [[nodiscard]] Size size() const;
  [[nodiscard]] const BudgetOptions& options() const { return *options_; }

 private:
  std::shared_ptr<const BudgetOptions> options_;
  std::uint64_t seed_;
  mutable std::mutex mutex_;
  std::unordered_map<std::uint64_t, std::shared_ptr<AttachmentBudget>> all_;
};

}  // namespace sluice::dns
