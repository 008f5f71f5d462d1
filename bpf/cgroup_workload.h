/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A workload in a cgroup of its own. connect and sendmsg fail at once with EPERM; cgroup_skb/egress
 * judges every IP packet for completeness (ICMP, raw sockets, sockets connected before);
 * cgroup_skb/ingress notes connections from outside. All of them go by the SOCKET's cgroup. The
 * slot comes from cgroup storage: no lookup, and zero (nothing stored yet) denies.
 */
#pragma once

#include "dns_cgroup.h"
#include "flows.h"
#include "read.h"
#include "report.h"

#define SLUICE_CGROUP_ALLOW 1
#define SLUICE_CGROUP_DENY 0

static __always_inline __u32 sluice_find_cgroup_slot(struct sluice_slot** found) {
  __u64* stored = bpf_get_local_storage(&cgroup_slot, 0);
  __u32 index = (__u32)*stored;
  if (index == 0) return 0;
  struct sluice_slot* slot = bpf_map_lookup_elem(&slots, &index);
  if (!slot || slot->state != SLUICE_SLOT_LIVE || slot->type != SLUICE_TYPE_CGROUP) return 0;
  *found = slot;
  return index;
}

static __always_inline int sluice_is_loopback_address(const __u8* address) {
  if (sluice_is_mapped(address)) return address[12] == 127;
  const __u64* half = (const __u64*)address;
  return half[0] == 0 && half[1] == bpf_cpu_to_be64(1);
}

/* Loopback passes in the workload's own namespace. The host's loopback reaches host services, a way
 * out: it is judged. */
static __always_inline int sluice_may_loop(__u64 word, __u64 cookie) {
  __u32 zero = 0;
  if (sluice_word_mode(word) == SLUICE_MODE_BLOCK_ALL) return 0;
  if (sluice_word_flags(word) & SLUICE_FLAG_LOOPBACK) return 1;
  const struct sluice_settings* host = bpf_map_lookup_elem(&settings, &zero);
  return host && cookie && cookie != host->netns_cookie;
}

/*
 * The verdict over a socket call. Deny is final and at once (EPERM); allow only lets the packets go
 * on to the egress hook, which sees source and destination and has the last word.
 */
static __always_inline int sluice_judge_call(struct bpf_sock_addr* context,
                                             struct sluice_facts* facts, int is_ip6) {
  struct sluice_slot* slot = 0;
  __u32 index = sluice_find_cgroup_slot(&slot);
  if (!index || !slot) {
    sluice_count_reason(SLUICE_REASON_DENY_NO_ATTACHMENT);
    return SLUICE_CGROUP_DENY;
  }
  __u64 word = *(volatile __u64*)&slot->word;
  __u32 protocol = context->protocol;
  if (protocol == 262) protocol = SLUICE_IPPROTO_TCP; /* MPTCP */
  if (protocol != SLUICE_IPPROTO_TCP && protocol != SLUICE_IPPROTO_UDP &&
      protocol != SLUICE_IPPROTO_UDPLITE && protocol != SLUICE_IPPROTO_SCTP &&
      protocol != SLUICE_IPPROTO_DCCP)
    return SLUICE_CGROUP_ALLOW;
  facts->protocol = (__u8)protocol;
  facts->flags = SLUICE_FACT_PORTS;
  facts->destination_port = bpf_ntohs((__u16)context->user_port);
  if (protocol == SLUICE_IPPROTO_TCP) facts->tcp_flags = SLUICE_TCP_SYN;
  __u32 reason;
  if (sluice_is_query(word, facts) && sluice_is_own_netns(bpf_get_netns_cookie(context))) {
    /* A stub resolver on the host's loopback too: it would ask for everybody. */
    reason = sluice_redirect_call(context, slot, index, facts, is_ip6);
  } else {
    if (sluice_is_loopback_address(facts->destination) &&
        sluice_may_loop(word, bpf_get_netns_cookie(context)))
      return SLUICE_CGROUP_ALLOW;
    reason = (__u32)sluice_verdict(slot, facts, word);
  }
  if (sluice_allows(reason)) return SLUICE_CGROUP_ALLOW;
  /* A UDP server answers by sendmsg. Whether this is an answer shows only in the packet, which
   * knows its source. */
  if (reason == SLUICE_REASON_DENY_MODE && protocol != SLUICE_IPPROTO_TCP &&
      sluice_word_flags(word) & SLUICE_FLAG_REPLIES && context->sk && context->sk->src_port)
    return SLUICE_CGROUP_ALLOW;
  return sluice_conclude(slot, index, word, facts, reason, 0, 0) ? SLUICE_CGROUP_ALLOW
                                                                 : SLUICE_CGROUP_DENY;
}

static __always_inline int sluice_judge_call4(struct bpf_sock_addr* context) {
  struct sluice_facts facts = {.family = 4, .ethertype = SLUICE_ETH_IP4};
  __u32 address = context->user_ip4;
  sluice_map_ip4(facts.destination, (__u8*)&address);
  return sluice_judge_call(context, &facts, 0);
}

static __always_inline int sluice_judge_call6(struct bpf_sock_addr* context) {
  struct sluice_facts facts = {.family = 6, .ethertype = SLUICE_ETH_IP6};
  __u32* address = (__u32*)facts.destination;
  address[0] = context->user_ip6[0];
  address[1] = context->user_ip6[1];
  address[2] = context->user_ip6[2];
  address[3] = context->user_ip6[3];
  /* An IPv4 destination in an IPv6 call is judged as what it will be on the wire. */
  if (sluice_is_mapped(facts.destination)) {
    facts.family = 4;
    facts.ethertype = SLUICE_ETH_IP4;
  }
  return sluice_judge_call(context, &facts, 1);
}

SEC("cgroup/connect4")
int sluice_connect4(struct bpf_sock_addr* context) {
  return sluice_judge_call4(context);
}
SEC("cgroup/connect6")
int sluice_connect6(struct bpf_sock_addr* context) {
  return sluice_judge_call6(context);
}
SEC("cgroup/sendmsg4")
int sluice_sendmsg4(struct bpf_sock_addr* context) {
  return sluice_judge_call4(context);
}
SEC("cgroup/sendmsg6")
int sluice_sendmsg6(struct bpf_sock_addr* context) {
  return sluice_judge_call6(context);
}

static __always_inline int sluice_on_own_loopback(struct __sk_buff* skb, __u64 word) {
  if (skb->ifindex != 1) return 0; /* the loopback device's, in every namespace */
  __u64 cookie = 0;
  if (sluice_has_kern_ctx) cookie = sluice_netns_cookie_of(skb);
  return sluice_may_loop(word, cookie);
}

SEC("cgroup_skb/egress")
int sluice_cgroup_egress(struct __sk_buff* skb) {
  struct sluice_slot* slot = 0;
  __u32 index = sluice_find_cgroup_slot(&slot);
  if (!index || !slot) {
    sluice_count_reason(SLUICE_REASON_DENY_NO_ATTACHMENT);
    return SLUICE_CGROUP_DENY;
  }
  __u64 word = *(volatile __u64*)&slot->word;
  struct sluice_facts facts = {.ifindex = skb->ifindex};
  __u32 reason;
  if (sluice_word_mode(word) == SLUICE_MODE_DISABLED) {
    reason = SLUICE_REASON_ALLOW_DISABLED;
  } else {
    reason = sluice_read_packet(skb, 0, bpf_ntohs((__u16)skb->protocol), &facts, 0);
    if (reason == SLUICE_OK) reason = sluice_judge_loop_query(skb, slot, index, word, &facts);
    if (reason == SLUICE_OK)
      reason = sluice_on_own_loopback(skb, word) ? SLUICE_REASON_ALLOW_LOOPBACK
                                                 : sluice_judge(slot, word, &facts);
  }
  if (!sluice_conclude(slot, index, word, &facts, reason, skb->len, skb->ifindex))
    return SLUICE_CGROUP_DENY;
  if (reason != SLUICE_REASON_ALLOW_REPLY && reason != SLUICE_REASON_ALLOW_DNS)
    sluice_note_outbound(slot, word, &facts);
  return SLUICE_CGROUP_ALLOW;
}

/*
 * May what is received here have come from outside, so that it opens a flow? Only in the daemon's
 * own namespace: a process may make a namespace of its own, be anybody in it and send to itself as
 * anybody. And only what was sent to this host alone: a multicast packet that the host sends itself
 * comes back by the device it left by. Which device it was is noted; see sluice_judge_reply().
 */
static __always_inline int sluice_may_be_from_outside(struct __sk_buff* skb) {
  return skb->pkt_type == 0 /* PACKET_HOST */ && sluice_is_own_netns(sluice_netns_cookie_at(skb));
}

SEC("cgroup_skb/ingress")
int sluice_cgroup_ingress(struct __sk_buff* skb) {
  struct sluice_slot* slot = 0;
  struct sluice_flow_key key;
  __u32 index = sluice_find_cgroup_slot(&slot);
  if (!index || !slot || !(sluice_word_flags(slot->word) & SLUICE_FLAG_REPLIES))
    return SLUICE_CGROUP_ALLOW;
  if (!sluice_may_be_from_outside(skb)) return SLUICE_CGROUP_ALLOW;
  struct sluice_facts facts = {.ifindex = skb->ifindex};
  if (sluice_read_packet(skb, 0, bpf_ntohs((__u16)skb->protocol), &facts, 0) != SLUICE_OK)
    return SLUICE_CGROUP_ALLOW;
  if (sluice_is_answer(slot->word, &facts)) return SLUICE_CGROUP_ALLOW;
  if (sluice_opens_flow(slot, &facts, &key)) sluice_note_inbound_flow(slot, &key, facts.ifindex);
  return SLUICE_CGROUP_ALLOW;
}
