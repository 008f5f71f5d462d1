/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Port 53 of a workload in a cgroup. Its sockets are the host's own, so nothing has to be taken
 * from a packet: connect and sendmsg are led to the resolver's own address, and recvmsg and
 * getpeername put the server's back that was asked. cgroup_skb/egress marks what goes there, over
 * whatever the socket had for a mark.
 *
 * Only in the daemon's own network namespace; elsewhere the loopback device is another one, and
 * port 53 is judged by policy.
 *
 * One unconnected socket may ask several servers at once and take answers only from those (musl
 * asks all of resolv.conf that way). Each server it asks gets another of the resolver's addresses
 * as long as there are any, so that an answer's source tells which one it is for; where they have
 * to share one, it is the server asked last.
 */
#pragma once

#include "dns_budget.h"

static __always_inline int sluice_is_own_netns(__u64 cookie) {
  __u32 zero = 0;
  const struct sluice_settings* host = bpf_map_lookup_elem(&settings, &zero);
  return host && cookie && cookie == host->netns_cookie;
}

/* N of a resolver's own address, or 0. */
static __always_inline __u8 sluice_resolver_host(const __u8* address) {
  const __u64* half = (const __u64*)address;
  if (sluice_is_mapped(address))
    return bpf_ntohl(*(const __u32*)(address + 12)) >> 8 == SLUICE_RESOLVER_NET4 >> 8 ? address[15]
                                                                                      : 0;
  return half[0] == bpf_cpu_to_be64(SLUICE_RESOLVER_NET6) && !(half[1] & bpf_cpu_to_be64(~0xffull))
             ? address[15]
             : 0;
}

/* Notes that `server` is asked by `sk`; N of the resolver's address to ask instead, or 0. */
static __always_inline __u8 sluice_lead_to_resolver(struct bpf_sock* sk,
                                                    const struct sluice_resolver* served,
                                                    __u32 kind, __u32 index, const __u8* server) {
  __u32 workers = kind < SLUICE_SOCKET_KINDS ? served->workers[kind] : 0;
  if (workers == 0 || workers > SLUICE_RESOLVER_WORKERS) return 0;
  struct sluice_asked* asked = bpf_sk_storage_get(&dns_asked, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  if (!asked) return 0;
  const __u64* wanted = (const __u64*)server;
  __u32 place = SLUICE_ASKED_SERVERS, oldest = 0;
  for (__u32 i = 0; i < SLUICE_ASKED_SERVERS; i++) {
    const __u64* known = (const __u64*)asked->servers[i].address;
    if (asked->servers[i].turn && known[0] == wanted[0] && known[1] == wanted[1]) place = i;
    if (asked->servers[i].turn < asked->servers[oldest].turn) oldest = i;
  }
  if (place == SLUICE_ASKED_SERVERS) place = oldest;
  if (place >= SLUICE_ASKED_SERVERS) return 0;
  __u32 worker = (index + place) % workers;
  /* The compiler knows that it is in bounds and would leave the check out; the verifier does not.
   */
  barrier_var(worker);
  if (worker >= SLUICE_RESOLVER_WORKERS) return 0;
  sluice_copy16(asked->servers[place].address, server);
  asked->servers[place].host = served->hosts[kind][worker];
  asked->servers[place].turn = ++asked->turns;
  return (__u8)asked->servers[place].host;
}

/* The server that `sk` asked by way of the resolver's address with this N, or null. */
static __always_inline const __u8* sluice_asked_server(struct bpf_sock* sk, __u8 host) {
  if (!sk || !host) return 0;
  struct sluice_asked* asked = bpf_sk_storage_get(&dns_asked, sk, 0, 0);
  if (!asked) return 0;
  __u32 latest = SLUICE_ASKED_SERVERS, turn = 0;
  for (__u32 i = 0; i < SLUICE_ASKED_SERVERS; i++)
    if (asked->servers[i].host == host && asked->servers[i].turn > turn) {
      latest = i;
      turn = asked->servers[i].turn;
    }
  return latest < SLUICE_ASKED_SERVERS ? asked->servers[latest].address : 0;
}

/* A call that asks a server: rewrites its address. ALLOW_DNS or the reason to refuse. */
static __always_inline __u32 sluice_redirect_call(struct bpf_sock_addr* context,
                                                  const struct sluice_slot* slot, __u32 index,
                                                  const struct sluice_facts* facts, int is_ip6) {
  __u32 resolver = slot->resolver;
  const struct sluice_resolver* served = bpf_map_lookup_elem(&dns_resolvers, &resolver);
  struct bpf_sock* sk = context->sk;
  if (!served || !sk) return SLUICE_REASON_DENY_DNS_UNSERVED;
  /* Each send on a connected IPv6 socket whose peer is a mapped address comes by here, with the
   * address that connect led it to. */
  if (sluice_asked_server(sk, sluice_resolver_host(facts->destination)))
    return SLUICE_REASON_ALLOW_DNS;
  __u32 kind = facts->protocol == SLUICE_IPPROTO_TCP
                   ? (facts->family == 4 ? SLUICE_SOCKET_TCP4 : SLUICE_SOCKET_TCP6)
                   : (facts->family == 4 ? SLUICE_SOCKET_UDP4 : SLUICE_SOCKET_UDP6);
  __u8 host = sluice_lead_to_resolver(sk, served, kind, index, facts->destination);
  if (!host) return SLUICE_REASON_DENY_DNS_UNSERVED;
  if (!is_ip6) {
    context->user_ip4 = bpf_htonl(SLUICE_RESOLVER_NET4 | host);
  } else if (facts->family == 4) {
    context->user_ip6[3] = bpf_htonl(SLUICE_RESOLVER_NET4 | host); /* stays a mapped address */
  } else {
    context->user_ip6[0] = bpf_htonl(SLUICE_RESOLVER_NET6 >> 32);
    context->user_ip6[1] = bpf_htonl(SLUICE_RESOLVER_NET6 & 0xffffffff);
    context->user_ip6[2] = 0;
    context->user_ip6[3] = bpf_htonl(host);
  }
  return SLUICE_REASON_ALLOW_DNS;
}

/* recvmsg and getpeername: always 1, the kernel takes nothing else. */
static __always_inline int sluice_name_asked4(struct bpf_sock_addr* context) {
  __u8 address[16] __attribute__((aligned(8)));
  __u32 ip4 = context->user_ip4;
  if (context->user_port != bpf_htons(SLUICE_DNS_PORT)) return 1;
  sluice_map_ip4(address, (__u8*)&ip4);
  const __u8* server = sluice_asked_server(context->sk, sluice_resolver_host(address));
  if (server) context->user_ip4 = *(const __u32*)(server + 12);
  return 1;
}
static __always_inline int sluice_name_asked6(struct bpf_sock_addr* context) {
  __u8 address[16] __attribute__((aligned(8)));
  __u32* word = (__u32*)address;
  if (context->user_port != bpf_htons(SLUICE_DNS_PORT)) return 1;
  word[0] = context->user_ip6[0];
  word[1] = context->user_ip6[1];
  word[2] = context->user_ip6[2];
  word[3] = context->user_ip6[3];
  const __u8* server = sluice_asked_server(context->sk, sluice_resolver_host(address));
  if (!server) return 1;
  const __u32* from = (const __u32*)server;
  context->user_ip6[0] = from[0];
  context->user_ip6[1] = from[1];
  context->user_ip6[2] = from[2];
  context->user_ip6[3] = from[3];
  return 1;
}

SEC("cgroup/recvmsg4")
int sluice_recvmsg4(struct bpf_sock_addr* context) {
  return sluice_name_asked4(context);
}
SEC("cgroup/recvmsg6")
int sluice_recvmsg6(struct bpf_sock_addr* context) {
  return sluice_name_asked6(context);
}
SEC("cgroup/getpeername4")
int sluice_getpeername4(struct bpf_sock_addr* context) {
  return sluice_name_asked4(context);
}
SEC("cgroup/getpeername6")
int sluice_getpeername6(struct bpf_sock_addr* context) {
  return sluice_name_asked6(context);
}

/*
 * A packet to port 53, or SLUICE_OK where it is none, or is of another namespace: then policy
 * judges it. It must go to a resolver's own address, where connect and sendmsg led it, on the
 * host's loopback device, whatever the socket was bound to. To any other server it is refused: it
 * comes from a raw socket, or from one that was connected before the redirection, whose program
 * asks again.
 */
static __always_inline __u32 sluice_judge_loop_query(struct __sk_buff* skb,
                                                     const struct sluice_slot* slot, __u32 index,
                                                     __u64 word, const struct sluice_facts* facts) {
  if (!sluice_asks_for_names(word, facts)) return SLUICE_OK;
  __u64 cookie = sluice_netns_cookie_at(skb);
  if (cookie && !sluice_is_own_netns(cookie)) return SLUICE_OK;
  if (facts->flags & SLUICE_FACT_FRAGMENT) return SLUICE_REASON_DENY_FRAGMENT;
  if (!sluice_resolver_host(facts->destination) || skb->ifindex != 1 || !slot->asker_mark)
    return SLUICE_REASON_DENY_DNS_UNSERVED;
  if (!sluice_take_dns_token(index)) return SLUICE_REASON_DENY_DNS_BUDGET;
  skb->mark = slot->asker_mark;
  if (facts->protocol == SLUICE_IPPROTO_TCP &&
      (facts->tcp_flags & (SLUICE_TCP_SYN | SLUICE_TCP_ACK)) == SLUICE_TCP_SYN) {
    struct sluice_stream_key key;
    const __u8* server = 0;
    struct bpf_sock* sk = skb->sk;
    if (sk) sk = bpf_sk_fullsock(sk);
    if (sk) server = sluice_asked_server(sk, sluice_resolver_host(facts->destination));
    sluice_stream_key_of(facts, &key);
    sluice_note_stream(&key, slot->asker_mark, server ? server : facts->destination);
  }
  return SLUICE_REASON_ALLOW_DNS;
}
