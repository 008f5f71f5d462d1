/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Learned addresses as the daemon writes them, by BPF_PROG_RUN: sixteen in one system call, also
 * where they are there already.
 *
 * An entry that is there is moved in place, since the packet path writes into it at the same time:
 * whoever reads it, puts it together anew and writes it back whole may lose the moment of a live
 * connection's last packet. The fields are stored one by one, so a packet may meet old ports with
 * new ends. That opens nothing that both states do not open between them, but where ports change of
 * an entry in its grace: its old ones would take new connections again. Such an entry, and one that
 * has ended, is replaced whole.
 *
 * Of one key there is one writer at a time (the scope's lock in the daemon), so what was found is
 * not taken out meanwhile.
 */
#pragma once

#include "kernel.h"
#include "learn_batch.h"

SEC("syscall")
int sluice_learn(struct sluice_learn_batch* batch) {
  __u64 now = bpf_ktime_get_boot_ns();
  /* Unrolled: the verifier wants constant offsets into a context. */
#pragma unroll
  for (int i = 0; i < SLUICE_LEARN_ENTRIES; i++) {
    if ((__u32)i >= batch->count) return 0;
    struct sluice_learned_key key;
    __builtin_memcpy(&key, &batch->entries[i].key, sizeof(key));
    volatile struct sluice_learned* there = bpf_map_lookup_elem(&learned, &key);
    int opens = there && (there->active_until > now || there->grace_until > now);
    if (there && opens &&
        (there->active_until > now || there->port_set == batch->entries[i].port_set)) {
      there->port_set = batch->entries[i].port_set;
      there->owner = batch->entries[i].owner;
      there->grace_until = batch->entries[i].grace_until;
      there->active_until = batch->entries[i].active_until;
      batch->entries[i].outcome = SLUICE_LEARN_KEPT;
      continue;
    }
    struct sluice_learned fresh = {.check = batch->entries[i].check,
                                   .port_set = batch->entries[i].port_set,
                                   .owner = batch->entries[i].owner,
                                   .active_until = batch->entries[i].active_until,
                                   .grace_until = batch->entries[i].grace_until};
    if (there && opens) fresh.last_seen = there->last_seen;
    long refused = bpf_map_update_elem(&learned, &key, &fresh, BPF_ANY);
    if (refused) {
      batch->error = (__s32)refused;
      return 0;
    }
    batch->entries[i].outcome = opens ? SLUICE_LEARN_KEPT : SLUICE_LEARN_NEW;
  }
  return 0;
}
