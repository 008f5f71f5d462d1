// Unpredictable bits for ids, sockets and the case of letters: the kernel's generator, read in
// blocks so that a query costs no system call. One thread.
#pragma once

#include <sys/random.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <system_error>

namespace sluice::dns {

class Random {
 public:
  std::uint64_t next64() { return take<std::uint64_t>(); }
  std::uint32_t next32() { return take<std::uint32_t>(); }
  std::uint16_t next16() { return take<std::uint16_t>(); }
  // Below `limit`, which is small: the bias does not matter.
  std::uint32_t below(std::uint32_t limit) { return limit == 0 ? 0 : next32() % limit; }

 private:
  template <typename T>
  T take() {
    if (at_ + sizeof(T) > block_.size()) refill();
    T value;
    std::memcpy(&value, block_.data() + at_, sizeof value);
    at_ += sizeof value;
    return value;
  }
  void refill() {
    std::size_t have = 0;
    while (have < block_.size()) {
      const ssize_t got = ::getrandom(block_.data() + have, block_.size() - have, 0);
      if (got < 0 && errno == EINTR) continue;
      // A guessable id is worse than a plugin that stops.
      if (got <= 0) throw std::system_error(errno, std::generic_category(), "getrandom");
      have += static_cast<std::size_t>(got);
    }
    at_ = 0;
  }

  std::array<std::uint8_t, 1024> block_{};
  std::size_t at_ = sizeof block_;
};

}  // namespace sluice::dns
