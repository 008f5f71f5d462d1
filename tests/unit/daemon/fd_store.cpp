// Descriptors across two lives, with a small service manager that keeps what it is given.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "daemon/fd_store.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "unit/daemon/notify_socket.hpp"

using namespace sluice;

namespace {

constexpr int kFirst = 200;  // where the manager puts what it hands over; 3 is the test's own

// As systemd: keeps descriptors by name, also two of one name, and hands all of them to each start.
class Manager {
 public:
  ~Manager() {
    for (const char* variable : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "FDSTORE"})
      ::unsetenv(variable);
  }

  // Reads what it has been told, and keeps or removes.
  std::vector<std::string> listen() {
    std::vector<std::string> heard;
    for (;;) {
      std::array<char, 512> text;
      alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
      iovec into{text.data(), text.size()};
      msghdr message{};
      message.msg_iov = &into;
      message.msg_iovlen = 1;
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      const auto length = ::recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC);
      if (length < 0) return heard;
      heard.emplace_back(text.data(), static_cast<std::size_t>(length));
      const auto& line = heard.back();
      const auto at = line.find("FDNAME=");
      const auto name = at == std::string::npos ? "" : line.substr(at + 7);
      if (line.starts_with("FDSTOREREMOVE=1"))
        std::erase_if(kept_, [&](const auto& entry) { return entry.first == name; });
      if (auto* header = CMSG_FIRSTHDR(&message); header != nullptr) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
        Fd received(fd);
        if (line.starts_with("FDSTORE=1\n")) kept_.emplace_back(name, std::move(received));
      }
    }
  }
  // The next life. Not close-on-exec, as a manager leaves them.
  FdStore start() {
    std::string names;
    int next = kFirst;
    for (const auto& [name, fd] : kept_) {
      REQUIRE(::dup2(fd.get(), next++) >= 0);
      names += (names.empty() ? "" : ":") + name;
    }
    ::setenv("LISTEN_PID", std::to_string(::getpid()).c_str(), 1);
    ::setenv("LISTEN_FDS", std::to_string(kept_.size()).c_str(), 1);
    ::setenv("LISTEN_FDNAMES", names.c_str(), 1);
    return FdStore::inherit(kFirst);
  }
  void put(const std::string& name, int fd) {
    kept_.emplace_back(name, Fd(::fcntl(fd, F_DUPFD_CLOEXEC, 3)));
  }
  [[nodiscard]] std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const auto& [name, fd] : kept_) all.push_back(name);
    return all;
  }

 private:
  NotifySocket socket_;
  std::vector<std::pair<std::string, Fd>> kept_;
};

Fd some_socket() {
  return Fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
}
ino_t inode(int fd) {
  struct stat info {};
  return ::fstat(fd, &info) == 0 ? info.st_ino : 0;
}
using Names = std::vector<std::string>;

}  // namespace

TEST_CASE("what is kept in one life is there in the next, and the caller's stays the caller's") {
  Manager manager;
  auto first = manager.start();
  Fd socket = some_socket();
  const auto number = inode(socket.get());
  CHECK(first.kept("dns", "udp4").error().code == ENOENT);
  REQUIRE(first.keep("dns", "udp4", socket.get()));
  CHECK(manager.listen() == Names{"FDSTORE=1\nFDPOLL=0\nFDNAME=dns/udp4"});
  CHECK(::fcntl(socket.get(), F_GETFD) >= 0);
  socket.reset();
  CHECK(inode(Fd(first.kept("dns", "udp4").value()).get()) == number);
  first = FdStore{};  // it dies

  auto second = manager.start();
  CHECK(::getenv("LISTEN_FDS") == nullptr);
  CHECK(::getenv("LISTEN_FDNAMES") == nullptr);
  const Fd again(second.kept("dns", "udp4").value());
  CHECK(inode(again.get()) == number);
  CHECK((::fcntl(again.get(), F_GETFD) & FD_CLOEXEC) != 0);
  CHECK((::fcntl(kFirst, F_GETFD) & FD_CLOEXEC) != 0);  // a child gets none of it
  CHECK(second.kept("other", "udp4").error().code == ENOENT);
}

TEST_CASE("more is kept at once than the manager's queue holds, while it reads") {
  Manager manager;
  auto store = manager.start();
  const Fd socket = some_socket();
  std::atomic<bool> told{false};
  std::jthread reader([&] {
    while (!told) manager.listen();
    manager.listen();
  });
  bool all = true;
  for (int i = 0; i < 300; ++i)
    all = store.keep("dns", "udp4." + std::to_string(i), socket.get()).has_value() && all;
  told = true;
  reader.join();
  CHECK(all);
  CHECK(manager.names().size() == 300);
}

TEST_CASE("a name in use is replaced, a dropped one is gone, each by its instance") {
  Manager manager;
  auto store = manager.start();
  const Fd one = some_socket(), two = some_socket();
  REQUIRE(store.keep("dns", "udp4", one.get()));
  REQUIRE(store.keep("dns2", "udp4", one.get()));
  REQUIRE(store.keep("dns", "udp4", two.get()));
  manager.listen();
  CHECK(manager.names() == Names{"dns2/udp4", "dns/udp4"});
  CHECK(inode(Fd(store.kept("dns", "udp4").value()).get()) == inode(two.get()));
  REQUIRE(store.drop("dns", "udp4"));
  CHECK(store.drop("dns", "udp4").error().code == ENOENT);
  manager.listen();
  CHECK(manager.names() == Names{"dns2/udp4"});
  CHECK(store.kept("dns", "udp4").error().code == ENOENT);
}

TEST_CASE("what instances kept that are no longer configured is dropped") {
  Manager manager;
  auto store = manager.start();
  const Fd socket = some_socket();
  REQUIRE(store.keep("dns", "udp4", socket.get()));
  REQUIRE(store.keep("old/dns", "udp4", socket.get()));
  store.keep_only({"dns"});
  manager.listen();
  CHECK(manager.names() == Names{"dns/udp4"});
  CHECK(store.size() == 1);
}

TEST_CASE("what is not ours is closed; what is for another process is left alone") {
  Manager manager;
  const Fd socket = some_socket();
  manager.put("unknown", socket.get());
  manager.put("dns/udp4", socket.get());
  auto store = manager.start();
  CHECK(store.size() == 1);
  CHECK(::fcntl(kFirst, F_GETFD) < 0);
  CHECK(::fcntl(kFirst + 1, F_GETFD) >= 0);

  store = FdStore{};
  REQUIRE(::dup2(socket.get(), kFirst) >= 0);
  const Fd theirs(kFirst);
  ::setenv("LISTEN_PID", "1", 1);
  ::setenv("LISTEN_FDS", "1", 1);
  ::setenv("LISTEN_FDNAMES", "dns/udp4", 1);
  CHECK(FdStore::inherit(kFirst).size() == 0);
  CHECK(::fcntl(kFirst, F_GETFD) >= 0);
}

TEST_CASE("where nobody keeps descriptors that is said, and names that nobody takes are refused") {
  const Fd socket = some_socket();
  {
    FdStore alone;
    CHECK(alone.keep("dns", "udp4", socket.get()).error().code == ENOTSUP);
  }
  Manager manager;
  auto store = manager.start();
  ::setenv("FDSTORE", "0", 1);
  CHECK(store.keep("dns", "udp4", socket.get()).error().code == ENOTSUP);
  ::setenv("FDSTORE", "512", 1);
  CHECK(store.keep("d:ns", "udp4", socket.get()).error().code == EINVAL);
  CHECK(store.keep(std::string(255, 'x'), "udp4", socket.get()).error().code == EINVAL);
  CHECK(store.keep("dns", "udp4", -1).error().code == EBADF);
  CHECK(manager.listen().empty());
  CHECK(store.size() == 0);
}
