/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a workload's interface sends to port 53, whatever server it names, goes to a resolver's
 * socket or nowhere: a token first, then the socket by flow hash from a map that the daemon fills,
 * bpf_sk_assign(), and the asker's mark, which a rule of the host routes to itself.
 *
 * Four things keep such a packet from leaving, so that none of them alone has to hold: an IP stack
 * does not forward a packet that has a socket; its hop limit is 1, so that no fast path (a flow
 * table) forwards it either; the rule makes every address local; and the program's answer ends the
 * chain of programs at this device.
 */
#pragma once

#include "dns_budget.h"
#include "report.h"

#define SLUICE_TO_STACK 0 /* TCX_PASS, TC_ACT_OK */

struct list_head___sluice {
  struct list_head___sluice* next;
} __attribute__((preserve_access_index));
struct net_device___master;
struct netdev_adjacent___sluice {
  struct net_device___master* dev;
  _Bool master;
  struct list_head___sluice list;
} __attribute__((preserve_access_index));
enum netdev_priv_flags___sluice { IFF_BRIDGE_PORT___sluice = 1 << 9 };
struct net_device___master {
  unsigned long priv_flags;
  int ifindex;
  unsigned char* dev_addr;
  void* rx_handler;
  struct {
    struct list_head___sluice upper;
  } adj_list;
} __attribute__((preserve_access_index));
struct sk_buff___master {
  struct net_device___master* dev;
} __attribute__((preserve_access_index));

/* Where the host's stack meets a packet of this device. */
struct sluice_way_in {
  __u32 ifindex; /* the bridge whose port it is; 0: the device itself */
  __u8 mac[6];
};

#define SLUICE_MAX_UPPERS 8

/* 0, or -1: something that is no bridge takes the device's packets before IP does. */
static __always_inline int sluice_find_way_in(struct __sk_buff* skb, struct sluice_way_in* way) {
  struct sk_buff___master* kernel_skb = bpf_cast_to_kern_ctx(skb);
  struct net_device___master* device = kernel_skb->dev;
  if (!device->rx_handler) return 0;
  if (!(BPF_CORE_READ_BITFIELD_PROBED(device, priv_flags) &
        bpf_core_enum_value(enum netdev_priv_flags___sluice, IFF_BRIDGE_PORT___sluice)))
    return -1;
  struct list_head___sluice *first = &device->adj_list.upper, *at = BPF_CORE_READ(first, next);
  for (int i = 0; i < SLUICE_MAX_UPPERS && at != first; i++) {
    struct netdev_adjacent___sluice* upper =
        (void*)at - bpf_core_field_offset(struct netdev_adjacent___sluice, list);
    if (BPF_CORE_READ(upper, master)) {
      struct net_device___master* master = BPF_CORE_READ(upper, dev);
      way->ifindex = (__u32)BPF_CORE_READ(master, ifindex);
      return bpf_probe_read_kernel(way->mac, 6, BPF_CORE_READ(master, dev_addr)) ? -1 : 0;
    }
    at = BPF_CORE_READ(at, next);
  }
  return -1;
}

/* Makes sure that no router forwards it: the last hop is here. */
static __always_inline int sluice_end_hops(struct __sk_buff* skb, __u32 net, __u8 family) {
  if (family == 4) {
    __u16 before, after;
    if (bpf_skb_load_bytes(skb, net + 8, &before, 2)) return -1;
    after = before;
    *(__u8*)&after = 1;
    if (before == after) return 0;
    return bpf_l3_csum_replace(skb, net + 10, before, after, 2) ||
                   bpf_skb_store_bytes(skb, net + 8, &after, 2, 0)
               ? -1
               : 0;
  }
  __u8 last = 1;
  return (int)bpf_skb_store_bytes(skb, net + 7, &last, 1, BPF_F_RECOMPUTE_CSUM);
}

static __always_inline struct bpf_sock* sluice_resolver_socket(__u32 resolver, __u32 kind,
                                                               __u32 spread) {
  const struct sluice_resolver* served = bpf_map_lookup_elem(&dns_resolvers, &resolver);
  if (!served || kind >= SLUICE_SOCKET_KINDS) return 0;
  __u32 workers = served->workers[kind];
  if (workers == 0 || workers > SLUICE_RESOLVER_WORKERS) return 0;
  __u32 at = sluice_socket_at(resolver, kind, spread % workers);
  return bpf_map_lookup_elem(&dns_sockets, &at);
}

static __always_inline struct bpf_sock* sluice_find_stream(struct __sk_buff* skb,
                                                           const struct sluice_facts* facts) {
  struct bpf_sock_tuple tuple = {};
  if (facts->family == 4) {
    __builtin_memcpy(&tuple.ipv4.saddr, facts->source + 12, 4);
    __builtin_memcpy(&tuple.ipv4.daddr, facts->destination + 12, 4);
    tuple.ipv4.sport = bpf_htons(facts->source_port);
    tuple.ipv4.dport = bpf_htons(facts->destination_port);
    return bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
  }
  __builtin_memcpy(tuple.ipv6.saddr, facts->source, 16);
  __builtin_memcpy(tuple.ipv6.daddr, facts->destination, 16);
  tuple.ipv6.sport = bpf_htons(facts->source_port);
  tuple.ipv6.dport = bpf_htons(facts->destination_port);
  return bpf_skc_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
}

/*
 * May this segment go to the connection that the tuple names? Only a resolver's own, since the
 * tuple may also be that of another server of the host, and only from the attachment that opened
 * it, since another may write the same addresses. `noted` is what the SYN left, or null.
 */
static __always_inline __u32 sluice_judge_segment(struct bpf_sock* sk, __u32 asker_mark,
                                                  const struct sluice_stream* noted, int is_reset) {
  int noted_same = noted && noted->asker_mark == asker_mark;
  if (sk->state == BPF_TCP_TIME_WAIT) /* has no storage; and takes no data */
    return noted_same ? SLUICE_REASON_ALLOW_DNS : SLUICE_REASON_DENY_DNS_FOREIGN;
  if (sk->state == BPF_TCP_NEW_SYN_RECV) {
    struct bpf_sock* listener = bpf_get_listener_sock(sk);
    /* A reset from whom the forged SYN named frees the place that it took; the kernel checks that
     * its number is right. */
    if (!listener || !(noted_same || is_reset)) return SLUICE_REASON_DENY_DNS_FOREIGN;
    return bpf_sk_storage_get(&dns_owners, listener, 0, 0) ? SLUICE_REASON_ALLOW_DNS
                                                           : SLUICE_REASON_DENY_DNS_FOREIGN;
  }
  struct bpf_sock* connection = bpf_sk_fullsock(sk);
  if (!connection) return SLUICE_REASON_DENY_DNS_FOREIGN;
  struct sluice_stream_owner* owner = bpf_sk_storage_get(&dns_owners, connection, 0, 0);
  if (!owner) return SLUICE_REASON_DENY_DNS_FOREIGN;
  /* From its first segment on the connection itself says whose it is: notes can be pushed out. */
  if (owner->asker_mark == 0 && noted_same) owner->asker_mark = asker_mark;
  return owner->asker_mark == asker_mark ? SLUICE_REASON_ALLOW_DNS : SLUICE_REASON_DENY_DNS_FOREIGN;
}

/*
 * Would the answer to a SYN come back to this device? If not, its source is another's, and the
 * connection could never be: nothing is lost with it, and a neighbour's ports cannot be occupied.
 * On a host that does not forward nothing can be said.
 */
static __always_inline int sluice_leads_back(struct __sk_buff* skb,
                                             const struct sluice_facts* facts,
                                             const struct sluice_way_in* way) {
  struct bpf_fib_lookup fib = {};
  fib.ifindex = skb->ifindex;
  if (facts->family == 4) {
    fib.family = SLUICE_AF_INET;
    __builtin_memcpy(&fib.ipv4_src, facts->destination + 12, 4);
    __builtin_memcpy(&fib.ipv4_dst, facts->source + 12, 4);
  } else {
    if (sluice_is_link_local(facts->source)) return 1;
    fib.family = SLUICE_AF_INET6;
    sluice_copy16((__u8*)fib.ipv6_src, facts->destination);
    sluice_copy16((__u8*)fib.ipv6_dst, facts->source);
  }
  long found = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
  if (found == BPF_FIB_LKUP_RET_FWD_DISABLED) return 1;
  return (found == BPF_FIB_LKUP_RET_SUCCESS || found == BPF_FIB_LKUP_RET_NO_NEIGH ||
          found == BPF_FIB_LKUP_RET_FRAG_NEEDED) &&
         fib.ifindex == (way->ifindex ? way->ifindex : skb->ifindex);
}

static __always_inline __u32 sluice_assign(struct __sk_buff* skb, struct bpf_sock* sk) {
  return bpf_sk_assign(skb, sk, 0) ? SLUICE_REASON_DENY_DNS_UNSERVED : SLUICE_REASON_ALLOW_DNS;
}

static __always_inline __u32 sluice_assign_stream(struct __sk_buff* skb, __u32 resolver,
                                                  __u32 asker_mark,
                                                  const struct sluice_facts* facts,
                                                  const struct sluice_way_in* way) {
  struct sluice_stream_key key;
  sluice_stream_key_of(facts, &key);
  const struct sluice_stream* noted = bpf_map_lookup_elem(&dns_streams, &key);
  int opens =
      (facts->tcp_flags & (SLUICE_TCP_SYN | SLUICE_TCP_ACK | SLUICE_TCP_RST)) == SLUICE_TCP_SYN;
  struct bpf_sock* sk = sluice_find_stream(skb, facts);
  if (sk) {
    __u32 state = sk->state;
    if (state != BPF_TCP_LISTEN && !(opens && state == BPF_TCP_TIME_WAIT)) {
      __u32 reason = sluice_judge_segment(sk, asker_mark, noted, facts->tcp_flags & SLUICE_TCP_RST);
      if (reason == SLUICE_REASON_ALLOW_DNS) reason = sluice_assign(skb, sk);
      bpf_sk_release(sk);
      return reason;
    }
    bpf_sk_release(sk); /* a listener found by the asked address is some other server's */
  }
  /* Without a connection: a SYN; or a segment that the listener's stack answers with a reset, or
   * takes for the answer to a SYN cookie. */
  if (opens && !sluice_leads_back(skb, facts, way)) return SLUICE_REASON_DENY_DNS_FOREIGN;
  if (opens)
    sluice_note_stream(&key, asker_mark, facts->destination);
  else if (noted && noted->asker_mark != asker_mark)
    return SLUICE_REASON_DENY_DNS_FOREIGN;
  sk =
      sluice_resolver_socket(resolver, facts->family == 4 ? SLUICE_SOCKET_TCP4 : SLUICE_SOCKET_TCP6,
                             bpf_get_hash_recalc(skb));
  if (!sk) return SLUICE_REASON_DENY_DNS_UNSERVED;
  __u32 reason = sluice_assign(skb, sk);
  bpf_sk_release(sk);
  return reason;
}

static __always_inline int sluice_is_multicast(const struct sluice_facts* facts) {
  return facts->family == 4 ? facts->destination[12] >= 224 : facts->destination[0] == 0xff;
}

#define SLUICE_DNS_REASON_SHIFT 8 /* of what sluice_redirect_query() returns */

/*
 * ALLOW_DNS or the reason to drop, and in the low bits the TC action that delivers it. A global
 * function: verified once by itself.
 */
__noinline int sluice_redirect_query(struct __sk_buff* skb, struct sluice_slot* slot,
                                     struct sluice_facts* facts, __u32 index, __u32 net) {
  const int unserved = SLUICE_REASON_DENY_DNS_UNSERVED << SLUICE_DNS_REASON_SHIFT;
  if (!slot || !facts || net > 14) return unserved;
  if (!sluice_take_dns_token(index))
    return SLUICE_REASON_DENY_DNS_BUDGET << SLUICE_DNS_REASON_SHIFT;
  struct sluice_way_in way = {};
  if (slot->workload_is_egress || !slot->asker_mark || sluice_is_multicast(facts)) return unserved;
  if (net) {
    if (sluice_has_kern_ctx) {
      if (sluice_find_way_in(skb, &way)) return unserved;
      if (way.ifindex && bpf_skb_store_bytes(skb, 0, way.mac, 6, 0)) return unserved;
    } else {
      /* Whether this is a bridge's port cannot be seen. No bridge forwards a pause frame, and IP
       * does not look at the address. */
      static const __u8 pause[6] = {0x01, 0x80, 0xc2, 0x00, 0x00, 0x01};
      if (skb->pkt_type != 0 || bpf_skb_store_bytes(skb, 0, pause, 6, 0)) return unserved;
    }
  }
  if (sluice_end_hops(skb, net, facts->family)) return unserved;
  __u32 resolver = slot->resolver, reason;
  if (facts->protocol == SLUICE_IPPROTO_TCP) {
    reason = sluice_assign_stream(skb, resolver, slot->asker_mark, facts, &way);
  } else {
    /* All of an attachment's questions to one socket: what it sends too much of waits there, and
     * not before its neighbours'. */
    struct bpf_sock* sk = sluice_resolver_socket(
        resolver, facts->family == 4 ? SLUICE_SOCKET_UDP4 : SLUICE_SOCKET_UDP6, index);
    if (!sk) return unserved;
    reason = sluice_assign(skb, sk);
    bpf_sk_release(sk);
  }
  if (reason != SLUICE_REASON_ALLOW_DNS) return (int)reason << SLUICE_DNS_REASON_SHIFT;
  skb->mark = slot->asker_mark;
  int action = way.ifindex ? (int)bpf_redirect(way.ifindex, BPF_F_INGRESS) : SLUICE_TO_STACK;
  return SLUICE_REASON_ALLOW_DNS << SLUICE_DNS_REASON_SHIFT | action;
}
