// What became of queries, collected over a turn of the loop and told to the host in one call. Holds
// the text of names and nothing else; what it is given beside lives until flush().
#pragma once

#include <array>
#include <cstring>
#include <memory>
#include <span>

#include "dns/host_side.hpp"
#include "names/name.hpp"

namespace sluice::dns {

class ReportBatch {
 public:
  explicit ReportBatch(HostSide& host) : host_(host) {}

  // A report to be filled in, its name written. Borrowed until the next call.
  sluice_query_report& add(const Name& name) {
    if (count_ == reports_.size()) flush();
    auto& report = reports_[count_];
    report = {};
    report.size = sizeof report;
    auto& text = texts_[count_];
    text = name.text();
    report.name = {text.view().data(), text.view().size()};
    report.extended_error = SLUICE_NO_EXTENDED_ERROR;
    report.count = 1;
    ++count_;
    return report;
  }
  // Addresses of a report, copied. As many as there is room for: a report is no place for a
  // thousand.
  void set_addresses(sluice_query_report& report, std::span<const sdk::Address> addresses) {
    const auto index = static_cast<std::size_t>(&report - reports_.data());
    const std::size_t count = std::min(addresses.size(), kAddresses);
    for (std::size_t i = 0; i < count; ++i) {
      auto& raw = addresses_[index * kAddresses + i];
      raw = {};
      raw.family = addresses[i].family;
      std::memcpy(raw.bytes, addresses[i].bytes.data(), sizeof raw.bytes);
    }
    report.addresses = &addresses_[index * kAddresses];
    report.address_count = count;
  }
  void flush() {
    if (count_ == 0) return;
    host_.report({reports_.data(), count_});
    count_ = 0;
  }

 private:
  static constexpr std::size_t kMost = 64, kAddresses = 16;
  HostSide& host_;
  std::size_t count_ = 0;
  std::array<sluice_query_report, kMost> reports_;
  std::array<Name::Text, kMost> texts_;
  std::array<sluice_address, kMost * kAddresses> addresses_;
};

}  // namespace sluice::dns
