// Bytes as decisions of the generator that builds messages: the way into chains, DNAMEs and hints
// that random bytes do not find.
#include <cstdint>

#include "unit/dns/oracle.hpp"
#include "unit/dns/random_message.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  dns_test::Decisions decisions({data, size});
  dns_test::Seen seen;
  dns_test::check_message(dns_test::RandomMessage(decisions).make(), seen);
  return 0;
}
