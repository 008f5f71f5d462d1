/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A denial is fast: the denied packet is turned round in place into a TCP reset (RFC 9293
 * section 3.10.7.1) or an ICMP "administratively prohibited" (RFC 1812 code 13, RFC 4443 type 1
 * code 1) and sent back to the workload. Nothing of the workload's own is sent towards the
 * destination, so a denied workload has no channel here. The other end of a connection that a
 * tightening cut is told when it sends: its own segment is turned round. Both are bounded, see
 * sluice_take_tell_token().
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

/* `direction`: 0 sends out of the device, BPF_F_INGRESS makes it come in. `net`: offset of the
 * network header. Returns a TC action: a redirect back to the device, or TC_ACT_SHOT. */
static __noinline int sluice_tell4(struct __sk_buff* skb, const struct sluice_facts* facts,
                                   __u32 net, __u64 direction) {
  /* One buffer for both kinds: the stack of a call chain is 512 bytes. The IP headers coincide. */
  union {
    struct {
      struct sluice_tell4 ip;
      struct sluice_tcp_answer tcp;
    } reset;
    struct {
      struct sluice_tell4 ip;
      __u8 type, code;
      __be16 checksum;
      __be32 unused;
      __u8 quote[SLUICE_TELL_MAX];
    } error;
  } answer = {};
  struct sluice_tell4* ip = &answer.reset.ip;
  ip->version_ihl = 0x45;
  ip->ttl = 64;
  /* Answered as if by the destination: the workload's stack matches the error to its socket either
   * way. */
  __builtin_memcpy(&ip->source, facts->destination + 12, 4);
  __builtin_memcpy(&ip->destination, facts->source + 12, 4);
  __u32 length;
  if (facts->protocol == SLUICE_IPPROTO_TCP) {
    struct sluice_tcp_answer tcp;
    if (bpf_skb_load_bytes(skb, net + facts->transport_offset, &tcp, sizeof(tcp))) return 2;
    answer.reset.ip.protocol = SLUICE_IPPROTO_TCP;
    answer.reset.ip.total = bpf_htons(sizeof(answer.reset));
    answer.reset.tcp.source = tcp.destination;
    answer.reset.tcp.destination = tcp.source;
    if (tcp.flags & SLUICE_TCP_ACK) {
      answer.reset.tcp.sequence = tcp.acknowledgment;
      answer.reset.tcp.flags = SLUICE_TCP_RST;
    } else {
      answer.reset.tcp.acknowledgment = bpf_htonl(bpf_ntohl(tcp.sequence) + 1);
      answer.reset.tcp.flags = SLUICE_TCP_RST | SLUICE_TCP_ACK;
    }
    answer.reset.tcp.offset = 5 << 4;
    struct {
      __be32 source, destination;
      __be16 protocol, length;
    } pseudo = {answer.reset.ip.source, answer.reset.ip.destination, bpf_htons(SLUICE_IPPROTO_TCP),
                bpf_htons(sizeof(answer.reset.tcp))};
    __s64 sum = bpf_csum_diff(0, 0, (__be32*)&pseudo, sizeof(pseudo), 0);
    answer.reset.tcp.checksum =
        sluice_fold(bpf_csum_diff(0, 0, (__be32*)&answer.reset.tcp, sizeof(answer.reset.tcp), sum));
    answer.reset.ip.checksum =
        sluice_fold(bpf_csum_diff(0, 0, (__be32*)&answer.reset.ip, sizeof(answer.reset.ip), 0));
    length = sizeof(answer.reset);
  } else {
    answer.error.ip.protocol = SLUICE_IPPROTO_ICMP;
    answer.error.ip.total = bpf_htons(sizeof(answer.error));
    answer.error.type = 3;
    answer.error.code = 13;
    if (bpf_skb_load_bytes(skb, net, answer.error.quote, sizeof(answer.error.quote))) return 2;
    answer.error.checksum =
        sluice_fold(bpf_csum_diff(0, 0, (__be32*)&answer.error.type, 8 + SLUICE_TELL_MAX, 0));
    answer.error.ip.checksum =
        sluice_fold(bpf_csum_diff(0, 0, (__be32*)&answer.error.ip, sizeof(answer.error.ip), 0));
    length = sizeof(answer.error);
  }
  if (bpf_skb_change_tail(skb, net + length, 0)) return 2;
  if (net && sluice_swap_ethernet(skb)) return 2;
  if (facts->protocol == SLUICE_IPPROTO_TCP
          ? bpf_skb_store_bytes(skb, net, &answer.reset, sizeof(answer.reset),
                                BPF_F_INVALIDATE_HASH)
          : bpf_skb_store_bytes(skb, net, &answer.error, sizeof(answer.error),
                                BPF_F_INVALIDATE_HASH))
    return 2;
  return bpf_redirect(skb->ifindex, direction);
}

static __noinline int sluice_tell6(struct __sk_buff* skb, const struct sluice_facts* facts,
                                   __u32 net, __u64 direction) {
  /* One buffer for both kinds: the stack of a call chain is 512 bytes. The IP headers coincide. */
  union {
    struct {
      struct sluice_tell6 ip;
      struct sluice_tcp_answer tcp;
    } reset;
    struct {
      struct sluice_tell6 ip;
      __u8 type, code;
      __be16 checksum;
      __be32 unused;
      __u8 quote[48];
    } error;
  } answer = {};
  struct {
    __u8 source[16], destination[16];
    __be32 length, next;
  } pseudo = {};
  struct sluice_tell6* ip = &answer.reset.ip;
  ip->version = bpf_htonl(6u << 28);
  ip->hop_limit = 64;
  sluice_copy16(ip->source, facts->destination);
  sluice_copy16(ip->destination, facts->source);
  sluice_copy16(pseudo.source, ip->source);
  sluice_copy16(pseudo.destination, ip->destination);
  __u32 length;
  if (facts->protocol == SLUICE_IPPROTO_TCP) {
    struct sluice_tcp_answer tcp;
    if (bpf_skb_load_bytes(skb, net + facts->transport_offset, &tcp, sizeof(tcp))) return 2;
    answer.reset.ip.next = SLUICE_IPPROTO_TCP;
    answer.reset.ip.payload = bpf_htons(sizeof(answer.reset.tcp));
    answer.reset.tcp.source = tcp.destination;
    answer.reset.tcp.destination = tcp.source;
    if (tcp.flags & SLUICE_TCP_ACK) {
      answer.reset.tcp.sequence = tcp.acknowledgment;
      answer.reset.tcp.flags = SLUICE_TCP_RST;
    } else {
      answer.reset.tcp.acknowledgment = bpf_htonl(bpf_ntohl(tcp.sequence) + 1);
      answer.reset.tcp.flags = SLUICE_TCP_RST | SLUICE_TCP_ACK;
    }
    answer.reset.tcp.offset = 5 << 4;
    pseudo.length = bpf_htonl(sizeof(answer.reset.tcp));
    pseudo.next = bpf_htonl(SLUICE_IPPROTO_TCP);
    __s64 sum = bpf_csum_diff(0, 0, (__be32*)&pseudo, sizeof(pseudo), 0);
    answer.reset.tcp.checksum =
        sluice_fold(bpf_csum_diff(0, 0, (__be32*)&answer.reset.tcp, sizeof(answer.reset.tcp), sum));
    length = sizeof(answer.reset);
  } else {
    answer.error.ip.next = SLUICE_IPPROTO_ICMPV6;
    answer.error.ip.payload = bpf_htons(8 + sizeof(answer.error.quote));
    answer.error.type = 1;
    answer.error.code = 1;
    if (bpf_skb_load_bytes(skb, net, answer.error.quote, sizeof(answer.error.quote))) return 2;
    pseudo.length = bpf_htonl(8 + sizeof(answer.error.quote));
    pseudo.next = bpf_htonl(SLUICE_IPPROTO_ICMPV6);
    __s64 sum = bpf_csum_diff(0, 0, (__be32*)&pseudo, sizeof(pseudo), 0);
    answer.error.checksum = sluice_fold(
        bpf_csum_diff(0, 0, (__be32*)&answer.error.type, 8 + sizeof(answer.error.quote), sum));
    length = sizeof(answer.error);
  }
  if (bpf_skb_change_tail(skb, net + length, 0)) return 2;
  if (net && sluice_swap_ethernet(skb)) return 2;
  if (facts->protocol == SLUICE_IPPROTO_TCP
          ? bpf_skb_store_bytes(skb, net, &answer.reset, sizeof(answer.reset),
                                BPF_F_INVALIDATE_HASH)
          : bpf_skb_store_bytes(skb, net, &answer.error, sizeof(answer.error),
                                BPF_F_INVALIDATE_HASH))
    return 2;
  return bpf_redirect(skb->ifindex, direction);
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
