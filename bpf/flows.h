/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows that came in from outside, whose replies pass. There is no allow-cache here: the map is
 * consulted only after the policy said no, so a stale entry can never overrule a deny rule.
 */
#pragma once

#include "kernel.h"

static __always_inline void sluice_note_flow(const struct sluice_flow_key* key, __u32 origin) {
  struct sluice_flow fresh = {.last_seen = sluice_now(), .origin = origin};
  bpf_map_update_elem(&flows, key, &fresh, BPF_ANY);
}

/* A UDP or echo flow that the workload opened is noted once, so that an answer to it, arriving
   after the policy was tightened, is not taken for a connection from outside. */
static __always_inline void sluice_note_outbound(const struct sluice_slot* slot, __u64 word,
                                                 struct sluice_facts* facts) {
  struct sluice_flow_key key;
  if (facts->protocol == SLUICE_IPPROTO_TCP || !(facts->flags & SLUICE_FACT_PORTS) ||
      !(sluice_word_flags(word) & SLUICE_FLAG_REPLIES))
    return;
  if (!sluice_flow_key_of(slot, facts, 1, &key)) return;
  struct sluice_flow* flow = sluice_flow_at(&key);
  if (flow) {
    __u64 last = flow->last_seen;
    if (sluice_now_roughly() <= last + SLUICE_FRESH) return;
    __u64 now = sluice_now();
    if (now - last > SLUICE_FLOW_UDP_IDLE && flow->origin == SLUICE_FLOW_INBOUND)
      flow->origin = SLUICE_FLOW_OUTBOUND;
    flow->last_seen = now;
    return;
  }
  struct sluice_flow fresh = {.last_seen = sluice_now(), .origin = SLUICE_FLOW_OUTBOUND};
  bpf_map_update_elem(&flows, &key, &fresh, BPF_NOEXIST);
}

/*
 * Does this packet to the workload open a flow that is to be noted? Fills `key`. A flow already
 * known is refreshed: what came in stays inbound, what the workload opened stays its own.
 */
static __always_inline int sluice_opens_flow(const struct sluice_slot* slot,
                                             const struct sluice_facts* facts,
                                             struct sluice_flow_key* key) {
  if (facts->protocol == SLUICE_IPPROTO_TCP &&
      (facts->tcp_flags & (SLUICE_TCP_SYN | SLUICE_TCP_ACK)) != SLUICE_TCP_SYN)
    return 0;
  if (!sluice_flow_key_of(slot, facts, 0, key)) return 0;
  if (facts->protocol == SLUICE_IPPROTO_TCP) return 1;
  struct sluice_flow* flow = sluice_flow_at(key);
  __u64 now = sluice_now();
  if (!flow || now - flow->last_seen > sluice_flow_idle(facts->protocol)) return 1;
  if (now - flow->last_seen > 250000000ull) flow->last_seen = now;
  return 0;
}
