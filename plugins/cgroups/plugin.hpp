// The discovery plugin "cgroups": attaches the cgroups whose paths its patterns match.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include <sluice/plugin.hpp>

#include "cgroups/cgroup_tree.hpp"
#include "cgroups/hierarchy.hpp"
#include "discovery/keeper.hpp"
#include "discovery/plugin_host.hpp"

namespace sluice::cgroups {

class CgroupsPlugin final : public sdk::Plugin, public sdk::Discovery {
 public:
  static constexpr sdk::About about{"cgroups", "1.0",
                                    "finds cgroups by globs over their paths in the cgroup2 tree"};
  static constexpr std::array options{
      sdk::Option::string_list("match").required().help(
          "globs on paths; ** is any depth, {name} captures a label: "
          "[\"/tenants/{tenant}/{vm_id}.scope\"]"),
      sdk::Option::string_list("exclude").help("globs on paths that are never taken"),
      sdk::Option::string_table("labels").help(
          "labels of what is found; values may refer to $cgroup and captures"),
  };

  // Throws Error(EINVAL) for options that cannot be meant.
  explicit CgroupsPlugin(const sdk::Config& config);

  void start() override;
  void stop() override;
  void on_fd(int fd, std::uint32_t events) override;
  void on_timer(std::uint64_t id) override;
  void on_resync() override;

 private:
  void step();

  discovery::PluginHost<CgroupsPlugin> host_{*this};
  discovery::Keeper keeper_{host_};
  CgroupSelection selection_;
  std::unique_ptr<KernelHierarchy> hierarchy_;  // from start() on
  std::unique_ptr<CgroupTree> tree_;
  bool is_polling_ = false;
};

}  // namespace sluice::cgroups
