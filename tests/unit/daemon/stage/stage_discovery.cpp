// A discovery that finds what its options name: "tap1:7" is an interface with ifindex 7.
#include <sluice/plugin.hpp>

#include <array>
#include <chrono>
#include <string>
#include <vector>

namespace {

class StageDiscovery : public sluice::Plugin, public sluice::Discovery {
 public:
  static constexpr sluice::About about{"stage_discovery", "1.0", "attaches what it is told to"};
  static constexpr std::array options{
      sluice::Option::string_list("interfaces").defaults_to("[]").help("NAME:IFINDEX"),
      sluice::Option::string("class").defaults_to("\"vm\"").help("the label"),
      sluice::Option::boolean("late").defaults_to("false").help("finds it some time after start"),
      sluice::Option::boolean("hangs").defaults_to("false").help("finds nothing, ever"),
  };

  explicit StageDiscovery(const sluice::Config& config)
      : interfaces_(config.get<std::vector<std::string>>("interfaces")),
        class_(config.get<std::string>("class")),
        late_(config.get<bool>("late")),
        hangs_(config.get<bool>("hangs")) {}

  void start() override {
    if (hangs_) return;
    if (!late_) return find();
    set_timer(1, std::chrono::milliseconds(100));
  }
  void on_timer(std::uint64_t) override { find(); }

 private:
  void find() {
    for (const auto& entry : interfaces_) {
      const auto colon = entry.find(':');
      sluice::InterfaceTarget target;
      target.name = entry.substr(0, colon);
      target.ifindex = static_cast<std::uint32_t>(std::stoul(entry.substr(colon + 1)));
      attach(target, {{"class", class_}});
    }
    listed();
  }

  std::vector<std::string> interfaces_;
  std::string class_;
  bool late_, hangs_;
};

}  // namespace

SLUICE_PLUGIN(StageDiscovery)
