// The release of an answer: vet, learn, answer, in that order. The promise of the whole plugin is
// kept here: nothing with an address in it leaves before Pusher::push() has returned, whatever way
// the answer came (upstream, memory, decided by another plugin), and where the push is refused it
// is SERVFAIL.
//
// The name's own ruling is the caller's; here an answer is judged by what is in it: aliases that a
// rule denies, addresses that the rules that decided may not open.
#pragma once

#include <chrono>
#include <string_view>
#include <utility>

#include "dns/asked.hpp"
#include "dns/cache.hpp"
#include "dns/push_memory.hpp"
#include "dns/pusher.hpp"
#include "dns/replies.hpp"
#include "dns/ruling.hpp"
#include "dns/settings.hpp"
#include "dns/trimmer.hpp"

namespace sluice::dns {

class Release {
 public:
  // All but `settings` outlives it.
  Release(HostSide& host, PushMemory& memory, const Published<AddressSet>& own_addresses,
          Trimmer& trimmer, Replies& replies, const Moment& now, SettingsPtr settings)
      : pusher_(host, own_addresses),
        memory_(memory),
        trimmer_(trimmer),
        replies_(replies),
        now_(now),
        settings_(std::move(settings)) {}
  void reconfigure(SettingsPtr settings) { settings_ = std::move(settings); }

  // `ruling`: no denial, of now.
  void release(Asked& asked, const Ruling& ruling, const CachedAnswer& answer);
  // The addresses that the decision itself gave for the name.
  void release_decided(Asked& asked, const Ruling& ruling);

 private:
  [[nodiscard]] int push(Asked& asked, const Ruling& ruling, const CachedAnswer* answer,
                         std::chrono::nanoseconds stay);
  void push_and_give(Asked& asked, const Ruling& ruling, const CachedAnswer& answer,
                     std::chrono::nanoseconds stay, std::chrono::nanoseconds more);
  void remember(const Asked& asked, const Ruling& ruling, const CachedAnswer& answer,
                sdk::Time until);
  void give_rest(Asked& asked, const Ruling& ruling, const CachedAnswer& answer,
                 std::string_view why);

  Pusher pusher_;
  PushMemory& memory_;
  Trimmer& trimmer_;
  Replies& replies_;
  const Moment& now_;
  SettingsPtr settings_;
};

}  // namespace sluice::dns
