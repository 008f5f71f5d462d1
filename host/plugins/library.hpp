// A plugin's shared object: trusted, of the right ABI, loaded for good.
//
//   auto library = Library::load({.directories = {"/usr/lib/sluice/plugins"}}, "interfaces");
//
// The order is the point: the file is judged by its owner and its ELF note before dlopen, so that
// no line of a wrong or foreign library ever runs. Libraries are never unloaded (RTLD_NODELETE, no
// dlclose): a thread that a plugin forgot would return into nothing.
#pragma once

#include <sluice/plugin_abi.h>
#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/result.hpp"

namespace sluice {

struct LibraryRules {
  std::vector<std::filesystem::path> directories;  // searched in order, nothing else is
  uid_t owner = 0;  // of library and directory; neither writable by group or others
};

struct AbiVersion {
  std::uint32_t major = 0, minor = 0;
  auto operator<=>(const AbiVersion&) const = default;
};

// Reads the version note of an ELF file without loading it.
[[nodiscard]] Result<AbiVersion> read_abi_version(const std::filesystem::path& file);

class Library {
 public:
  // `name` as in the configuration: "interfaces" is interfaces.so in the first directory that has
  // it. Errors name the file, the cause and the cure.
  [[nodiscard]] static Result<std::shared_ptr<const Library>> load(const LibraryRules& rules,
                                                                   const std::string& name);
  // The same for a file that the caller vouches for, wherever it lies (the conformance checker).
  [[nodiscard]] static Result<std::shared_ptr<const Library>> open(
      const std::filesystem::path& file);

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  // As this host knows it: what an older plugin's table does not have is null.
  [[nodiscard]] const sluice_plugin& table() const { return table_; }
  [[nodiscard]] AbiVersion version() const { return version_; }
  [[nodiscard]] bool has_role(std::uint32_t role) const { return (table_.roles & role) != 0; }

 private:
  Library() = default;
  std::filesystem::path path_;
  AbiVersion version_;
  sluice_plugin table_{};
};

}  // namespace sluice
