// Records reach the place they are for, whole; a place that fails is reported and costs nothing.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "journal/sink.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include <sluice/plugin.hpp>

using namespace sluice;
using namespace sluice::journal;

namespace {

struct Folder {
  std::filesystem::path path;
  Folder() {
    std::string pattern = std::filesystem::temp_directory_path() / "sluice-journal-XXXXXX";
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path = pattern;
  }
  ~Folder() { std::filesystem::remove_all(path); }
};
std::string text_of(const std::filesystem::path& file) {
  std::ostringstream text;
  text << std::ifstream(file).rdbuf();
  return text.str();
}
Record record(const std::string& name) {
  Record record;
  record.message = name;
  record.fields.emplace_back("name", name);
  return record;
}
std::string line(const std::string& name) {
  return "{\"name\":\"" + name + "\"}\n";
}
int code_of(const std::function<void()>& work) {
  try {
    work();
    return 0;
  } catch (const Error& error) {
    return error.code();
  }
}

}  // namespace

TEST_CASE("a file takes lines, and is opened anew when it was moved away or removed") {
  Folder folder;
  const auto file = folder.path / "sluice.json";
  const auto sink = to_file(file, 1 << 20);
  sink->begin();
  CHECK(sink->write(record("one")));
  std::filesystem::rename(file, folder.path / "sluice.json.rotated");
  sink->begin();
  CHECK(sink->write(record("two")));
  CHECK(text_of(folder.path / "sluice.json.rotated") == line("one"));
  CHECK(text_of(file) == line("two"));
  std::filesystem::remove(file);
  sink->begin();
  CHECK(sink->write(record("three")));
  CHECK(text_of(file) == line("three"));
  struct stat facts {};
  REQUIRE(::stat(file.c_str(), &facts) == 0);
  CHECK((facts.st_mode & 0137) == 0);  // at most 0640
}

TEST_CASE("a file does not grow beyond its bound") {
  Folder folder;
  const auto file = folder.path / "sluice.json";
  const auto sink = to_file(file, 64);
  sink->begin();
  for (int i = 0; i < 100; ++i) CHECK(sink->write(record("number " + std::to_string(i))));
  CHECK(std::filesystem::file_size(file) <= 64);
  CHECK(std::filesystem::file_size(file.string() + ".1") <= 64);
  CHECK(text_of(file).find("number 99") != std::string::npos);
}

TEST_CASE("what is no regular file is refused") {
  Folder folder;
  const auto target = folder.path / "target";
  std::ofstream(target) << "";
  std::filesystem::create_symlink(target, folder.path / "link");
  CHECK(code_of([&] { (void)to_file(folder.path / "link", 100); }) == ELOOP);
  REQUIRE(::mkfifo((folder.path / "fifo").c_str(), 0600) == 0);
  CHECK(code_of([&] { (void)to_file(folder.path / "fifo", 100); }) != 0);
  CHECK(code_of([&] { (void)to_file(folder.path / "no" / "such", 100); }) == ENOENT);
}

TEST_CASE("journald gets datagrams; one that does not read is not waited for") {
  Folder folder;
  const auto path = (folder.path / "socket").string();
  CHECK(code_of([&] { (void)to_journald(path); }) == ENOENT);
  const int journald = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  REQUIRE(journald >= 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  REQUIRE(::bind(journald, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  const auto sink = to_journald(path);
  REQUIRE(sink->write(record("one")));
  char buffer[4096];
  const auto got = ::recv(journald, buffer, sizeof buffer, 0);
  REQUIRE(got > 0);
  CHECK(std::string(buffer, static_cast<std::size_t>(got)) == journald_datagram(record("one")));
  int written = 0;
  while (written < 1'000'000 && sink->write(record("more"))) ++written;
  CHECK(written < 1'000'000);
  CHECK(sink->error().find(path) != std::string::npos);
  ::close(journald);
  CHECK_FALSE(sink->write(record("gone")));
}

TEST_CASE("a pipe whose reader sleeps is not waited for; a broken line is ended") {
  std::signal(SIGPIPE, SIG_IGN);
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  REQUIRE(::fcntl(ends[1], F_SETPIPE_SZ, 4096) == 4096);
  const auto sink = to_descriptor(ends[1]);
  REQUIRE(sink->write(record("one")));
  CHECK_FALSE(sink->write(record(std::string(9000, 'x'))));
  std::string text(16384, '\0');
  const auto first = ::read(ends[0], text.data(), text.size());
  REQUIRE(first > 0);
  text.resize(static_cast<std::size_t>(first));
  CHECK(text.starts_with(line("one")));
  REQUIRE(sink->write(record("two")));
  char rest[4096];
  const auto got = ::read(ends[0], rest, sizeof rest);
  REQUIRE(got > 0);
  text.append(rest, static_cast<std::size_t>(got));
  CHECK(text.ends_with("\n" + line("two")));
  ::close(ends[0]);
  CHECK_FALSE(sink->write(record("three")));
  ::close(ends[1]);
}

TEST_CASE("a pipe whose reader is slow is waited for once in a window, not with each record") {
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
  REQUIRE(::fcntl(ends[1], F_SETPIPE_SZ, 4096) == 4096);
  std::jthread reader([from = ends[0]](const std::stop_token& stop) {
    char page[4096];
    while (!stop.stop_requested() && ::read(from, page, sizeof page) > 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
  });
  const auto sink = to_descriptor(ends[1]);
  sink->begin();
  int written = 0;
  for (int i = 0; i < 200; ++i) written += sink->write(record(std::string(1000, 'x')));
  CHECK(written > 0);
  CHECK(written < 200);
  reader.request_stop();
  ::close(ends[1]);
  reader.join();
  ::close(ends[0]);
}

TEST_CASE("places by name") {
  CHECK(code_of([] { (void)open_sink("stderr", 1); }) == 0);
  for (const auto* wrong : {"", "syslog", "file:", "file:relative", "File:/x"})
    CHECK(code_of([&] { (void)open_sink(wrong, 1); }) == EINVAL);
}
