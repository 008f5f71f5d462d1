#include "dataplane/slot_table.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

namespace sluice {

Result<SlotTable> SlotTable::map(int fd, std::uint32_t entries) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t bytes = (entries * sizeof(sluice_slot) + page - 1) / page * page;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED)
    return fail_with(errno, "cannot map the attachment table ({} KiB): {}", bytes >> 10,
                     strerror(errno));
  return SlotTable(static_cast<sluice_slot*>(memory), entries, bytes);
}

SlotTable::SlotTable(SlotTable&& other) noexcept
    : slots_(std::exchange(other.slots_, nullptr)),
      entries_(other.entries_),
      bytes_(other.bytes_) {}

SlotTable::~SlotTable() {
  if (slots_ != nullptr) munmap(slots_, bytes_);
}

std::uint64_t SlotTable::word(std::uint32_t index) const {
  return std::atomic_ref(slots_[index].word).load(std::memory_order_acquire);
}

void SlotTable::fill(std::uint32_t index, const sluice_slot& slot) {
  sluice_slot copy = slot;
  copy.state = SLUICE_SLOT_FREE;
  copy.word = 0;
  slots_[index] = copy;
  std::atomic_ref(slots_[index].state).store(SLUICE_SLOT_LIVE, std::memory_order_release);
}

void SlotTable::publish(std::uint32_t index, std::uint64_t generation, std::uint64_t word) {
  std::atomic_ref(slots_[index].generation).store(generation, std::memory_order_relaxed);
  std::atomic_ref(slots_[index].word).store(word, std::memory_order_release);
}

void SlotTable::set_options(std::uint32_t index, const sluice_slot& options) {
  sluice_slot& slot = slots_[index];
  slot.dhcp4_server_be = options.dhcp4_server_be;
  slot.resolver = options.resolver;
  std::memcpy(slot.dhcp6_server, options.dhcp6_server, sizeof(slot.dhcp6_server));
  std::memcpy(slot.ethertypes, options.ethertypes, sizeof(slot.ethertypes));
  std::memcpy(slot.vlans, options.vlans, sizeof(slot.vlans));
}

void SlotTable::set_sever_until(std::uint32_t index, std::uint64_t until) {
  std::atomic_ref(slots_[index].sever_until).store(until, std::memory_order_relaxed);
}

void SlotTable::clear(std::uint32_t index) {
  std::atomic_ref(slots_[index].state).store(SLUICE_SLOT_FREE, std::memory_order_release);
  std::atomic_ref(slots_[index].word).store(0, std::memory_order_release);
}

}  // namespace sluice
