#include <sluice/plugin.hpp>

struct ThrowingConstructor : sluice::Plugin, sluice::Discovery {
  static constexpr sluice::About about{"throwing_constructor", "1.0", "throws as it is made"};
  explicit ThrowingConstructor(const sluice::Config&) {
    throw std::runtime_error("no such zoo; build one");
  }
};
SLUICE_PLUGIN(ThrowingConstructor)
