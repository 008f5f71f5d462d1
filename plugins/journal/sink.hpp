// Where records go. None waits, but for half a second in a window for the reader of a pipe: what
// cannot be written is not written, and the caller counts.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "journal/record.hpp"

namespace sluice::journal {

class Sink {
 public:
  virtual ~Sink() = default;
  // Once before the records of a window.
  virtual void begin() {}
  // False: not written. error() says why.
  [[nodiscard]] virtual bool write(const Record& record) = 0;
  [[nodiscard]] const std::string& error() const { return error_; }

 protected:
  std::string error_;
};

// journald's socket, spoken to without libsystemd: sd_journal_send() waits when journald does not
// read, and a plugin that waits is quarantined; and the library with its compressors is a third of
// the daemon's memory budget.
[[nodiscard]] std::unique_ptr<Sink> to_journald(
    const std::string& socket_path = "/run/systemd/journal/socket");
// Lines of JSON. The file is opened anew when it was moved away or removed (logrotate needs no
// signal), and moved to PATH.1 when it would grow beyond `most_bytes`. Only a regular file, no
// symbolic link; made with mode 0640.
[[nodiscard]] std::unique_ptr<Sink> to_file(const std::string& path, std::uint64_t most_bytes);
// Lines of JSON to a descriptor that stays the caller's.
[[nodiscard]] std::unique_ptr<Sink> to_descriptor(int fd);

// What is wrong with a destination, as far as can be told without opening it: its form, and that a
// file's folder is there. Empty: nothing.
[[nodiscard]] std::string destination_fault(const std::string& to);

// "journald", "stderr", "file:/path". Throws Error(EINVAL) for another; an Error with the cause
// where it cannot be opened.
[[nodiscard]] std::unique_ptr<Sink> open_sink(const std::string& to, std::uint64_t most_bytes);

}  // namespace sluice::journal
