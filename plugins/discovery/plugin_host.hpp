// The keeper's host over the SDK: its calls become calls of a discovery plugin, exceptions become
// answers.
#pragma once

#include <cstdint>
#include <string>

#include <sluice/plugin.hpp>

#include "discovery/keeper.hpp"

namespace sluice::discovery {

// `Owner` derives from sluice::Plugin and sluice::Discovery and outlives this.
template <typename Owner>
class PluginHost final : public AttachmentHost {
 public:
  explicit PluginHost(Owner& owner) : owner_(owner) {}

  Answer attach(const WantedTarget& target, const Labels& labels) override {
    return answer(
        [&](Answer& answer) { answer.id = owner_.attach(target_of(target), labels).value; });
  }
  Answer detach(std::uint64_t id, const std::string& reason) override {
    return answer([&](Answer&) { owner_.detach({id}, reason); });
  }
  Answer relabel(std::uint64_t id, const Labels& labels) override {
    return answer([&](Answer&) { owner_.relabel({id}, labels); });
  }
  Answer listed() override {
    return answer([&](Answer&) { owner_.listed(); });
  }
  void log(LogLevel level, const std::string& text) override {
    owner_.log(static_cast<sdk::LogLevel>(level), text);
  }
  std::uint64_t now() override {
    return static_cast<std::uint64_t>(owner_.now().time_since_epoch().count());
  }

 private:
  template <typename Call>
  static Answer answer(Call call) {
    Answer answer;
    try {
      call(answer);
    } catch (const sdk::Error& error) {
      answer.code = error.code();
      answer.message = error.what();
    }
    return answer;
  }
  static sdk::Target target_of(const WantedTarget& target) {
    if (target.kind == TargetKind::cgroup) return sdk::CgroupTarget{target.name, target.cgroup_id};
    return sdk::InterfaceTarget{target.name, target.ifindex, side_of(target.side)};
  }
  static sdk::Side side_of(WorkloadSide side) {
    switch (side) {
      case WorkloadSide::ingress:
        return sdk::Side::workload_ingress;
      case WorkloadSide::egress:
        return sdk::Side::workload_egress;
      case WorkloadSide::automatic:
        break;
    }
    return sdk::Side::automatic;
  }

  Owner& owner_;
};

// Lets the keeper work, and sets `timer` for when it has work again.
template <typename Owner>
void let_work(Owner& owner, Keeper& keeper, std::uint64_t timer) {
  const std::uint64_t delay = keeper.turn();
  if (delay != Keeper::kIdle) owner.set_timer(timer, std::chrono::nanoseconds(delay));
}

}  // namespace sluice::discovery
