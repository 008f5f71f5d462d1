#include "daemon/check.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <map>

#include "daemon/load.hpp"

extern char** environ;

namespace sluice {
namespace {

constexpr std::size_t kMostOutput = std::size_t{1} << 20;

// The child's report: each line opens with what it is.
constexpr char kBegins = '>';  // the plugin that is looked at now
constexpr char kError = '!';
constexpr char kWarning = '?';
constexpr char kDone = '.';

class Report {
 public:
  explicit Report(int fd) : fd_(fd) {}
  void line(char kind, std::string text) {
    for (auto& character : text) {
      if (character == '\n') character = ' ';
    }
    text.insert(text.begin(), kind);
    text += '\n';
    for (std::size_t sent = 0; sent < text.size();) {
      const auto length = ::write(fd_, text.data() + sent, text.size() - sent);
      if (length <= 0) return;
      sent += static_cast<std::size_t>(length);
    }
  }

 private:
  int fd_;
};

void look_at_everything(const std::filesystem::path& file, uid_t library_owner, Report report) {
  const auto partly = load_what_is_sound(file, library_owner);
  const auto& errors = partly ? partly->errors : partly.error();
  for (const auto& error : errors) report.line(kError, error.message());
  if (!partly) return;
  // What a plugin finds in its files is told beside what is wrong with others.
  const auto& [config, plugins] = partly->loaded;
  const auto settings = plugin_settings(config, library_owner);
  std::map<std::string, std::string> names;
  for (const auto& plugin : plugins) {
    report.line(kBegins, plugin.config.instance);
    auto findings = check_plugins({plugin}, settings);
    for (auto& error : findings.errors) report.line(kError, std::move(error));
    for (auto& warning : findings.warnings) report.line(kWarning, std::move(warning));
    names.merge(findings.names);
  }
  if (!errors.empty()) return;  // half of a configuration leaves many things unwired
  for (auto& doubt : doubts_of_wires(plugins, names, config))
    report.line(kWarning, std::move(doubt));
}

std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t begin = 0; begin < text.size();) {
    const auto end = std::min(text.find('\n', begin), text.size());
    if (end > begin) lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

struct Pipe {
  Fd read, write;
};
Result<Pipe> make_pipe() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) {
    return fail_with(errno, "cannot make a pipe: {}", std::strerror(errno));
  }
  return Pipe{Fd(ends[0]), Fd(ends[1])};
}

std::string how_it_ended(int status) {
  if (WIFSIGNALED(status)) {
    return fmt::format("crashed with signal {} ({})", WTERMSIG(status),
                       ::strsignal(WTERMSIG(status)));
  }
  return fmt::format("ended the process with status {}", WEXITSTATUS(status));
}

}  // namespace

int print(const CheckReport& report) {
  for (const auto& error : report.errors) std::fprintf(stderr, "%s\n", error.c_str());
  for (const auto& warning : report.warnings)
    std::fprintf(stderr, "warning: %s\n", warning.c_str());
  return report.errors.empty() ? 0 : 1;
}

CheckReport check_configuration(const std::filesystem::path& file, uid_t library_owner,
                                std::chrono::milliseconds patience) {
  CheckReport report;
  auto pipe = make_pipe();
  if (!pipe) {
    report.errors = {pipe.error().message};
    return report;
  }
  const auto asker = ::getpid();
  const auto child = ::fork();
  if (child < 0) {
    report.errors = {fmt::format("cannot fork: {}", std::strerror(errno))};
    return report;
  }
  if (child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);    // a hanging plugin does not outlive whoever asked
    if (::getppid() != asker) ::_exit(1);  // who died before that was said
    pipe->read.reset();
    Report out(pipe->write.get());
    look_at_everything(file, library_owner, out);
    out.line(kDone, "");
    ::_exit(0);  // no destructors: threads of plugins may still be about
  }
  pipe->write.reset();

  std::string text;
  bool patient = true;
  for (;;) {
    pollfd waiting{.fd = pipe->read.get(), .events = POLLIN, .revents = 0};
    const int ready = ::poll(&waiting, 1, static_cast<int>(patience.count()));
    if (ready < 0 && errno == EINTR) continue;
    patient = ready > 0;
    if (!patient) break;
    std::array<char, 4096> buffer;
    const auto length = ::read(pipe->read.get(), buffer.data(), buffer.size());
    if (length <= 0) break;
    if (text.size() < kMostOutput) text.append(buffer.data(), static_cast<std::size_t>(length));
  }
  if (!patient) ::kill(child, SIGKILL);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }

  auto& errors = report.errors;
  std::string plugin;
  bool complete = false;
  for (const auto& line : split_lines(text)) {
    if (line.front() == kBegins) plugin = line.substr(1);
    if (line.front() == kError) errors.push_back(line.substr(1));
    if (line.front() == kWarning) report.warnings.push_back(line.substr(1));
    if (line.front() == kDone) complete = true;
  }
  if (!complete) {
    const auto culprit = plugin.empty() ? std::string{"loading the plugins"} : "plugin " + plugin;
    errors.push_back(
        patient ? fmt::format("{}: {} while it was checked; it would do so in the daemon too",
                              culprit, how_it_ended(status))
                : fmt::format("{}: did not finish its check within {} s", culprit,
                              std::chrono::duration_cast<std::chrono::seconds>(patience).count()));
  }
  return report;
}

Result<std::unique_ptr<CheckRun>> CheckRun::start(EventLoop& loop,
                                                  const std::filesystem::path& program,
                                                  const std::filesystem::path& file,
                                                  std::chrono::milliseconds patience, Done done) {
  auto pipe = make_pipe();
  if (!pipe) return std::unexpected(pipe.error());
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, pipe->write.get(), 1);
  posix_spawn_file_actions_adddup2(&actions, pipe->write.get(), 2);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  std::string words[] = {program.string(), "--check", file.string()};
  char* argv[] = {words[0].data(), words[1].data(), words[2].data(), nullptr};
  pid_t child = 0;
  const int error = ::posix_spawn(&child, program.c_str(), &actions, &attributes, argv, environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) {
    return fail_with(error, "{}: cannot be run to check the configuration: {}", program.string(),
                     std::strerror(error));
  }
  auto run =
      std::unique_ptr<CheckRun>(new CheckRun(loop, std::move(pipe->read), child, std::move(done)));
  auto* self = run.get();
  ::fcntl(self->output_.get(), F_SETFL, O_NONBLOCK);
  if (auto status = loop.watch(self->output_.get(), [self] { self->read_output(); }); !status) {
    return std::unexpected(status.error());
  }
  self->deadline_ = loop.after(patience, [self, patience] {
    self->text_ += fmt::format("\nthe check did not end within {} s",
                               std::chrono::duration_cast<std::chrono::seconds>(patience).count());
    ::kill(self->child_, SIGKILL);
  });
  return run;
}

CheckRun::~CheckRun() {
  loop_.cancel(deadline_);
  loop_.cancel(retry_);
  loop_.unwatch(output_.get());
  if (child_ <= 0) return;
  ::kill(child_, SIGKILL);
  ::waitpid(child_, nullptr, 0);
}

void CheckRun::read_output() {
  std::array<char, 4096> buffer;
  for (;;) {
    const auto length = ::read(output_.get(), buffer.data(), buffer.size());
    if (length > 0) {
      if (text_.size() < kMostOutput) text_.append(buffer.data(), static_cast<std::size_t>(length));
      continue;
    }
    if (length < 0 && (errno == EAGAIN || errno == EINTR)) return;
    loop_.unwatch(output_.get());
    reap();
    return;
  }
}

// Its output ends a moment before it does; never wait for it here.
void CheckRun::reap() {
  int status = 0;
  const auto ended = ::waitpid(child_, &status, WNOHANG);
  if (ended == 0) {
    retry_ = loop_.after(std::chrono::milliseconds(5), [this] { reap(); });
    return;
  }
  child_ = 0;
  finish(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void CheckRun::finish(bool fine) {
  loop_.cancel(deadline_);
  const auto done = std::move(done_);
  done(fine, split_lines(text_));  // may destroy this
}

}  // namespace sluice
