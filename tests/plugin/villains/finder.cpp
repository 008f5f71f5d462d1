// No villain: a discovery that finds one interface and one cgroup and says what came of it.
#include <sluice/plugin.hpp>

struct Finder : sluice::Plugin, sluice::Discovery {
  static constexpr sluice::About about{"finder", "1.0", "finds two workloads"};
  explicit Finder(const sluice::Config&) {}
  void start() override {
    const auto tap =
        attach(sluice::InterfaceTarget{.name = "tap0", .ifindex = 7}, {{"class", "vm"}});
    (void)attach(sluice::CgroupTarget{.path = "/vm.slice", .cgroup_id = 9}, {});
    relabel(tap, {{"class", "ci"}});
    try {
      (void)attach(sluice::InterfaceTarget{.name = "tap9", .ifindex = 999}, {});
    } catch (const sluice::Error& error) {
      log(sluice::LogLevel::info, "refused " + std::to_string(error.code()) + ": " + error.what());
    }
    listed();
  }
};
SLUICE_PLUGIN(Finder)
