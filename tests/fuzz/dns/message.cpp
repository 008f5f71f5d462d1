// Bytes as a message, from a guest and from an upstream: everything that the resolver does with
// one, and libldns beside it.
#include <cstdint>

#include "unit/dns/oracle.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  dns_test::Seen seen;
  dns_test::check_message(dns_test::Packet(data, data + size),
                          seen);  // a Disagreement ends the run
  return 0;
}
