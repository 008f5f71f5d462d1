// The `dns` resolver: answers the questions of workloads whose rules allow the name, and opens what
// it resolved in the kernel before it answers. docs/names.md is its manual.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <vector>

#define SLUICE_SDK_QUALIFIED
#include <sluice/plugin.hpp>

#include "dns/budget.hpp"
#include "dns/cache.hpp"
#include "dns/host_side.hpp"
#include "dns/own_addresses.hpp"
#include "dns/push_memory.hpp"
#include "dns/rule_book.hpp"
#include "dns/settings.hpp"
#include "dns/sockets.hpp"
#include "dns/worker.hpp"

namespace sluice::dns {

class DnsPlugin : public sdk::Plugin, public sdk::Resolver, private HostSide {
 public:
  static constexpr sdk::About about{"dns", "1.0",
                                    "names to addresses, opened before they are told"};
  static constexpr std::array options{
      sdk::Option::string_list("upstreams")
          .required()
          .help("servers that resolve, in order of preference: \"127.0.0.53\", "
                "\"[2001:db8::1]:5353\""),
      sdk::Option::integer("workers").defaults_to("1").help("threads, 1 to 16"),
      sdk::Option::string("denied")
          .defaults_to("\"nxdomain\"")
          .help("answer for a name that is not allowed: nxdomain, refused or nodata"),
      sdk::Option::string_list("types").defaults_to("[]").help(
          "record types let through on every allowed name beside A, AAAA, HTTPS and SVCB"),
      sdk::Option::duration("floor").defaults_to("\"60s\"").help(
          "an address stays open at least this long, however short its TTL"),
      sdk::Option::duration("grace").defaults_to("\"30s\"").help(
          "and this much longer than the TTL that was sent"),
      sdk::Option::duration("live_flows")
          .defaults_to("\"1h\"")
          .help("connections that live when an address ends may go on for this long"),
      sdk::Option::duration("max_ttl").defaults_to("\"24h\"").help("longer TTLs are sent as this"),
      sdk::Option::integer("cache_megabytes").defaults_to("32").help("memory for answers"),
      sdk::Option::duration("upstream_timeout")
          .defaults_to("\"1s\"")
          .help("a question that is not answered is sent again after this, at the latest"),
      sdk::Option::duration("upstream_deadline")
          .defaults_to("\"4s\"")
          .help("then it has failed; below the 5 s after which clients ask again"),
      sdk::Option::integer("upstream_in_flight")
          .defaults_to("8192")
          .help("questions to upstreams at once, per worker"),
      sdk::Option::duration("decider_deadline")
          .defaults_to("\"2s\"")
          .help("how long another plugin may take to decide on a name"),
      sdk::Option::duration("tcp_idle")
          .defaults_to("\"10s\"")
          .help("a connection without a question ends after this"),
      sdk::Option::integer("tcp_connections")
          .defaults_to("4096")
          .help("connections of all workloads, per worker"),
      sdk::Option::integer("limit.in_flight")
          .defaults_to("256")
          .help("per workload: questions that wait for an answer"),
      sdk::Option::integer("limit.rate")
          .defaults_to("1000")
          .help("per workload: questions a second, over time"),
      sdk::Option::integer("limit.burst")
          .defaults_to("2000")
          .help("per workload: questions at once after a pause"),
      sdk::Option::integer("limit.connections")
          .defaults_to("32")
          .help("per workload: TCP connections"),
      sdk::Option::integer("limit.upstream_rate")
          .defaults_to("200")
          .help("per workload: questions a second that go upstream, over time"),
      sdk::Option::integer("limit.upstream_burst")
          .defaults_to("1000")
          .help("per workload: such questions at once after a pause"),
      sdk::Option::integer("limit.names_per_wildcard")
          .defaults_to("1000")
          .help("per workload: different names under one wildcard within limit.window"),
      sdk::Option::integer("limit.names")
          .defaults_to("4000")
          .help("per workload: the same over all wildcards"),
      sdk::Option::duration("limit.window").defaults_to("\"10m\"").help("see there"),
  };

  explicit DnsPlugin(const sdk::Config& config);
  ~DnsPlugin() override;

  void start() override;
  void stop() override;
  void on_fd(int fd, std::uint32_t events) override;
  void on_timer(std::uint64_t id) override;
  void on_resync() override;
  bool reconfigure(const sdk::Config& config) override;

  void attachment_added(const sdk::AttachmentInfo& info) override;
  void attachment_changed(const sdk::AttachmentInfo& info) override;
  void attachment_removed(const sdk::AttachmentInfo& info, std::string_view reason) override;
  void domain_rules(sdk::AttachmentId id, const std::vector<sdk::Rule>& rules) override;
  void decided(std::uint64_t query_id, const sdk::Decision& decision) override;
  void answer_pushed(std::uint64_t push_id, const sdk::Answer& answer) override;

 private:
  struct Attachment {
    TenantState state;
    bool listed = true;  // false: not heard of again since the resync
    bool ruled = false;  // its rules have come, or are known to be none
  };

  void open_sockets();
  void tell_counters();
  void publish(const Attachment& attachment);
  void forget_pushes(Attachment& attachment);
  void forget(sdk::AttachmentId id);
  void settle_pushed(std::uint64_t push_id, const sdk::Answer& answer);

  // HostSide, [any]
  std::uint64_t boot_now() const noexcept override;
  std::uint64_t asker_of_mark(std::uint32_t mark) noexcept override;
  std::uint64_t asker_of_stream(int accepted) noexcept override;
  LearnResult learn(std::uint64_t attachment, std::span<const std::string_view> names,
                    std::span<const sdk::Grant> grants) noexcept override;
  AskResult ask(const sdk::Query& query, std::uint64_t deadline) noexcept override;
  void report(std::span<const sluice_query_report> reports) noexcept override;
  void say(sdk::LogLevel level, std::string_view text) noexcept override;
  void give_up(std::string_view why) noexcept override;

  SettingsPtr settings_;
  BudgetOptions limits_;
  RuleBook book_;
  Budgets budgets_;
  AnswerCache cache_;
  PushMemory pushes_;
  OwnAddresses own_;
  std::map<sdk::AttachmentId, Attachment> attachments_;
  std::vector<ListenerSet> sockets_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::uint64_t told_queries_ = 0, told_unknown_ = 0;
};

}  // namespace sluice::dns
