#include "base/address.hpp"

#include <arpa/inet.h>
#include <sys/random.h>

#include <algorithm>
#include <cstring>
#include <random>

namespace sluice {
namespace {

constexpr std::array<std::uint8_t, 12> kMapped{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

using Secret = std::array<std::uint64_t, 2>;

Secret make_secret() {
  Secret secret{};
  if (getrandom(secret.data(), sizeof(secret), 0) != sizeof(secret)) {
    std::random_device device;
    for (auto& word : secret) word = std::uint64_t{device()} << 32 | device();
  }
  return secret;
}

}  // namespace

std::string text_of(const Address& address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  const bool ip4 = std::equal(kMapped.begin(), kMapped.end(), address.begin());
  inet_ntop(ip4 ? AF_INET : AF_INET6, address.data() + (ip4 ? 12 : 0), text.data(), text.size());
  return text.data();
}

std::size_t AddressHash::operator()(const Address& address) const noexcept {
  static const Secret secret = make_secret();
  std::uint64_t high = 0, low = 0;
  std::memcpy(&high, address.data(), 8);
  std::memcpy(&low, address.data() + 8, 8);
  const auto product = static_cast<unsigned __int128>(high ^ secret[0]) * (low ^ secret[1]);
  return static_cast<std::size_t>(product) ^ static_cast<std::size_t>(product >> 64);
}

}  // namespace sluice
