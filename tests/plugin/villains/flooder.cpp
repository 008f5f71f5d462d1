// Floods its own mailbox from a thread, and is slow to empty it.
#include <sluice/plugin.hpp>

#include <thread>

struct Flooder : sluice::Plugin, sluice::PolicySource {
  static constexpr sluice::About about{"flooder", "1.0", "more than it can take in"};
  explicit Flooder(const sluice::Config&) {}
  void start() override {
    flood_ = std::thread([this] {
      for (std::uint64_t token = 1; token <= 100'000; ++token) (void)wake(token);
      done_.store(true);
    });
  }
  void stop() override { flood_.join(); }
  void on_wake(std::uint64_t) override {
    // Slow only while the flood lasts.
    if (!done_.load()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  void on_resync() override { log(sluice::LogLevel::info, "lists anew"); }
  void attachment_added(const sluice::AttachmentInfo& info) override {
    log(sluice::LogLevel::info, "knows " + std::to_string(info.id.value));
  }

 private:
  std::atomic<bool> done_{false};
  std::thread flood_;
};
SLUICE_PLUGIN(Flooder)
