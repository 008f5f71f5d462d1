// No villain: the plugin next door, whose life must go on. Says listed() every few milliseconds.
#include <sluice/plugin.hpp>

struct Neighbour : sluice::Plugin, sluice::Discovery {
  static constexpr sluice::About about{"neighbour", "1.0", "lives quietly"};
  explicit Neighbour(const sluice::Config&) {}
  void start() override { set_timer(1, std::chrono::milliseconds(5)); }
  void on_timer(std::uint64_t) override {
    listed();
    set_timer(1, std::chrono::milliseconds(5));
  }
};
SLUICE_PLUGIN(Neighbour)
