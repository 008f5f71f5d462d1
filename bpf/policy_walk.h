/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The explicit rules of a policy, asked: longest match in the poptrie, then the decision chain of
 * the leaf. One source for the BPF programs and for user space (C11 and C++20), where the
 * compiler's tests and fuzzers drive it.
 *
 *   __u32 leaf = sluice_trie_lookup(policy, &policy->ip4, address, 32);
 *   if (leaf >= SLUICE_LEAF_DECISION)
 *     leaf = sluice_judge_chain(policy, leaf, protocol, port, SLUICE_PACKET_PORTS);
 *
 * The includer has defined:
 * - __u64 sluice_now(void): CLOCK_BOOTTIME in nanoseconds; asked only where a decision that speaks
 *   has an expiry.
 * - in BPF the maps `heap` and `blobs` (maps.h), in user space
 *   const union sluice_element* sluice_element_at(const struct sluice_policy* policy, __u32 index):
 *   the element, `index` relative to the policy; null when there is none.
 *
 * The walk is bounded, holds no state, and answers SLUICE_LEAF_BROKEN (drop) where an image
 * contradicts itself.
 */
#pragma once

#include "layout.h"

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#define SLUICE_PACKET_PORTS (1u << 0) /* `port` is the packet's destination port */
/* Its ports are in another packet. Like every packet without SLUICE_PACKET_PORTS, it matches a deny
 * with ports (it cannot be shown not to) and never an allow with ports. */
#define SLUICE_PACKET_LATER_FRAGMENT (1u << 1)

/*
 * An element of the heap, or of `blob` (an inner map of `blobs`). Which of the two is settled once
 * per walk: each has its own copy of the loop, for two reasons that were measured. The outer map is
 * then asked once and not at each step. And the verifier inlines a lookup only where the map is the
 * same on every path: with both lookups behind one branch, clang joins them into one call, and a
 * step costs 15 ns instead of 3. The empty asm statements keep clang from joining them.
 *
 * A lookup in a blob is a call all the same, so the page that the last step was in is kept.
 */
struct sluice_walk {
  const struct sluice_policy* policy;
#ifdef __bpf__
  void* blob; /* 0: the heap */
  const struct sluice_blob_page* page;
  __u32 page_at;
#endif
};
#ifdef __bpf__
static __always_inline const union sluice_element* sluice_element_in(struct sluice_walk* walk,
                                                                     int in_blob, __u32 index) {
  const union sluice_element* element;
  if (in_blob) {
    __u32 page_at = index / SLUICE_PAGE_ELEMENTS;
    if (!walk->page || page_at != walk->page_at) {
      walk->page = bpf_map_lookup_elem(walk->blob, &page_at);
      if (!walk->page) return 0;
      walk->page_at = page_at;
    }
    element = &walk->page->element[index & (SLUICE_PAGE_ELEMENTS - 1)];
    asm volatile("" : "+r"(element) : : "memory");
  } else {
    index += walk->policy->base;
    element = bpf_map_lookup_elem(&heap, &index);
    asm volatile("" : "+r"(element));
  }
  return element;
}
static __always_inline void* sluice_blob_of(const struct sluice_policy* policy) {
  __u32 blob = policy->blob;
  return bpf_map_lookup_elem(&blobs, &blob);
}
#else
static __always_inline const union sluice_element* sluice_element_in(struct sluice_walk* walk,
                                                                     int in_blob, __u32 index) {
  (void)in_blob;
  return sluice_element_at(walk->policy, index);
}
#endif

/* The BPF instruction set has no popcnt. */
static __always_inline __u32 sluice_popcount(__u64 bits) {
  bits -= (bits >> 1) & 0x5555555555555555ull;
  bits = (bits & 0x3333333333333333ull) + ((bits >> 2) & 0x3333333333333333ull);
  bits = (bits + (bits >> 4)) & 0x0f0f0f0f0f0f0f0full;
  return (__u32)((bits * 0x0101010101010101ull) >> 56);
}

static __always_inline __u32 sluice_load_be32(const __u8* address) {
#ifdef __bpf__
  /* Two halves: the verifier refuses a misaligned load from the stack, and the IPv4 address inside
   * a 6to4 address is aligned to 2. */
  const __u16* halves = (const __u16*)address;
  return (__u32)__builtin_bswap16(halves[0]) << 16 | __builtin_bswap16(halves[1]);
#else
  return (__u32)address[0] << 24 | (__u32)address[1] << 16 | (__u32)address[2] << 8 | address[3];
#endif
}

static __always_inline __u32 sluice_walk_trie(struct sluice_walk* walk,
                                              const struct sluice_trie* trie, const __u8* address,
                                              int bits, int in_blob) {
  const union sluice_element* element;
  __u64 high, low = 0; /* the address bits not yet decided, left-aligned */
  __u32 index;

  high = (__u64)sluice_load_be32(address) << 32;
  if (bits == 128) {
    high |= sluice_load_be32(address + 4);
    low = (__u64)sluice_load_be32(address + 8) << 32 | sluice_load_be32(address + 12);
  }

  if (trie->direct_bits) {
    __u32 shift = trie->direct_bits & 31;
    __u32 slot = (__u32)(high >> (64 - shift)), reference;
    element = sluice_element_in(walk, in_blob, trie->direct + slot / 8);
    if (!element) return SLUICE_LEAF_BROKEN;
    reference = element->leaf[slot & 7];
    if (!(reference & SLUICE_IS_ELEMENT)) return reference;
    index = reference & ~SLUICE_IS_ELEMENT;
    high <<= shift;
    if (bits == 128) {
      high |= low >> (64 - shift);
      low <<= shift;
    }
  } else {
    if (trie->root == SLUICE_NO_TRIE) return trie->leaf;
    index = trie->root;
  }

  for (int step = 0; step < (bits == 128 ? SLUICE_MAX_STEPS : 6); step++) {
    element = sluice_element_in(walk, in_blob, index);
    if (!element) return SLUICE_LEAF_BROKEN;
    if (element->node.children & SLUICE_IS_SKIP) {
      __u32 skipped = element->skip.bits & ~SLUICE_IS_SKIP;
      __u64 difference = high ^ element->skip.key_high;
      if (skipped >= 64) {
        __u64 tail = low ^ element->skip.key_low;
        if (difference) return element->skip.otherwise;
        skipped -= 64;
        high = low;
        low = 0;
        if (skipped && tail >> ((64 - skipped) & 63)) return element->skip.otherwise;
      } else if (difference >> ((64 - skipped) & 63)) {
        return element->skip.otherwise;
      }
      if (!(element->skip.target & SLUICE_IS_ELEMENT)) return element->skip.target;
      index = element->skip.target & ~SLUICE_IS_ELEMENT;
      if (skipped) {
        high <<= skipped & 63;
        if (bits == 128) {
          high |= low >> ((64 - skipped) & 63);
          low <<= skipped & 63;
        }
      }
    } else {
      __u32 slot = (__u32)(high >> (64 - SLUICE_STRIDE));
      if (!(element->node.vector >> slot & 1)) {
        __u32 run = sluice_popcount(element->node.leafvec << (63 - slot)) - 1;
        if (element->node.leaves == SLUICE_LEAVES_INLINE)
          return element->node.inline_leaves[run & 1];
        run += element->node.leaves;
        element = sluice_element_in(walk, in_blob, run / 8);
        if (!element) return SLUICE_LEAF_BROKEN;
        return element->leaf[run & 7];
      }
      index = element->node.children + sluice_popcount(element->node.vector << (63 - slot)) - 1;
      high <<= SLUICE_STRIDE;
      if (bits == 128) {
        high |= low >> (64 - SLUICE_STRIDE);
        low <<= SLUICE_STRIDE;
      }
    }
  }
  return SLUICE_LEAF_BROKEN;
}

/*
 * The leaf of the longest prefix that covers `address` (network order, aligned to 2; 4 bytes with
 * bits = 32, 16 with bits = 128; `bits` is a constant): SLUICE_LEAF_NONE, _ALLOW, _DENY, _FLOOR,
 * _BROKEN, or a chain to judge.
 */
static __always_inline __u32 sluice_trie_lookup(const struct sluice_policy* policy,
                                                const struct sluice_trie* trie, const __u8* address,
                                                int bits) {
  struct sluice_walk walk = {.policy = policy};
#ifdef __bpf__
  if (policy->blob) {
    walk.blob = sluice_blob_of(policy);
    if (!walk.blob) return SLUICE_LEAF_BROKEN;
    return sluice_walk_trie(&walk, trie, address, bits, 1);
  }
#endif
  return sluice_walk_trie(&walk, trie, address, bits, 0);
}

/* Negative when `port` is not in the span. An unused span (first 1, last 0) contains none. */
static __always_inline __s64 sluice_outside(const struct sluice_port_span* span, __u32 port) {
  return ((__s64)port - span->first) | ((__s64)span->last - port);
}

static __always_inline __u32 sluice_walk_chain(struct sluice_walk* walk, __u32 leaf, __u32 protocol,
                                               __u32 port, __u32 packet_flags, int in_blob) {
  /* All ones when the ports are not known. Arithmetic instead of branches, here and for the spans:
   * what the verifier learns from a branch keeps its states apart, and the loop below was 250,000
   * instructions to it, now a few. */
  __s64 unknown = (__s64)(packet_flags & SLUICE_PACKET_PORTS) - 1;
  for (int step = 0; step < SLUICE_MAX_CHAIN; step++) {
    const union sluice_element* element;
    __s64 outside;
    if (leaf < SLUICE_LEAF_DECISION) return leaf;
    element = sluice_element_in(walk, in_blob, leaf - SLUICE_LEAF_DECISION);
    if (!element) return SLUICE_LEAF_BROKEN;
    leaf = element->decision.next;
    if (!element->decision.any_protocol) {
      if (element->decision.protocol != protocol) continue;
      if (element->decision.spans) {
        outside = sluice_outside(&element->decision.span[0], port) &
                  sluice_outside(&element->decision.span[1], port) &
                  sluice_outside(&element->decision.span[2], port) &
                  sluice_outside(&element->decision.span[3], port);
        if (element->decision.verdict == SLUICE_LEAF_ALLOW)
          outside |= unknown;
        else
          outside &= ~unknown;
        if (outside < 0) continue;
      }
    }
    if (element->decision.expires && sluice_now() >= element->decision.expires) continue;
    return element->decision.verdict;
  }
  if (leaf < SLUICE_LEAF_DECISION) return leaf;
  return SLUICE_LEAF_BROKEN;
}

/*
 * What the chain at `leaf` (SLUICE_LEAF_DECISION or above) says of a packet: SLUICE_LEAF_NONE when
 * no rule of it speaks, _ALLOW, _DENY, _FLOOR or _BROKEN. `protocol` is the IP protocol, `port` the
 * destination port in host order, read only with SLUICE_PACKET_PORTS.
 */
static __always_inline __u32 sluice_judge_chain(const struct sluice_policy* policy, __u32 leaf,
                                                __u32 protocol, __u32 port, __u32 packet_flags) {
  struct sluice_walk walk = {.policy = policy};
#ifdef __bpf__
  if (policy->blob) {
    walk.blob = sluice_blob_of(policy);
    if (!walk.blob) return SLUICE_LEAF_BROKEN;
    return sluice_walk_chain(&walk, leaf, protocol, port, packet_flags, 1);
  }
#endif
  return sluice_walk_chain(&walk, leaf, protocol, port, packet_flags, 0);
}
