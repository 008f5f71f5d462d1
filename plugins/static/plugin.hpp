// The `static` policy source: policies from TOML files, watched. docs/policy.md is its manual.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#define SLUICE_SDK_QUALIFIED
#include <sluice/plugin.hpp>

#include "static/path_watch.hpp"
#include "static/policy_set.hpp"

namespace sluice::static_policy {

class StaticPlugin : public sdk::Plugin, public sdk::PolicySource {
 public:
  static constexpr sdk::About about{"static", "1.0", "policies from TOML files"};
  static constexpr std::array options{
      sdk::Option::string_list("policies")
          .required()
          .help("globs of policy files, relative to the configuration's directory"),
      sdk::Option::string_list("presets_path")
          .defaults_to("[\"presets\", \"" SLUICE_PRESETS_DIRECTORY "\"]")
          .help("directories of presets, the first that has one wins"),
  };

  explicit StaticPlugin(const sdk::Config& config);

  void start() override;
  void stop() override;
  void on_fd(int fd, std::uint32_t events) override;
  void on_timer(std::uint64_t id) override;
  void on_resync() override;
  bool reconfigure(const sdk::Config& config) override;
  void check(const Report& report) override;

  void attachment_added(const sdk::AttachmentInfo& info) override;
  void attachment_changed(const sdk::AttachmentInfo& info) override;
  void attachment_removed(const sdk::AttachmentInfo& info, std::string_view reason) override;

 private:
  using Policies = std::vector<PolicyPtr>;
  struct Attachment {
    std::string name;
    sdk::Labels labels;
    Policies applied;     // in the kernel; empty: this source has no layer there
    std::string refusal;  // why what is wanted is not in force; empty: it is
  };
  struct Change {
    sdk::AttachmentId id;
    Policies policies;
  };

  // Everything that is in the files, or nothing while one is being written; then it comes again.
  // Throws Error with the first fault after all are logged.
  std::optional<PolicySet> read(PolicyLoader& loader);
  // Into force, as a whole; else throws Error, and what is in force stays.
  void take(PolicySet set);
  void load(PolicyLoader& loader);
  void reload();
  void say_once(const std::string& fault);
  void watch_paths();
  [[nodiscard]] bool is_held();
  void arm();

  // Layers as wanted, all or nothing; throws Error.
  void apply(const PolicySet& set);
  std::size_t apply_batches(std::vector<Change> changes);
  void replace(std::vector<Change>& batch);
  void roll_back(const std::vector<Change>& done);
  void withdraw(sdk::AttachmentId id, Attachment& attachment);
  void speak_for(sdk::AttachmentId id, Attachment& attachment);
  void note_refusal(Attachment& attachment, const sdk::Error& error, const std::string& what);
  void speak_again();
  void remember_beginnings();
  void show_a_name(const PolicySet& set);

  [[nodiscard]] Moment moment() const;

  std::filesystem::path beginnings_file_;
  Beginnings beginnings_;
  PolicyLoader loader_;
  std::set<std::filesystem::path> touched_;  // as last loaded
  std::optional<PathWatch> watch_;           // after the first load
  PolicySet set_;
  std::map<sdk::AttachmentId, Attachment> attachments_;
  std::optional<sdk::Time> first_event_;  // of those that are waited out
  std::optional<sdk::Time> held_since_;
  bool is_speaking_again_ = false;
  bool is_polled_ = false;  // not everything can be watched
  std::vector<std::string> warned_;
  std::set<std::string> said_;  // since something was seen to change
};

}  // namespace sluice::static_policy
