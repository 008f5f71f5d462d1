// Which links there are, which of them are wanted, and telling the keeper what follows.
//
//   LinkBook book(Selection({.match = {"tap*"}, .labels = {{"class", "vm"}}}), keeper);
//   LinkFeed feed(book);
//   feed.open(); feed.read(); book.settle(); keeper.turn();
//
// Identity is the ifindex until the kernel says that the link is gone; names come and go. Changes
// within one settle() are taken together: only how things stand at its end counts, except that a
// link which went and came back is another link.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "discovery/keeper.hpp"
#include "discovery/label_rules.hpp"
#include "discovery/name_pattern.hpp"
#include "interfaces/link_feed.hpp"

namespace sluice::interfaces {

struct SelectionOptions {
  std::vector<std::string> match{};    // globs with captures; empty: any name
  std::vector<std::string> exclude{};  // globs
  std::vector<std::string> kinds{};    // empty: see Selection
  std::vector<std::string> bridge{};   // globs; not empty: only ports of these bridges
  std::vector<std::pair<std::string, std::string>> labels{};
  discovery::WorkloadSide side = discovery::WorkloadSide::automatic;
};

// The operator's choice. Never the loopback device. Without `kinds`, a glob finds only kinds that
// exist to connect a workload (tap, tun, veth, netkit, macvtap, ipvtap): "*" must not take in the
// host's uplinks, bridges and tunnels. A pattern without wildcards names its link whatever the
// kind.
class Selection {
 public:
  // Throws std::invalid_argument: the option, the fault, the remedy.
  explicit Selection(SelectionOptions options);

  // The labels of a link that is wanted. `bridge`: name of the bridge it is a port of, or empty.
  [[nodiscard]] std::optional<discovery::Labels> choose(const Link& link,
                                                        const std::string& bridge) const;
  [[nodiscard]] discovery::WorkloadSide side() const { return side_; }

 private:
  std::vector<discovery::NamePattern> match_, exclude_, bridge_;
  std::set<std::string> kinds_;
  discovery::LabelRules labels_;
  discovery::WorkloadSide side_;
};

class LinkBook final : public LinkSink {
 public:
  LinkBook(Selection selection, discovery::Keeper& keeper)
      : selection_(std::move(selection)), keeper_(keeper) {}

  void listing_started() override;
  void listing_complete() override;
  void changed(const Link& link) override;
  void removed(std::uint32_t ifindex) override;
  void left_bridge(std::uint32_t ifindex, std::uint32_t bridge) override;

  // Decides for every link that changed since the last call.
  void settle();

  [[nodiscard]] const std::unordered_map<std::uint32_t, Link>& links() const { return links_; }
  [[nodiscard]] std::uint64_t listings() const { return listings_; }

 private:
  void note(const Link& link);
  void forget(std::uint32_t ifindex, const char* reason);
  void touch_ports_of(std::uint32_t bridge);
  [[nodiscard]] std::string bridge_of(const Link& link) const;

  Selection selection_;
  discovery::Keeper& keeper_;
  std::unordered_map<std::uint32_t, Link> links_;
  // While a listing runs: how things will stand at its end.
  std::optional<std::unordered_map<std::uint32_t, Link>> incoming_;
  std::set<std::uint32_t> touched_;
  std::uint64_t listings_ = 0;
};

}  // namespace sluice::interfaces
