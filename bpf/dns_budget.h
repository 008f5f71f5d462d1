/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What is a query for the resolver, may its sender send one more, and whose connection is it. A
 * flood is dropped here, at its own attachment and before anything is looked up, so that it cannot
 * fill the socket that all share.
 */
#pragma once

#include "kernel.h"

/* To port 53, where that is not judged by policy: taken by the resolver, or dropped. */
static __always_inline int sluice_asks_for_names(__u64 word, const struct sluice_facts* facts) {
  __u32 mode = sluice_word_mode(word);
  return facts->destination_port == SLUICE_DNS_PORT &&
         sluice_word_flags(word) & SLUICE_FLAG_REDIRECT_DNS &&
         (mode == SLUICE_MODE_ALLOWLIST || mode == SLUICE_MODE_DENYLIST) &&
         facts->flags & SLUICE_FACT_PORTS &&
         (facts->protocol == SLUICE_IPPROTO_UDP || facts->protocol == SLUICE_IPPROTO_TCP);
}

/* A whole one, which a resolver can take. */
static __always_inline int sluice_is_query(__u64 word, const struct sluice_facts* facts) {
  return sluice_asks_for_names(word, facts) && !(facts->flags & SLUICE_FACT_FRAGMENT);
}

/* The first fragment of one. It is dropped, and nobody can put the others together without it. */
static __always_inline int sluice_is_part_of_query(__u64 word, const struct sluice_facts* facts) {
  return sluice_asks_for_names(word, facts) && facts->flags & SLUICE_FACT_FRAGMENT;
}

/* Towards a workload whose queries are redirected: an answer to one, and no connection from
 * outside. */
static __always_inline int sluice_is_answer(__u64 word, const struct sluice_facts* facts) {
  __u32 mode = sluice_word_mode(word);
  return facts->source_port == SLUICE_DNS_PORT && facts->flags & SLUICE_FACT_PORTS &&
         sluice_word_flags(word) & SLUICE_FLAG_REDIRECT_DNS &&
         (mode == SLUICE_MODE_ALLOWLIST || mode == SLUICE_MODE_DENYLIST) &&
         (facts->protocol == SLUICE_IPPROTO_UDP || facts->protocol == SLUICE_IPPROTO_TCP);
}

#define SLUICE_SECOND 1000000000ull

static __always_inline int sluice_take_dns_token(__u32 index) {
  __u32 zero = 0;
  const struct sluice_settings* host = bpf_map_lookup_elem(&settings, &zero);
  struct sluice_dns_budget* budget = bpf_map_lookup_elem(&dns_budgets, &index);
  if (!host || !budget || !host->dns_packets_per_second) return 0;
  /* The clock itself: by the one that stands still for a tick, all of a tick's tokens would be
   * there at once, and a flood would come as a burst every 17 ms. */
  __u64 now = sluice_now(), elapsed = now - budget->refilled;
  if (elapsed > 64 * SLUICE_SECOND) {
    budget->tokens = host->dns_burst;
    budget->refilled = now;
  } else if (elapsed) {
    __u64 tokens = elapsed * host->dns_packets_per_second / SLUICE_SECOND;
    /* What is not a whole token yet stays in the bucket's clock. */
    budget->refilled += tokens * SLUICE_SECOND / host->dns_packets_per_second;
    tokens += budget->tokens;
    budget->tokens = tokens > host->dns_burst ? host->dns_burst : (__u32)tokens;
  }
  if (budget->tokens == 0) return 0;
  budget->tokens--;
  return 1;
}

/* ---- who opened a TCP connection to a resolver */

static __always_inline void sluice_stream_key_of(const struct sluice_facts* facts,
                                                 struct sluice_stream_key* key) {
  __builtin_memset(key, 0, sizeof(*key));
  sluice_copy16(key->peer, facts->source);
  sluice_copy16(key->asked, facts->destination);
  key->peer_port_be = bpf_htons(facts->source_port);
}

static __always_inline void sluice_note_stream(const struct sluice_stream_key* key,
                                               __u32 asker_mark, const __u8* asked) {
  struct sluice_stream stream = {.asker_mark = asker_mark};
  __builtin_memcpy(stream.asked, asked, 16);
  bpf_map_update_elem(&dns_streams, key, &stream, BPF_ANY);
}
