// What plugins can ask of the core, and what the core tells plugins. The plugin host (host/plugins)
// turns the C ABI into these calls; AttachmentManager implements Core over a DataPlane. Both sides
// meet on the core loop's thread, where not said otherwise: the plugin host posts a strand's call
// to the loop and waits for the result.
#pragma once

#include <array>
#include <cerrno>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/ids.hpp"
#include "base/result.hpp"
#include "dataplane/data_plane.hpp"
#include "policy/model.hpp"

namespace sluice {

using Labels = std::map<std::string, std::string>;
using Target = std::variant<InterfaceTarget, CgroupTarget>;

struct AttachmentInfo {
  AttachmentId id;
  std::uint64_t incarnation = 0;
  Generation generation;
  Mode mode = Mode::block_all;
  Target target;
  Labels labels;
  std::string discovered_by;  // instance name
  std::string state;  // "filtering"; "adopted": found at start, not yet claimed by a discovery
  bool audit = false;
  bool redirected = false;  // its port 53 ends in the sockets that its resolver serves
  // Of its wire, in order; null: it has no wire yet, or is gone.
  std::shared_ptr<const std::vector<std::string>> sources = nullptr;
};

// One end of a connection; the address is IPv4-mapped where it is IPv4.
struct Endpoint {
  std::array<std::uint8_t, 16> address{};
  std::uint16_t port = 0;  // host order
};
struct StreamAsker {
  AttachmentId attachment;
  Endpoint asked;
};

struct Applied {
  Generation generation;
  std::array<std::uint64_t, 2> digest{};
};

// What has to be open before one answer may be given. Borrows.
struct NameGrant {
  static constexpr std::uint32_t kDecided = ~0u;  // no rule: a decider allowed the name
  std::uint32_t rule = kDecided;                  // Rule::id
  std::span<const std::array<std::uint8_t, 16>> addresses{};
  std::uint64_t ttl_ns = 0, grace_ns = 0;
  std::span<const PortRange> ports{};  // of a decision; empty: every protocol and port
};
struct NamePush {
  std::span<const std::string_view> names;  // the question's, then every one that it led to
  std::span<const NameGrant> grants;
};

struct LayerChange {
  AttachmentId attachment;
  Layer layer;
};

struct Denial {
  AttachmentId attachment;  // none: a guard's denial
  sluice_event event{};
  std::string reason;
  std::string rule;  // the explicit rule that explains it, empty when there is none
};

// [core loop] Implemented by the plugin host, which queues to the named instance's strand. Each
// change of an attachment is told to the sources of its wire by name, then once with an empty
// `instance` for the observers, who hear of all.
class PluginEvents {
 public:
  virtual ~PluginEvents() = default;
  // Held while one by one is told that an attachment is his now: meanwhile nobody is asked about
  // it, since a source that has heard of it could put its question to one that has not.
  [[nodiscard]] virtual std::unique_lock<std::mutex> telling() { return {}; }
  virtual void attachment_added(const std::string& instance, const AttachmentInfo& info) = 0;
  virtual void attachment_changed(const std::string& instance, const AttachmentInfo& info) = 0;
  virtual void attachment_removed(const std::string& instance, const AttachmentInfo& info,
                                  const std::string& reason) = 0;
  virtual void domain_rules(const std::string& instance, AttachmentId id,
                            const std::vector<Rule>& rules) = 0;
  virtual void denials(std::span<const Denial> denials) = 0;  // to every observer
};

// [core loop] Keeps descriptors beyond the daemon's death, by instance and name; see Core::keep_fd.
class FdKeeper {
 public:
  virtual ~FdKeeper() = default;
  virtual Status keep(const std::string& instance, const std::string& name, int fd) = 0;
  virtual Result<int> kept(const std::string& instance, const std::string& name) = 0;
  virtual Status drop(const std::string& instance, const std::string& name) = 0;
};

// [core loop], except what is marked [any]. `instance` is the calling plugin's instance name
// throughout: a source can only change its own layer, a discovery only its own attachments. A call
// that fails changes nothing.
class Core {
 public:
  virtual ~Core() = default;

  virtual Result<AttachmentId> attach(const std::string& instance, const Target& target,
                                      const Labels& labels) = 0;
  virtual Status detach(const std::string& instance, AttachmentId id,
                        const std::string& reason) = 0;
  virtual Status relabel(const std::string& instance, AttachmentId id, const Labels& labels) = 0;
  virtual Status listed(const std::string& instance) = 0;

  virtual Result<Applied> replace_layer(const std::string& instance, AttachmentId id,
                                        Layer layer) = 0;
  virtual Result<Applied> update_layer(const std::string& instance, AttachmentId id,
                                       Generation base, std::vector<Rule> add,
                                       std::vector<Rule> remove) = 0;
  virtual Result<Applied> withdraw_layer(const std::string& instance, AttachmentId id) = 0;
  virtual Status replace_layers(const std::string& instance, std::vector<LayerChange> changes) = 0;

  // [any] All of it in the kernel when it returns, or nothing. ESTALE: a rule is not in force any
  // more. EACCES: an address is denied; error.rule_index counts the addresses of all grants
  // through.
  virtual Status learn(const std::string& instance, AttachmentId id, const NamePush& push) = 0;
  // [any]
  virtual Status revoke(const std::string& instance, AttachmentId id,
                        std::span<const Address> addresses) = 0;

  // The sockets of a resolver that take port 53 of the attachments whose wire names it. Replaces
  // the former set; they stay the caller's.
  virtual Status serve(const std::string& /*instance*/, std::span<const int> /*sockets*/) {
    return fail_with(ENOSYS, "this core redirects no DNS");
  }
  // [any] -ENOENT: nobody's. Called for each query; the core outlives the call.
  virtual Result<AttachmentId> asker_of_mark(const std::string& /*instance*/,
                                             std::uint32_t /*mark*/) {
    return fail_with(ENOSYS, "this core redirects no DNS");
  }
  // [any] Likewise, for an accepted connection.
  virtual Result<StreamAsker> asker_of_stream(const std::string& /*instance*/, int /*accepted*/) {
    return fail_with(ENOSYS, "this core redirects no DNS");
  }

  // With the service manager, by instance and name; a duplicate is kept.
  virtual Status keep_fd(const std::string& /*instance*/, const std::string& /*name*/, int /*fd*/) {
    return fail_with(ENOTSUP, "no service manager keeps descriptors for this daemon");
  }
  virtual Result<int> kept_fd(const std::string& /*instance*/, const std::string& /*name*/) {
    return fail_with(ENOENT, "nothing is kept under that name");
  }
  virtual Status drop_fd(const std::string& /*instance*/, const std::string& /*name*/) {
    return fail_with(ENOENT, "nothing is kept under that name");
  }

  virtual Result<Counters> counters(AttachmentId id) = 0;
  virtual std::vector<AttachmentInfo> list() = 0;
  // All attachments that name `instance` among their sources: what a (re)started or resyncing
  // source must be told of.
  virtual std::vector<AttachmentInfo> attachments_of(const std::string& instance) = 0;
};

}  // namespace sluice
