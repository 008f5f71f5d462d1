// The discovery plugin "interfaces": attaches the network interfaces that its options select.
#pragma once

#include <array>
#include <cstdint>

#include <sluice/plugin.hpp>

#include "discovery/keeper.hpp"
#include "discovery/plugin_host.hpp"
#include "interfaces/link_book.hpp"
#include "interfaces/link_feed.hpp"

namespace sluice::interfaces {

class InterfacesPlugin final : public sdk::Plugin, public sdk::Discovery {
 public:
  static constexpr sdk::About about{"interfaces", "1.0",
                                    "finds taps, veths and other links by name, kind and bridge"};
  static constexpr std::array options{
      sdk::Option::string_list("match").help(
          "globs on interface names; {name} captures a label: [\"tap*\", \"vm-{tenant}-{nic}\"]"),
      sdk::Option::string_list("exclude").help("globs on interface names that are never taken"),
      sdk::Option::string_list("kinds").help(
          "link kinds: tap, tun, veth, macvtap, bridge, hardware...; default: those that connect "
          "workloads"),
      sdk::Option::string_list("bridge").help("globs; only ports of these bridges"),
      sdk::Option::string("side")
          .defaults_to("\"auto\"")
          .help("where the workload is: auto (by kind), ingress (tap, veth) or egress (macvtap)"),
      sdk::Option::string_table("labels").help(
          "labels of what is found; values may refer to $interface, $kind, $bridge and captures"),
      sdk::Option::integer("event_buffer")
          .defaults_to("4194304")
          .help("bytes for link events not read yet; more make an overflow, and so a full listing, "
                "rarer"),
  };

  // Throws Error(EINVAL) for options that cannot be meant.
  explicit InterfacesPlugin(const sdk::Config& config);

  void start() override;
  void stop() override;
  void on_fd(int fd, std::uint32_t events) override;
  void on_timer(std::uint64_t id) override;
  void on_resync() override;

 private:
  void list_anew();

  discovery::PluginHost<InterfacesPlugin> host_{*this};
  discovery::Keeper keeper_{host_};
  LinkBook book_;
  LinkFeed feed_;
  std::uint64_t overflow_said_after_ = UINT64_MAX;  // number of listings when it was last said
};

}  // namespace sluice::interfaces
