/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Counting and reporting: one cache line per attachment and CPU, one counter per reason, events
 * behind a token bucket. Every denial is counted; one that makes no event (bucket empty, ring full)
 * is counted as lost, exactly.
 */
#pragma once

#include "kernel.h"

static __always_inline void sluice_count_reason(__u32 reason) {
  __u64* counter = bpf_map_lookup_elem(&reasons, &reason);
  if (counter) (*counter)++;
}

/* One token, or 0. Counters are this CPU's own; a lost update when a hook interrupts another costs
 * a count, not a verdict. */
static __always_inline int sluice_take_token(struct sluice_counters* line, __u64 now) {
  __u32 zero = 0;
  const struct sluice_settings* host = bpf_map_lookup_elem(&settings, &zero);
  if (!host) return 0;
  __u32 second = (__u32)(now >> 30), elapsed = second - line->bucket_second;
  if (elapsed) {
    __u64 tokens = line->bucket_tokens + (__u64)elapsed * host->events_per_second;
    line->bucket_tokens = tokens > host->events_burst ? host->events_burst : (__u32)tokens;
    line->bucket_second = second;
  }
  if (line->bucket_tokens == 0) return 0;
  line->bucket_tokens--;
  return 1;
}

#define SLUICE_TELLS_PER_SECOND 1000 /* per attachment and CPU: a reset costs more than a drop */

/* One answer to a denied packet, or 0. */
static __always_inline int sluice_take_tell_token(__u32 index) {
  struct sluice_counters* line = bpf_map_lookup_elem(&counters, &index);
  if (!line) return 0;
  __u32 second = (__u32)(sluice_now_roughly() >> 30);
  if (line->tell_second != second) {
    line->tell_second = second;
    line->tells = 0;
  }
  if (line->tells >= SLUICE_TELLS_PER_SECOND) return 0;
  line->tells++;
  return 1;
}

/* Everything of a denial that is not in the facts; a BPF call takes five arguments at most. */
struct sluice_denial_context {
  __u32 slot;
  __u32 reason;
  __u32 audited;
  __u32 length;
  __u32 ifindex;
};

/* `slot` and `facts` are null when a guard denies. */
static __noinline int sluice_report_denial(struct sluice_counters* line,
                                           const struct sluice_slot* slot,
                                           const struct sluice_facts* facts,
                                           const struct sluice_denial_context* context) {
  struct sluice_event* event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
  if (!event) {
    if (line) line->events_lost++;
    return 0;
  }
  __builtin_memset(event, 0, sizeof(*event));
  event->type = SLUICE_EVENT_DENIAL;
  event->slot = context->slot;
  event->time = bpf_ktime_get_boot_ns();
  if (slot) {
    event->incarnation = slot->incarnation;
    event->generation = sluice_word_generation(slot->word);
    event->cgroup_id = slot->cgroup_id;
  }
  event->reason = (__u8)context->reason;
  event->audited = (__u8)context->audited;
  event->length = context->length;
  event->ifindex = context->ifindex;
  if (facts) {
    event->ethertype = facts->ethertype;
    event->family = facts->family;
    event->protocol = facts->protocol;
    event->icmp_type = facts->icmp_type;
    event->icmp_code = facts->icmp_code;
    event->source_port_be = __builtin_bswap16(facts->source_port);
    event->destination_port_be = __builtin_bswap16(facts->destination_port);
    sluice_copy16(event->source, facts->source);
    sluice_copy16(event->destination, facts->destination);
  }
  bpf_ringbuf_submit(event, 0);
  return 0;
}

/* Counts the verdict and reports a denial. Returns 1 when the packet passes (allowed, or audited).
 */
static __always_inline int sluice_conclude(const struct sluice_slot* slot, __u32 index, __u64 word,
                                           const struct sluice_facts* facts, __u32 reason,
                                           __u32 length, __u32 ifindex) {
  struct sluice_counters* line = bpf_map_lookup_elem(&counters, &index);
  sluice_count_reason(reason);
  if (!line) return 0;
  if (sluice_allows(reason)) {
    line->allowed_packets++;
    line->allowed_bytes += length;
    return 1;
  }
  int audited = sluice_word_flags(word) & SLUICE_FLAG_AUDIT &&
                sluice_word_mode(word) != SLUICE_MODE_BLOCK_ALL;
  if (audited) {
    line->audited_packets++;
    line->allowed_packets++;
    line->allowed_bytes += length;
  } else {
    line->denied_packets++;
    line->denied_bytes += length;
  }
  if (!sluice_take_token(line, sluice_now_roughly())) {
    line->events_lost++;
    return audited;
  }
  struct sluice_denial_context context = {index, reason, audited ? 1 : 0, length, ifindex};
  sluice_report_denial(line, slot, facts, &context);
  return audited;
}

/* A denial by no attachment: slot 0 counts it. */
static __always_inline void sluice_report_guard(__u32 reason, __u32 length, __u32 ifindex) {
  __u32 zero = 0;
  struct sluice_counters* line = bpf_map_lookup_elem(&counters, &zero);
  sluice_count_reason(reason);
  if (!line) return;
  line->denied_packets++;
  line->denied_bytes += length;
  if (!sluice_take_token(line, sluice_now_roughly())) {
    line->events_lost++;
    return;
  }
  struct sluice_denial_context context = {0, reason, 0, length, ifindex};
  sluice_report_denial(line, 0, 0, &context);
}
