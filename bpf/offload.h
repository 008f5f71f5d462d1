/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the host still writes into a packet after the verdict: the checksum that its sender left to
 * the device (CHECKSUM_PARTIAL). A guest says in a virtio header where, a container by
 * PACKET_VNET_HDR, and the kernel believes nearly any place: it could name the destination's bytes.
 */
#pragma once

#include "checksum.h"
#include "kernel.h"

#define SLUICE_CHECKSUM_PARTIAL 3 /* linux/skbuff.h */

struct sk_buff___offload {
  __u8 ip_summed : 2;
  __u8 encapsulation : 1;
  __u16 csum_start, csum_offset; /* csum_start: from `head` */
  __u16 inner_network_header;    /* from `head` */
  unsigned char *head, *data;
} __attribute__((preserve_access_index));

/* Without the cast (before 6.2) the context's address, which is the sk_buff's, is read by helper.
 */
#define SLUICE_READ_SKB(skb, field)                                                    \
  (sluice_has_kern_ctx ? ((struct sk_buff___offload*)bpf_cast_to_kern_ctx(skb))->field \
                       : BPF_CORE_READ((struct sk_buff___offload*)(void*)(skb), field))

static __always_inline int sluice_is_unfinished(struct __sk_buff* skb) {
  if (sluice_has_kern_ctx) {
    struct sk_buff___offload* kernel_skb = bpf_cast_to_kern_ctx(skb);
    return BPF_CORE_READ_BITFIELD(kernel_skb, ip_summed) == SLUICE_CHECKSUM_PARTIAL;
  }
  struct sk_buff___offload* kernel_skb = (void*)skb;
  return BPF_CORE_READ_BITFIELD_PROBED(kernel_skb, ip_summed) == SLUICE_CHECKSUM_PARTIAL;
}

static __always_inline int sluice_is_encapsulated(struct __sk_buff* skb) {
  if (sluice_has_kern_ctx) {
    struct sk_buff___offload* kernel_skb = bpf_cast_to_kern_ctx(skb);
    return BPF_CORE_READ_BITFIELD(kernel_skb, encapsulation) != 0;
  }
  struct sk_buff___offload* kernel_skb = (void*)skb;
  return BPF_CORE_READ_BITFIELD_PROBED(kernel_skb, encapsulation) != 0;
}

/* Of a packet whose checksum is to be filled in: SLUICE_OK when that spares what `facts` were read
 * from. `net`: offset of the network header. */
static __always_inline __u32 sluice_check_unfinished(struct __sk_buff* skb, __u32 net,
                                                     const struct sluice_facts* facts) {
  int network =
      (int)((long)SLUICE_READ_SKB(skb, data) - (long)SLUICE_READ_SKB(skb, head)) + (int)net;
  if (!sluice_checksum_spares(facts, (int)SLUICE_READ_SKB(skb, csum_start) - network,
                              SLUICE_READ_SKB(skb, csum_offset)))
    return SLUICE_REASON_DENY_MALFORMED;
  /* Segmentation of a tunnel's packet (a guest may offer them since 6.17) writes lengths and
   * numbers into the inner headers, wherever these are said to be. */
  if (sluice_is_encapsulated(skb) &&
      (int)SLUICE_READ_SKB(skb, inner_network_header) - network < (int)sluice_judged_bytes(facts))
    return SLUICE_REASON_DENY_MALFORMED;
  return SLUICE_OK;
}
