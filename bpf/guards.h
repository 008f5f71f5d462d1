/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Closed before discovery: discovery is asynchronous, so a workload may send before it is attached.
 * These two programs close that moment from the other end.
 */
#pragma once

#include "read.h"
#include "report.h"
#include "swept.h"
#include "tc_workload.h"

#define SLUICE_CGROUP_LEVELS \
  12 /* depth of the hierarchy that is searched for attached or guarded cgroups */

/*
 * Was this judged by the cgroup's egress hook, in another shape? Each packet of an IP socket was,
 * as the socket sent it; then a tunnel of the host may have put it into a packet of its own, which
 * keeps the socket, or IP may have cut it into fragments. Neither is for the workload's policy.
 *
 * Only the family proves it. A packet socket's frame meets no such hook, also when it was sent by
 * the tunnel's device, where skb->encapsulation is set just the same; and ICMP in a tunnel has it
 * cleared. Of the IP protocols those count whose sockets always send through their own hook: SCTP
 * in UDP does not (it sends by a socket of the kernel's), and a raw socket of protocol 255 may look
 * like anything. A packet that looks like the socket's own is judged here once more.
 */
static __always_inline int sluice_was_judged_inside(struct __sk_buff* skb,
                                                    const struct sluice_facts* facts) {
  struct bpf_sock* sk = skb->sk;
  if (!sk || (sk->family != SLUICE_AF_INET && sk->family != SLUICE_AF_INET6)) return 0;
  __u32 port = sk->src_port, protocol = SLUICE_IPPROTO_TCP; /* of a connection that opens or ends */
  struct bpf_sock* full = bpf_sk_fullsock(sk);
  if (full) protocol = full->protocol;
  if (protocol != SLUICE_IPPROTO_TCP && protocol != SLUICE_IPPROTO_UDP &&
      protocol != SLUICE_IPPROTO_UDPLITE && protocol != SLUICE_IPPROTO_ICMP &&
      protocol != SLUICE_IPPROTO_ICMPV6)
    return 0;
  if (facts->flags & SLUICE_FACT_LATER_FRAGMENT || facts->protocol != protocol) return 1;
  return facts->flags & SLUICE_FACT_PORTS && facts->source_port != port;
}

/* Judges a packet met at an uplink by the policy of one attached cgroup. Returns 1 to pass. */
__noinline int sluice_judge_at_uplink(struct __sk_buff* skb, __u32 index, __u32 is_ethernet) {
  __u32 net = is_ethernet ? 14 : 0;
  struct sluice_slot* slot = bpf_map_lookup_elem(&slots, &index);
  if (!slot || slot->state != SLUICE_SLOT_LIVE) return 0;
  __u64 word = *(volatile __u64*)&slot->word;
  struct sluice_facts facts = {};
  /* Judged here alone, so a reply is bound to this device. What an IP socket sends was bound before
   * to the device that it left IP by, which may be a bridge or a bond over this one. */
  const struct bpf_sock* sk = skb->sk;
  if (!sk || (sk->family != SLUICE_AF_INET && sk->family != SLUICE_AF_INET6))
    facts.ifindex = skb->ifindex;
  __u32 reason;
  if (sluice_word_mode(word) == SLUICE_MODE_DISABLED)
    reason = SLUICE_REASON_ALLOW_DISABLED;
  else
    reason = sluice_judge_frame(skb, slot, word, net, &facts);
  /* A query does not come this way. */
  if (reason == SLUICE_REASON_ALLOW_DNS) reason = SLUICE_REASON_DENY_DNS_UNSERVED;
  if (sluice_allows(reason)) return 1; /* counted where the socket's own hooks saw it */
  if (sluice_was_judged_inside(skb, &facts)) return 1;
  return sluice_conclude(slot, index, word, &facts, reason, skb->len, skb->ifindex);
}

/*
 * At an uplink's egress. What entered by another interface must carry the mark that tc_from sets
 * after judging it: the mark is lost on a way into the host that nobody filters, and an ifindex
 * that was given to another tenant proves nothing. What the host itself sends is judged by its
 * socket's cgroup, so that a packet socket in a filtered cgroup, which no cgroup hook sees, is
 * caught here, and so is one that was brought there.
 */
static __always_inline int sluice_guard_uplink(struct __sk_buff* skb, __u32 is_ethernet) {
  __u32 from = skb->ingress_ifindex, zero = 0;
  const struct sluice_settings* host = bpf_map_lookup_elem(&settings, &zero);
  if (!host) return SLUICE_DROP;
  if (from != 0) {
    if (host->judged_mark && (skb->mark & host->judged_mark) == host->judged_mark)
      return SLUICE_NEXT;
    __u32* trust = bpf_map_lookup_elem(&trusted_interfaces, &from);
    if (trust && *trust == SLUICE_GUARD_TRUSTED) return SLUICE_NEXT;
    sluice_report_guard(SLUICE_REASON_DENY_UNJUDGED, skb->len, from);
    return SLUICE_DROP;
  }
  /* An earlier release marked packet sockets; their owner could take the mark away. */
  if (sluice_is_swept(skb->sk) || skb->mark == SLUICE_DOOMED_MARK) {
    sluice_report_guard(SLUICE_REASON_DENY_UNATTACHED_CGROUP, skb->len, skb->ifindex);
    return SLUICE_DROP;
  }
  int guarded = 0, attached = 0;
  for (int level = 1; level <= SLUICE_CGROUP_LEVELS; level++) {
    __u64 id = bpf_skb_ancestor_cgroup_id(skb, level);
    if (id == 0) break;
    __u32* index = bpf_map_lookup_elem(&cgroups, &id);
    if (index && *index) {
      attached = 1;
      if (!sluice_judge_at_uplink(skb, *index, is_ethernet)) return SLUICE_DROP;
    } else if (guarded == 1) {
      guarded = 2; /* below a guarded parent */
    }
    __u32* guard = bpf_map_lookup_elem(&guarded_cgroups, &id);
    if (guard && *guard) guarded = 1;
  }
  if (guarded == 2 && !attached) {
    sluice_report_guard(SLUICE_REASON_DENY_UNATTACHED_CGROUP, skb->len, skb->ifindex);
    return SLUICE_DROP;
  }
  return SLUICE_NEXT;
}

SEC("tc")
int sluice_uplink_ethernet(struct __sk_buff* skb) {
  return sluice_guard_uplink(skb, 1);
}
SEC("tc")
int sluice_uplink_raw_ip(struct __sk_buff* skb) {
  return sluice_guard_uplink(skb, 0);
}

/* On a parent cgroup: what a child sends that is not attached yet is dropped. TCP tries again, so a
   workload that is quicker than discovery loses a second, not its connection. */
SEC("cgroup_skb/egress")
int sluice_guard_cgroup(struct __sk_buff* skb) {
  int below = 0;
  for (int level = 1; level <= SLUICE_CGROUP_LEVELS; level++) {
    __u64 id = bpf_skb_ancestor_cgroup_id(skb, level);
    if (id == 0) break;
    __u32* index = bpf_map_lookup_elem(&cgroups, &id);
    if (index && *index) return 1;
    if (below == 1) below = 2;
    __u32* guard = bpf_map_lookup_elem(&guarded_cgroups, &id);
    if (guard && *guard && below == 0) below = 1;
  }
  if (below != 2) return 1;
  sluice_report_guard(SLUICE_REASON_DENY_UNATTACHED_CGROUP, skb->len, skb->ifindex);
  return 0;
}
