// A response of an upstream, cut down twice: to what is worth keeping of it, for everybody, and
// later for one asker to what its rules leave of that. Judges nothing. Owns the scratch that both
// need, so that a query allocates none; one worker's.
#pragma once

#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "dns/answer.hpp"
#include "dns/cache.hpp"

namespace sluice::dns {

class Trimmer {
 public:
  Trimmer();

  struct Limits {  // seconds
    std::uint32_t most_ttl, most_negative_ttl;
  };
  struct Kept {
    CachedAnswer answer;
    std::uint32_t ttl = 0;  // seconds
  };
  // `dnssec_ok`: whether the question asked for signatures. The error, a constant: the response
  // grants nothing and says nothing.
  [[nodiscard]] std::expected<Kept, std::string_view> keep(Bytes response, bool dnssec_ok,
                                                           const Limits& limits);

  struct Remains {
    std::size_t data_records = 0;  // 0: nothing that would be worth sending, and no message
    Bytes message{};
    std::span<const std::uint16_t> ttl_offsets{};
  };
  // The answer without the addresses of `refused`, which is sorted. Lives until the next call of
  // either. Nothing: it does not read.
  [[nodiscard]] std::optional<Remains> without(const CachedAnswer& answer,
                                               std::span<const sdk::Address> refused);

 private:
  std::vector<Grant> grants_;
  Answer answer_;
  std::vector<std::uint8_t> message_;
  std::vector<std::uint16_t> offsets_;
};

}  // namespace sluice::dns
