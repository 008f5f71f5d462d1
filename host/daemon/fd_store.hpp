// Descriptors that outlive the daemon: a duplicate of each lies with the service manager (systemd's
// file descriptor store), which hands them to the next life. A socket kept so goes on receiving
// while no daemon runs.
//
//   auto store = FdStore::inherit();               // once, before there are threads
//   store.keep("dns", "udp4-0", socket);           // in one life
//   auto socket = store.kept("dns", "udp4-0");     // in the next
//
// [core loop] after inherit().
#pragma once

#include <map>
#include <set>
#include <string>

#include "attachments/core.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"

namespace sluice {

class FdStore final : public FdKeeper {
 public:
  // Takes what the manager handed over (LISTEN_FDS, LISTEN_FDNAMES), marks all of it close-on-exec
  // and forgets the variables, which children must not see. Descriptors begin at `first`. One
  // without a name of ours is closed.
  [[nodiscard]] static FdStore inherit(int first = 3);

  // A duplicate; the descriptor stays the caller's. Replaces what was kept under the name. ENOTSUP:
  // there is no manager, or it keeps none.
  Status keep(const std::string& instance, const std::string& name, int fd) override;
  // A new descriptor, close-on-exec, of what was kept in this life or an earlier one. ENOENT:
  // nothing.
  Result<int> kept(const std::string& instance, const std::string& name) override;
  Status drop(const std::string& instance, const std::string& name) override;
  // Drops what instances have kept that are not among these: nobody would ever ask for it.
  void keep_only(const std::set<std::string>& instances);

  [[nodiscard]] std::size_t size() const { return kept_.size(); }

 private:
  std::map<std::string, Fd> kept_;  // by "instance/name"
};

}  // namespace sluice
