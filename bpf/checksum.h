/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where a packet's checksum may still be filled in after it was judged. Compiles for BPF and for
 * user space. */
#pragma once

#include "packet.h"

/* Where the checksum lies in the transport header; 0: this protocol has none. */
static __always_inline __u32 sluice_checksum_field(__u8 protocol) {
  switch (protocol) {
    case SLUICE_IPPROTO_TCP:
      return 16;
    case SLUICE_IPPROTO_UDP:
    case SLUICE_IPPROTO_UDPLITE:
    case SLUICE_IPPROTO_DCCP:
      return 6;
    case SLUICE_IPPROTO_ICMP:
    case SLUICE_IPPROTO_ICMPV6:
      return 2;
    case SLUICE_IPPROTO_SCTP: /* CRC32c, four bytes */
      return 8;
    default:
      return 0;
  }
}

/* Bytes from the network header that were judged; of a packet that is not IP, none. */
static __always_inline __u32 sluice_judged_bytes(const struct sluice_facts* facts) {
  if (facts->flags & SLUICE_FACT_LATER_FRAGMENT) return facts->transport_offset;
  return facts->transport_offset + sluice_transport_need(facts->protocol);
}

/*
 * A checksum that a device is to fill in: over all from `start` (from the network header), at
 * `offset` from there. Is it the judged transport header's own, or one of what that carries?
 * Anywhere else it would write over what was judged, and whoever chose the payload chose the value.
 */
static __always_inline int sluice_checksum_spares(const struct sluice_facts* facts, int start,
                                                  __u32 offset) {
  int judged = (int)sluice_judged_bytes(facts), transport = (int)facts->transport_offset;
  if (start >= judged) return 1;
  return start == transport && judged != transport &&
         offset == sluice_checksum_field(facts->protocol);
}
