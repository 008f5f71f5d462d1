// The journal as its host sees it.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "journal/plugin.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>

#include <sluice/fake_host.hpp>

using namespace sluice;
using namespace sluice::journal;
using namespace std::chrono_literals;

namespace {

struct Stage {
  std::filesystem::path folder;
  FakeHost host;
  Stage() {
    std::string pattern = std::filesystem::temp_directory_path() / "sluice-journal-XXXXXX";
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    folder = pattern;
    host.configure("to", "file:" + file());
  }
  ~Stage() { std::filesystem::remove_all(folder); }
  std::string file() const { return folder / "sluice.json"; }
  void start() {
    host.create<JournalPlugin>();
    AttachmentInfo info;
    info.id = {7};
    info.target = InterfaceTarget{.name = "tap0", .ifindex = 7};
    info.labels = {{"tenant", "blue"}};
    host.add_attachment(info);
    host.start();
  }
  void query(std::string_view name, QueryVerdict verdict = QueryVerdict::denied,
             bool audited = false) {
    const QueryReport report{.attachment = {7},
                             .time = host.now(),
                             .name = name,
                             .type = 1,
                             .verdict = verdict,
                             .audited = audited};
    host.queries(std::span(&report, 1));
  }
  void deny(std::uint16_t port) {
    const Denial denial{.attachment = {7},
                        .time = host.now(),
                        .reason = "not on the allowlist",
                        .protocol = 6,
                        .destination_port = port,
                        .source = Address::parse("10.0.0.2"),
                        .destination = Address::parse("192.0.2.1")};
    host.denials(std::span(&denial, 1));
  }
  std::vector<std::string> lines() const {
    std::vector<std::string> all;
    std::ifstream in(file());
    for (std::string line; std::getline(in, line);) all.push_back(line);
    return all;
  }
};
bool has(const std::string& line, const std::string& part) {
  return line.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("events of a window are written at its end, identical ones once") {
  Stage stage;
  stage.start();
  stage.query("evil.example");
  stage.query("evil.example");
  stage.deny(22);
  CHECK(stage.lines().empty());
  stage.host.advance(5s);
  auto lines = stage.lines();
  REQUIRE(lines.size() == 2);
  CHECK(has(lines[0], "\"target\":\"tap0\",\"count\":2,\"name\":\"evil.example\""));
  CHECK(has(lines[0], "\"labels\":{\"tenant\":\"blue\"}"));
  CHECK(has(lines[1], "\"event\":\"denial\""));
  CHECK(has(lines[1], "\"port\":22"));
  CHECK(stage.host.timers().empty());  // nothing to tell: nothing to wake up for
  stage.query("evil.example");
  CHECK(stage.host.timers().size() == 1);
  stage.host.stop();
  CHECK(stage.lines().size() == 3);  // and nothing is lost at the end
}

TEST_CASE("what is wanted") {
  Stage stage;
  SUBCASE("refused: what was simply allowed is left out") {
    stage.host.configure("queries", "refused");
    stage.start();
    stage.query("ok.example", QueryVerdict::allowed);
    stage.query("audited.example", QueryVerdict::allowed, true);
    stage.query("failed.example", QueryVerdict::failed);
    stage.deny(22);
    stage.host.advance(5s);
    const auto lines = stage.lines();
    REQUIRE(lines.size() == 3);
    CHECK(has(lines[0], "audited.example"));
    CHECK(has(lines[1], "failed.example"));
  }
  SUBCASE("neither") {
    stage.host.configure("queries", "none");
    stage.host.configure("denials", false);
    stage.start();
    stage.query("evil.example");
    stage.deny(22);
    CHECK(stage.host.timers().empty());
  }
}

TEST_CASE("the rate bounds the records; what is left out is counted in the file") {
  Stage stage;
  stage.host.configure("rate", 2);
  stage.host.configure("window", 1s);
  stage.start();
  for (int i = 0; i < 50; ++i) stage.query("n" + std::to_string(i) + ".example");
  stage.query("n49.example");
  stage.host.advance(1s);
  const auto lines = stage.lines();
  REQUIRE(lines.size() == 3);
  CHECK(has(lines[2], "\"event\":\"left_out\",\"records\":48,\"count\":49"));
}

TEST_CASE("a file that cannot be written is said once, and what was lost is told afterwards") {
  Stage stage;
  stage.host.configure("window", 1s);
  stage.start();
  const auto hidden = stage.folder.string() + ".hidden";
  std::filesystem::rename(stage.folder, hidden);
  for (int i = 0; i < 3; ++i) {
    stage.query("evil.example");
    stage.host.advance(1s);
  }
  const auto said = [&] {
    std::size_t count = 0;
    for (const auto& line : stage.host.lines()) count += line.level == LogLevel::warning;
    return count;
  };
  CHECK(said() == 1);
  std::filesystem::rename(hidden, stage.folder);
  stage.query("good.example");
  stage.host.advance(1s);
  const auto lines = stage.lines();
  REQUIRE(lines.size() == 2);
  CHECK(has(lines[0], "good.example"));
  CHECK(has(lines[1], "\"records\":3,\"count\":3"));
  CHECK(said() == 1);
  CHECK_FALSE(stage.host.failure());
}

TEST_CASE("a place that failed is asked again in the next window, not with the next record") {
  Stage stage;
  stage.host.configure("max_file_kib", 64);
  std::filesystem::create_directories(stage.file() + ".1/in the way");
  std::ofstream(stage.file()) << std::string(64 * 1024 - 350, 'x') << '\n';
  stage.start();
  stage.query(std::string(250, 'y'));
  stage.query("fits.example");
  stage.host.advance(5s);
  CHECK(stage.lines().size() == 1);
  stage.query("fits.example");
  stage.host.advance(5s);
  const auto lines = stage.lines();
  REQUIRE(lines.size() >= 2);
  CHECK(has(lines[1], "fits.example"));
}

TEST_CASE("a reader that has stalled costs a window one wait, and is told what it missed") {
  int ends[2];
  REQUIRE(::pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0);
  const std::string page(4096, 'x');
  while (::write(ends[1], page.data(), page.size()) > 0) {
  }
  const int before = ::dup(STDERR_FILENO);
  REQUIRE(::dup2(ends[1], STDERR_FILENO) == STDERR_FILENO);
  Stage stage;
  stage.host.configure("to", "stderr");
  stage.start();
  for (std::uint16_t port = 1; port <= 200; ++port) stage.deny(port);
  const auto began = std::chrono::steady_clock::now();
  stage.host.advance(5s);
  const auto lasted = std::chrono::steady_clock::now() - began;

  std::string text(1 << 20, '\0');
  while (::read(ends[0], text.data(), text.size()) > 0) {
  }
  stage.deny(1);
  stage.host.advance(5s);
  text.resize(
      static_cast<std::size_t>(std::max<ssize_t>(0, ::read(ends[0], text.data(), text.size()))));
  ::dup2(before, STDERR_FILENO);
  for (const int fd : {before, ends[0], ends[1]}) ::close(fd);
  CHECK(lasted < 10s);  // an event that takes longer has the plugin quarantined
  CHECK(has(text, "\"port\":1"));
  CHECK(has(text, "\"event\":\"left_out\",\"records\":200,\"count\":200"));
}

TEST_CASE("a query that is told of before its workload is named as well") {
  Stage stage;
  stage.start();
  const QueryReport report{.attachment = {8}, .name = "early.example"};
  stage.host.queries(std::span(&report, 1));
  AttachmentInfo info;
  info.id = {8};
  info.target = InterfaceTarget{.name = "tap8", .ifindex = 8};
  stage.host.add_attachment(info);
  stage.host.advance(5s);
  const auto lines = stage.lines();
  REQUIRE(lines.size() == 1);
  CHECK(has(lines[0], "\"target\":\"tap8\""));
}

TEST_CASE("a workload that went is still named in what it did before") {
  Stage stage;
  stage.start();
  stage.query("evil.example");
  stage.host.remove_attachment({7}, "gone");
  stage.query("late.example");
  stage.host.advance(5s);
  const auto lines = stage.lines();
  REQUIRE(lines.size() == 2);
  CHECK(has(lines[0], "\"target\":\"tap0\""));
  CHECK(has(lines[1], "\"attachment\":\"7\""));
}

TEST_CASE("options that cannot be meant are refused") {
  struct Row {
    const char* option;
    const char* toml;
  };
  for (const auto& row :
       {Row{"queries", "\"some\""}, Row{"window", "\"1ms\""}, Row{"window", "\"1h\""},
        Row{"rate", "0"}, Row{"distinct", "0"}, Row{"max_file_kib", "1"}}) {
    CAPTURE(row.option);
    FakeHost host;
    host.configure_toml(row.option, row.toml);
    CHECK_THROWS_AS(host.create<JournalPlugin>(), Error);
  }
}

TEST_CASE("a place where no record can go is found before anything starts") {
  for (const auto& [to, says] :
       {std::pair{"nowhere", "is no place for records"},
        std::pair{"file:relative.json", "is no place for records"},
        std::pair{"file:/nonexistent/sluice/events.json",
                  "there is no folder /nonexistent/sluice; make it"},
        std::pair{"file:/dev/null/events.json", "there is no folder /dev/null; make it"}}) {
    CAPTURE(to);
    FakeHost host;
    host.configure("to", to);
    std::string message;
    try {
      host.create<JournalPlugin>();
    } catch (const Error& error) {
      message = error.message();
    }
    CHECK(has(message, says));
  }
}

TEST_CASE("everything that is wrong with the options is told at once") {
  FakeHost host;
  host.configure("to", "nowhere");
  host.configure("queries", "some");
  host.configure("rate", 0);
  host.configure("window", 1h);
  std::string message;
  try {
    host.create<JournalPlugin>();
  } catch (const Error& error) {
    message = error.message();
  }
  CHECK(message ==
        "to: \"nowhere\" is no place for records; write \"journald\", \"stderr\" or "
        "\"file:/an/absolute/path\"; also queries: \"some\" is unknown; write \"all\", \"refused\" "
        "or "
        "\"none\"; also window: it takes 100ms to 10m; also rate: 0; it takes 1 to 100000");
}
