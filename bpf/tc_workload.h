/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The workload's interface. tc_from sees what the workload sends and judges it; tc_to sees what is
 * sent to the workload and notes connections that come in from outside, so that their replies can
 * pass.
 *
 * Which device hook each sits on depends on the side: for a tap or a host-side veth the workload's
 * packets are the device's INGRESS. tc_from returns TC_ACT_UNSPEC (-1, TCX_NEXT) to allow:
 * TC_ACT_OK would end the chain and hide other tools' programs. Just that is wanted for one thing,
 * a query that the resolver takes: a program behind ours could send it elsewhere or take its
 * socket and mark away.
 */
#pragma once

#include "dns_redirect.h"
#include "flows.h"
#include "read.h"
#include "report.h"
#include "tell.h"

#define SLUICE_NEXT (-1) /* TCX_NEXT, TC_ACT_UNSPEC */
#define SLUICE_DROP 2    /* TCX_DROP, TC_ACT_SHOT */

/* The live slot of the device an skb is at, or 0. An ifindex means something only together with its
 * namespace. */
static __always_inline __u32 sluice_find_slot(struct __sk_buff* skb, struct sluice_slot** found) {
  __u32 ifindex = skb->ifindex, zero = 0;
  __u64 cookie = 0;
  if (sluice_has_kern_ctx) cookie = sluice_netns_cookie_of(skb);
  __u32* index = bpf_map_lookup_elem(&interfaces, &ifindex);
  if (index && *index) {
    __u32 slot_index = *index;
    struct sluice_slot* slot = bpf_map_lookup_elem(&slots, &slot_index);
    if (slot && slot->state == SLUICE_SLOT_LIVE && slot->ifindex == ifindex &&
        (!cookie || slot->netns_cookie == cookie)) {
      *found = slot;
      return slot_index;
    }
  }
  struct sluice_interface_key key = {.netns_cookie = cookie, .ifindex = ifindex};
  if (!cookie) {
    const struct sluice_settings* host = bpf_map_lookup_elem(&settings, &zero);
    if (host) key.netns_cookie = host->netns_cookie;
  }
  index = bpf_map_lookup_elem(&far_interfaces, &key);
  if (!index) return 0;
  __u32 slot_index = *index;
  struct sluice_slot* slot = bpf_map_lookup_elem(&slots, &slot_index);
  if (!slot || slot->state != SLUICE_SLOT_LIVE || slot->ifindex != ifindex) return 0;
  *found = slot;
  return slot_index;
}

/* The EtherType to judge by, or a reason to deny (second byte set): tags, LLC and other protocols
 * fail closed. */
static __always_inline __u32 sluice_check_tag(struct __sk_buff* skb,
                                              const struct sluice_slot* slot) {
  if (!skb->vlan_present) return SLUICE_OK;
  if (skb->vlan_proto != bpf_htons(SLUICE_ETH_VLAN)) return SLUICE_REASON_DENY_VLAN;
  __u16 id = skb->vlan_tci & 0x0fff;
  if (id == 0) return SLUICE_REASON_DENY_VLAN;
  for (int i = 0; i < SLUICE_MAX_VLANS; i++)
    if (slot->vlans[i] == id) return SLUICE_OK;
  return SLUICE_REASON_DENY_VLAN;
}

static __always_inline int sluice_pass(struct __sk_buff* skb) {
  __u32 zero = 0;
  const struct sluice_settings* host = bpf_map_lookup_elem(&settings, &zero);
  if (host && host->judged_mark) skb->mark |= host->judged_mark;
  return SLUICE_NEXT;
}

/* At a device's egress skb->protocol is what the sender's packet socket was told, whatever its
 * frame says: under an EtherType that passes unread it could send IP, or under IP's a tag. */
static __always_inline int sluice_protocol_is_true(struct __sk_buff* skb) {
  __u16 type = 0;
  const __u8* frame = (const __u8*)(long)skb->data;
  if (frame + 14 <= (const __u8*)(long)skb->data_end)
    type = *(const __u16*)(frame + 12);
  else if (bpf_skb_load_bytes(skb, 12, &type, 2))
    return 0;
  return type == (__u16)skb->protocol;
}

/* Link layer, then network layer, then policy. Never SLUICE_OK. */
static __always_inline __u32 sluice_judge_frame(struct __sk_buff* skb, struct sluice_slot* slot,
                                                __u64 word, __u32 net, struct sluice_facts* facts) {
  __u16 ethertype = bpf_ntohs((__u16)skb->protocol);
  __u32 reason = sluice_check_tag(skb, slot);
  facts->ethertype = ethertype;
  if (reason != SLUICE_OK) return reason;
  if (net && !sluice_protocol_is_true(skb)) return SLUICE_REASON_DENY_ETHERTYPE;
  if (ethertype == SLUICE_ETH_IP4 || ethertype == SLUICE_ETH_IP6) {
    reason = sluice_read_packet(skb, net, ethertype, facts, 1);
    if (reason != SLUICE_OK) return reason;
    /* Whatever policy says of the server that is asked: it is never sent anything. */
    if (sluice_is_query(word, facts)) return SLUICE_REASON_ALLOW_DNS;
    if (sluice_is_part_of_query(word, facts)) return SLUICE_REASON_DENY_FRAGMENT;
    return (__u32)sluice_verdict(slot, facts, word);
  }
  if (sluice_word_mode(word) == SLUICE_MODE_BLOCK_ALL) return SLUICE_REASON_DENY_BLOCK_ALL;
  if (ethertype == SLUICE_ETH_ARP && net) {
    if (!(sluice_word_flags(word) & SLUICE_FLAG_ARP)) return SLUICE_REASON_DENY_HOUSEKEEPING;
    if (skb->len <= net || bpf_skb_pull_data(skb, skb->len)) return SLUICE_REASON_DENY_TRUNCATED;
    if (sluice_is_unfinished(skb)) return SLUICE_REASON_DENY_MALFORMED;
    struct sluice_view view = {.length = skb->len - net, .skb = skb, .net = net};
    reason = sluice_check_arp(&view);
    return reason == SLUICE_OK ? SLUICE_REASON_ALLOW_HOUSEKEEPING : reason;
  }
  if (ethertype == SLUICE_ETH_VLAN || ethertype == 0x88a8)
    return SLUICE_REASON_DENY_VLAN; /* QinQ */
  /* Without an Ethernet header there is nothing that tells one protocol from IP. */
  if (!net) return SLUICE_REASON_DENY_ETHERTYPE;
  for (int i = 0; i < SLUICE_MAX_EXTRA_ETHERTYPES; i++)
    if (slot->ethertypes[i] && slot->ethertypes[i] == ethertype) {
      reason = sluice_is_unfinished(skb) ? sluice_check_unfinished(skb, net, facts) : SLUICE_OK;
      return reason == SLUICE_OK ? SLUICE_REASON_ALLOW_RULE : reason;
    }
  return SLUICE_REASON_DENY_ETHERTYPE;
}

/* A reset that tc_to made for this workload; the mark is random, and lost on the way in from any
 * other namespace. */
static __always_inline int sluice_is_own_reset(struct __sk_buff* skb) {
  __u32 zero = 0;
  if (!skb->mark) return 0;
  const struct sluice_settings* host = bpf_map_lookup_elem(&settings, &zero);
  /* The mark stays: while a device is moved from clsact to TCX, both programs see the packet. */
  return host && host->sever_mark && skb->mark == host->sever_mark;
}

SEC("tc")
int sluice_tc_from(struct __sk_buff* skb) {
  struct sluice_slot* slot = 0;
  if (sluice_is_own_reset(skb)) return SLUICE_NEXT;
  __u32 index = sluice_find_slot(skb, &slot);
  if (!index || !slot) {
    sluice_count_reason(SLUICE_REASON_DENY_NO_ATTACHMENT);
    return SLUICE_DROP;
  }
  struct sluice_facts facts = {};
  __u64 word = *(volatile __u64*)&slot->word;
  __u32 net = slot->link_layer == SLUICE_LINK_RAW_IP ? 0 : 14, length = skb->len, reason;
  int action = SLUICE_NEXT;
  /* Read in mode disabled too: the flows that the workload opens now are its own later on. */
  reason = sluice_judge_frame(skb, slot, word, net, &facts);
  if (sluice_word_mode(word) == SLUICE_MODE_DISABLED) reason = SLUICE_REASON_ALLOW_DISABLED;
  if (reason == SLUICE_REASON_ALLOW_DNS) {
    action = sluice_redirect_query(skb, slot, &facts, index, net);
    reason = (__u32)action >> SLUICE_DNS_REASON_SHIFT;
    action &= (1 << SLUICE_DNS_REASON_SHIFT) - 1;
  }
  if (sluice_conclude(slot, index, word, &facts, reason, length, skb->ifindex)) {
    if (reason == SLUICE_REASON_ALLOW_DNS) return action;
    if (reason != SLUICE_REASON_ALLOW_REPLY) sluice_note_outbound(slot, word, &facts);
    return sluice_pass(skb);
  }
  if (facts.family && sluice_word_flags(word) & SLUICE_FLAG_TELL && !slot->workload_is_egress &&
      sluice_may_tell(&facts, reason) && sluice_take_tell_token(index))
    return facts.family == 4 ? sluice_tell4(skb, &facts, net, 0)
                             : sluice_tell6(skb, &facts, net, 0);
  return SLUICE_DROP;
}

/* Is `ifindex`, in the namespace of `slot`, the interface of an attachment? */
static __always_inline int sluice_is_attached(const struct sluice_slot* slot, __u32 ifindex) {
  __u32* index = bpf_map_lookup_elem(&interfaces, &ifindex);
  if (index && *index) {
    __u32 slot_index = *index;
    const struct sluice_slot* other = bpf_map_lookup_elem(&slots, &slot_index);
    if (other && other->netns_cookie == slot->netns_cookie) return 1;
  }
  struct sluice_interface_key key = {.netns_cookie = slot->netns_cookie, .ifindex = ifindex};
  return bpf_map_lookup_elem(&far_interfaces, &key) != 0;
}

/*
 * Did this packet come in from outside? From the host itself, yes. What was routed here must have
 * arrived by the interface that a route back to its source would take (strict reverse path, RFC
 * 3704): else one workload could forge a sender and so open replies for a neighbour. What was
 * bridged must not come from another attachment's port.
 */
static __always_inline int sluice_is_from_outside(struct __sk_buff* skb,
                                                  const struct sluice_slot* slot,
                                                  const struct sluice_facts* facts) {
  __u32 from = skb->ingress_ifindex;
  if (from == 0 || slot->workload_is_egress)
    return 1; /* the host itself; beyond a device that leads outside */
  if (skb->pkt_type != 0 /* PACKET_HOST: routed */) return !sluice_is_attached(slot, from);
  struct bpf_fib_lookup fib = {};
  fib.ifindex = skb->ifindex;
  if (facts->family == 4) {
    fib.family = SLUICE_AF_INET;
    __builtin_memcpy(&fib.ipv4_src, facts->destination + 12, 4);
    __builtin_memcpy(&fib.ipv4_dst, facts->source + 12, 4);
  } else {
    fib.family = SLUICE_AF_INET6;
    sluice_copy16((__u8*)fib.ipv6_src, facts->destination);
    sluice_copy16((__u8*)fib.ipv6_dst, facts->source);
  }
  long found = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
  /* Without a neighbour entry the route is known all the same. */
  return (found == BPF_FIB_LKUP_RET_SUCCESS || found == BPF_FIB_LKUP_RET_NO_NEIGH) &&
         fib.ifindex == from;
}

/* Notes a packet towards the workload when it opens a connection from outside, and neighbours that
 * speak ND. */
static __always_inline void sluice_note_inbound(struct __sk_buff* skb, struct sluice_slot* slot,
                                                __u32 word_flags,
                                                const struct sluice_facts* facts) {
  struct sluice_flow_key key;
  if (word_flags & SLUICE_FLAG_ND && (facts->icmp_type == 135 || facts->icmp_type == 136) &&
      sluice_is_nd(facts) && facts->hop_limit == 255 && facts->family == 6) {
    /* Not from a sibling on the same bridge: under a forged source it would open a way for
     * discovery messages, whose payload is free, to any address, routed on by the host. */
    if (skb->ingress_ifindex && !slot->workload_is_egress &&
        sluice_is_attached(slot, skb->ingress_ifindex))
      return;
    struct sluice_flow neighbour = {.last_seen = sluice_now(), .origin = SLUICE_FLOW_INBOUND};
    sluice_neighbour_key(slot, facts->source, &key);
    bpf_map_update_elem(&flows, &key, &neighbour, BPF_ANY);
    return;
  }
  if (word_flags & SLUICE_FLAG_REPLIES && sluice_opens_flow(slot, facts, &key) &&
      sluice_is_from_outside(skb, slot, facts))
    sluice_note_inbound_flow(slot, &key, 0);
}

/* For a minute after a tightening: does this segment belong to a connection that policy has cut? */
static __always_inline int sluice_is_cut(struct sluice_slot* slot, __u64 word,
                                         const struct sluice_facts* facts) {
  if (!slot->sever_until || facts->protocol != SLUICE_IPPROTO_TCP || !facts->family) return 0;
  if (facts->tcp_flags & (SLUICE_TCP_SYN | SLUICE_TCP_RST)) return 0;
  if (facts->flags & SLUICE_FACT_FRAGMENT || sluice_now() >= slot->sever_until) return 0;
  struct sluice_facts answer = *facts; /* what the workload would send back */
  sluice_copy16(answer.source, facts->destination);
  sluice_copy16(answer.destination, facts->source);
  answer.source_port = facts->destination_port;
  answer.destination_port = facts->source_port;
  answer.tcp_flags = SLUICE_TCP_ACK;
  return !sluice_allows((__u32)sluice_verdict(slot, &answer, word)) &&
         !(sluice_word_flags(word) & SLUICE_FLAG_AUDIT);
}

SEC("tc")
int sluice_tc_to(struct __sk_buff* skb) {
  struct sluice_slot* slot = 0;
  __u32 index = sluice_find_slot(skb, &slot), zero = 0;
  if (!index || !slot) return SLUICE_NEXT;
  __u64 word = *(volatile __u64*)&slot->word;
  __u32 flags = sluice_word_flags(word);
  if (!(flags & (SLUICE_FLAG_REPLIES | SLUICE_FLAG_ND)) && !slot->sever_until) return SLUICE_NEXT;
  struct sluice_facts facts = {};
  __u32 net = slot->link_layer == SLUICE_LINK_RAW_IP ? 0 : 14;
  if (sluice_check_tag(skb, slot) != SLUICE_OK) return SLUICE_NEXT;
  if (sluice_read_packet(skb, net, bpf_ntohs((__u16)skb->protocol), &facts, 1) != SLUICE_OK)
    return SLUICE_NEXT;
  if (sluice_is_answer(word, &facts)) return SLUICE_NEXT;
  if (!sluice_is_cut(slot, word, &facts)) {
    sluice_note_inbound(skb, slot, flags, &facts);
    return SLUICE_NEXT;
  }
  const struct sluice_settings* host = bpf_map_lookup_elem(&settings, &zero);
  if (!host || !host->sever_mark || slot->workload_is_egress || !sluice_take_tell_token(index))
    return SLUICE_DROP;
  skb->mark = host->sever_mark;
  return facts.family == 4 ? sluice_tell4(skb, &facts, net, BPF_F_INGRESS)
                           : sluice_tell6(skb, &facts, net, BPF_F_INGRESS);
}
