// A discovery that finds what its options name: "tap1:7" is an interface with ifindex 7.
#include <sluice/plugin.hpp>

#include <array>
#include <string>
#include <vector>

namespace {

class StageDiscovery : public sluice::Plugin, public sluice::Discovery {
 public:
  static constexpr sluice::About about{"stage_discovery", "1.0", "attaches what it is told to"};
  static constexpr std::array options{
      sluice::Option::string_list("interfaces").defaults_to("[]").help("NAME:IFINDEX"),
      sluice::Option::string("class").defaults_to("\"vm\"").help("the label"),
  };

  explicit StageDiscovery(const sluice::Config& config)
      : interfaces_(config.get<std::vector<std::string>>("interfaces")),
        class_(config.get<std::string>("class")) {}

  void start() override {
    for (const auto& entry : interfaces_) {
      const auto colon = entry.find(':');
      sluice::InterfaceTarget target;
      target.name = entry.substr(0, colon);
      target.ifindex = static_cast<std::uint32_t>(std::stoul(entry.substr(colon + 1)));
      attach(target, {{"class", class_}});
    }
    listed();
  }

 private:
  std::vector<std::string> interfaces_;
  std::string class_;
};

}  // namespace

SLUICE_PLUGIN(StageDiscovery)
