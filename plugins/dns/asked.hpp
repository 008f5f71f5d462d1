// The question at hand: all that is known of it on its way from the socket to its answer. On the
// stack of its worker; a question that has to wait leaves what is needed of this in the
// WaitingRoom.
#pragma once

#include <cstdint>
#include <string_view>

#ifndef SLUICE_SDK_QUALIFIED
#define SLUICE_SDK_QUALIFIED
#endif
#include <sluice/types.hpp>

#include "dns/client.hpp"
#include "dns/message.hpp"
#include "dns/tenant.hpp"

namespace sluice::dns {

// The time of a turn of the worker's loop: all that happens in the turn happens then.
struct Moment {
  std::uint64_t monotonic = 0;  // ns
  sdk::Time boot{};             // as the kernel programs count
};

struct Asked {
  const MessageView& query;
  const Client& client;
  Tenant& tenant;
  DecisionPtr decision{};     // of a decider, for this question
  bool lapsed = false;        // there was one, of a former state of the tenant
  std::uint64_t arrived = 0;  // monotonic ns
  std::uint64_t decision_ns = 0, upstream_ns = 0, push_ns = 0;
  std::string_view upstream{};  // who answered
  bool cached = false;

  [[nodiscard]] const Question& question() const { return query.question(); }
  [[nodiscard]] std::uint64_t attachment() const { return tenant.state.attachment; }
};

}  // namespace sluice::dns
