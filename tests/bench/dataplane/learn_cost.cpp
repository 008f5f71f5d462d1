// A resolver's push: from the call on one of its threads to "in the kernel". The owner of the
// address, the check against explicit denies and the map are in it; the plugin boundary is not.
#include <atomic>
#include <functional>
#include <thread>

#include "attachments/learned_addresses.hpp"
#include "bench/dataplane/sandbox.hpp"
#include "bench/dataplane/sections.hpp"
#include "bench/dataplane/sets.hpp"

namespace sluice::bench {
namespace {

constexpr std::uint64_t kSecond = 1'000'000'000;
constexpr std::size_t kBatch = 500;  // calls between two clean-ups, which are not counted

// Addresses that no call has used before.
class Fresh {
 public:
  explicit Fresh(std::uint8_t thread) : thread_(thread) {}
  std::vector<Address> next(std::size_t count) {
    std::vector<Address> addresses(count);
    for (auto& address : addresses) {
      next_ = next_ * 6364136223846793005ull + 1442695040888963407ull;
      address = {0x20, 0x01, 0x0d, 0xb8, thread_};
      for (std::size_t i = 0; i < 8; ++i)
        address[8 + i] = static_cast<std::uint8_t>(next_ >> (8 * i));
    }
    return addresses;
  }

 private:
  std::uint8_t thread_;
  std::uint64_t next_ = 1;
};

struct Figures {
  std::vector<double> took;
  double cpu = 0;  // of one call
};

class Bed {
 public:
  Bed() : plane_(open_plane(host_config("auto"))), learned_(plane_->learned(), boot_now) {
    for (std::uint32_t i = 0; i < 2; ++i) {
      taps_.push_back(std::make_unique<Tap>("bench" + std::to_string(i)));
      const auto attachment = need(
          plane_->attach(InterfaceTarget{.ifindex = taps_.back()->ifindex()}, nullptr), "attach");
      learned_.add(id(i), attachment.scope, "bench");
      auto wire = std::make_shared<WireConfig>();
      wire->sources = {"dns"};
      // Explicit rules that an address is held against.
      Layer layer = layer_of(mixed_prefixes(1000, 6), Action::deny);
      Rule name;
      name.action = Action::allow;
      name.domain = "*.example";
      name.ports = {PortRange::parse("tcp/443").value()};
      layer.rules.push_back(name);
      const auto stored = cache_.intern(layer);
      (void)learned_.settle(
          id(i), {.wire = wire,
                  .decider = {},
                  .rules = cache_.domain_rules({stored}, boot_now()),
                  .image = need(
                      cache_.image({{stored, false}}, std::make_shared<const Floor>(), boot_now()),
                      "compile")});
    }
  }
  static AttachmentId id(std::uint32_t number) { return {number + 1}; }

  void learn(std::uint32_t at, std::span<const Address> addresses, std::uint64_t seconds) {
    constexpr std::string_view kName = "www.example";
    const NameGrant grant{
        .rule = 0, .addresses = addresses, .ttl_ns = seconds * kSecond, .grace_ns = 30 * kSecond};
    need(learned_.learn("dns", id(at), {std::span(&kName, 1), std::span(&grant, 1)}), "learn");
  }
  void forget(std::uint32_t at, std::span<const Address> addresses) {
    need(learned_.revoke("dns", id(at), addresses), "revoke");
  }

  Figures cold(std::uint32_t at, std::size_t count, std::size_t calls) {
    Fresh fresh(static_cast<std::uint8_t>(at));
    return measured(
        calls,
        [&](std::vector<std::vector<Address>>& batch) {
          batch.clear();
          for (std::size_t i = 0; i < kBatch; ++i) batch.push_back(fresh.next(count));
        },
        [&](const std::vector<Address>& addresses) { learn(at, addresses, 60); },
        [&](const std::vector<Address>& addresses) { forget(at, addresses); });
  }
  // The same addresses again. `extends`: to a later end each time.
  Figures again(std::uint32_t at, std::size_t count, std::size_t calls, bool extends) {
    Fresh fresh(static_cast<std::uint8_t>(at));
    std::vector<std::vector<Address>> known;
    for (std::size_t i = 0; i < kBatch; ++i) known.push_back(fresh.next(count));
    for (const auto& addresses : known) learn(at, addresses, extends ? 60 : 86400);
    auto figures = measured(
        calls, [&](auto& batch) { batch = known; },
        [&](const std::vector<Address>& addresses) { learn(at, addresses, 60); },
        [](const std::vector<Address>&) {});
    for (const auto& addresses : known) forget(at, addresses);
    return figures;
  }

 private:
  using Batch = std::vector<std::vector<Address>>;
  static Figures measured(std::size_t calls, const std::function<void(Batch&)>& prepare,
                          const std::function<void(const std::vector<Address>&)>& work,
                          const std::function<void(const std::vector<Address>&)>& after) {
    Figures figures;
    figures.took.reserve(calls);
    std::vector<double> cpu;
    Batch batch;
    while (figures.took.size() < calls) {
      prepare(batch);
      const double start = cpu_now();
      for (const auto& addresses : batch) figures.took.push_back(timed([&] { work(addresses); }));
      cpu.push_back((cpu_now() - start) / static_cast<double>(batch.size()));
      for (const auto& addresses : batch) after(addresses);
    }
    figures.cpu = undisturbed(cpu);
    return figures;
  }

  std::unique_ptr<KernelDataPlane> plane_;
  std::vector<std::unique_ptr<Tap>> taps_;
  PolicyCache cache_;
  LearnedAddresses learned_;
};

void print(const std::string& what, Figures figures, double budget) {
  row(what + ": p50", quantile(figures.took, 0.5), budget, {{"CPU", figures.cpu}});
  row(what + ": p99", quantile(figures.took, 0.99), 0);
}

}  // namespace

void learn_cost(const Options& options) {
  heading("Learn",
          "from a resolver's thread to in the kernel; beside 1,000 explicit rules, CPU per call");
  Bed bed;
  const std::size_t calls = options.quick ? 5000 : 30000;
  for (const std::size_t count : {std::size_t{1}, std::size_t{16}}) {
    const double budget = count == 1 ? 3000 : 10000;
    const std::string name = fmt::format("{} address{}, ", count, count == 1 ? "" : "es");
    print(name + "cold", bed.cold(0, count, calls), budget);
    print(name + "to a later end", bed.again(0, count, calls, true), budget);
    print(name + "known to live on", bed.again(0, count, calls, false), budget);
  }
  // Another worker learns for another attachment all the while.
  std::atomic<bool> stop{false};
  std::thread other([&] {
    Fresh fresh(1);
    while (!stop) {
      const auto addresses = fresh.next(16);
      bed.learn(1, addresses, 60);
      bed.forget(1, addresses);
    }
  });
  print("1 address, cold, beside a busy worker", bed.cold(0, 1, calls), 3000);
  stop = true;
  other.join();
}

}  // namespace sluice::bench
