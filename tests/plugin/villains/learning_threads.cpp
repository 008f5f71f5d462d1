// No villain: learns from threads of its own, and says what it was answered. One of them goes on
// after stop() and writes what it is answered then into the pipe that the test reads.
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "hanging.hpp"

struct LearningThreads : sluice::Plugin, sluice::Resolver {
  static constexpr sluice::About about{"learning_threads", "1.0", "learns from its own threads"};
  static constexpr std::array options{sluice::Option::integer("release").required(),
                                      sluice::Option::integer("report").required(),
                                      sluice::Option::boolean("early").defaults_to("false")};
  explicit LearningThreads(const sluice::Config& config)
      : release_(config.get<int>("release")), report_(config.get<int>("report")) {
    if (config.get<bool>("early")) learn_once(services_, 0);
  }
  void domain_rules(sluice::AttachmentId, const std::vector<sluice::Rule>& rules) override {
    if (rules.empty()) return;
    std::atomic<int> refused{0};
    std::vector<std::thread> threads;
    for (std::uint8_t thread = 0; thread < 4; ++thread) {
      threads.emplace_back([&, thread] {
        for (int i = 0; i < 100; ++i)
          if (learn_once(services_, thread) != 0) ++refused;
      });
    }
    for (auto& thread : threads) thread.join();
    log(sluice::LogLevel::info, "refused " + std::to_string(refused.load()));
    std::thread([services = services_, release = release_, report = report_] {
      hang_on(release);
      const int answer = learn_once(services, 9);
      (void)!::write(report, &answer, sizeof answer);
    }).detach();
  }

 private:
  static int learn_once(const sluice_services& services, std::uint8_t last) {
    const sluice_address address{.family = 4, .reserved = {}, .bytes = {198, 51, 100, last}};
    const sluice_string name{"pypi.org", 8};
    sluice_grant grant{};
    grant.size = sizeof grant;
    grant.addresses = &address;
    grant.address_count = 1;
    grant.ttl_ns = 60'000'000'000;
    sluice_push push{};
    push.size = sizeof push;
    push.names = &name;
    push.name_count = 1;
    push.grants = &grant;
    push.grant_count = 1;
    return services.resolver->learn(services.host, 1, &push, nullptr);
  }
  const sluice_services services_ = sluice::sdk::detail::bound_services();
  int release_, report_;
};
SLUICE_PLUGIN(LearningThreads)
