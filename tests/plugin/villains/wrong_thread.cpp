// Calls [strand] services from a thread of its own, and one in its constructor.
#include <sluice/plugin.hpp>

#include <thread>

struct WrongThread : sluice::Plugin, sluice::Discovery {
  static constexpr sluice::About about{"wrong_thread", "1.0", "calls from where it must not"};
  static constexpr std::array options{sluice::Option::boolean("early").defaults_to("false")};
  explicit WrongThread(const sluice::Config& config) {
    if (config.get<bool>("early")) set_timer(1, std::chrono::seconds(1));
  }
  void start() override {
    std::thread([this] {
      for (int i = 0; i < 3; ++i) codes_ += attempt() + " ";
    }).join();
    log(sluice::LogLevel::info, "answers: " + codes_);
  }

 private:
  std::string attempt() {
    try {
      listed();
      return "0";
    } catch (const sluice::Error& error) {
      return std::to_string(error.code());
    }
  }
  std::string codes_;
};
SLUICE_PLUGIN(WrongThread)
