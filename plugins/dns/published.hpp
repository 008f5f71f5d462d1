// A value that one thread replaces and many read all the time: rule sets, the host's addresses.
//
//   Published<RuleSet> rules;
//   Published<RuleSet>::Reader reader(rules);   // one per thread
//   rules.publish(std::make_shared<const RuleSet>(...));
//   reader.get()->match(name, now);             // one atomic load while nothing has changed
//
// std::atomic<std::shared_ptr> would do with less text, but each load of it takes a lock and writes
// to a counter that all readers share; a query would pay that several times.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

namespace sluice::dns {

template <typename T>
class Published {
 public:
  using Pointer = std::shared_ptr<const T>;

  Published() = default;
  explicit Published(Pointer value) : value_(std::move(value)), version_(1) {}

  // [any] What loads begin to see. Null is a value too.
  void publish(Pointer value) {
    {
      const std::lock_guard lock(mutex_);
      std::swap(value_, value);
      version_.fetch_add(1, std::memory_order_release);
    }
    // The former value ends here, outside the lock.
  }

  // [any] Grows with each publish().
  [[nodiscard]] std::uint64_t version() const { return version_.load(std::memory_order_acquire); }

  struct Snapshot {
    Pointer value;
    std::uint64_t version = 0;
  };
  [[nodiscard]] Snapshot load() const {
    const std::lock_guard lock(mutex_);
    return {value_, version_.load(std::memory_order_relaxed)};
  }

  // Of one thread. Keeps the value it gave last alive until the next get().
  class Reader {
   public:
    explicit Reader(const Published& of) : of_(&of) {}

    // What was published last, or null; valid until the next get() on this reader.
    [[nodiscard]] const T* get() {
      if (seen_.version != of_->version()) seen_ = of_->load();
      return seen_.value.get();
    }
    // The version of what get() gave.
    [[nodiscard]] std::uint64_t version() const { return seen_.version; }
    [[nodiscard]] const Pointer& pointer() const { return seen_.value; }

   private:
    const Published* of_;
    Snapshot seen_;
  };

 private:
  mutable std::mutex mutex_;
  Pointer value_;
  std::atomic<std::uint64_t> version_{0};
};

}  // namespace sluice::dns
