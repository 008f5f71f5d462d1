/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reads a packet's facts from an skb, linear or not. */
#pragma once

#include "offload.h"

/*
 * `net`: offset of the network header from skb->data. SLUICE_OK, or the reason to deny.
 *
 * `can_pull` (a constant): headers that lie in page fragments (a packet ring, a tap frame with a
 * short hdr_len) are made linear first. That is not only for reading: the sender may still write to
 * those pages, and must not change the destination between the verdict and the route. Cgroup
 * programs may not pull; what a host socket sends there has its headers in kernel memory, and its
 * checksum where the kernel's own stack wants it.
 */
static __always_inline __u32 sluice_read_packet(struct __sk_buff* skb, __u32 net, __u16 ethertype,
                                                struct sluice_facts* facts, int can_pull) {
  facts->ethertype = ethertype;
  if (ethertype != SLUICE_ETH_IP4 && ethertype != SLUICE_ETH_IP6)
    return SLUICE_REASON_DENY_ETHERTYPE;
  if (skb->len <= net) return SLUICE_REASON_DENY_TRUNCATED;
  if (can_pull) {
    __u32 linear = (__u32)((long)skb->data_end - (long)skb->data);
    /* Short headers first: nearly every packet has exactly those, and is left alone. */
    __u32 want = net + (ethertype == SLUICE_ETH_IP4 ? 40 : 60);
    if (linear < want && linear < skb->len) {
      want = net + SLUICE_MAX_HEADERS + 60;
      if (bpf_skb_pull_data(skb, want < skb->len ? want : skb->len))
        return SLUICE_REASON_DENY_TRUNCATED;
    } else if (linear < skb->len) {
      const __u8* ip = (const __u8*)(long)skb->data + net;
      if (ip + 20 > (const __u8*)(long)skb->data_end) return SLUICE_REASON_DENY_TRUNCATED;
      if (ethertype == SLUICE_ETH_IP4 ? ip[0] != 0x45 : sluice_is_extension(ip[6])) {
        want = net + SLUICE_MAX_HEADERS + 60;
        if (want > skb->len) want = skb->len;
        if (linear < want && bpf_skb_pull_data(skb, want)) return SLUICE_REASON_DENY_TRUNCATED;
      }
    }
  }
  struct sluice_view view = {
      .start = (const __u8*)(long)skb->data + net,
      .end = (const __u8*)(long)skb->data_end,
      .length = skb->len - net,
      .skb = skb,
      .net = net,
  };
  __u32 reason =
      ethertype == SLUICE_ETH_IP4 ? sluice_read_ip4(&view, facts) : sluice_read_ip6(&view, facts);
  if (can_pull && reason == SLUICE_OK && sluice_is_unfinished(skb))
    return sluice_check_unfinished(skb, net, facts);
  return reason;
}
