/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The decision core: one attachment's policy over one packet's facts. Used by every hook, and by
 * user space in tests.
 *
 * The includer has defined the map accessors that policy_walk.h needs, and these:
 *   const struct sluice_policy *sluice_policy_at(__u32 index)
 *   struct sluice_learned *sluice_learned_at(__u32 scope, const __u8 *address)
 *   const struct sluice_port_set *sluice_port_set_at(__u32 index)
 *   struct sluice_flow *sluice_flow_at(const struct sluice_flow_key *)
 *   __u64 sluice_now(void), sluice_learned_idle(void)
 *
 * Order (DESIGN section 4): mode disabled or block-all; housekeeping; explicit rules; learned
 * addresses; replies; mode. Explicit rules are asked before learned addresses although that costs a
 * hash lookup more on learned traffic: so a learned address can never overrule a deny, whatever
 * changes in between.
 */
#pragma once

#include "packet.h"
#include "policy_walk.h"

/* User space has a cheap clock; the kernel side has its own, see kernel.h. */
#ifndef __bpf__
static inline __u64 sluice_now_roughly(void) {
  return sluice_now();
}
#endif
/* Closer to its end than this, a moment is compared with the exact clock: many times what the rough
 * one can be behind. */
#define SLUICE_CLOCK_SLACK 1000000000ull
#define SLUICE_FRESH 250000000ull /* a last_seen is written again after this long */

/* How long a flow from outside lets replies pass after its last packet (nanoseconds). */
#define SLUICE_FLOW_TCP_IDLE (7200ull * 1000000000)
#define SLUICE_FLOW_UDP_IDLE (180ull * 1000000000)
#define SLUICE_FLOW_ICMP_IDLE (30ull * 1000000000)
#define SLUICE_FLOW_ND_IDLE (3600ull * 1000000000)

static __always_inline int sluice_is_link_local(const __u8* address) {
  return address[0] == 0xfe && (address[1] & 0xc0) == 0x80;
}
static __always_inline int sluice_is_link_multicast(const __u8* address) {
  return address[0] == 0xff && (address[1] & 0x0f) == 2;
}
static __always_inline int sluice_is_nd(const struct sluice_facts* facts) {
  return facts->protocol == SLUICE_IPPROTO_ICMPV6 && facts->icmp_type >= 133 &&
         facts->icmp_type <= 137;
}
static __always_inline int sluice_is_mld(const struct sluice_facts* facts) {
  return facts->protocol == SLUICE_IPPROTO_ICMPV6 &&
         ((facts->icmp_type >= 130 && facts->icmp_type <= 132) || facts->icmp_type == 143);
}

static __always_inline __u64 sluice_flow_idle(__u8 protocol) {
  if (protocol == SLUICE_IPPROTO_TCP) return SLUICE_FLOW_TCP_IDLE;
  if (protocol == SLUICE_IPPROTO_ICMP) return SLUICE_FLOW_ICMP_IDLE;
  if (protocol == SLUICE_IPPROTO_ICMPV6) return SLUICE_FLOW_ND_IDLE;
  return SLUICE_FLOW_UDP_IDLE;
}

/*
 * The key of the flow a packet belongs to, seen from the workload. `outward`: the workload sends.
 * Returns 0 for packets that belong to none (a later fragment, a protocol without ports or echo
 * identifier, ICMP errors).
 */
static __always_inline int sluice_flow_key_of(const struct sluice_slot* slot,
                                              const struct sluice_facts* facts, int outward,
                                              struct sluice_flow_key* key) {
  __u16 source = facts->source_port, destination = facts->destination_port;
  __builtin_memset(key, 0, sizeof(*key));
  if (facts->flags & SLUICE_FACT_LATER_FRAGMENT) return 0;
  if (!(facts->flags & SLUICE_FACT_PORTS)) {
    /* Echo: a request from outside, a reply from the workload; the other way round it is the
     * workload's own ping. */
    if (facts->protocol == SLUICE_IPPROTO_ICMP && facts->icmp_type == (outward ? 0 : 8)) {
      source = destination = facts->icmp_id;
    } else if (facts->protocol == SLUICE_IPPROTO_ICMPV6 &&
               facts->icmp_type == (outward ? 129 : 128)) {
      source = destination = facts->icmp_id;
    } else {
      return 0;
    }
  }
  key->scope = slot->scope;
  key->protocol = facts->protocol;
  sluice_copy16(key->workload, outward ? facts->source : facts->destination);
  sluice_copy16(key->remote, outward ? facts->destination : facts->source);
  key->workload_port_be = __builtin_bswap16(outward ? source : destination);
  key->remote_port_be = __builtin_bswap16(outward ? destination : source);
  return 1;
}

static __always_inline void sluice_put_way(struct sluice_flow_key* key, __u32 ifindex) {
  key->way[0] = (__u8)ifindex;
  key->way[1] = (__u8)(ifindex >> 8);
  key->way[2] = (__u8)(ifindex >> 16);
}

/* A neighbour is remembered apart from flows: no address of the workload, and a mark of its own, so
 * that an echo reply from address :: with id 0 is not taken for one. */
static __always_inline void sluice_neighbour_key(const struct sluice_slot* slot,
                                                 const __u8* neighbour,
                                                 struct sluice_flow_key* key) {
  __builtin_memset(key, 0, sizeof(*key));
  key->scope = slot->scope;
  key->protocol = SLUICE_IPPROTO_ICMPV6;
  key->way[0] = 1;
  sluice_copy16(key->remote, neighbour);
}

/* What a link needs and no more. SLUICE_OK: not housekeeping, ask the policy. */
static __always_inline __u32 sluice_judge_housekeeping(const struct sluice_slot* slot,
                                                       __u32 word_flags,
                                                       const struct sluice_facts* facts) {
  if (slot->type != SLUICE_TYPE_INTERFACE || facts->flags & SLUICE_FACT_FRAGMENT) return SLUICE_OK;
  if (facts->protocol == SLUICE_IPPROTO_ICMPV6 && facts->family == 6 &&
      word_flags & SLUICE_FLAG_ND) {
    /* RFC 4861: hop limit 255, so nothing beyond the link can have sent it or will accept it. */
    /* A workload solicits and answers; advertising a router or redirecting others is not its
     * business. */
    if ((facts->icmp_type == 133 || facts->icmp_type == 135 || facts->icmp_type == 136) &&
        facts->hop_limit == 255) {
      if (sluice_is_link_local(facts->destination) || sluice_is_link_multicast(facts->destination))
        return SLUICE_REASON_ALLOW_HOUSEKEEPING;
      /* A neighbour with a global address that has itself spoken ND on this link may be answered
       * and probed. */
      if (facts->icmp_type == 135 || facts->icmp_type == 136) {
        struct sluice_flow_key key;
        sluice_neighbour_key(slot, facts->destination, &key);
        struct sluice_flow* neighbour = sluice_flow_at(&key);
        if (neighbour && sluice_now() - neighbour->last_seen < SLUICE_FLOW_ND_IDLE)
          return SLUICE_REASON_ALLOW_HOUSEKEEPING;
      }
    }
    if (sluice_is_mld(facts) && facts->hop_limit == 1 &&
        (sluice_is_link_multicast(facts->destination) || sluice_is_link_local(facts->destination)))
      return SLUICE_REASON_ALLOW_HOUSEKEEPING;
  }
  if (facts->protocol == SLUICE_IPPROTO_UDP && facts->flags & SLUICE_FACT_PORTS &&
      word_flags & SLUICE_FLAG_DHCP) {
    if (facts->family == 4 && facts->source_port == 68 && facts->destination_port == 67) {
      __u32 to = *(const __u32*)(facts->destination + 12);
      if (to == 0xffffffff || (slot->dhcp4_server_be && to == slot->dhcp4_server_be))
        return SLUICE_REASON_ALLOW_HOUSEKEEPING;
    }
    if (facts->family == 6 && facts->source_port == 546 && facts->destination_port == 547) {
      const __u64 *server = (const __u64*)slot->dhcp6_server,
                  *to = (const __u64*)facts->destination;
      if (sluice_is_link_multicast(facts->destination) ||
          ((server[0] | server[1]) && server[0] == to[0] && server[1] == to[1]))
        return SLUICE_REASON_ALLOW_HOUSEKEEPING;
    }
  }
  return SLUICE_OK;
}

/*
 * In BPF what not every packet needs is a global function: verified once by itself, for any input,
 * instead of once for every path that leads to it. The walk for an IPv4 destination is not one:
 * where the processor needs guarded returns (x86 with retpolines and safe RET) a call costs 9 ns, a
 * fifth of a verdict. The walk for IPv6 is: inline it doubles what the verifier reads of tc_from.
 */
#ifdef __bpf__
#define SLUICE_VERIFIED_ALONE __attribute__((noinline))
#else
#define SLUICE_VERIFIED_ALONE static inline
#endif

SLUICE_VERIFIED_ALONE __u32 sluice_chain_verdict(const struct sluice_policy* policy,
                                                 const struct sluice_facts* facts, __u32 leaf) {
  if (!policy || !facts) return SLUICE_LEAF_BROKEN;
  return sluice_judge_chain(policy, leaf, facts->protocol, facts->destination_port,
                            facts->flags & SLUICE_FACT_LATER_FRAGMENT ? SLUICE_PACKET_LATER_FRAGMENT
                            : facts->flags & SLUICE_FACT_PORTS        ? SLUICE_PACKET_PORTS
                                                                      : 0);
}

/* The leaf for the IPv4 address inside the destination, at byte 12 (NAT64) or 2 (6to4). */
SLUICE_VERIFIED_ALONE __u32 sluice_leaf4(const struct sluice_policy* policy,
                                         const struct sluice_facts* facts, __u32 at) {
  if (!policy || !facts) return SLUICE_LEAF_BROKEN;
  __u32 address = at == 2 ? (__u32) * (const __u16*)(facts->destination + 2) |
                                (__u32) * (const __u16*)(facts->destination + 4) << 16
                          : *(const __u32*)(facts->destination + 12);
  return sluice_trie_lookup(policy, &policy->ip4, (const __u8*)&address, 32);
}

SLUICE_VERIFIED_ALONE __u32 sluice_leaf6(const struct sluice_policy* policy,
                                         const struct sluice_facts* facts) {
  if (!policy || !facts) return SLUICE_LEAF_BROKEN;
  return sluice_trie_lookup(policy, &policy->ip6, facts->destination, 128);
}

/*
 * The explicit rules over the destination (family 6) or the IPv4 address at byte `at` of it (family
 * 4). ALLOW_RULE, a DENY_ reason, or SLUICE_OK when no rule speaks.
 */
static __always_inline __u32 sluice_judge_rules(const struct sluice_policy* policy,
                                                const struct sluice_facts* facts, int family,
                                                __u32 at) {
  __u32 leaf;
  if (family == 4 && at == 12)
    leaf = sluice_trie_lookup(policy, &policy->ip4, facts->destination + 12, 32);
  else if (family == 4)
    leaf = sluice_leaf4(policy, facts, at);
  else
    leaf = sluice_leaf6(policy, facts);
  if (leaf >= SLUICE_LEAF_DECISION) leaf = sluice_chain_verdict(policy, facts, leaf);
  switch (leaf) {
    case SLUICE_LEAF_NONE:
      return SLUICE_OK;
    case SLUICE_LEAF_ALLOW:
      return SLUICE_REASON_ALLOW_RULE;
    case SLUICE_LEAF_DENY:
      return SLUICE_REASON_DENY_RULE;
    case SLUICE_LEAF_FLOOR:
      return SLUICE_REASON_DENY_FLOOR;
    default:
      return SLUICE_REASON_DENY_INTERNAL;
  }
}

static __always_inline int sluice_ports_match(__u32 port_set, const struct sluice_facts* facts) {
  if (port_set == 0) return 1;
  const struct sluice_port_set* set = sluice_port_set_at(port_set);
  if (!set) return 0;
  for (int i = 0; i < SLUICE_PORT_SET_SPANS; i++) {
    if (i >= (int)set->spans) break;
    if (set->span[i].protocol != facts->protocol) continue;
    if (set->span[i].any_port) return 1;
    if (facts->flags & SLUICE_FACT_PORTS && facts->destination_port >= set->span[i].ports.first &&
        facts->destination_port <= set->span[i].ports.last)
      return 1;
  }
  return 0;
}

static __always_inline __u32 sluice_judge_learned(const struct sluice_slot* slot,
                                                  const struct sluice_facts* facts) {
  __u64 first = SLUICE_WORD64(facts->destination), second = SLUICE_WORD64(facts->destination + 8);
  __u32 bit = sluice_learned_bit(first, second);
  if (!(slot->learned[bit / 64 & (SLUICE_LEARNED_BITS / 64 - 1)] >> (bit & 63) & 1))
    return SLUICE_OK;
  volatile struct sluice_learned* entry = sluice_learned_at(slot->scope, facts->destination);
  if (!entry || !sluice_ports_match(entry->port_set, facts)) return SLUICE_OK;
  __u64 now = sluice_now_roughly();
  if (now + SLUICE_CLOCK_SLACK >= entry->active_until) {
    now = sluice_now();
    /* Grace: a new connection needs a new answer; a live one is known by its recent packets. */
    if (now >= entry->active_until) {
      if (now >= entry->grace_until || now - entry->last_seen > sluice_learned_idle())
        return SLUICE_OK;
      if (facts->protocol == SLUICE_IPPROTO_TCP &&
          (facts->tcp_flags & (SLUICE_TCP_SYN | SLUICE_TCP_ACK)) == SLUICE_TCP_SYN)
        return SLUICE_OK;
    }
  }
  /* Last of what is read: taken out and used again meanwhile, it has said nothing of this address.
   */
  if (entry->check != sluice_learned_check(slot->scope, first, second)) return SLUICE_OK;
  /* A store per packet would bounce the line between CPUs; a quarter second is fresh enough. */
  if (now > entry->last_seen + SLUICE_FRESH) entry->last_seen = sluice_now();
  return SLUICE_REASON_ALLOW_LEARNED;
}

/*
 * Of a cgroup, whose packets are met where they are received: a reply leaves by the device that the
 * flow came in by, so nothing is opened by a packet that bears a foreign source and came by
 * loopback or from a workload on the host. Flows of an early release have no device; what came by
 * TCP goes on, since its replies open nothing.
 */
static __always_inline int sluice_leaves_as_it_came(const struct sluice_flow* flow,
                                                    const struct sluice_facts* facts) {
  return !facts->ifindex || flow->ifindex == facts->ifindex ||
         (!flow->ifindex && facts->protocol == SLUICE_IPPROTO_TCP);
}

static __always_inline __u32 sluice_judge_reply(const struct sluice_slot* slot,
                                                const struct sluice_facts* facts) {
  struct sluice_flow_key key;
  /* A reply never opens a connection: a forged packet from outside must not let the workload dial
   * out. */
  if (facts->protocol == SLUICE_IPPROTO_TCP &&
      (facts->tcp_flags & (SLUICE_TCP_SYN | SLUICE_TCP_ACK)) == SLUICE_TCP_SYN)
    return SLUICE_OK;
  if (!sluice_flow_key_of(slot, facts, 1, &key)) return SLUICE_OK;
  /* A workload that is refused mostly dials out, from ports that nothing came in to. */
  __u32 bit = sluice_inbound_bit(key.protocol, key.workload_port_be);
  if (!(slot->inbound[bit / 64 & (SLUICE_INBOUND_BITS / 64 - 1)] >> (bit & 63) & 1))
    return SLUICE_OK;
  sluice_put_way(&key, facts->ifindex);
  struct sluice_flow* flow = sluice_flow_at(&key);
  if (!flow && facts->ifindex) { /* an earlier release's, whose keys have no way */
    sluice_put_way(&key, 0);
    flow = sluice_flow_at(&key);
  }
  if (!flow || flow->origin != SLUICE_FLOW_INBOUND || !sluice_leaves_as_it_came(flow, facts))
    return SLUICE_OK;
  __u64 last = flow->last_seen;
  if (sluice_now_roughly() > last + SLUICE_FRESH) {
    __u64 now = sluice_now();
    if (now - last > sluice_flow_idle(facts->protocol)) return SLUICE_OK;
    flow->last_seen = now;
    if (facts->ifindex) {
      sluice_put_way(&key, 0);
      flow = sluice_flow_at(&key);
      if (flow) flow->last_seen = now;
    }
  }
  return SLUICE_REASON_ALLOW_REPLY;
}

/* The IPv4 address inside a NAT64 (RFC 6052, RFC 8215) or 6to4 (RFC 3056) address: offset of its
 * first byte, or 0. */
static __always_inline __u32 sluice_embedded_ip4(const __u8* address) {
  if (address[0] == 0x20 && address[1] == 0x02) return 2;
  if (address[0] == 0x00 && address[1] == 0x64 && address[2] == 0xff && address[3] == 0x9b) {
    if (!(address[4] | address[5] | address[6] | address[7] | address[8] | address[9] |
          address[10] | address[11]))
      return 12;
    if (address[4] == 0 && address[5] == 1) return 12; /* 64:ff9b:1::/48, /96 as deployed */
  }
  return 0;
}

/* The policy's own answer for an address, before replies: rules, learned, mode. */
static __always_inline __u32 sluice_judge_address(const struct sluice_slot* slot, __u64 word,
                                                  const struct sluice_policy* policy,
                                                  const struct sluice_facts* facts) {
  __u32 reason = sluice_judge_rules(policy, facts, facts->family, 12);
  if (reason != SLUICE_OK) return reason;
  reason = sluice_judge_learned(slot, facts);
  if (reason != SLUICE_OK) return reason;
  return sluice_word_mode(word) == SLUICE_MODE_DENYLIST ? SLUICE_REASON_ALLOW_MODE
                                                        : SLUICE_REASON_DENY_MODE;
}

static __always_inline int sluice_allows(__u32 reason) {
  return reason < SLUICE_REASON_DENY_NO_ATTACHMENT;
}

/* The verdict over an IP packet whose facts were read. Never SLUICE_OK. */
static __always_inline __u32 sluice_judge(const struct sluice_slot* slot, __u64 word,
                                          const struct sluice_facts* facts) {
  __u32 flags = sluice_word_flags(word);
  if (sluice_word_mode(word) == SLUICE_MODE_DISABLED) return SLUICE_REASON_ALLOW_DISABLED;
  if (sluice_word_mode(word) == SLUICE_MODE_BLOCK_ALL) return SLUICE_REASON_DENY_BLOCK_ALL;
  __u32 reason = sluice_judge_housekeeping(slot, flags, facts);
  if (reason != SLUICE_OK) return reason;
  const struct sluice_policy* policy = sluice_policy_at(sluice_word_policy(word));
  if (!policy) return SLUICE_REASON_DENY_INTERNAL;
  reason = sluice_judge_address(slot, word, policy, facts);
  if (facts->family == 6 && (sluice_allows(reason) || reason == SLUICE_REASON_DENY_MODE)) {
    __u32 at = sluice_embedded_ip4(facts->destination);
    if (at) {
      __u32 inner = sluice_judge_rules(policy, facts, 4, at);
      /* No rule speaks of it: it is as good as the address around it only under a denylist. Where
       * the mode denies that one already, a reply may still pass, as it may not against a rule. */
      if (inner == SLUICE_OK)
        inner = sluice_word_mode(word) == SLUICE_MODE_DENYLIST || reason == SLUICE_REASON_DENY_MODE
                    ? SLUICE_REASON_ALLOW_MODE
                    : SLUICE_REASON_DENY_MODE;
      if (!sluice_allows(inner)) return SLUICE_REASON_DENY_EMBEDDED;
    }
  }
  if (reason == SLUICE_REASON_DENY_MODE) {
    if (flags & SLUICE_FLAG_REPLIES && sluice_judge_reply(slot, facts) == SLUICE_REASON_ALLOW_REPLY)
      return SLUICE_REASON_ALLOW_REPLY;
    if (facts->flags & SLUICE_FACT_LATER_FRAGMENT) return SLUICE_REASON_DENY_FRAGMENT;
    if (sluice_is_nd(facts)) return SLUICE_REASON_DENY_HOUSEKEEPING;
  }
  return reason;
}
