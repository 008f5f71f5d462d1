#include "dns/push_memory.hpp"

#include <algorithm>
#include <bit>

namespace sluice::dns {
namespace {

// Ids count up, so neighbours must not fall into one set.
std::uint64_t spread(std::uint64_t value) {
  value = (value ^ (value >> 32)) * 0x9e3779b97f4a7c15ULL;
  return value ^ (value >> 32);
}

}  // namespace

PushMemory::PushMemory(Settings settings) : settings_(settings) {
  settings_.most_answers = std::max(kWays, std::bit_ceil(settings_.most_answers));
  const unsigned count = std::bit_ceil(std::max(1u, settings_.shards));
  for (unsigned i = 0; i < count; ++i) shards_.push_back(std::make_unique<Shard>());
}

PushMemory::Shard& PushMemory::shard_of(sdk::AttachmentId attachment) const {
  return *shards_[spread(attachment.value) & (shards_.size() - 1)];
}

// The answer's place, else the one of its set that is empty or ends first.
PushMemory::Push* PushMemory::way(Table& table, std::uint64_t answer) {
  const std::size_t sets = table.pushes.size() / kWays;
  Push* const set = &table.pushes[(spread(answer) & (sets - 1)) * kWays];
  Push* worst = set;
  for (Push* push = set; push != set + kWays; ++push) {
    if (push->answer == answer) return push;
    if (push->answer == 0) {
      if (worst->answer != 0) worst = push;
    } else if (worst->answer != 0 && push->until < worst->until) {
      worst = push;
    }
  }
  return worst;
}

void PushMemory::grow(Table& table) const {
  Table wider;
  wider.pushes.resize(std::max(kWays, table.pushes.size() * 2));
  for (const Push& push : table.pushes)
    if (push.answer != 0) {
      Push* place = way(wider, push.answer);
      wider.used += place->answer == 0;
      *place = push;
    }
  table.pushes.swap(wider.pushes);
  table.used = wider.used;
}

bool PushMemory::suffices(sdk::AttachmentId attachment, std::uint64_t answer,
                          sdk::Time until) const {
  Shard& shard = shard_of(attachment);
  const std::lock_guard lock(shard.mutex);
  const auto table = shard.tables.find(attachment.value);
  if (table == shard.tables.end() || table->second.pushes.empty()) return false;
  const Push* push = way(table->second, answer);
  return push->answer == answer && answer != 0 && push->until >= until;
}

PushMemory::Ticket PushMemory::ticket(sdk::AttachmentId attachment) {
  Shard& shard = shard_of(attachment);
  const std::lock_guard lock(shard.mutex);
  const auto [table, is_new] = shard.tables.try_emplace(attachment.value);
  if (is_new) table->second.stamp = ++shard.stamps;
  return {table->second.stamp};
}

void PushMemory::record(sdk::AttachmentId attachment, Ticket ticket, std::uint64_t answer,
                        sdk::Time until) {
  if (answer == 0) return;
  Shard& shard = shard_of(attachment);
  const std::lock_guard lock(shard.mutex);
  const auto found = shard.tables.find(attachment.value);
  if (found == shard.tables.end() || found->second.stamp != ticket.stamp) return;
  Table& table = found->second;
  if (table.pushes.size() < settings_.most_answers && table.used * 4 >= table.pushes.size() * 3)
    grow(table);
  Push* place = way(table, answer);
  if (place->answer == answer) {
    place->until = std::max(place->until, until);
    return;
  }
  table.used += place->answer == 0;
  *place = {answer, until};
}

void PushMemory::clear(sdk::AttachmentId attachment) {
  Shard& shard = shard_of(attachment);
  const std::lock_guard lock(shard.mutex);
  const auto found = shard.tables.find(attachment.value);
  if (found != shard.tables.end()) found->second = Table{.stamp = ++shard.stamps};
}

void PushMemory::forget(sdk::AttachmentId attachment) {
  Shard& shard = shard_of(attachment);
  const std::lock_guard lock(shard.mutex);
  shard.tables.erase(attachment.value);
}

std::size_t PushMemory::bytes() const {
  std::size_t sum = 0;
  for (const auto& shard : shards_) {
    const std::lock_guard lock(shard->mutex);
    for (const auto& [id, table] : shard->tables)
      sum += 64 + sizeof(table) + table.pushes.capacity() * sizeof(Push);
  }
  return sum;
}

}  // namespace sluice::dns
