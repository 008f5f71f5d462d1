// What AttachmentManager remembers, for the files that it is spread over (see its header) and
// nobody else.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "attachments/attachment_manager.hpp"

namespace sluice {

inline const std::string kObservers;  // the empty instance name, see PluginEvents
inline constexpr std::size_t kNoSource = ~std::size_t{0};

inline BootTime after(BootTime now, std::chrono::nanoseconds delay) {
  return {now.nanoseconds + static_cast<std::uint64_t>(delay.count())};
}

inline bool due(BootTime when, BootTime now) {
  return !when.never() && when <= now;
}

struct AttachmentManager::Instance {
  InstanceRoles roles;
  InstanceState state = InstanceState::starting;
  BootTime running_since;
  std::uint32_t run = 0;  // counts its starts; an attachment remembers the one that claimed it
  bool listed = false;
  std::optional<std::uint32_t> resolver;  // its number in the data plane, once it has one
  bool served = false;                    // sockets, at any time

  // Until it runs it may yet serve: what it would be asked is dropped, and goes nowhere else.
  [[nodiscard]] bool takes_port_53() const {
    return roles.resolver && (served || state != InstanceState::running);
  }
};

// Of a discovery that wants what another one has: what it would have been attached with.
struct AttachmentManager::Ask {
  std::string instance;
  std::uint32_t run = 0;  // of the instance; another run asks anew
  Target target;
  Labels labels;
};

struct AttachmentManager::Attachment {
  AttachmentId id;
  std::uint32_t slot = 0;
  std::uint32_t run = 0;
  std::uint64_t incarnation = 0;
  Generation generation;
  Target target;
  Labels labels;
  std::string discovered_by;
  bool claimed = false;
  BootTime let_go_at;     // by the discovery that had claimed it
  BootTime rewire_by;     // left out of a rewire, for its discovery's next run to come to it
  BootTime confirm_by;    // handed over: when whom it went to has to have asked again
  std::vector<Ask> asks;  // refused, first come first served
  bool held = false;      // keeps the policy it was found with
  BootTime held_until;

  WirePtr wire;                  // null while unclaimed after adoption
  std::vector<LayerPtr> layers;  // beside wire->sources; null: has not spoken

  // In the kernel.
  Mode mode = Mode::block_all;
  bool audit = false, replies = false;
  WirePtr options_of;  // whose other options are in force; null: those it was found with
  std::optional<std::uint32_t> resolver;  // where its port 53 goes
  std::uint32_t asker_mark = 0;
  bool redirectable = false;
  mutable bool told_unredirectable = false;  // to the log, once
  ImagePtr image;                            // null: the policy it was found with
  std::array<std::uint64_t, 2> digest{};

  // While the kernel has a policy of a former daemon, the rules at hand are the better guess at
  // what a learned address may not overrule.
  ImagePtr composed;
  DomainRulesPtr domains;
};

// What ought to be in the kernel.
struct AttachmentManager::Composed {
  Mode mode = Mode::block_all;
  bool audit = false, replies = false;
  WirePtr wire;
  ImagePtr image;
  std::optional<std::uint32_t> resolver;

  [[nodiscard]] AttachmentOptions options() const {
    auto options = wire->options;
    options.redirect_dns = resolver.has_value();
    options.resolver = resolver.value_or(0);
    options.audit = audit;
    options.replies = replies;
    return options;
  }
};

// One attachment's part in a change that is made whole or not at all.
struct AttachmentManager::Change {
  Attachment* attachment = nullptr;
  WirePtr wire;
  std::vector<LayerPtr> layers;
  bool hold = false;  // remember, but leave the kernel as it is for now
  Composed next{};
  // After the commit: who is to be told.
  bool domains_changed = false, mode_changed = false;  // mode or audit
  std::size_t source = kNoSource;                      // whose layer is new, where there is one

  [[nodiscard]] static Change of(Attachment& attachment, WirePtr wire,
                                 std::vector<LayerPtr> layers) {
    Change change;
    change.attachment = &attachment;
    change.wire = std::move(wire);
    change.layers = std::move(layers);
    return change;
  }
};

}  // namespace sluice
