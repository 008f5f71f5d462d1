#include "plugins/library.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <gelf.h>
#include <libelf.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <optional>
#include <set>
#include <string_view>

#include "base/fd.hpp"

namespace sluice {
namespace {

struct ElfCloser {
  void operator()(Elf* elf) const { elf_end(elf); }
};
using ElfPtr = std::unique_ptr<Elf, ElfCloser>;

// Reads the program headers rather than the sections: they survive every strip, and they are what
// the dynamic loader goes by.
std::optional<AbiVersion> note_version(Elf* elf) {
  std::size_t headers = 0;
  if (elf_getphdrnum(elf, &headers) != 0) return std::nullopt;
  for (std::size_t i = 0; i < headers; ++i) {
    GElf_Phdr header;
    if (gelf_getphdr(elf, static_cast<int>(i), &header) == nullptr) continue;
    if (header.p_type != PT_NOTE) continue;
    auto* data = elf_getdata_rawchunk(elf, static_cast<std::int64_t>(header.p_offset),
                                      header.p_filesz, ELF_T_NHDR);
    if (data == nullptr) continue;
    GElf_Nhdr note;
    std::size_t name_at = 0, value_at = 0;
    for (std::size_t at = 0; (at = gelf_getnote(data, at, &note, &name_at, &value_at)) > 0;) {
      const auto* bytes = static_cast<const char*>(data->d_buf);
      if (note.n_type != SLUICE_NOTE_TYPE || note.n_namesz != sizeof SLUICE_NOTE_NAME ||
          note.n_descsz < sizeof(sluice_note))
        continue;
      if (std::memcmp(bytes + name_at, SLUICE_NOTE_NAME, sizeof SLUICE_NOTE_NAME) != 0) continue;
      sluice_note value{};
      std::memcpy(&value, bytes + value_at, sizeof value);
      return AbiVersion{value.abi_major, value.abi_minor};
    }
  }
  return std::nullopt;
}

Result<AbiVersion> read_abi_version(const std::filesystem::path& file, int fd) {
  elf_version(EV_CURRENT);
  const ElfPtr elf(elf_begin(fd, ELF_C_READ_MMAP, nullptr));
  if (!elf || elf_kind(elf.get()) != ELF_K_ELF)
    return fail_with(ENOEXEC, "{}: not an ELF file; put the plugin's .so there", file.string());
  const auto version = note_version(elf.get());
  if (!version)
    return fail_with(ENOEXEC,
                     "{}: has no Sluice version note, so it is no plugin; build it with "
                     "SLUICE_PLUGIN() and sluice_add_plugin() of the SDK",
                     file.string());
  return *version;
}

Status check_trust(const std::filesystem::path& path, const struct stat& facts, uid_t owner,
                   const char* what) {
  if (facts.st_uid != owner)
    return fail_with(EPERM,
                     "{}: this {} is owned by uid {}, not by {}; a plugin runs with the daemon's "
                     "rights: check where it came from, then chown it",
                     path.string(), what, facts.st_uid,
                     owner == 0 ? std::string("root") : "uid " + std::to_string(owner));
  if ((facts.st_mode & (S_IWGRP | S_IWOTH)) != 0)
    return fail_with(EPERM,
                     "{}: this {} can be written by {} (mode {:04o}); a plugin runs with the "
                     "daemon's rights: chmod go-w it",
                     path.string(), what, (facts.st_mode & S_IWOTH) != 0 ? "everyone" : "its group",
                     facts.st_mode & 07777);
  return {};
}

std::string joined(const std::vector<std::filesystem::path>& directories) {
  std::string text;
  for (const auto& directory : directories) text += (text.empty() ? "" : ", ") + directory.string();
  return text.empty() ? "[host] plugin_path, which is empty" : text;
}

Status check_version(const std::filesystem::path& file, AbiVersion version) {
  if (version.major == SLUICE_ABI_MAJOR) return {};
  return fail_with(ENOEXEC, "{}: built for plugin ABI {}.{}, this host speaks {}.{}; {}",
                   file.filename().string(), version.major, version.minor, SLUICE_ABI_MAJOR,
                   SLUICE_ABI_MINOR,
                   version.major > SLUICE_ABI_MAJOR
                       ? "install the sluiced it was built for, or rebuild it against this SDK"
                       : "rebuild it against this SDK");
}

constexpr std::uint32_t kRoles = SLUICE_ROLE_DISCOVERY | SLUICE_ROLE_POLICY_SOURCE |
                                 SLUICE_ROLE_RESOLVER | SLUICE_ROLE_OBSERVER | SLUICE_ROLE_DECIDER |
                                 SLUICE_ROLE_ANSWER_SOURCE;

// What a table of the first release holds: later minors only append.
constexpr std::size_t kSmallestTable =
    offsetof(sluice_plugin, check) + sizeof(sluice_plugin::check);
constexpr std::size_t kSmallestOption = offsetof(sluice_option, help) + sizeof(sluice_option::help);

Status check_options_of(const std::string& name, const sluice_plugin& table) {
  if (table.option_count > 0 && table.options == nullptr)
    return fail("{}: declares {} options and no list of them; rebuild it with the SDK", name,
                table.option_count);
  std::set<std::string, std::less<>> paths;
  const auto* at = reinterpret_cast<const char*>(table.options);
  for (std::uint32_t i = 0; i < table.option_count; ++i) {
    const auto& option = *reinterpret_cast<const sluice_option*>(at);
    if (option.size < kSmallestOption)
      return fail(
          "{}: option {} has a size of {} bytes where {} are the least; rebuild it with "
          "the SDK",
          name, i, option.size, kSmallestOption);
    const std::string path(option.path.data, option.path.length);
    if (path.empty()) return fail("{}: option {} has no name; give it one", name, i);
    if (option.type < SLUICE_OPTION_STRING || option.type > SLUICE_OPTION_DURATION)
      return fail(
          "{}: option \"{}\" is of type {}, which this host does not know; install a newer "
          "sluiced or rebuild the plugin against this SDK",
          name, path, option.type);
    if (!paths.insert(path).second)
      return fail("{}: option \"{}\" is declared twice; remove one", name, path);
    at += option.size;
  }
  return {};
}

Result<sluice_plugin> check_table(const std::string& name, const sluice_plugin* raw,
                                  AbiVersion version) {
  if (raw == nullptr) return fail("{}: its entry returned no table; rebuild it with the SDK", name);
  if (raw->size < kSmallestTable)
    return fail("{}: its table has {} bytes where ABI {}.0 has {}; rebuild it with the SDK", name,
                raw->size, SLUICE_ABI_MAJOR, kSmallestTable);
  sluice_plugin table{};
  std::memcpy(&table, raw, std::min<std::size_t>(raw->size, sizeof table));
  if (table.abi_minor != version.minor)
    return fail(
        "{}: its note says ABI {}.{} and its table {}.{}; rebuild all of it against one SDK", name,
        version.major, version.minor, version.major, table.abi_minor);
  if (table.name.length == 0)
    return fail("{}: its table has no name; rebuild it with the SDK", name);
  const std::pair<const char*, bool> needed[] = {{"create", table.create != nullptr},
                                                 {"start", table.start != nullptr},
                                                 {"stop", table.stop != nullptr},
                                                 {"destroy", table.destroy != nullptr}};
  for (const auto& [function, present] : needed)
    if (!present)
      return fail("{}: its table has no {}(); every plugin needs create, start, stop and destroy",
                  name, function);
  if ((table.roles & kRoles) == 0)
    return fail(
        "{}: holds no role that this host knows (it says {:#x}); derive it from "
        "sluice::Discovery, PolicySource, Resolver, Observer, Decider or AnswerSource",
        name, table.roles);
  if ((table.roles & SLUICE_ROLE_RESOLVER) != 0 && table.domain_rules == nullptr)
    return fail("{}: is a resolver without domain_rules(); implement it", name);
  if ((table.roles & SLUICE_ROLE_DECIDER) != 0 && table.decide == nullptr)
    return fail("{}: is a decider without decide(); implement it", name);
  if (auto status = check_options_of(name, table); !status) return std::unexpected(status.error());
  return table;
}

}  // namespace

Result<AbiVersion> read_abi_version(const std::filesystem::path& file) {
  const Fd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_with(errno, "{}: cannot be read: {}", file.string(), std::strerror(errno));
  return read_abi_version(file, fd.get());
}

Result<std::shared_ptr<const Library>> Library::load(const LibraryRules& rules,
                                                     const std::string& name) {
  if (name.empty() || name.front() == '.' || name.find('/') != std::string::npos)
    return fail(
        "library \"{}\": write the bare name of a plugin (\"interfaces\"); it is looked up "
        "in plugin_path only",
        name);
  const std::string file_name = name.ends_with(".so") ? name : name + ".so";
  for (const auto& directory : rules.directories) {
    const auto path = std::filesystem::absolute(directory / file_name).lexically_normal();
    // No symbolic link: whoever may write its target could exchange the library.
    const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
    if (!fd) {
      if (errno == ENOENT || errno == ENOTDIR) continue;
      if (errno == ELOOP)
        return fail_with(ELOOP, "{}: is a symbolic link; put the library itself there",
                         path.string());
      return fail_with(errno, "{}: cannot be opened: {}; check its permissions", path.string(),
                       std::strerror(errno));
    }
    struct stat file_facts {
    }, directory_facts{};
    if (::fstat(fd.get(), &file_facts) != 0 ||
        ::stat(path.parent_path().c_str(), &directory_facts) != 0)
      return fail_with(errno, "{}: cannot be examined: {}", path.string(), std::strerror(errno));
    if (!S_ISREG(file_facts.st_mode))
      return fail_with(EPERM, "{}: is no regular file; put the library itself there",
                       path.string());
    if (auto status =
            check_trust(path.parent_path(), directory_facts, rules.owner, "plugin directory");
        !status)
      return std::unexpected(status.error());
    if (auto status = check_trust(path, file_facts, rules.owner, "plugin"); !status)
      return std::unexpected(status.error());
    return open(path);
  }
  return fail_with(ENOENT,
                   "plugin library \"{}\": no {} in {}; install it there or correct `library`",
                   name, file_name, joined(rules.directories));
}

Result<std::shared_ptr<const Library>> Library::open(const std::filesystem::path& file) {
  const auto name = file.filename().string();
  const auto version = read_abi_version(file);
  if (!version) return std::unexpected(version.error());
  if (auto status = check_version(file, *version); !status) return std::unexpected(status.error());

  // Never RTLD_DEEPBIND (it splits the allocator and the sanitizers), never dlclose.
  void* handle =
      ::dlopen(std::filesystem::absolute(file).c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (handle == nullptr) {
    const char* cause = ::dlerror();
    return fail_with(ENOEXEC,
                     "{}: cannot be loaded: {}; install the libraries it needs, or rebuild it here",
                     file.string(), cause != nullptr ? cause : "no reason given");
  }
  void* symbol = ::dlsym(handle, SLUICE_PLUGIN_ENTRY);
  if (symbol == nullptr)
    return fail_with(ENOEXEC,
                     "{}: does not export {}; write SLUICE_PLUGIN(YourClass) once in it and build "
                     "it with sluice_add_plugin()",
                     name, SLUICE_PLUGIN_ENTRY);
  const auto entry = reinterpret_cast<sluice_plugin_entry>(symbol);
  auto table = check_table(name, entry(), *version);
  if (!table) return std::unexpected(table.error());

  std::shared_ptr<Library> library(new Library);
  library->path_ = file;
  library->version_ = *version;
  library->table_ = *table;
  return library;
}

}  // namespace sluice
