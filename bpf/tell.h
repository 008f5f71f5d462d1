/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A denial is fast: the denied packet is turned round in place into a TCP reset (RFC 9293
 * section 3.10.7.1) or an ICMP "administratively prohibited" (RFC 1812 code 13, RFC 4443 type 1
 * code 1) and sent back to the workload. Nothing is sent towards the destination, so a denied
 * workload has no channel here. Bounded by the event token bucket's rate.
 */
#pragma once

#include "kernel.h"

#define SLUICE_TELL_MAX \
  28 /* bytes of the original packet that an ICMP error quotes: IPv4 header and 8 more */

static __always_inline __u16 sluice_fold(__s64 sum) {
  __u64 value = (__u64)sum;
  value = (value & 0xffff) + (value >> 16 & 0xffff) + (value >> 32);
  value = (value & 0xffff) + (value >> 16);
  value = (value & 0xffff) + (value >> 16);
  return (__u16)~value;
}

struct sluice_tcp_answer { /* behind the network header */
  __be16 source, destination;
  __be32 sequence, acknowledgment;
  __u8 offset, flags;
  __be16 window, checksum, urgent;
};

struct sluice_tell4 {
  __u8 version_ihl, tos;
  __be16 total, id, fragment;
  __u8 ttl, protocol;
  __be16 checksum;
  __be32 source, destination;
};
struct sluice_tell6 {
  __be32 version;
  __be16 payload;
  __u8 next, hop_limit;
  __u8 source[16], destination[16];
};

static __always_inline int sluice_swap_ethernet(struct __sk_buff* skb) {
  __u8 address[12], swapped[12];
  if (bpf_skb_load_bytes(skb, 0, address, 12)) return -1;
  __builtin_memcpy(swapped, address + 6, 6);
  __builtin_memcpy(swapped + 6, address, 6);
  return bpf_skb_store_bytes(skb, 0, swapped, 12, 0);
}

/* `net`: offset of the network header. Returns a TC action: a redirect back to the device, or
 * TC_ACT_SHOT. */
static __noinline int sluice_tell4(struct __sk_buff* skb, const struct sluice_facts* facts,
                                   __u32 net) {
  struct {
    struct sluice_tell4 ip;
    struct sluice_tcp_answer tcp;
  } reset = {};
  struct {
    struct sluice_tell4 ip;
    __u8 type, code;
    __be16 checksum;
    __be32 unused;
    __u8 quote[SLUICE_TELL_MAX];
  } error = {};
  struct sluice_tell4 ip = {.version_ihl = 0x45, .ttl = 64};
  /* Answered as if by the destination: the workload's stack matches the error to its socket either
   * way. */
  __builtin_memcpy(&ip.source, facts->destination + 12, 4);
  __builtin_memcpy(&ip.destination, facts->source + 12, 4);
  __u32 length;
  if (facts->protocol == SLUICE_IPPROTO_TCP) {
    struct sluice_tcp_answer tcp;
    if (bpf_skb_load_bytes(skb, net + facts->transport_offset, &tcp, sizeof(tcp))) return 2;
    reset.ip = ip;
    reset.ip.protocol = SLUICE_IPPROTO_TCP;
    reset.ip.total = bpf_htons(sizeof(reset));
    reset.tcp.source = tcp.destination;
    reset.tcp.destination = tcp.source;
    if (tcp.flags & SLUICE_TCP_ACK) {
      reset.tcp.sequence = tcp.acknowledgment;
      reset.tcp.flags = SLUICE_TCP_RST;
    } else {
      reset.tcp.acknowledgment = bpf_htonl(bpf_ntohl(tcp.sequence) + 1);
      reset.tcp.flags = SLUICE_TCP_RST | SLUICE_TCP_ACK;
    }
    reset.tcp.offset = 5 << 4;
    struct {
      __be32 source, destination;
      __be16 protocol, length;
    } pseudo = {reset.ip.source, reset.ip.destination, bpf_htons(SLUICE_IPPROTO_TCP),
                bpf_htons(sizeof(reset.tcp))};
    __s64 sum = bpf_csum_diff(0, 0, (__be32*)&pseudo, sizeof(pseudo), 0);
    reset.tcp.checksum =
        sluice_fold(bpf_csum_diff(0, 0, (__be32*)&reset.tcp, sizeof(reset.tcp), sum));
    reset.ip.checksum = sluice_fold(bpf_csum_diff(0, 0, (__be32*)&reset.ip, sizeof(reset.ip), 0));
    length = sizeof(reset);
  } else {
    error.ip = ip;
    error.ip.protocol = SLUICE_IPPROTO_ICMP;
    error.ip.total = bpf_htons(sizeof(error));
    error.type = 3;
    error.code = 13;
    if (bpf_skb_load_bytes(skb, net, error.quote, sizeof(error.quote))) return 2;
    error.checksum = sluice_fold(bpf_csum_diff(0, 0, (__be32*)&error.type, 8 + SLUICE_TELL_MAX, 0));
    error.ip.checksum = sluice_fold(bpf_csum_diff(0, 0, (__be32*)&error.ip, sizeof(error.ip), 0));
    length = sizeof(error);
  }
  if (bpf_skb_change_tail(skb, net + length, 0)) return 2;
  if (net && sluice_swap_ethernet(skb)) return 2;
  if (facts->protocol == SLUICE_IPPROTO_TCP
          ? bpf_skb_store_bytes(skb, net, &reset, sizeof(reset), BPF_F_INVALIDATE_HASH)
          : bpf_skb_store_bytes(skb, net, &error, sizeof(error), BPF_F_INVALIDATE_HASH))
    return 2;
  return bpf_redirect(skb->ifindex, 0);
}

static __noinline int sluice_tell6(struct __sk_buff* skb, const struct sluice_facts* facts,
                                   __u32 net) {
  struct {
    struct sluice_tell6 ip;
    struct sluice_tcp_answer tcp;
  } reset = {};
  struct {
    struct sluice_tell6 ip;
    __u8 type, code;
    __be16 checksum;
    __be32 unused;
    __u8 quote[48];
  } error = {};
  struct {
    __u8 source[16], destination[16];
    __be32 length, next;
  } pseudo = {};
  struct sluice_tell6 ip = {.version = bpf_htonl(6u << 28), .hop_limit = 64};
  sluice_copy16(ip.source, facts->destination);
  sluice_copy16(ip.destination, facts->source);
  sluice_copy16(pseudo.source, ip.source);
  sluice_copy16(pseudo.destination, ip.destination);
  __u32 length;
  if (facts->protocol == SLUICE_IPPROTO_TCP) {
    struct sluice_tcp_answer tcp;
    if (bpf_skb_load_bytes(skb, net + facts->transport_offset, &tcp, sizeof(tcp))) return 2;
    reset.ip = ip;
    reset.ip.next = SLUICE_IPPROTO_TCP;
    reset.ip.payload = bpf_htons(sizeof(reset.tcp));
    reset.tcp.source = tcp.destination;
    reset.tcp.destination = tcp.source;
    if (tcp.flags & SLUICE_TCP_ACK) {
      reset.tcp.sequence = tcp.acknowledgment;
      reset.tcp.flags = SLUICE_TCP_RST;
    } else {
      reset.tcp.acknowledgment = bpf_htonl(bpf_ntohl(tcp.sequence) + 1);
      reset.tcp.flags = SLUICE_TCP_RST | SLUICE_TCP_ACK;
    }
    reset.tcp.offset = 5 << 4;
    pseudo.length = bpf_htonl(sizeof(reset.tcp));
    pseudo.next = bpf_htonl(SLUICE_IPPROTO_TCP);
    __s64 sum = bpf_csum_diff(0, 0, (__be32*)&pseudo, sizeof(pseudo), 0);
    reset.tcp.checksum =
        sluice_fold(bpf_csum_diff(0, 0, (__be32*)&reset.tcp, sizeof(reset.tcp), sum));
    length = sizeof(reset);
  } else {
    error.ip = ip;
    error.ip.next = SLUICE_IPPROTO_ICMPV6;
    error.ip.payload = bpf_htons(8 + sizeof(error.quote));
    error.type = 1;
    error.code = 1;
    if (bpf_skb_load_bytes(skb, net, error.quote, sizeof(error.quote))) return 2;
    pseudo.length = bpf_htonl(8 + sizeof(error.quote));
    pseudo.next = bpf_htonl(SLUICE_IPPROTO_ICMPV6);
    __s64 sum = bpf_csum_diff(0, 0, (__be32*)&pseudo, sizeof(pseudo), 0);
    error.checksum =
        sluice_fold(bpf_csum_diff(0, 0, (__be32*)&error.type, 8 + sizeof(error.quote), sum));
    length = sizeof(error);
  }
  if (bpf_skb_change_tail(skb, net + length, 0)) return 2;
  if (net && sluice_swap_ethernet(skb)) return 2;
  if (facts->protocol == SLUICE_IPPROTO_TCP
          ? bpf_skb_store_bytes(skb, net, &reset, sizeof(reset), BPF_F_INVALIDATE_HASH)
          : bpf_skb_store_bytes(skb, net, &error, sizeof(error), BPF_F_INVALIDATE_HASH))
    return 2;
  return bpf_redirect(skb->ifindex, 0);
}

/* Is there someone to tell, and something that may be answered (RFC 1122 section 3.2.2)? */
static __always_inline int sluice_may_tell(const struct sluice_facts* facts, __u32 reason) {
  if (reason != SLUICE_REASON_DENY_RULE && reason != SLUICE_REASON_DENY_FLOOR &&
      reason != SLUICE_REASON_DENY_MODE && reason != SLUICE_REASON_DENY_EMBEDDED)
    return 0;
  if (facts->flags & SLUICE_FACT_LATER_FRAGMENT) return 0;
  if (facts->protocol == SLUICE_IPPROTO_TCP && facts->tcp_flags & SLUICE_TCP_RST) return 0;
  if (facts->family == 4) {
    const __u8 *to = facts->destination + 12, *from = facts->source + 12;
    if (to[0] >= 224 || from[0] >= 224 || from[0] == 0 || from[0] == 127) return 0;
    return facts->protocol != SLUICE_IPPROTO_ICMP || facts->icmp_type == 8;
  }
  if (facts->destination[0] == 0xff || facts->source[0] == 0xff) return 0;
  const __u64* from = (const __u64*)facts->source;
  if (!(from[0] | from[1])) return 0;
  return facts->protocol != SLUICE_IPPROTO_ICMPV6 || facts->icmp_type == 128;
}
