#include "policy/digest.hpp"

#include <sodium/crypto_generichash.h>

#include <cstring>

namespace sluice {

std::array<std::uint64_t, 2> policy_digest(const CompiledPolicy& policy) {
  std::array<std::uint64_t, 2> digest{};
  // The tries say where the elements begin to matter; `blob`, `base` and the digest itself say
  // where they are stored and stay out.
  crypto_generichash_state state;
  crypto_generichash_init(&state, nullptr, 0, sizeof digest);
  const std::uint32_t version = SLUICE_LAYOUT_VERSION;
  crypto_generichash_update(&state, reinterpret_cast<const unsigned char*>(&version),
                            sizeof version);
  crypto_generichash_update(&state, reinterpret_cast<const unsigned char*>(&policy.descriptor.ip4),
                            sizeof policy.descriptor.ip4);
  crypto_generichash_update(&state, reinterpret_cast<const unsigned char*>(&policy.descriptor.ip6),
                            sizeof policy.descriptor.ip6);
  crypto_generichash_update(&state, reinterpret_cast<const unsigned char*>(policy.elements.data()),
                            policy.elements.size() * sizeof(sluice_element));
  crypto_generichash_final(&state, reinterpret_cast<unsigned char*>(digest.data()), sizeof digest);
  return digest;
}

}  // namespace sluice
