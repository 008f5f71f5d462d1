/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The walk alone, in the kernel: for the test that its verdicts are those of user space, and for
 * the benchmark. The maps have the types of the data plane's (bpf/maps.h).
 */
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "../../../bpf/layout.h"

#pragma clang diagnostic ignored "-Wunused-parameter" /* a program has a context, asked or not */

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 1); /* set at load */
  __type(key, __u32);
  __type(value, union sluice_element);
} heap SEC(".maps");

struct sluice_blob {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
  __uint(max_entries, 1);
  __type(key, __u32);
  __uint(value_size, sizeof(struct sluice_blob_page));
};
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
  __uint(max_entries, 4);
  __type(key, __u32);
  __array(values, struct sluice_blob);
} blobs SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct sluice_policy);
} policies SEC(".maps");

/* What to ask: read in order, so that the questions themselves cost next to nothing. */
struct question {
  __u8 address[16]; /* as in the model: IPv4 in the first 4 bytes */
  __u64 now;
  __u32 flags; /* SLUICE_PACKET_ */
  __u16 port;  /* host order */
  __u8 protocol;
  __u8 family;
};
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 1); /* set at load */
  __type(key, __u32);
  __type(value, struct question);
} questions SEC(".maps");
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 1); /* set at load */
  __type(key, __u32);
  __type(value, __u32);
} answers SEC(".maps");

static __u64 test_now; /* the test moves the clock */

static __always_inline __u64 sluice_now(void) {
  return test_now;
}

#include "../../../bpf/policy_walk.h"

__u32 next;     /* the question to ask */
__u32 mask = 0; /* next & mask: 0 asks the same again and again */

static __always_inline const struct question* ask(void) {
  __u32 at = next++ & mask;
  return bpf_map_lookup_elem(&questions, &at);
}
static __always_inline const struct sluice_policy* only_policy(void) {
  __u32 zero = 0;
  return bpf_map_lookup_elem(&policies, &zero);
}

SEC("tc") int noop(struct __sk_buff* skb) {
  return 0;
}

/* All that the lookups below do besides looking up. */
SEC("tc") int question_only(struct __sk_buff* skb) {
  const struct question* question = ask();
  const struct sluice_policy* policy = only_policy();
  if (!question || !policy) return -1;
  return question->address[0] ^ policy->elements;
}

SEC("tc") int lookup4(struct __sk_buff* skb) {
  const struct question* question = ask();
  const struct sluice_policy* policy = only_policy();
  if (!question || !policy) return -1;
  return sluice_trie_lookup(policy, &policy->ip4, question->address, 32);
}

SEC("tc") int lookup6(struct __sk_buff* skb) {
  const struct question* question = ask();
  const struct sluice_policy* policy = only_policy();
  if (!question || !policy) return -1;
  return sluice_trie_lookup(policy, &policy->ip6, question->address, 128);
}

/* Verdicts: lookup and chain, written to `answers`. */
static __always_inline __u32 judge(const struct question* question) {
  const struct sluice_policy* policy = only_policy();
  __u32 leaf;
  if (!policy) return SLUICE_LEAF_BROKEN;
  test_now = question->now;
  leaf = question->family == 4 ? sluice_trie_lookup(policy, &policy->ip4, question->address, 32)
                               : sluice_trie_lookup(policy, &policy->ip6, question->address, 128);
  if (leaf >= SLUICE_LEAF_DECISION)
    leaf = sluice_judge_chain(policy, leaf, question->protocol, question->port, question->flags);
  return leaf;
}

SEC("tc") int verdicts(struct __sk_buff* skb) {
  __u32 at = next & mask;
  const struct question* question = ask();
  __u32* answer = bpf_map_lookup_elem(&answers, &at);
  if (!question || !answer) return -1;
  *answer = judge(question);
  return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
