// Text as a name, as an operator or a plugin gives it: what we take, libldns takes for the same
// name, and what we write reads back.
#include <cstdint>
#include <string>

#include "unit/dns/oracle.hpp"

using namespace dns_test;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto name_of = Name::from_text(text);
  if (!name_of) return 0;
  const auto written = name_of->text();
  for (const char c : written.view())
    agree(c > ' ' && c < 0x7f && c != '"' && c != '\'', "a byte that needs care");
  const auto again = Name::from_text(written.view());
  agree(again && *again == *name_of, "it does not read back");
  agree(*Name::from_wire(name_of->wire()) == *name_of, "its wire form does not read back");
  ldns_rdf* theirs = ldns_dname_new_frm_str(written.c_str());
  agree(theirs != nullptr, "ldns does not take it");
  agree(ldns_data(theirs) == exactly(name_of->wire()), "ldns has another name");
  ldns_rdf_deep_free(theirs);
  // Each ancestor is above it, and has the hash of its bytes.
  std::array<std::uint8_t, kMostLabels> starts;
  const std::size_t labels = name_of->label_starts(starts);
  Name above = *name_of;
  for (std::size_t i = 0; i < labels; ++i) {
    agree(above == *Name::from_wire(name_of->wire().subspan(starts[i])), "another ancestor");
    agree(name_of->is_same_or_below(above), "not below its ancestor");
    agree(hash_wire(name_of->wire().subspan(starts[i])) == above.hash(), "another hash");
    above = above.parent();
  }
  agree(above.is_root(), "the last ancestor is not the root");
  return 0;
}
