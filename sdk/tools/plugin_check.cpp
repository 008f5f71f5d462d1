// sluice-plugin-check: does a plugin keep to the rules? For authors, and for operators before they
// install one.
//
//   sluice-plugin-check build/plugins/mine.so --option 'match=["tap*"]'
//
// One line per check; exit code 0: conforms, 1: does not, 2: usage. The file is judged first; its
// code runs in child processes only, under FakeHost, so that what hangs or crashes there is a line
// of the report.
#include <elf.h>
#include <fcntl.h>
#include <gelf.h>
#include <libelf.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <set>
#include <span>
#include <thread>

#include "base/fd.hpp"
#include "plugins/library.hpp"

#define SLUICE_SDK_QUALIFIED
#include <sluice/fake_host.hpp>

namespace {

using sluice::Fd;
using sluice::Library;
namespace sdk = sluice::sdk;

struct Request {
  std::filesystem::path file;
  std::vector<std::pair<std::string, std::string>> options;  // path, TOML text
  int start_seconds = 10, stop_seconds = 5;                  // as sluiced has them
};

class Report {
 public:
  void good(const std::string& check, const std::string& text) { line("ok", check, text); }
  void note(const std::string& check, const std::string& text) { line("note", check, text); }
  void bad(const std::string& check, const std::string& text) {
    line("FAIL", check, text);
    conforms_ = false;
  }
  [[nodiscard]] bool conforms() const { return conforms_; }

 private:
  static void line(const char* verdict, const std::string& check, const std::string& text) {
    std::cout << "  " << verdict << std::string(6 - std::strlen(verdict), ' ') << check
              << std::string(check.size() < 11 ? 11 - check.size() : 1, ' ') << text << std::endl;
  }
  bool conforms_ = true;
};

// ---- the file
// ---------------------------------------------------------------------------------------------------------

struct ElfCloser {
  void operator()(Elf* elf) const { elf_end(elf); }
};

struct DynamicFacts {
  std::set<std::string> exports, needed;
  bool nodelete = false, bind_now = false, text_relocations = false;
};

std::string name_at(Elf* elf, std::size_t strings, std::size_t offset) {
  const char* name = elf_strptr(elf, strings, offset);
  return name == nullptr ? "" : name;
}

void read_symbols(Elf* elf, const GElf_Shdr& header, Elf_Data* data, DynamicFacts& facts) {
  for (std::size_t i = 0; i < header.sh_size / header.sh_entsize; ++i) {
    GElf_Sym symbol;
    if (gelf_getsym(data, static_cast<int>(i), &symbol) == nullptr) continue;
    const auto binding = GELF_ST_BIND(symbol.st_info);
    const auto visibility = GELF_ST_VISIBILITY(symbol.st_other);
    // SHN_ABS: the name of a version in a version script.
    if (symbol.st_shndx == SHN_UNDEF || symbol.st_shndx == SHN_ABS) continue;
    if (binding != STB_GLOBAL && binding != STB_WEAK && binding != STB_GNU_UNIQUE) continue;
    if (visibility == STV_HIDDEN || visibility == STV_INTERNAL) continue;
    facts.exports.insert(name_at(elf, header.sh_link, symbol.st_name));
  }
}

void read_dynamic(Elf* elf, const GElf_Shdr& header, Elf_Data* data, DynamicFacts& facts) {
  for (std::size_t i = 0; i < header.sh_size / header.sh_entsize; ++i) {
    GElf_Dyn entry;
    if (gelf_getdyn(data, static_cast<int>(i), &entry) == nullptr) continue;
    switch (entry.d_tag) {
      case DT_NEEDED:
        facts.needed.insert(name_at(elf, header.sh_link, entry.d_un.d_val));
        break;
      case DT_FLAGS_1:
        facts.nodelete |= (entry.d_un.d_val & DF_1_NODELETE) != 0;
        facts.bind_now |= (entry.d_un.d_val & DF_1_NOW) != 0;
        break;
      case DT_FLAGS:
        facts.bind_now |= (entry.d_un.d_val & DF_BIND_NOW) != 0;
        facts.text_relocations |= (entry.d_un.d_val & DF_TEXTREL) != 0;
        break;
      case DT_TEXTREL:
        facts.text_relocations = true;
        break;
      default:
        break;
    }
  }
}

std::optional<DynamicFacts> dynamic_facts(const std::filesystem::path& file) {
  elf_version(EV_CURRENT);
  const Fd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  const std::unique_ptr<Elf, ElfCloser> elf(elf_begin(fd.get(), ELF_C_READ_MMAP, nullptr));
  if (!elf) return std::nullopt;
  DynamicFacts facts;
  bool any = false;
  for (Elf_Scn* section = elf_nextscn(elf.get(), nullptr); section != nullptr;
       section = elf_nextscn(elf.get(), section)) {
    GElf_Shdr header;
    if (gelf_getshdr(section, &header) == nullptr || header.sh_entsize == 0) continue;
    auto* data = elf_getdata(section, nullptr);
    if (data == nullptr) continue;
    if (header.sh_type == SHT_DYNSYM) read_symbols(elf.get(), header, data, facts);
    if (header.sh_type == SHT_DYNAMIC) read_dynamic(elf.get(), header, data, facts);
    any |= header.sh_type == SHT_DYNSYM;
  }
  if (!any) return std::nullopt;
  return facts;
}

bool contains(const std::filesystem::path& file, std::string_view needle) {
  const Fd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat facts {};
  if (!fd || ::fstat(fd.get(), &facts) != 0 || facts.st_size == 0) return false;
  const auto size = static_cast<std::size_t>(facts.st_size);
  void* bytes = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (bytes == MAP_FAILED) return false;
  const bool found = std::string_view(static_cast<const char*>(bytes), size).find(needle) !=
                     std::string_view::npos;
  ::munmap(bytes, size);
  return found;
}

std::string joined(const std::set<std::string>& names) {
  std::string text;
  std::size_t shown = 0;
  for (const auto& name : names) {
    if (++shown > 5) return text + " and " + std::to_string(names.size() - 5) + " more";
    text += (text.empty() ? "" : ", ") + name;
  }
  return text;
}

// False: nothing of it may be run.
bool check_file(const std::filesystem::path& file, Report& report) {
  const auto version = sluice::read_abi_version(file);
  if (!version) {
    report.bad("note", version.error().message);
    return false;
  }
  const auto built = std::to_string(version->major) + "." + std::to_string(version->minor);
  const auto spoken = std::to_string(SLUICE_ABI_MAJOR) + "." + std::to_string(SLUICE_ABI_MINOR);
  if (version->major != SLUICE_ABI_MAJOR) {
    report.bad("note", "built for plugin ABI " + built + ", this checker speaks " + spoken +
                           "; rebuild the plugin against this SDK");
    return false;
  }
  report.good("note", "plugin ABI " + built + "; this checker speaks " + spoken);

  const auto facts = dynamic_facts(file);
  if (!facts) {
    report.bad("exports", "has no dynamic symbols; build it as a shared object");
    return false;
  }
  auto others = facts->exports;
  if (others.erase(SLUICE_PLUGIN_ENTRY) == 0)
    report.bad("exports",
               "does not export " SLUICE_PLUGIN_ENTRY "; write SLUICE_PLUGIN(YourClass) once");
  else if (!others.empty())
    report.bad("exports", "exports " + joined(others) +
                              " besides its entry, which may meet another library's; build it with "
                              "sluice_add_plugin()");
  else
    report.good("exports", SLUICE_PLUGIN_ENTRY " and nothing else");

  if (facts->text_relocations)
    report.bad("linking", "has text relocations; compile all of it with -fPIC");
  else if (!facts->nodelete || !facts->bind_now)
    report.bad("linking", "lacks -z nodelete or -z now; build it with sluice_add_plugin()");
  else
    report.good("linking", "never unloaded, bound at load, position independent");

  // The type name of a class whose only definition is in libprotobuf itself: two copies of the
  // library in one process abort at load, whatever the visibility.
  if (contains(file, std::string_view("N6google8protobuf11MessageLiteE\0", 32)))
    report.bad(
        "protobuf",
        "contains libprotobuf; link the distribution's shared library, with LITE_RUNTIME protos");
  else
    report.good("protobuf", "not linked in statically");
  return true;
}

// ---- its code, in a child
// ---------------------------------------------------------------------------------------------

// What a child says through its pipe: one line each, the first character its kind.
constexpr char kStep = '>', kGood = '+', kNote = '.', kBad = '!';

class Teller {
 public:
  explicit Teller(int fd) : fd_(fd) {}
  void step(const std::string& text) { tell(kStep, text); }
  void good(const std::string& text) { tell(kGood, text); }
  void note(const std::string& text) { tell(kNote, text); }
  void bad(const std::string& text) {
    tell(kBad, text);
    failed_ = true;
  }
  [[nodiscard]] bool failed() const { return failed_; }

 private:
  void tell(char kind, std::string text) {
    std::replace(text.begin(), text.end(), '\n', ' ');
    text.insert(text.begin(), kind);
    text += '\n';
    for (std::string_view left = text; !left.empty();) {
      const auto written = ::write(fd_, left.data(), left.size());
      if (written <= 0) return;
      left.remove_prefix(static_cast<std::size_t>(written));
    }
  }
  int fd_;
  bool failed_ = false;
};

// Runs `work` in a child, with `seconds` for each of its steps. What it says becomes lines under
// `check`.
void in_child(Report& report, const std::string& check, const Request& request,
              const std::function<void(Teller&)>& work) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    report.bad(check, std::string("no pipe: ") + std::strerror(errno));
    return;
  }
  Fd reader(ends[0]), writer(ends[1]);
  std::cout.flush();
  const pid_t child = ::fork();
  if (child < 0) {
    report.bad(check, std::string("no child process: ") + std::strerror(errno));
    return;
  }
  if (child == 0) {
    reader.reset();
    Teller teller(writer.get());
    try {
      work(teller);
    } catch (const std::exception& error) {
      teller.bad(std::string("an exception crossed the boundary: ") + error.what() +
                 "; build the plugin with SLUICE_PLUGIN()");
    } catch (...) {
      teller.bad("something was thrown across the boundary; build the plugin with SLUICE_PLUGIN()");
    }
    ::_exit(0);
  }
  writer.reset();

  std::string step = "loading", pending;
  bool hung = false, said = false;
  for (;;) {
    const int seconds = step == "stop()" ? request.stop_seconds : request.start_seconds;
    pollfd ready{reader.get(), POLLIN, 0};
    const int count = ::poll(&ready, 1, seconds * 1000);
    if (count < 0 && errno == EINTR) continue;
    if (count == 0) {
      hung = true;
      break;
    }
    char buffer[4096];
    const auto got = ::read(reader.get(), buffer, sizeof buffer);
    if (got <= 0) break;
    pending.append(buffer, static_cast<std::size_t>(got));
    for (std::size_t end; (end = pending.find('\n')) != std::string::npos;
         pending.erase(0, end + 1)) {
      const auto text = pending.substr(1, end - 1);
      switch (pending.front()) {
        case kStep:
          step = text;
          break;
        case kGood:
          report.good(check, text);
          break;
        case kNote:
          report.note(check, text);
          break;
        default:
          report.bad(check, text);
          break;
      }
      said |= pending.front() == kBad;
    }
  }
  if (hung) ::kill(child, SIGKILL);
  int status = 0;
  ::waitpid(child, &status, 0);
  if (hung)
    report.bad(check,
               "hangs in " + step + "; return from it at once and go on in a timer or an fd");
  else if (WIFSIGNALED(status))
    report.bad(check, "dies of signal " + std::to_string(WTERMSIG(status)) + " (" +
                          strsignal(WTERMSIG(status)) + ") in " + step);
  else if (WEXITSTATUS(status) != 0 && !said)
    report.bad(check, "ends the process in " + step + "; a plugin must never exit()");
}

std::string type_name(std::uint32_t type) {
  return std::string(sdk::to_string(static_cast<sdk::OptionType>(type)));
}

void check_table(const Request& request, Teller& teller) {
  const auto library = Library::open(request.file);
  if (!library) return teller.bad(library.error().message);
  const auto& table = (*library)->table();
  std::string roles;
  const std::pair<std::uint32_t, const char*> names[] = {
      {SLUICE_ROLE_DISCOVERY, "discovery"}, {SLUICE_ROLE_POLICY_SOURCE, "policy source"},
      {SLUICE_ROLE_RESOLVER, "resolver"},   {SLUICE_ROLE_OBSERVER, "observer"},
      {SLUICE_ROLE_DECIDER, "decider"},     {SLUICE_ROLE_ANSWER_SOURCE, "answer source"},
  };
  for (const auto& [role, name] : names)
    if ((table.roles & role) != 0) roles += (roles.empty() ? "" : ", ") + std::string(name);
  teller.good(sdk::detail::copy(table.name) + " " + sdk::detail::copy(table.version) + ": " +
              roles);
  if (table.summary.length == 0) teller.note("has no summary; say in one line what it does");
  for (std::uint32_t i = 0; i < table.option_count; ++i) {
    const auto option = sdk::detail::known_part(sdk::detail::element(table.options, i));
    const auto path = sdk::detail::copy(option.path);
    if (option.help.length == 0)
      teller.note("option " + path + " has no help; say in one line what it does");
    if ((option.flags & SLUICE_OPTION_REQUIRED) != 0 && option.default_value.length != 0)
      teller.bad("option " + path + " is required and has a default; drop one of them");
    if (option.default_value.length == 0) continue;
    try {
      sdk::FakeHost::parse_value(static_cast<sdk::OptionType>(option.type),
                                 sdk::detail::view(option.default_value));
    } catch (const sdk::Error& error) {
      teller.bad("option " + path + ", " + type_name(option.type) + ": its default " +
                 sdk::detail::copy(option.default_value) + " does not fit: " + error.what());
    }
  }
}

std::size_t count_entries(const char* directory) {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(directory)) ++count;
  return count;
}

sdk::AttachmentInfo sample_attachment() {
  sdk::AttachmentInfo info;
  info.id = {7};
  info.incarnation = 70;
  info.generation = 1;
  info.target = sdk::InterfaceTarget{.name = "tap7", .ifindex = 7};
  info.labels = {{"class", "conformance"}};
  info.discovered_by = "checker";
  info.state = "filtering";
  return info;
}

// One life: everything the host may call, in the host's order.
void live(const sluice_plugin& table, const Request& request, Teller& teller) {
  sdk::FakeHost host("check");
  for (const auto& [path, toml] : request.options) host.configure_toml(path, toml);
  const auto state =
      std::filesystem::temp_directory_path() / ("sluice-check-" + std::to_string(::getpid()));
  host.set_config_directory(std::filesystem::current_path());
  host.set_state_directory(state);
  struct Sweeper {
    std::filesystem::path path;
    ~Sweeper() {
      std::error_code ignored;
      std::filesystem::remove_all(path, ignored);
    }
  } const sweeper{state};

  teller.step("create()");
  host.create(table);
  teller.step("start()");
  host.start();
  const auto turn = [&] {
    teller.step("an event");
    host.run_ready_fds();
    host.run_wakes(std::chrono::milliseconds(20));
    host.advance(std::chrono::seconds(60));
  };
  turn();
  auto info = sample_attachment();
  teller.step("attachment_added()");
  host.add_attachment(info);
  turn();
  info.labels["class"] = "changed";
  teller.step("attachment_changed()");
  host.change_attachment(info);
  teller.step("domain_rules()");
  sdk::Rule rule;
  rule.action = sdk::Action::allow;
  rule.domain = "*.example.org";
  host.domain_rules(info.id, {rule});
  teller.step("denials()");
  host.denials(std::array{sdk::Denial{}});
  teller.step("decide()");
  host.decide({.id = 1, .attachment = info.id, .name = "www.example.org", .type = 1});
  teller.step("decided()");
  host.decided(1, {.action = sdk::Decision::Action::deny, .reason = "a question never asked"});
  teller.step("answer_pushed()");
  (void)host.push_answer({.attachment = info.id,
                          .name = "www.example.org",
                          .chain = {"example.org"},
                          .addresses = {{sdk::Address::parse("192.0.2.1"), 60}}});
  teller.step("queries()");
  host.queries(std::array{sdk::QueryReport{}});
  turn();
  teller.step("plugin_state()");
  host.plugin_state({"other", "running", ""});
  teller.step("on_resync()");
  host.resync();
  turn();
  teller.step("attachment_removed()");
  host.remove_attachment(info.id, "the check is over");
  turn();
  if (const auto failure = host.failure()) teller.bad("fails: " + *failure);

  // The host as a plugin meets it in quarantine and after stop.
  teller.step("stop()");
  host.stop();
  teller.step("destroy()");
  host.destroy();
  for (const auto& line : host.lines())
    if (line.level == sdk::LogLevel::error) teller.note("logged an error: " + line.text);
}

void check_life(const Request& request, Teller& teller) {
  // A sanitizer's runtime starts a thread of its own with the first one of the process.
  std::thread([] {}).join();
  const auto own_threads = count_entries("/proc/self/task");
  const auto library = Library::open(request.file);
  if (!library) return;  // said already
  try {
    // The first life may leave caches of libraries behind; the second must leave nothing more.
    live((*library)->table(), request, teller);
    const auto threads = count_entries("/proc/self/task"), fds = count_entries("/proc/self/fd");
    if (threads > own_threads)
      teller.bad("leaves " + std::to_string(threads - own_threads) +
                 " threads behind; join them in stop()");
    if (teller.failed()) return;
    teller.good("created, started, told everything, stopped, destroyed");
    live((*library)->table(), request, teller);
    if (count_entries("/proc/self/task") > threads)
      teller.bad("leaves more threads behind with each life; join them in stop()");
    if (count_entries("/proc/self/fd") > fds)
      teller.bad("leaves open file descriptors behind; close them in stop() or the destructor");
    if (!teller.failed()) teller.good("and once more, leaving no thread and no descriptor behind");
  } catch (const sdk::Error& error) {
    teller.bad(std::string("does not come up: ") + error.what() +
               " (options are given as --option 'path=TOML value')");
  }
}

int usage(const char* problem) {
  std::cerr << "sluice-plugin-check: " << problem
            << "\nusage: sluice-plugin-check PLUGIN.so [--option 'path=TOML value']...\n";
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  Request request;
  const std::span<char*> arguments(argv + 1, static_cast<std::size_t>(argc - 1));
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string_view argument = arguments[i];
    if (argument == "--help" || argument == "-h") {
      std::cout << "usage: sluice-plugin-check PLUGIN.so [--option 'path=TOML value']...\n"
                   "Checks that a plugin keeps to the rules of the plugin ABI. Exit code 0: it "
                   "does, 1: it does not.\n";
      return 0;
    }
    if (argument == "--option") {
      if (i + 1 == arguments.size()) return usage("--option needs 'path=TOML value'");
      const std::string option = arguments[++i];
      const auto equals = option.find('=');
      if (equals == std::string::npos) return usage("--option needs 'path=TOML value'");
      request.options.emplace_back(option.substr(0, equals), option.substr(equals + 1));
    } else if (argument.starts_with("-")) {
      return usage(("unknown option " + std::string(argument)).c_str());
    } else if (!request.file.empty()) {
      return usage("one plugin at a time");
    } else {
      request.file = argument;
    }
  }
  if (request.file.empty()) return usage("no plugin named");

  std::cout << request.file.filename().string() << std::endl;
  Report report;
  if (check_file(request.file, report)) {
    in_child(report, "table", request, [&](Teller& teller) { check_table(request, teller); });
    if (report.conforms())
      in_child(report, "life", request, [&](Teller& teller) { check_life(request, teller); });
  }
  std::cout << (report.conforms() ? "conforms" : "does not conform") << std::endl;
  return report.conforms() ? 0 : 1;
}
