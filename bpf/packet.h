/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a packet says of itself. Compiles for BPF and for user space, where it is fuzzed.
 *
 * Reading fails closed: whatever is short, contradicts itself or is not understood gives a DENY_
 * reason. A caller whose buffer holds only the head of a packet (a non-linear skb) pulls more and
 * reads again on DENY_TRUNCATED.
 */
#pragma once

#include "layout.h"

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define SLUICE_IPPROTO_ICMP 1
#define SLUICE_IPPROTO_TCP 6
#define SLUICE_IPPROTO_UDP 17
#define SLUICE_IPPROTO_DCCP 33
#define SLUICE_IPPROTO_ICMPV6 58
#define SLUICE_IPPROTO_SCTP 132
#define SLUICE_IPPROTO_UDPLITE 136

#define SLUICE_ETH_IP4 0x0800
#define SLUICE_ETH_ARP 0x0806
#define SLUICE_ETH_IP6 0x86dd
#define SLUICE_ETH_VLAN 0x8100

#define SLUICE_TCP_FIN 0x01
#define SLUICE_TCP_SYN 0x02
#define SLUICE_TCP_RST 0x04
#define SLUICE_TCP_ACK 0x10

#define SLUICE_FACT_FRAGMENT (1u << 0)       /* any fragment, the first one too */
#define SLUICE_FACT_LATER_FRAGMENT (1u << 1) /* its ports are in another packet */
#define SLUICE_FACT_PORTS (1u << 2)          /* source_port and destination_port were read */

/* The headers of one packet. Addresses as in layout.h (IPv4 mapped); ports in host order. */
struct sluice_facts {
  __u8 source[16] __attribute__((aligned(8)));
  __u8 destination[16];
  __u16 source_port;
  __u16 destination_port;
  __u8 family; /* 4, 6, or 0: not IP */
  __u8 protocol;
  __u8 flags; /* SLUICE_FACT_ */
  __u8 tcp_flags;
  __u8 icmp_type, icmp_code;
  __u8 hop_limit;
  __u8 reserved;
  __u16 icmp_id; /* host order; echo messages */
  __u16 ethertype;
  __u32 transport_offset; /* from the network header */
  __u32 ifindex;          /* cgroups: the packet's device, which a reply is bound to; 0: to none */
};

/*
 * Bytes of a packet, from the network header. `length` is the whole packet's; `start` to `end` can
 * be read directly. In BPF further bytes are read by helper; the caller has pulled them into the
 * linear part first where the sender could still write to them (a packet ring, guest memory), so
 * that what is judged is what is sent.
 */
struct sluice_view {
  const __u8* start;
  const __u8* end;
  __u32 length;
#ifdef __bpf__
  struct __sk_buff* skb;
  __u32 net; /* offset of the network header from skb->data */
#endif
};

#define SLUICE_MAX_HEADERS 512 /* IPv6 headers before the transport header, in bytes */
#define SLUICE_MAX_EXTENSIONS 8
#define SLUICE_OK SLUICE_REASON_COUNT

/* Byte arrays are copied as words: clang would do it byte by byte for the BPF target. */
#ifdef __bpf__
#define SLUICE_WORD32(bytes) (*(const __u32*)(bytes))
#define SLUICE_WORD64(bytes) (*(const __u64*)(bytes))
#else
static inline __u32 SLUICE_WORD32(const void* bytes) {
  __u32 word;
  __builtin_memcpy(&word, bytes, 4);
  return word;
}
static inline __u64 SLUICE_WORD64(const void* bytes) {
  __u64 word;
  __builtin_memcpy(&word, bytes, 8);
  return word;
}
#endif

static __always_inline __u16 sluice_be16(const __u8* bytes) {
  return (__u16)(bytes[0] << 8 | bytes[1]);
}
/* `to` is aligned to 8. */
static __always_inline void sluice_copy16(__u8* to, const __u8* from) {
  ((__u64*)to)[0] = SLUICE_WORD64(from);
  ((__u64*)to)[1] = SLUICE_WORD64(from + 8);
}
static __always_inline void sluice_map_ip4(__u8* to, const __u8* from) {
  ((__u64*)to)[0] = 0;
  to[8] = 0, to[9] = 0, to[10] = 0xff, to[11] = 0xff;
  ((__u32*)to)[3] = SLUICE_WORD32(from);
}

/* Copies `size` bytes at offset `at` from the network header. 0, or negative when the packet has
 * fewer. */
static __always_inline int sluice_load(const struct sluice_view* view, __u32 at, void* to,
                                       __u32 size) {
#ifdef __bpf__
  return (int)bpf_skb_load_bytes(view->skb, view->net + at, to, size);
#else
  if (at > (__u32)(view->end - view->start) || size > (__u32)(view->end - view->start) - at)
    return -1;
  __builtin_memcpy(to, view->start + at, size);
  return 0;
#endif
}

static __always_inline int sluice_is_mapped(const __u8* address) {
  return !(address[0] | address[1] | address[2] | address[3] | address[4] | address[5] |
           address[6] | address[7] | address[8] | address[9]) &&
         address[10] == 0xff && address[11] == 0xff;
}

/* Ports and flags of the transport header, whose first bytes are in `header`. */
static __always_inline __u32 sluice_read_transport(const __u8* header, __u32 remaining,
                                                   struct sluice_facts* facts) {
  switch (facts->protocol) {
    case SLUICE_IPPROTO_TCP: {
      __u32 length = (__u32)(header[12] >> 4) * 4;
      if (length < 20) return SLUICE_REASON_DENY_MALFORMED;
      /* The options of a first fragment may lie in the next one. */
      if (length > remaining && !(facts->flags & SLUICE_FACT_FRAGMENT))
        return SLUICE_REASON_DENY_MALFORMED;
      facts->tcp_flags = header[13];
      break;
    }
    case SLUICE_IPPROTO_ICMP:
    case SLUICE_IPPROTO_ICMPV6:
      facts->icmp_type = header[0];
      facts->icmp_code = header[1];
      facts->icmp_id = sluice_be16(header + 4);
      return SLUICE_OK;
    default:
      break;
  }
  facts->source_port = sluice_be16(header);
  facts->destination_port = sluice_be16(header + 2);
  facts->flags |= SLUICE_FACT_PORTS;
  return SLUICE_OK;
}

/* Bytes of transport header that a packet must have to be judged; 0: none are read. */
static __always_inline __u32 sluice_transport_need(__u8 protocol) {
  switch (protocol) {
    case SLUICE_IPPROTO_TCP:
      return 20;
    case SLUICE_IPPROTO_UDP:
    case SLUICE_IPPROTO_UDPLITE:
    case SLUICE_IPPROTO_ICMP:
    case SLUICE_IPPROTO_ICMPV6:
      return 8;
    case SLUICE_IPPROTO_SCTP:
    case SLUICE_IPPROTO_DCCP:
      return 12;
    default:
      return 0;
  }
}

/* The transport header at `at`, of which the packet has `remaining` bytes. Constant `at`: read
 * directly if possible. */
static __always_inline __u32 sluice_transport(const struct sluice_view* view, __u32 at,
                                              __u32 remaining, struct sluice_facts* facts) {
  __u8 header[24] __attribute__((aligned(8)));
  __u32 need = sluice_transport_need(facts->protocol);
  facts->transport_offset = at;
  if (need == 0) return SLUICE_OK;
  if (remaining < need) return SLUICE_REASON_DENY_TRUNCATED;
  if (__builtin_constant_p(at) && view->start + at + 20 <= view->end) {
    const __u8* direct = view->start + at;
    ((__u64*)header)[0] = SLUICE_WORD64(direct);
    ((__u64*)header)[1] = SLUICE_WORD64(direct + 8);
  } else if (need == 20) {
    if (sluice_load(view, at, header, 20)) return SLUICE_REASON_DENY_TRUNCATED;
  } else if (need == 12) {
    if (sluice_load(view, at, header, 12)) return SLUICE_REASON_DENY_TRUNCATED;
  } else if (sluice_load(view, at, header, 8)) {
    return SLUICE_REASON_DENY_TRUNCATED;
  }
  return sluice_read_transport(header, remaining, facts);
}

/* RFC 791 options: source routes choose another path than the one judged here. */
static __always_inline __u32 sluice_check_ip4_options(const struct sluice_view* view,
                                                      __u32 length) {
  __u8 options[64] = {};
  __u32 skip = 0, in_length = 0, size = length - 1;
  if (length == 0 || length > 40) return SLUICE_REASON_DENY_TRUNCATED;
#ifdef __bpf__
  /* So that the mask stays: the verifier of kernel 6.1 learns nothing from a comparison with zero,
   * nor of a copy of what was compared. */
  asm volatile("" : "+r"(size));
#endif
  size = (size & (sizeof(options) - 1)) + 1;
  if (sluice_load(view, 20, options, size)) return SLUICE_REASON_DENY_TRUNCATED;
  /* Byte by byte with a counter instead of a cursor: the verifier follows that at a hundredth of
   * the cost. */
  for (__u32 i = 0; i < 40; i++) {
    if (i >= length) break;
    __u8 byte = options[i];
    if (skip) {
      skip--;
    } else if (in_length) {
      if (byte < 2 || i - 1 + byte > length) return SLUICE_REASON_DENY_MALFORMED;
      skip = byte - 2u;
      in_length = 0;
    } else if (byte == 0) {
      break;
    } else if (byte == 131 || byte == 137) { /* LSRR, SSRR */
      return SLUICE_REASON_DENY_SOURCE_ROUTE;
    } else if (byte != 1) {
      in_length = 1;
    }
  }
  return in_length ? SLUICE_REASON_DENY_MALFORMED : SLUICE_OK;
}

static __always_inline __u32 sluice_read_ip4(const struct sluice_view* view,
                                             struct sluice_facts* facts) {
  const __u8* ip = view->start;
  if (view->length < 20 || ip + 20 > view->end) return SLUICE_REASON_DENY_TRUNCATED;
  facts->family = 4;
  sluice_map_ip4(facts->source, ip + 12);
  sluice_map_ip4(facts->destination, ip + 16);
  facts->protocol = ip[9];
  facts->hop_limit = ip[8];
  if ((ip[0] >> 4) != 4) return SLUICE_REASON_DENY_MALFORMED;
  __u32 header_length = (__u32)(ip[0] & 15) * 4;
  __u32 total = sluice_be16(ip + 2);
  __u32 fragment = sluice_be16(ip + 6);
  /* Only the kernel itself builds packets over 64 KiB (BIG TCP); they carry a total length of 0. */
  if (total == 0 && view->length > 0xffff) total = view->length;
  if (header_length < 20 || total < header_length) return SLUICE_REASON_DENY_MALFORMED;
  if (total > view->length) return SLUICE_REASON_DENY_TRUNCATED;
  if (header_length > 20) {
    __u32 options = sluice_check_ip4_options(view, header_length - 20);
    if (options != SLUICE_OK) return options;
  }
  if (fragment & 0x3fff) facts->flags |= SLUICE_FACT_FRAGMENT;
  if (fragment & 0x1fff) {
    facts->flags |= SLUICE_FACT_LATER_FRAGMENT;
    facts->transport_offset = header_length;
    /* RFC 3128: offset 1 rewrites the flags of a TCP header that was judged in the first fragment.
     */
    if ((fragment & 0x1fff) == 1 && facts->protocol == SLUICE_IPPROTO_TCP)
      return SLUICE_REASON_DENY_FRAGMENT;
    return SLUICE_OK;
  }
  if (header_length == 20) return sluice_transport(view, 20, total - 20, facts);
  return sluice_transport(view, header_length, total - header_length, facts);
}

/* Is it a header that another one follows, so that the transport protocol is not known yet? */
static __always_inline int sluice_is_extension(__u8 protocol) {
  switch (protocol) {
    case 0:   /* hop-by-hop */
    case 43:  /* routing */
    case 44:  /* fragment */
    case 51:  /* authentication */
    case 60:  /* destination options */
    case 135: /* mobility */
    case 139: /* HIP */
    case 140: /* shim6 */
      return 1;
    default:
      return 0;
  }
}

/* What one extension header says: the verdict so far in `reason`, or the next header and this one's
 * length. */
struct sluice_extension {
  __u32 reason;
  __u32 length;
  __u8 next;
  __u8 later_fragment;
  __u8 fragment;
};

static __always_inline void sluice_read_extension(const struct sluice_view* view, __u32 at,
                                                  __u8 type, struct sluice_extension* extension) {
  __u8 header[8] __attribute__((aligned(8)));
  extension->reason = SLUICE_OK;
  if (sluice_load(view, at, header, 8)) {
    extension->reason = SLUICE_REASON_DENY_TRUNCATED;
    return;
  }
  extension->next = header[0];
  switch (type) {
    case 43:
      if (header[3] != 0) extension->reason = SLUICE_REASON_DENY_SOURCE_ROUTE; /* segments left */
      /* fallthrough */
    case 0:
    case 60:
      extension->length = ((__u32)header[1] + 1) * 8;
      break;
    case 51: /* counts 4-byte words, minus 2 (RFC 4302) */
      extension->length = ((__u32)header[1] + 2) * 4;
      if (extension->length < 12) extension->reason = SLUICE_REASON_DENY_MALFORMED;
      break;
    case 44: {
      __u32 field = sluice_be16(header + 2);
      extension->length = 8;
      extension->fragment = (field & 0xfff9) != 0;
      extension->later_fragment = (field & 0xfff8) != 0;
      /* RFC 3128 as for IPv4; and a later fragment that begins with headers hides its protocol in
       * the first one. */
      if (extension->later_fragment && (((field >> 3) == 1 && header[0] == SLUICE_IPPROTO_TCP) ||
                                        sluice_is_extension(header[0])))
        extension->reason = SLUICE_REASON_DENY_FRAGMENT;
      break;
    }
    default: /* mobility, HIP, shim6: another transport may stand behind them */
      extension->reason = SLUICE_REASON_DENY_EXTENSION;
      break;
  }
}

static __always_inline __u32 sluice_read_ip6(const struct sluice_view* view,
                                             struct sluice_facts* facts) {
  const __u8* ip = view->start;
  if (view->length < 40 || ip + 40 > view->end) return SLUICE_REASON_DENY_TRUNCATED;
  facts->family = 6;
  sluice_copy16(facts->source, ip + 8);
  sluice_copy16(facts->destination, ip + 24);
  facts->hop_limit = ip[7];
  facts->protocol = ip[6];
  if ((ip[0] >> 4) != 6) return SLUICE_REASON_DENY_MALFORMED;
  if (sluice_is_mapped(facts->source) || sluice_is_mapped(facts->destination))
    return SLUICE_REASON_DENY_MAPPED;
  __u32 total = 40 + (__u32)sluice_be16(ip + 4);
  if (total == 40 && view->length > 0xffff) total = view->length; /* BIG TCP, see IPv4 */
  if (total > view->length) return SLUICE_REASON_DENY_TRUNCATED;
  if (!sluice_is_extension(facts->protocol)) return sluice_transport(view, 40, total - 40, facts);

  __u32 at = 40;
  for (int i = 0; i < SLUICE_MAX_EXTENSIONS; i++) {
    struct sluice_extension extension = {};
    /* Hop-by-hop stands only directly behind the IPv6 header (RFC 8200 section 4.1). */
    if (i != 0 && facts->protocol == 0) return SLUICE_REASON_DENY_EXTENSION;
    sluice_read_extension(view, at, facts->protocol, &extension);
    if (extension.reason != SLUICE_OK) return extension.reason;
    at += extension.length;
    if (at > SLUICE_MAX_HEADERS) return SLUICE_REASON_DENY_EXTENSION;
    if (at > total) return SLUICE_REASON_DENY_TRUNCATED;
    facts->protocol = extension.next;
    if (extension.fragment) facts->flags |= SLUICE_FACT_FRAGMENT;
    if (extension.later_fragment) {
      facts->flags |= SLUICE_FACT_LATER_FRAGMENT;
      facts->transport_offset = at;
      return SLUICE_OK;
    }
    if (!sluice_is_extension(facts->protocol)) return sluice_transport(view, at, total - at, facts);
  }
  return SLUICE_REASON_DENY_EXTENSION;
}

/* RFC 826 for Ethernet and IPv4, and no more bytes than a minimal frame pads: ARP is no message
 * channel. */
static __always_inline __u32 sluice_check_arp(const struct sluice_view* view) {
  __u8 arp[8] __attribute__((aligned(8)));
  if (view->length < 28 || sluice_load(view, 0, arp, 8)) return SLUICE_REASON_DENY_TRUNCATED;
  /* 46 bytes of payload, and 4 for drivers that leave a frame check sequence */
  if (view->length > 50) return SLUICE_REASON_DENY_HOUSEKEEPING;
  if (sluice_be16(arp) != 1 || sluice_be16(arp + 2) != SLUICE_ETH_IP4 || arp[4] != 6 || arp[5] != 4)
    return SLUICE_REASON_DENY_MALFORMED;
  if (arp[6] != 0 || (arp[7] != 1 && arp[7] != 2)) return SLUICE_REASON_DENY_MALFORMED;
  return SLUICE_OK;
}
