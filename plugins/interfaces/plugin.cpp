#include "interfaces/plugin.hpp"

#include <cerrno>
#include <stdexcept>
#include <system_error>

namespace sluice::interfaces {
namespace {

using Strings = std::vector<std::string>;

constexpr std::uint64_t kWork = 1;
constexpr int kSmallestBuffer = 4096, kLargestBuffer = 1 << 30;

discovery::WorkloadSide side_of(const std::string& text) {
  if (text == "auto") return discovery::WorkloadSide::automatic;
  if (text == "ingress") return discovery::WorkloadSide::ingress;
  if (text == "egress") return discovery::WorkloadSide::egress;
  throw std::invalid_argument("side: \"" + text +
                              "\" is not a side; write \"auto\", \"ingress\" (the workload sends "
                              "into this host through the interface: tap, veth) or \"egress\"");
}

Selection selection_of(const sdk::Config& config) {
  try {
    return Selection(
        {.match = config.get_or<Strings>("match", {}),
         .exclude = config.get_or<Strings>("exclude", {}),
         .kinds = config.get_or<Strings>("kinds", {}),
         .bridge = config.get_or<Strings>("bridge", {}),
         .labels = config.get_or<std::vector<std::pair<std::string, std::string>>>("labels", {}),
         .side = side_of(config.get<std::string>("side"))});
  } catch (const std::invalid_argument& error) {
    throw sdk::Error(EINVAL, config.instance() + ": " + error.what());
  }
}

LinkFeed::Settings feed_settings_of(const sdk::Config& config) {
  const auto bytes = config.get<std::int64_t>("event_buffer");
  if (bytes < kSmallestBuffer || bytes > kLargestBuffer)
    throw sdk::Error(EINVAL, config.instance() + ": event_buffer: " + std::to_string(bytes) +
                                 " bytes; it must be between 4096 and 1073741824");
  return {.receive_buffer = static_cast<int>(bytes)};
}

}  // namespace

InterfacesPlugin::InterfacesPlugin(const sdk::Config& config)
    : book_(selection_of(config), keeper_), feed_(book_, feed_settings_of(config)) {}

void InterfacesPlugin::start() {
  feed_.open();
  watch(feed_.fd());
}

void InterfacesPlugin::stop() {
  if (feed_.fd() >= 0) unwatch(feed_.fd());
}

// A fresh socket: whatever the old one still held is older than the listing.
void InterfacesPlugin::list_anew() {
  unwatch(feed_.fd());
  feed_.open();
  watch(feed_.fd());
}

void InterfacesPlugin::on_fd(int /*fd*/, std::uint32_t /*events*/) {
  if (feed_.read() == LinkFeed::Outcome::overflow) {
    if (overflow_said_after_ != book_.listings())
      log(sdk::LogLevel::warning,
          "link events were lost because too many came at once; listing all links again "
          "(a larger event_buffer makes this rarer)");
    overflow_said_after_ = book_.listings();
    list_anew();
  }
  book_.settle();
  discovery::let_work(*this, keeper_, kWork);
}

void InterfacesPlugin::on_timer(std::uint64_t /*id*/) {
  discovery::let_work(*this, keeper_, kWork);
}

void InterfacesPlugin::on_resync() {
  list_anew();
}

}  // namespace sluice::interfaces
