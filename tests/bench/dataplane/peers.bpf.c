/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the filter is measured against: nothing, a bare drop, and the kernel's LPM trie. */
#include <linux/bpf.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define NEXT (-1)
#define DROP 2
#define DESTINATIONS (1 << 18)

/* Where the packets of a random run go; filled by the benchmark, network order. */
__u32 destinations4[DESTINATIONS];
__u64 destinations6[DESTINATIONS][2];
__u32 cursor = 0;

struct {
  __uint(type, BPF_MAP_TYPE_PROG_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, __u32);
} contender SEC(".maps");

struct trie_key {
  __u32 length;
  __u8 address[4];
};
struct {
  __uint(type, BPF_MAP_TYPE_LPM_TRIE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(max_entries, 2000000);
  __type(key, struct trie_key);
  __type(value, __u32);
} trie SEC(".maps");

SEC("tc")
int do_nothing(struct __sk_buff* skb) {
  (void)skb;
  return NEXT;
}

SEC("tc")
int bare_drop(struct __sk_buff* skb) {
  (void)skb;
  return DROP;
}

/* The least that a filter over an LPM trie can be: no ports, no counters, no reasons. */
SEC("tc")
int trie_filter(struct __sk_buff* skb) {
  const __u8* data = (const __u8*)(long)skb->data;
  const __u8* end = (const __u8*)(long)skb->data_end;
  if (data + 34 > end || skb->protocol != bpf_htons(0x0800)) return DROP;
  struct trie_key key = {.length = 32};
  __builtin_memcpy(key.address, data + 30, 4);
  const __u32* allowed = bpf_map_lookup_elem(&trie, &key);
  return allowed && *allowed ? NEXT : DROP;
}

/* Another destination for each run, then the contender: what choosing costs is in every figure, and
 * goes out with the no-op's. */
SEC("tc")
int aim4(struct __sk_buff* skb) {
  __u8* data = (__u8*)(long)skb->data;
  if (data + 34 > (const __u8*)(long)skb->data_end) return DROP;
  *(__u32*)(data + 30) = destinations4[cursor++ & (DESTINATIONS - 1)];
  bpf_tail_call_static(skb, &contender, 0);
  return DROP;
}

SEC("tc")
int aim6(struct __sk_buff* skb) {
  __u8* data = (__u8*)(long)skb->data;
  if (data + 54 > (const __u8*)(long)skb->data_end) return DROP;
  __u32 at = cursor++ & (DESTINATIONS - 1);
  *(__u64*)(data + 38) = destinations6[at][0];
  *(__u64*)(data + 46) = destinations6[at][1];
  bpf_tail_call_static(skb, &contender, 0);
  return DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
