// The addresses of this host, listed and watched by rtnetlink, so that no answer opens a way to
// them.
//
//   OwnAddresses own;
//   own.open();                        // lists; throws where it cannot
//   watch(own.fd(), [&] { own.read(); });
//   Published<AddressSet>::Reader reader(own.addresses());   // in each worker
//
// Listing and events share one socket, so that what is read last is what is newest. When events
// were lost (ENOBUFS) or the kernel could not keep the listing consistent (NLM_F_DUMP_INTR)
// everything is listed again; until that listing is whole, addresses are only added.
//
// Speaks of the network namespace of the thread that calls open(). One thread but for addresses().
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <vector>

#include "dns/published.hpp"
#include "dns/reserved.hpp"

namespace sluice::dns {

class OwnAddresses {
 public:
  struct Settings {
    // Bytes. Room for about a thousand events: each is charged with 4 KiB. Not resident until used.
    int receive_buffer = 4 << 20;
    std::chrono::milliseconds patience{5000};  // for the first listing
  };

  // Opens nothing; the set is empty.
  OwnAddresses() : OwnAddresses(Settings{}) {}
  explicit OwnAddresses(Settings settings) : settings_(settings) {}
  ~OwnAddresses();
  OwnAddresses(const OwnAddresses&) = delete;
  OwnAddresses& operator=(const OwnAddresses&) = delete;

  // Subscribes and returns when the first listing is whole and published. Once. Throws
  // std::system_error; ETIME when the kernel did not answer in time.
  void open();
  // -1 before open(). Becomes readable when read() has work; stays the same.
  [[nodiscard]] int fd() const { return fd_; }

  // Takes in what the kernel has said by now and publishes if it changed anything. Throws
  // std::system_error; the set then stays what it was.
  void read();

  // [any]
  [[nodiscard]] const Published<AddressSet>& addresses() const { return published_; }
  // How often everything had to be listed again.
  [[nodiscard]] std::uint64_t relistings() const { return relistings_; }

 private:
  // The same address may stand on several interfaces, and several times on one (with other prefix
  // lengths).
  struct Place {
    sdk::Address address;
    std::uint32_t ifindex = 0;
    std::uint8_t prefix_length = 0;
    auto operator<=>(const Place&) const = default;
  };

  void request_listing();
  bool receive();
  void take(std::size_t length);
  void publish();

  Settings settings_;
  int fd_ = -1;
  std::uint32_t port_ = 0;      // our netlink address
  std::uint32_t sequence_ = 0;  // of the listing under way or last done
  bool listing_ = false;        // under way
  bool lost_ = false;           // the listing under way has missed something
  bool changed_ = false;
  std::map<Place, std::uint32_t> places_;  // value: the listing that saw it last
  Published<AddressSet> published_{std::make_shared<const AddressSet>()};
  std::uint64_t relistings_ = 0;
  std::vector<char> buffer_;
};

}  // namespace sluice::dns
