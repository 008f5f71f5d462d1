#include "static/policy_set.hpp"

#include <fcntl.h>
#include <glob.h>
#include <sodium.h>
#include <spdlog/fmt/fmt.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <memory>
#include <system_error>

#include "base/fd.hpp"
#include "config/toml_document.hpp"

namespace sluice::static_policy {
namespace {

namespace fs = std::filesystem;

std::string digest_of(std::string_view text) {
  std::string digest(crypto_generichash_BYTES, '\0');
  crypto_generichash(reinterpret_cast<unsigned char*>(digest.data()), digest.size(),
                     reinterpret_cast<const unsigned char*>(text.data()), text.size(), nullptr, 0);
  return digest;
}

bool is_wild(std::string_view text) {
  return text.find_first_of("*?[") != std::string_view::npos;
}

// The files a glob names, and every directory it was looked for in.
class Expansion {
 public:
  Expansion(std::set<fs::path>& touched, ConfigErrors& errors)
      : touched_(touched), errors_(errors) {}

  [[nodiscard]] std::vector<fs::path> expand(const std::string& pattern) {
    note_directories(pattern);
    current_ = this;
    pattern_ = pattern;
    glob_t found{};
    // Without GLOB_ERR an unreadable directory would look like one without policies.
    const int result =
        ::glob(pattern.c_str(), GLOB_ERR | GLOB_NOSORT, &Expansion::on_error, &found);
    const std::unique_ptr<glob_t, decltype(&::globfree)> owner(&found, &::globfree);
    std::vector<fs::path> files;
    if (result == 0)
      for (std::size_t i = 0; i < found.gl_pathc; ++i) files.emplace_back(found.gl_pathv[i]);
    if (result == GLOB_NOSPACE)
      errors_.push_back({.file = pattern, .text = "there is not enough memory to list the files"});
    return files;
  }

 private:
  // glob() takes no context.
  static inline thread_local Expansion* current_ = nullptr;
  static int on_error(const char* directory, int error) {
    // A directory that is not there holds nothing; it may come.
    if (error == ENOENT || error == ENOTDIR) return 0;
    current_->errors_.push_back(
        {.file = directory,
         .text = fmt::format("cannot be listed for {}: {}; let this user read the directory",
                             current_->pattern_, std::generic_category().message(error))});
    return 1;
  }

  // A new file or directory changes the outcome in each directory that the pattern passes.
  void note_directories(const std::string& pattern) {
    fs::path prefix;
    for (const auto& part : fs::path(pattern).parent_path()) {
      if (is_wild(part.string())) {
        note_wild(prefix, fs::path(pattern).parent_path());
        break;
      }
      prefix /= part;
    }
    touched_.insert(prefix / "*");
  }
  void note_wild(const fs::path& prefix, const fs::path& directories) {
    touched_.insert(prefix / "*");
    fs::path partial;
    for (const auto& part : directories) {
      partial /= part;
      glob_t found{};
      const std::unique_ptr<glob_t, decltype(&::globfree)> owner(&found, &::globfree);
      if (!is_wild(partial.string()) ||
          ::glob(partial.c_str(), GLOB_NOSORT | GLOB_ONLYDIR, nullptr, &found) != 0)
        continue;
      for (std::size_t i = 0; i < found.gl_pathc; ++i)
        touched_.insert(fs::path(found.gl_pathv[i]) / "*");
    }
  }

  std::set<fs::path>& touched_;
  ConfigErrors& errors_;
  std::string pattern_;
};

}  // namespace

Sources resolve(const std::vector<std::string>& globs,
                const std::vector<std::string>& preset_directories, const fs::path& directory) {
  Sources sources;
  for (const auto& glob : globs)
    sources.globs.push_back((directory / glob).lexically_normal().string());
  for (const auto& preset : preset_directories)
    sources.preset_directories.push_back((directory / preset).lexically_normal());
  return sources;
}

Beginnings Beginnings::load(const fs::path& file) {
  constexpr std::size_t kLargest = std::size_t{4} << 20;
  Beginnings out;
  const auto text = read_text_file(file, kLargest);
  if (!text) return out;
  for (std::string_view rest = *text; !rest.empty();) {
    const auto end = rest.find('\n');
    if (end == std::string_view::npos) break;  // cut short: rename makes that impossible, so odd
    const auto row = rest.substr(0, end);
    rest.remove_prefix(end + 1);
    const auto blank = row.find(' ');
    std::int64_t seconds = 0;
    if (blank == std::string_view::npos ||
        std::from_chars(row.data() + blank + 1, row.data() + row.size(), seconds).ec != std::errc{})
      continue;
    out.by_digest.emplace(row.substr(0, blank), seconds);
  }
  return out;
}

void Beginnings::save(const fs::path& file) const {
  std::string text;
  for (const auto& [digest, seconds] : by_digest) text += fmt::format("{} {}\n", digest, seconds);
  const fs::path temporary = file.string() + ".new";
  const auto require = [&](bool is_good) {
    if (!is_good)
      throw std::system_error(errno, std::generic_category(), "cannot write " + temporary.string());
  };
  {
    const Fd fd(
        ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    require(static_cast<bool>(fd));
    for (std::string_view rest = text; !rest.empty();) {
      const auto written = ::write(fd.get(), rest.data(), rest.size());
      if (written < 0 && errno == EINTR) continue;
      require(written >= 0);
      rest.remove_prefix(static_cast<std::size_t>(written));
    }
    require(::fsync(fd.get()) == 0);
  }
  fs::rename(temporary, file);
}

bool PolicyLoader::is_unchanged(const Known& known) const {
  return std::ranges::all_of(known.digests, [](const auto& read) {
    const auto text = read_text_file(read.first, kLargestCidrFile);
    // A file looked for in vain is known by an empty digest.
    return text ? digest_of(*text) == read.second : read.second.empty();
  });
}

std::expected<PolicyLoader::Known, ConfigErrors> PolicyLoader::read(const fs::path& file,
                                                                    std::set<fs::path>& touched) {
  if (const auto before = known_.find(file);
      before != known_.end() && is_unchanged(before->second)) {
    for (const auto& [path, digest] : before->second.digests) touched.insert(path);
    return before->second;
  }
  Known known;
  const FileReader reader = [&](const fs::path& path, std::size_t limit) {
    auto text = read_text_file(path, limit);
    known.digests[path] = text ? digest_of(*text) : std::string();
    touched.insert(path);
    return text;
  };
  auto policies = read_policy_file(file, sources_.preset_directories, reader);
  if (!policies) return std::unexpected(std::move(policies.error()));
  for (auto& policy : *policies)
    known.policies.push_back(std::make_shared<const Policy>(std::move(policy)));
  return known;
}

LoadResult PolicyLoader::load(const PolicySet& current, const Beginnings& beginnings,
                              const Moment& now) {
  LoadResult result;
  std::vector<fs::path> files;
  for (const auto& glob : sources_.globs) {
    const auto errors_before = result.errors.size();
    const auto found = Expansion(result.touched, result.errors).expand(glob);
    if (found.empty() && result.errors.size() == errors_before) {
      if (is_wild(glob))
        result.warnings.push_back(
            glob + ": no file matches; attachments get no policy from here until one appears");
      else
        result.errors.push_back({.file = glob,
                                 .text = "does not exist; check the path, or write a pattern such "
                                         "as \"policies.d/*.toml\" for files that may come later"});
    }
    files.insert(files.end(), found.begin(), found.end());
  }
  const auto order = [](const fs::path& a, const fs::path& b) {
    return std::pair(a.filename(), a) < std::pair(b.filename(), b);
  };
  std::ranges::sort(files, order);
  files.erase(std::ranges::unique(files).begin(), files.end());

  std::map<fs::path, Known> known;
  PolicySet set;
  std::map<std::string, PolicyPtr, std::less<>> by_name;
  for (const auto& file : files) {
    auto one = read(file, result.touched);
    if (!one) {
      result.errors.insert(result.errors.end(), one.error().begin(), one.error().end());
      continue;
    }
    for (const auto& policy : one->policies) {
      const auto [first, is_new] = by_name.emplace(policy->name, policy);
      if (!is_new)
        result.errors.push_back(
            {.file = policy->file,
             .line = policy->line,
             .column = 1,
             .text =
                 fmt::format("a policy named {} stands at {}:{} too; rename one",
                             in_quotes(policy->name), first->second->file, first->second->line)});
      set.policies.push_back(policy);
    }
    known.emplace(file, *std::move(one));
  }
  // What was read without fault need not be read again, whatever is wrong elsewhere.
  known_ = std::move(known);
  if (!result.errors.empty()) return result;

  std::map<std::string_view, PolicyPtr> in_force;
  for (const auto& policy : current.policies) in_force.emplace(policy->name, policy);
  for (auto& policy : set.policies) {
    const auto old = in_force.find(policy->name);
    if (old != in_force.end() && (old->second == policy || old->second->says_same(*policy))) {
      policy = old->second;
      continue;
    }
    auto begun = std::make_shared<Policy>(*policy);
    begun->counted_from = now.boot;
    if (begun->has_ttl()) {
      const auto remembered = beginnings.by_digest.find(begun->digest());
      // A clock that was set back must not make a TTL longer than it says.
      if (remembered != beginnings.by_digest.end())
        begun->counted_from -=
            std::chrono::seconds(std::max<std::int64_t>(0, now.wall_seconds - remembered->second));
    }
    policy = std::move(begun);
  }
  result.set = std::move(set);
  return result;
}

Beginnings beginnings_of(const PolicySet& set, const Moment& now) {
  Beginnings out;
  for (const auto& policy : set.policies) {
    if (!policy->has_ttl()) continue;
    const auto age =
        std::chrono::duration_cast<std::chrono::seconds>(now.boot - policy->counted_from);
    out.by_digest.emplace(policy->digest(), now.wall_seconds - age.count());
  }
  return out;
}

}  // namespace sluice::static_policy
