#include "journal/sink.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <utility>

#include <sluice/plugin.hpp>

namespace sluice::journal {
namespace {

constexpr std::chrono::milliseconds kPatience{500};  // for a reader of a pipe, in one window

std::string text_of(int error) {
  return std::generic_category().message(error);
}

class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  [[nodiscard]] int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

class Journald final : public Sink {
 public:
  explicit Journald(const std::string& path)
      : fd_(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {
    if (!fd_) throw Error(errno, "a socket cannot be made: " + text_of(errno));
    address_.sun_family = AF_UNIX;
    if (path.size() >= sizeof address_.sun_path)
      throw Error(ENAMETOOLONG, path + ": too long for a socket's path");
    std::memcpy(address_.sun_path, path.c_str(), path.size() + 1);
    // Only to learn at once that nobody is there: each record is sent to the path, so that another
    // journald behind it is found.
    if (::access(path.c_str(), F_OK) != 0)
      throw Error(errno, path + ": " + text_of(errno) +
                             "; journald does not run here, write to a file: to = \"file:/path\"");
  }
  bool write(const Record& record) override {
    const auto datagram = journald_datagram(record);
    const auto sent = ::sendto(fd_.get(), datagram.data(), datagram.size(), MSG_NOSIGNAL,
                               reinterpret_cast<const sockaddr*>(&address_), sizeof address_);
    if (sent >= 0) return true;
    error_ = std::string(address_.sun_path) + ": " + text_of(errno);
    return false;
  }

 private:
  Descriptor fd_;
  sockaddr_un address_{};
};

class File final : public Sink {
 public:
  File(std::string path, std::uint64_t most_bytes)
      : path_(std::move(path)), most_bytes_(most_bytes) {
    if (!open()) throw Error(code_, error_);
  }
  void begin() override {
    struct stat ours {
    }, theirs{};
    const bool same = fd_ && ::fstat(fd_.get(), &ours) == 0 &&
                      ::stat(path_.c_str(), &theirs) == 0 && ours.st_dev == theirs.st_dev &&
                      ours.st_ino == theirs.st_ino;
    if (!same) (void)open();
    // Somebody may have emptied it in place.
    else
      size_ = static_cast<std::uint64_t>(ours.st_size);
  }
  bool write(const Record& record) override {
    auto line = json_line(record);
    line += '\n';
    if (!fd_ && !open()) return false;
    if (size_ > 0 && size_ + line.size() > most_bytes_ && !rotate()) return false;
    // One write a line: with O_APPEND, lines of several writers do not mix.
    const auto written = ::write(fd_.get(), line.data(), line.size());
    if (written == static_cast<ssize_t>(line.size())) {
      size_ += line.size();
      return true;
    }
    const int code = written < 0 ? errno : ENOSPC;
    // Half a line: it must not become the beginning of the next.
    if (written > 0 && ::ftruncate(fd_.get(), static_cast<off_t>(size_)) != 0)
      (void)!::write(fd_.get(), "\n", 1);
    return fails(code);
  }

 private:
  bool fails(int code) {
    code_ = code;
    error_ = path_ + ": " + text_of(code);
    return false;
  }
  bool open() {
    fd_ = Descriptor();
    Descriptor fd(::open(
        path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0640));
    struct stat facts {};
    if (!fd || ::fstat(fd.get(), &facts) != 0) return fails(errno);
    if (!S_ISREG(facts.st_mode)) return fails(EINVAL);
    size_ = static_cast<std::uint64_t>(facts.st_size);
    fd_ = std::move(fd);
    return true;
  }
  bool rotate() {
    if (::rename(path_.c_str(), (path_ + ".1").c_str()) != 0) return fails(errno);
    return open();
  }

  const std::string path_;
  const std::uint64_t most_bytes_;
  Descriptor fd_;
  std::uint64_t size_ = 0;
  int code_ = 0;
};

class Lines final : public Sink {
 public:
  explicit Lines(int fd) : fd_(fd) {}
  void begin() override { deadline_ = Clock::now() + kPatience; }
  bool write(const Record& record) override {
    auto line = json_line(record);
    line += '\n';
    // A line that was broken off is ended first.
    if (torn_) line.insert(line.begin(), '\n');
    for (std::string_view left = line; !left.empty();) {
      pollfd ready{fd_, POLLOUT, 0};
      // A pipe that is ready takes this much at once.
      constexpr std::size_t kPiece = 4096;
      const auto patience = std::max(deadline_ - Clock::now(), Clock::duration(0));
      const auto milliseconds = std::chrono::ceil<std::chrono::milliseconds>(patience).count();
      const auto written = ::poll(&ready, 1, static_cast<int>(milliseconds)) > 0
                               ? ::write(fd_, left.data(), std::min(left.size(), kPiece))
                               : -1;
      if (written <= 0) {
        torn_ = left.size() < line.size() || torn_;
        error_ = "the reader of its lines does not read, or is gone";
        return false;
      }
      left.remove_prefix(static_cast<std::size_t>(written));
    }
    torn_ = false;
    return true;
  }

 private:
  using Clock = std::chrono::steady_clock;

  int fd_;
  Clock::time_point deadline_;
  bool torn_ = false;
};

constexpr std::string_view kFile = "file:";

bool names_file(const std::string& to) {
  return to.starts_with(kFile) && to.size() > kFile.size() && to[kFile.size()] == '/';
}

std::string no_destination(const std::string& to) {
  return "to: \"" + clean(to, 128) +
         "\" is no place for records; write \"journald\", \"stderr\" or "
         "\"file:/an/absolute/path\"";
}

}  // namespace

std::unique_ptr<Sink> to_journald(const std::string& socket_path) {
  return std::make_unique<Journald>(socket_path);
}
std::unique_ptr<Sink> to_file(const std::string& path, std::uint64_t most_bytes) {
  return std::make_unique<File>(path, most_bytes);
}
std::unique_ptr<Sink> to_descriptor(int fd) {
  return std::make_unique<Lines>(fd);
}

std::unique_ptr<Sink> open_sink(const std::string& to, std::uint64_t most_bytes) {
  if (to == "journald") return to_journald();
  if (to == "stderr") return to_descriptor(STDERR_FILENO);
  if (names_file(to)) return to_file(to.substr(kFile.size()), most_bytes);
  throw Error(EINVAL, no_destination(to));
}

std::string destination_fault(const std::string& to) {
  if (to == "journald" || to == "stderr") return {};
  if (!names_file(to)) return no_destination(to);
  const auto folder = std::filesystem::path(to.substr(kFile.size())).parent_path();
  std::error_code error;
  if (std::filesystem::is_directory(folder, error)) return {};
  // Not what this user may not see: the daemon may.
  if (error && error.value() != ENOENT && error.value() != ENOTDIR && error.value() != ELOOP)
    return {};
  return "to: there is no folder " + clean(folder.string(), 256) +
         "; make it (the shipped unit makes /var/log/sluice when it starts)";
}

}  // namespace sluice::journal
