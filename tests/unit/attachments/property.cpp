// Random journeys: after each step, what the kernel would do to random packets is compared with the
// plain reading of the rules (explain()), kept beside the manager. Any call may be refused by the
// kernel; a refused call must have changed nothing.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <spdlog/spdlog.h>

#include <cstdlib>
#include <map>
#include <random>

#include "policy/explain.hpp"
#include "stage.hpp"

using namespace sluice;
using namespace sluice::test;

namespace {

const std::vector<std::string> kSources{"saas", "static", "dns"};

struct Expected {
  Labels labels;
  std::map<std::string, Layer> layers;  // of those that have spoken
};

class Journey {
 public:
  explicit Journey(unsigned seed) : random_(seed), config_(make_config()), stage_(config_) {}

  void step() {
    const bool refuse = pick(8) == 0;
    if (refuse) {
      stage_.plane.refuse(pick(2) ? "publish" : "attach", {.message = "no room", .code = ENOSPC},
                          static_cast<std::uint32_t>(pick(3)));
    }
    switch (pick(10)) {
      case 0:
      case 1:
        attach();
        break;
      case 2:
        detach();
        break;
      case 3:
        relabel();
        break;
      case 4:
      case 5:
        replace();
        break;
      case 6:
        update();
        break;
      case 7:
        withdraw();
        break;
      case 8:
        replace_many();
        break;
      default:
        rewire();
        break;
    }
    stage_.plane = FakeDataPlane(stage_.kernel);  // forget a refusal that was not used up
    stage_.pass_time(std::chrono::milliseconds(pick(500)));
    check();
  }

 private:
  std::size_t pick(std::size_t below) {
    return std::uniform_int_distribution<std::size_t>(0, below - 1)(random_);
  }

  Config make_config() {
    std::vector<WireConfig> wires;
    for (std::size_t i = 0; i < 1 + pick(3); ++i) {
      std::vector<std::string> sources;
      for (const auto& source : kSources) {
        if (pick(3) != 0) sources.push_back(source);
      }
      std::shuffle(sources.begin(), sources.end(), random_);
      auto made = wire(sources, {{"class", "c" + std::to_string(pick(3))}});
      made.mode = static_cast<Mode>(pick(4));
      made.options.replies = pick(2);
      wires.push_back(made);
    }
    std::vector<std::string> floor;
    if (pick(2)) floor.push_back("10.0." + std::to_string(pick(4)) + ".0/24");
    auto config = config_of(wires, floor);
    PluginConfig trusted;
    trusted.instance = "static";
    trusted.overrides_floor = pick(2);
    config.plugins.push_back(trusted);
    return config;
  }

  Prefix prefix() {
    Prefix made;
    made.length = static_cast<std::uint8_t>(8 * pick(5));
    const std::array<std::uint8_t, 4> bytes{10, static_cast<std::uint8_t>(pick(2)),
                                            static_cast<std::uint8_t>(pick(4)),
                                            static_cast<std::uint8_t>(pick(4))};
    std::copy_n(bytes.begin(), made.length / 8, made.address.begin());
    return made;
  }
  Rule rule() {
    Rule made;
    made.action = pick(2) ? Action::allow : Action::deny;
    made.prefix = prefix();
    if (pick(3) == 0) made.ports.push_back(port(pick(2) ? "tcp/443" : "udp/50-60"));
    if (pick(6) == 0) {
      made.expires = {stage_.now.nanoseconds + 1 + pick(20) * 1'000'000'000ull};
    }
    return made;
  }
  Layer layer() {
    Layer made;
    if (pick(3) != 0) made.mode = static_cast<Mode>(pick(4));
    for (std::size_t i = 0; i < pick(6); ++i) made.rules.push_back(rule());
    return made;
  }
  Labels labels() { return {{"class", "c" + std::to_string(pick(4))}}; }

  const WireConfig* wire_of(const Expected& expected) const {
    for (const auto& candidate : config_.wires) {
      if (expected.labels.at("class") == candidate.labels.at("class")) return &candidate;
    }
    return nullptr;
  }
  bool speaks(const Expected& expected, const std::string& source) const {
    const auto* found = wire_of(expected);
    return found && std::ranges::count(found->sources, source);
  }
  void forget_silenced(Expected& expected) {
    std::erase_if(expected.layers,
                  [&](const auto& entry) { return !speaks(expected, entry.first); });
  }
  AttachmentId any() {
    if (expected_.empty()) return {};
    return std::next(expected_.begin(), static_cast<std::ptrdiff_t>(pick(expected_.size())))->first;
  }

  void attach() {
    const auto number = static_cast<std::uint32_t>(1 + pick(6));
    Expected fresh{.labels = labels(), .layers = {}};
    auto done =
        stage_.manager.attach("taps", tap("tap" + std::to_string(number), number), fresh.labels);
    if (!done) return;
    if (auto known = expected_.find(*done); known != expected_.end()) {
      known->second.labels = fresh.labels;
      forget_silenced(known->second);
    } else {
      expected_.emplace(*done, fresh);
    }
  }
  void detach() {
    if (const auto id = any(); id && stage_.manager.detach("taps", id, "over")) expected_.erase(id);
  }
  void relabel() {
    const auto id = any();
    if (!id) return;
    auto next = labels();
    if (!stage_.manager.relabel("taps", id, next)) return;
    expected_[id].labels = next;
    forget_silenced(expected_[id]);
  }
  void replace() {
    const auto id = any();
    if (!id) return;
    const auto& source = kSources[pick(3)];
    const auto next = layer();
    const bool may = speaks(expected_[id], source);
    auto done = stage_.manager.replace_layer(source, id, next);
    if (done) {
      CHECK(may);
      expected_[id].layers[source] = next;
    }
  }
  void update() {
    const auto id = any();
    if (!id) return;
    const auto& source = kSources[pick(3)];
    const auto base = stage_.info(id).generation;
    auto next = expected_[id].layers[source];
    const auto spoken = !next.rules.empty() || next.mode;
    std::vector<Rule> add{rule()}, remove;
    if (!next.rules.empty() && pick(2)) remove.push_back(next.rules[pick(next.rules.size())]);
    std::erase_if(next.rules, [&](const Rule& old) { return std::ranges::count(remove, old); });
    if (!std::ranges::count(next.rules, add[0])) next.rules.push_back(add[0]);
    if (stage_.manager.update_layer(source, id, pick(2) ? base : Generation{}, add, remove)) {
      expected_[id].layers[source] = next;
    } else if (!spoken) {
      expected_[id].layers.erase(source);
    }
  }
  void withdraw() {
    const auto id = any();
    if (!id) return;
    const auto& source = kSources[pick(3)];
    if (stage_.manager.withdraw_layer(source, id)) expected_[id].layers.erase(source);
  }
  void replace_many() {
    const auto& source = kSources[pick(3)];
    std::vector<LayerChange> changes;
    for (const auto& [id, expected] : expected_) {
      if (speaks(expected, source) && pick(2)) changes.push_back({id, layer()});
    }
    if (!stage_.manager.replace_layers(source, changes)) return;
    for (const auto& change : changes) expected_[change.attachment].layers[source] = change.layer;
  }
  void rewire() {
    auto next = make_config();
    if (!stage_.manager.rewire(Wiring(next))) return;
    config_ = next;
    for (auto& [id, expected] : expected_) forget_silenced(expected);
  }

  bool ought_to_pass(const Expected& expected, const FakePacket& packet) const {
    const auto* found = wire_of(expected);
    if (found == nullptr) return false;
    std::optional<Mode> spoken;
    std::vector<LayerInput> inputs;
    for (const auto& source : found->sources) {
      const auto layer = expected.layers.find(source);
      if (layer == expected.layers.end()) continue;
      if (!spoken) spoken = layer->second.mode;
      inputs.push_back({&layer->second, source == "static" && config_.plugins[0].overrides_floor});
    }
    const auto mode = spoken.value_or(found->mode);
    if (mode == Mode::disabled) return true;
    if (mode == Mode::block_all) return false;
    PacketTuple tuple;
    tuple.address = packet.destination;
    tuple.protocol = packet.protocol;
    if (has_ports(packet.protocol)) tuple.port = packet.port;
    switch (explain(inputs, config_.floor, tuple, stage_.now).verdict) {
      case Explanation::Verdict::allow:
        return true;
      case Explanation::Verdict::none:
        return mode == Mode::denylist;
      default:
        return false;
    }
  }

  void check() {
    REQUIRE(stage_.manager.list().size() == expected_.size());
    std::size_t live = 0;
    for (const auto& slot : stage_.kernel->slots) live += slot.live;
    REQUIRE(live == expected_.size());
    for (const auto& [id, expected] : expected_) {
      for (int i = 0; i < 8; ++i) {
        FakePacket packet;
        packet.destination = {10, static_cast<std::uint8_t>(pick(3)),
                              static_cast<std::uint8_t>(pick(5)),
                              static_cast<std::uint8_t>(pick(5))};
        packet.protocol = pick(2) ? 6 : 17;
        packet.port = static_cast<std::uint16_t>(pick(2) ? 443 : 53);
        const bool passes = stage_.passes(id, packet);
        const bool ought = ought_to_pass(expected, packet);
        REQUIRE(passes == ought);
      }
    }
  }

  std::mt19937 random_;
  Config config_;
  Stage stage_;
  std::map<AttachmentId, Expected> expected_;
};

}  // namespace

TEST_CASE("after any journey the kernel does what the layers say") {
  spdlog::set_level(spdlog::level::off);  // thousands of targets without a wire
  const char* wanted = std::getenv("SLUICE_JOURNEYS");
  const unsigned journeys = wanted ? static_cast<unsigned>(std::atoi(wanted)) : 60;
  for (unsigned seed = 1; seed <= journeys; ++seed) {
    CAPTURE(seed);
    Journey journey(seed);
    for (int i = 0; i < 200; ++i) journey.step();
  }
}
