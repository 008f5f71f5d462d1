// The peers: programs of our own making (no-op, bare drop, LPM trie), and sets of nftables and
// ipset, loaded through their own tools.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "bench/dataplane/sets.hpp"

struct peers;

namespace sluice::bench {

class PeerPrograms {
 public:
  PeerPrograms();
  ~PeerPrograms();
  PeerPrograms(const PeerPrograms&) = delete;
  PeerPrograms& operator=(const PeerPrograms&) = delete;

  [[nodiscard]] int do_nothing() const;
  [[nodiscard]] int bare_drop() const;
  [[nodiscard]] int trie_filter() const;
  [[nodiscard]] int aim(std::uint8_t family) const;
  void set_destinations(const std::vector<Address>& addresses, std::uint8_t family);
  void set_contender(int program);
  void set_trie(const std::vector<Prefix>& set, bool allow);  // adds
  [[nodiscard]] int trie_map() const;

 private:
  ::peers* skeleton_;
};

// Files for `nft -f` and `ipset restore`. IPv4.
[[nodiscard]] bool have_tool(const char* name);
void write_nft_set(const std::filesystem::path& file, const std::string& device,
                   const std::vector<Prefix>& set);
// Replaces the elements of that set in one transaction.
void write_nft_replacement(const std::filesystem::path& file, const std::vector<Prefix>& set);
void write_ipset(const std::filesystem::path& file, const std::string& name,
                 const std::vector<Prefix>& set);

}  // namespace sluice::bench
