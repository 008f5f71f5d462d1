// Answers as they leave: written where the outlet says, sent, and reported. Judges nothing and
// opens nothing. What an answer with addresses would have its reader use is in the kernel before it
// comes here.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "dns/asked.hpp"
#include "dns/cache.hpp"
#include "dns/client.hpp"
#include "dns/host_side.hpp"
#include "dns/message.hpp"
#include "dns/report_batch.hpp"
#include "dns/respond.hpp"
#include "dns/ruling.hpp"
#include "dns/settings.hpp"

namespace sluice::dns {

// What a report says of a question.
struct Told {
  sluice_query_verdict verdict = SLUICE_QUERY_FAILED;
  Rcode rcode = Rcode::servfail;
  std::uint16_t extended = SLUICE_NO_EXTENDED_ERROR;
  std::string_view rule{}, reason{};
  std::span<const sdk::Address> addresses{};
  std::uint8_t flags = 0;
};

class Replies {
 public:
  // `outlet`, `host` and `now` outlive it.
  Replies(Outlet& outlet, HostSide& host, const Moment& now, DeniedAnswer denied)
      : outlet_(outlet), now_(now), denied_(denied), reports_(host) {}
  void set_denied(DeniedAnswer denied) { denied_ = denied; }

  // ---- with records ----

  // `message` for this asker: its id, spelling and flags, TTLs aged, and cut where it takes no
  // more. `refused`, sorted: grants of `answer` that are not in `message`.
  void give(Asked& asked, const Ruling& ruling, const CachedAnswer& answer, Bytes message,
            std::span<const std::uint16_t> ttl_offsets, std::span<const sdk::Address> refused);
  void give_whole(Asked& asked, const Ruling& ruling, const CachedAnswer& answer) {
    give(asked, ruling, answer, answer.message, answer.ttl_offsets, {});
  }
  // Whether the asker takes an answer of that size.
  [[nodiscard]] bool fits(const Asked& asked, Bytes message) const;
  // "Ask again by TCP."
  void give_truncated(Asked& asked, const Ruling& ruling);
  // Addresses that a decision gave. `ttl` in seconds.
  void give_addresses(Asked& asked, std::span<const sdk::Address> addresses, std::uint32_t ttl);

  // ---- without ----

  void reply(Asked& asked, const Told& told);
  void deny(Asked& asked, std::string_view rule, std::string_view why);
  void filter_type(Asked& asked, const Ruling& ruling);
  // SERVFAIL.
  void fail(Asked& asked, std::uint16_t extended, std::string_view why);
  // To what is no question; not reported.
  void refuse_message(const Client& client, Bytes message, QueryFault fault);

  // ---- reports ----

  // Of a flood: `count` questions that were dropped unread.
  void report_dropped(std::uint64_t attachment, std::uint32_t count);
  // Tells the host what was reported so far. Before anything ends that the reports speak of: rules,
  // decisions, the upstreams' texts.
  void flush() { reports_.flush(); }

 private:
  // What the outlet's room holds; 0: nothing.
  void send(const Asked& asked, std::size_t size);
  void report(const Asked& asked, const Told& told);
  void report_given(const Asked& asked, const Ruling& ruling, std::uint8_t rcode,
                    std::span<const sdk::Address> addresses);

  Outlet& outlet_;
  const Moment& now_;
  DeniedAnswer denied_;
  ReportBatch reports_;
};

}  // namespace sluice::dns
