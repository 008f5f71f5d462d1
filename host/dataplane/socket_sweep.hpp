// Sockets that a cgroup's own hooks do not reach. In the background: it opens files of other
// processes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "base/ids.hpp"
#include "dataplane/pending_moves.hpp"
#include "dataplane/programs.hpp"

namespace sluice {

// A task that was forked and has not executed may be a manager's child on its way: what closes on
// execution is its parent's then, and is left alone for a second.
using WaitingSockets = std::map<std::uint64_t, BootTime>;  // since when, by inode
// Attached cgroups, by id, whose tasks are to be looked at again: one waits, or its sockets changed
// their numbers or became more each time.
using Unsettled = std::map<std::uint64_t, WaitingSockets>;

// A socket belongs to the cgroup it was made in. One that a task brings into an attached cgroup
// from elsewhere is taken by pidfd_getfd, tagged and shut. shutdown() tells its owner, also of
// unconnected UDP; the tag is for good (bpf/swept.h). A packet socket is stopped by the uplink
// guard alone: it is reported. Where the tag finds no room, since the owner has filled the socket's
// option memory, the process is ended.
struct SocketSweep {
  const Programs* programs = nullptr;
  std::filesystem::path stop_pin;                 // of the program that stops what is tagged
  std::map<std::uint64_t, std::string> attached;  // cgroup id -> path
  Moves moves;
  Unsettled unsettled;  // of the sweeps before; updated
};
void shut_foreign_sockets(SocketSweep& sweep);

}  // namespace sluice
