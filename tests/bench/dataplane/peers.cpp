#include "bench/dataplane/peers.hpp"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include <cstdlib>
#include <cstring>
#include <fstream>

#include "bench/dataplane/sandbox.hpp"
#include "peers.skel.h"

namespace sluice::bench {
namespace {

constexpr std::size_t kDestinations = 1u << 18;

void write_elements(std::ofstream& out, const std::vector<Prefix>& set) {
  out << "elements = {";
  for (const Prefix& prefix : set) out << prefix.text() << ",\n";
  out << "}";
}

}  // namespace

PeerPrograms::PeerPrograms() : skeleton_(peers__open_and_load()) {
  if (skeleton_ == nullptr) give_up("the kernel refused the peers' programs");
}
PeerPrograms::~PeerPrograms() {
  peers__destroy(skeleton_);
}

int PeerPrograms::do_nothing() const {
  return bpf_program__fd(skeleton_->progs.do_nothing);
}
int PeerPrograms::bare_drop() const {
  return bpf_program__fd(skeleton_->progs.bare_drop);
}
int PeerPrograms::trie_filter() const {
  return bpf_program__fd(skeleton_->progs.trie_filter);
}
int PeerPrograms::aim(std::uint8_t family) const {
  return bpf_program__fd(family == 4 ? skeleton_->progs.aim4 : skeleton_->progs.aim6);
}
int PeerPrograms::trie_map() const {
  return bpf_map__fd(skeleton_->maps.trie);
}

void PeerPrograms::set_destinations(const std::vector<Address>& addresses, std::uint8_t family) {
  for (std::size_t i = 0; i < kDestinations; ++i) {
    const Address& address = addresses[i % addresses.size()];
    if (family == 4)
      std::memcpy(&skeleton_->bss->destinations4[i], address.data(), 4);
    else
      std::memcpy(&skeleton_->bss->destinations6[i], address.data(), 16);
  }
  skeleton_->bss->cursor = 0;
}

void PeerPrograms::set_contender(int program) {
  const std::uint32_t zero = 0;
  if (bpf_map_update_elem(bpf_map__fd(skeleton_->maps.contender), &zero, &program, BPF_ANY) != 0)
    give_up(fmt::format("cannot call the program from another: {}", strerror(errno)));
}

void PeerPrograms::set_trie(const std::vector<Prefix>& set, bool allow) {
  struct {
    std::uint32_t length;
    std::uint8_t address[4];
  } key{};
  const std::uint32_t value = allow ? 1 : 0;
  for (const Prefix& prefix : set) {
    key.length = prefix.length;
    std::memcpy(key.address, prefix.address.data(), 4);
    if (bpf_map_update_elem(trie_map(), &key, &value, BPF_ANY) != 0)
      give_up(fmt::format("LPM trie: {}", strerror(errno)));
  }
}

bool have_tool(const char* name) {
  return std::system(fmt::format("command -v {} >/dev/null 2>&1", name).c_str()) == 0;
}

void write_nft_set(const std::filesystem::path& file, const std::string& device,
                   const std::vector<Prefix>& set) {
  std::ofstream out(file);
  out << "table netdev bench {\n set listed { type ipv4_addr; flags interval; ";
  write_elements(out, set);
  out << "\n }\n chain in { type filter hook ingress device \"" << device
      << "\" priority 0; policy drop; ip daddr @listed counter drop; }\n}\n";
}

void write_nft_replacement(const std::filesystem::path& file, const std::vector<Prefix>& set) {
  std::ofstream out(file);
  out << "flush set netdev bench listed\ntable netdev bench {\n set listed { type ipv4_addr; flags "
         "interval; ";
  write_elements(out, set);
  out << "\n }\n}\n";
}

void write_ipset(const std::filesystem::path& file, const std::string& name,
                 const std::vector<Prefix>& set) {
  std::ofstream out(file);
  out << "create " << name << " hash:net family inet hashsize "
      << std::max<std::size_t>(1024, set.size() / 2) << " maxelem "
      << std::max<std::size_t>(65536, set.size()) << "\n";
  for (const Prefix& prefix : set) out << "add " << name << " " << prefix.text() << "\n";
}

}  // namespace sluice::bench
