// What the journal tells of: denied packets and DNS queries, each with how often it was seen.
#pragma once

#include <sluice/plugin.hpp>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "journal/record.hpp"

namespace sluice::journal {

// Whose it is, cleaned. Kept by its events, so that they can be told when it is gone.
struct Workload {
  std::string target;  // interface name or cgroup path
  Record::Texts labels;
};
using WorkloadPtr = std::shared_ptr<const Workload>;

[[nodiscard]] WorkloadPtr workload_of(const AttachmentInfo& info);

struct Event {
  enum class Kind : std::uint8_t {
    denial,
    query,
    more_denials,  // further ones of a workload, beyond what a window holds of it
    more_queries,
  };
  Kind kind = Kind::denial;
  AttachmentId attachment{};
  WorkloadPtr workload;
  Time first{}, last{};
  std::uint64_t count = 1;

  // Of the first.
  Denial denial{};
  std::string name, rule, reason, upstream;  // as they came
  std::uint16_t type = 0, response_code = 0;
  std::optional<std::uint16_t> extended_error{};
  QueryVerdict verdict = QueryVerdict::failed;
  bool cached = false, audited = false, decided = false, pushed = false, stream = false;
  std::vector<Address> addresses{};
  // The longest.
  std::chrono::nanoseconds decision_time{}, upstream_time{}, push_time{};

  [[nodiscard]] static Event of(const Denial& denial, WorkloadPtr workload);
  [[nodiscard]] static Event of(const QueryReport& report, WorkloadPtr workload);
};

// The kernel programs' clock told as people tell time.
using WallTime = std::chrono::system_clock::time_point;
struct Clocks {
  Time boot{};
  WallTime wall{};  // at the same moment
  [[nodiscard]] WallTime operator()(Time time) const {
    return wall + std::chrono::duration_cast<WallTime::duration>(time - boot);
  }
};

[[nodiscard]] Record record_of(const Event& event, const Clocks& clocks);
// That `records` standing for `events` were left out.
[[nodiscard]] Record left_out(std::uint64_t records, std::uint64_t events, WallTime now);

}  // namespace sluice::journal
