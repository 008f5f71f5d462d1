// What one worker knows of one attachment.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#ifndef SLUICE_SDK_QUALIFIED
#define SLUICE_SDK_QUALIFIED
#endif
#include <sluice/types.hpp>

#include "dns/budget.hpp"
#include "dns/push_memory.hpp"
#include "dns/rule_book.hpp"
#include "names/name.hpp"

namespace sluice::dns {

using DecisionPtr = std::shared_ptr<const sdk::Decision>;

// As the plugin tells it to each worker; a new one after each change.
struct TenantState {
  std::uint64_t attachment = 0;
  sdk::Mode mode = sdk::Mode::block_all;
  bool audit = false;
  RuleSetPtr rules{};  // null: none
  // Of the rules, as learn() takes them; null with them.
  std::shared_ptr<const std::vector<std::uint32_t>> ids{};
  std::shared_ptr<AttachmentBudget> budget{};  // null: no limits
  // Until then "block-all" may only mean that its source has not spoken yet: no answer is better
  // than a wrong one.
  sdk::Time settled{};
  // What is pushed by this state is remembered as such, and by no later one. What a decider says in
  // answer to a question of this state is no word on a later one either.
  PushMemory::Ticket pushes{};
};

// A decider's word that may stand for a while.
struct KeptDecision {
  Name name;
  std::uint16_t type = 0;
  sdk::Time until{};
  DecisionPtr decision;
};

struct Tenant {
  TenantState state;
  std::unordered_map<std::uint64_t, KeptDecision> decisions;  // by hash of name and type
  sdk::Time no_decider_until{};
  std::uint32_t dropped = 0;  // unread, over its rate, and not reported yet
};

}  // namespace sluice::dns
