/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows that came in from outside, whose replies pass. There is no allow-cache here: the map is
 * consulted only after the policy said no, so a stale entry can never overrule a deny rule.
 */
#pragma once

#include "kernel.h"

/* `key` as sluice_opens_flow() filled it. */
static __always_inline void sluice_note_inbound_flow(struct sluice_slot* slot,
                                                     struct sluice_flow_key* key, __u32 ifindex) {
  struct sluice_flow fresh = {
      .last_seen = sluice_now(), .origin = SLUICE_FLOW_INBOUND, .ifindex = ifindex};
  __u32 bit = sluice_inbound_bit(key->protocol, key->workload_port_be);
  __u64* bits = &slot->inbound[bit / 64 & (SLUICE_INBOUND_BITS / 64 - 1)];
  __u64 mask = 1ull << (bit & 63);
  if (!(*bits & mask)) __sync_fetch_and_or(bits, mask);
  bpf_map_update_elem(&flows, key, &fresh, BPF_ANY);
  if (!ifindex) return;
  sluice_put_way(key, 0);
  bpf_map_update_elem(&flows, key, &fresh, BPF_ANY);
}

/*
 * Was this flow the last that this CPU noted, in this very tick? Then it need not be looked up
 * again, which takes as long as all the rest of a verdict. Within a tick nothing that depends on
 * time changes, and the whole key is compared: a flow that only looked noted would let its answers
 * pass for connections from outside.
 *
 * A program can be interrupted or preempted by another on its CPU, here and while it writes; the
 * serial number tells.
 */
static __always_inline int sluice_was_just_noted(const struct sluice_flow_key* key) {
  __u32 zero = 0;
  volatile struct sluice_last_noted* last = bpf_map_lookup_elem(&last_noted, &zero);
  if (!last) return 0;
  __u64 serial = last->serial;
  if (serial & 1 || last->tick != bpf_jiffies64()) return 0;
  const __u64* ours = (const __u64*)key;
  const volatile __u64* theirs = (const volatile __u64*)&last->key;
  if (ours[0] != theirs[0] || ours[1] != theirs[1] || ours[2] != theirs[2] ||
      ours[3] != theirs[3] || ours[4] != theirs[4] ||
      ((const __u32*)key)[10] != ((const volatile __u32*)&last->key)[10])
    return 0;
  return last->serial == serial;
}

static __always_inline void sluice_remember_noted(const struct sluice_flow_key* key) {
  __u32 zero = 0;
  struct sluice_last_noted* last = bpf_map_lookup_elem(&last_noted, &zero);
  if (!last) return;
  __u64 serial = *(volatile __u64*)&last->serial;
  if (serial & 1 || __sync_val_compare_and_swap(&last->serial, serial, serial + 1) != serial)
    return;
  const __u64* ours = (const __u64*)key;
  volatile __u64* theirs = (volatile __u64*)&last->key;
  theirs[0] = ours[0], theirs[1] = ours[1], theirs[2] = ours[2], theirs[3] = ours[3];
  theirs[4] = ours[4];
  ((volatile __u32*)&last->key)[10] = ((const __u32*)key)[10];
  *(volatile __u64*)&last->tick = bpf_jiffies64();
  *(volatile __u64*)&last->serial = serial + 2;
}

/* The flow from outside with this key, or null; not looked up where none was noted. */
static __always_inline struct sluice_flow* sluice_inbound_flow_at(
    const struct sluice_slot* slot, const struct sluice_flow_key* key) {
  __u32 bit = sluice_inbound_bit(key->protocol, key->workload_port_be);
  if (!(slot->inbound[bit / 64 & (SLUICE_INBOUND_BITS / 64 - 1)] >> (bit & 63) & 1)) return 0;
  return sluice_flow_at(key);
}

/* Did this flow move lately? Then it is refreshed: 2 says that it was written, now and then. */
static __always_inline int sluice_refresh(__u64* last_seen, __u64 idle) {
  __u64 last = *last_seen;
  if (sluice_now_roughly() <= last + SLUICE_FRESH) return 1;
  __u64 now = sluice_now();
  if (now - last > idle) return 0;
  *last_seen = now;
  return 2;
}

/* The flow from outside with this key, with and without its way, which is fresh; else null. */
static __always_inline struct sluice_flow* sluice_fresh_inbound_flow(const struct sluice_slot* slot,
                                                                     struct sluice_flow_key* key,
                                                                     __u32 ifindex, __u64 idle) {
  sluice_put_way(key, ifindex);
  struct sluice_flow* flow = sluice_inbound_flow_at(slot, key);
  int fresh = flow ? sluice_refresh(&flow->last_seen, idle) : 0;
  if (fresh == 2 && ifindex) {
    sluice_put_way(key, 0);
    struct sluice_flow* any = sluice_flow_at(key);
    if (any) any->last_seen = flow->last_seen;
    sluice_put_way(key, ifindex);
  }
  return fresh ? flow : 0;
}

/*
 * A UDP flow that the workload opened is noted once, so that an answer to it, arriving after the
 * policy was tightened, is not taken for a connection from outside. What came in from outside stays
 * so while it moves. Of a flow that keeps to one way at most one of the two notes is ever fresh:
 * each is written only where the other is not.
 */
static __always_inline void sluice_note_outbound(const struct sluice_slot* slot, __u64 word,
                                                 struct sluice_facts* facts) {
  struct sluice_flow_key key __attribute__((aligned(8)));
  if (facts->protocol == SLUICE_IPPROTO_TCP || !(facts->flags & SLUICE_FACT_PORTS) ||
      !(sluice_word_flags(word) & SLUICE_FLAG_REPLIES))
    return;
  if (!sluice_flow_key_of(slot, facts, 1, &key)) return;
  sluice_put_way(&key, facts->ifindex);
  if (sluice_was_just_noted(&key)) return;
  if (!sluice_fresh_inbound_flow(slot, &key, facts->ifindex, SLUICE_FLOW_UDP_IDLE)) {
    /* Whatever way it leaves by, and its answer comes by, it is the workload's own. */
    sluice_put_way(&key, 0);
    __u64* own = bpf_map_lookup_elem(&own_flows, &key);
    if (!own) {
      __u64 now = sluice_now();
      bpf_map_update_elem(&own_flows, &key, &now, BPF_NOEXIST);
    } else if (sluice_now_roughly() > *own + SLUICE_FRESH) {
      *own = sluice_now();
    }
    sluice_put_way(&key, facts->ifindex);
  }
  sluice_remember_noted(&key);
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
  sluice_put_way(key, facts->ifindex);
  if (facts->protocol == SLUICE_IPPROTO_TCP) return 1;
  __u64 idle = sluice_flow_idle(facts->protocol);
  struct sluice_flow* flow = sluice_fresh_inbound_flow(slot, key, facts->ifindex, idle);
  /* Of origin outbound are only those of an earlier release, which noted both in one map. */
  if (flow) return flow->origin == SLUICE_FLOW_INBOUND && flow->ifindex != facts->ifindex;
  sluice_put_way(key, 0);
  __u64* own = bpf_map_lookup_elem(&own_flows, key);
  if (own && sluice_refresh(own, idle)) return 0;
  if (facts->ifindex) {
    flow = sluice_inbound_flow_at(slot, key);
    if (flow && flow->origin == SLUICE_FLOW_OUTBOUND && sluice_refresh(&flow->last_seen, idle))
      return 0;
    sluice_put_way(key, facts->ifindex);
  }
  return 1;
}
