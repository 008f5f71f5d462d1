/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The BPF side of the decision core: map accessors for policy_walk.h and verdict.h, and the few
 * kernel types that are read by CO-RE. Included by every program.
 */
#pragma once

#include <linux/bpf.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

#define SLUICE_AF_INET 2 /* linux/socket.h, which is not for programs */
#define SLUICE_AF_INET6 10

#ifndef __noinline
#define __noinline __attribute__((noinline))
#endif

static __always_inline const struct sluice_policy* sluice_policy_at(__u32 index) {
  return bpf_map_lookup_elem(&policies, &index);
}
static __always_inline struct sluice_learned* sluice_learned_at(__u32 scope, const __u8* address) {
  struct sluice_learned_key key = {.scope = scope};
  __builtin_memcpy(key.address, address, 16);
  return bpf_map_lookup_elem(&learned, &key);
}
static __always_inline const struct sluice_port_set* sluice_port_set_at(__u32 index) {
  return bpf_map_lookup_elem(&port_sets, &index);
}
static __always_inline struct sluice_flow* sluice_flow_at(const struct sluice_flow_key* key) {
  return bpf_map_lookup_elem(&flows, key);
}
static __always_inline __u64 sluice_now(void) {
  return bpf_ktime_get_boot_ns();
}
/*
 * The clock as this CPU read it first in the current tick: 2 ns, where reading it takes 42. It is
 * behind by a tick and 17 ms, so it serves for "is it time yet" questions with room for that, never
 * for an expiry within SLUICE_CLOCK_SLACK.
 *
 * One word holds the time (upper bits, in 2^24 ns) and the tick it was read in, so that a program
 * interrupted or preempted between reading and storing leaves a pair that belongs together.
 */
#define SLUICE_TICK_BITS 30
static __always_inline __u64 sluice_now_roughly(void) {
  __u32 zero = 0;
  __u64 tick = bpf_jiffies64() & ((1ull << SLUICE_TICK_BITS) - 1);
  __u64* glance = bpf_map_lookup_elem(&clock_glance, &zero);
  if (!glance) return sluice_now();
  __u64 seen = *(volatile __u64*)glance;
  if (!(seen >> SLUICE_TICK_BITS) || (seen & ((1ull << SLUICE_TICK_BITS) - 1)) != tick) {
    seen = bpf_ktime_get_boot_ns() >> 24 << SLUICE_TICK_BITS | tick;
    *(volatile __u64*)glance = seen;
  }
  return seen >> SLUICE_TICK_BITS << 24;
}
static __always_inline __u64 sluice_learned_idle(void) {
  __u32 zero = 0;
  const struct sluice_settings* host = bpf_map_lookup_elem(&settings, &zero);
  return host ? host->learned_idle : 0;
}

#include "verdict.h"

/*
 * The verdict as a global function: verified once by itself, for any slot and facts. tc_from calls
 * it, though a call costs a packet some 9 ns: with the verdict inline, kernel 6.1's verifier
 * follows nearly the million instructions that it may. Of the cgroup's packets it is inline.
 */
__noinline int sluice_verdict(struct sluice_slot* slot, struct sluice_facts* facts, __u64 word) {
  if (!slot || !facts) return SLUICE_REASON_DENY_INTERNAL;
  return (int)sluice_judge(slot, word, facts);
}

/* What is read of kernel types; CO-RE relocates the offsets at load. */
struct ns_common___sluice {
  unsigned int inum;
} __attribute__((preserve_access_index));
struct net___sluice {
  __u64 net_cookie;
} __attribute__((preserve_access_index));
typedef struct {
  struct net___sluice* net;
} __attribute__((preserve_access_index)) possible_net_t___sluice;
struct net_device___sluice {
  possible_net_t___sluice nd_net;
} __attribute__((preserve_access_index));
struct sk_buff___sluice {
  struct net_device___sluice* dev;
} __attribute__((preserve_access_index));

/* Kernel 6.2. Without it (set by the daemon) only clsact is used, whose filters do not survive a
   move between namespaces, so an ifindex cannot be met in the wrong one. */
extern void* bpf_cast_to_kern_ctx(void* context) __ksym __weak;
const volatile __u8 sluice_has_kern_ctx = 1;

static __always_inline __u64 sluice_netns_cookie_of(struct __sk_buff* skb) {
  struct sk_buff___sluice* kernel_skb = bpf_cast_to_kern_ctx(skb);
  return kernel_skb->dev->nd_net.net->net_cookie;
}

/* The same before 6.2, for programs that must know: the context is the kernel's sk_buff, which may
 * be read as memory where it may not be named. 0: unknown. */
static __always_inline __u64 sluice_netns_cookie_at(struct __sk_buff* skb) {
  if (sluice_has_kern_ctx) return sluice_netns_cookie_of(skb);
  return BPF_CORE_READ((struct sk_buff___sluice*)skb, dev, nd_net.net, net_cookie);
}
