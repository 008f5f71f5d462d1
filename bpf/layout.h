/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Everything that lives in a map: shared by the programs, the daemon and the tests.
 *
 * The maps outlive the daemon, so this file is an ABI between releases. Change any layout here and
 * raise SLUICE_LAYOUT_VERSION, and teach host/dataplane/carry_over.cpp the one before: the daemon
 * then builds a new tree beside the old one and moves the links over. All integers are host byte
 * order unless a name ends in _be. Addresses are network byte order, 16 bytes; IPv4 is stored
 * mapped (::ffff:a.b.c.d, RFC 4291 section 2.5.5.2). Times are CLOCK_BOOTTIME nanoseconds, 0 =
 * never.
 */
#pragma once

#ifndef __bpf__
#include <linux/types.h>
#endif

#define SLUICE_LAYOUT_VERSION 4
/* 3: a learned address has no check, and its members come in another order (sluice_learned_3).
 * 2: as 3, slots end before `inbound`, and a blob is an array of elements instead of pages. */
#define SLUICE_OLDEST_LAYOUT 2

/* ---- the attachment's word: one aligned 64-bit store publishes a policy
 * -------------------------------------------- */

/* Zero is the closed state: a slot nobody has written drops everything. */
enum sluice_mode {
  SLUICE_MODE_BLOCK_ALL = 0,
  SLUICE_MODE_ALLOWLIST = 1,
  SLUICE_MODE_DENYLIST = 2,
  SLUICE_MODE_DISABLED = 3,
};

/* bits 0..27 policy index, 28..29 mode, 30..39 flags, 40..63 low bits of the generation */
#define SLUICE_WORD_POLICY_BITS 28
#define SLUICE_WORD_MODE_SHIFT 28
#define SLUICE_WORD_FLAGS_SHIFT 30
#define SLUICE_WORD_GENERATION_SHIFT 40

/* Each flag opens or adds something, so that zero stays the closed state. */
#define SLUICE_FLAG_AUDIT (1u << 0)   /* count and report the verdict, let the packet pass */
#define SLUICE_FLAG_REPLIES (1u << 1) /* replies to connections that came in from outside pass */
#define SLUICE_FLAG_ARP (1u << 2)     /* housekeeping: ARP */
#define SLUICE_FLAG_ND (1u << 3)      /* housekeeping: IPv6 ND and MLD */
#define SLUICE_FLAG_DHCP (1u << 4)    /* housekeeping: DHCP and DHCPv6 from a client port */
#define SLUICE_FLAG_REDIRECT_DNS \
  (1u << 5) /* port 53 goes to the attachment's resolver, see docs/decisions */
#define SLUICE_FLAG_LOOPBACK \
  (1u << 6) /* cgroups: loopback passes in every namespace, not only in the cgroup's own */
#define SLUICE_FLAG_TELL \
  (1u << 7) /* interfaces: answer a denied packet with a reset or an ICMP error */

static inline __u64 sluice_word(__u32 policy, __u32 mode, __u32 flags, __u64 generation) {
  return ((__u64)policy & ((1u << SLUICE_WORD_POLICY_BITS) - 1)) |
         ((__u64)(mode & 3) << SLUICE_WORD_MODE_SHIFT) |
         ((__u64)(flags & 0x3ff) << SLUICE_WORD_FLAGS_SHIFT) |
         (generation << SLUICE_WORD_GENERATION_SHIFT);
}
static inline __u32 sluice_word_policy(__u64 word) {
  return (__u32)(word & ((1u << SLUICE_WORD_POLICY_BITS) - 1));
}
static inline __u32 sluice_word_mode(__u64 word) {
  return (__u32)(word >> SLUICE_WORD_MODE_SHIFT) & 3;
}
static inline __u32 sluice_word_flags(__u64 word) {
  return (__u32)(word >> SLUICE_WORD_FLAGS_SHIFT) & 0x3ff;
}
static inline __u32 sluice_word_generation(__u64 word) {
  return (__u32)(word >> SLUICE_WORD_GENERATION_SHIFT);
}

/* ---- attachments
 * ----------------------------------------------------------------------------------------------------
 */

enum sluice_slot_state { SLUICE_SLOT_FREE = 0, SLUICE_SLOT_LIVE = 1 };
enum sluice_target_type { SLUICE_TYPE_INTERFACE = 1, SLUICE_TYPE_CGROUP = 2 };
enum sluice_link_layer { SLUICE_LINK_ETHERNET = 0, SLUICE_LINK_RAW_IP = 1 };

#define SLUICE_MAX_EXTRA_ETHERTYPES 4
#define SLUICE_MAX_VLANS 4
#define SLUICE_INBOUND_BITS 128
#define SLUICE_LEARNED_BITS 512

/* Of a flow, by what the workload's side of it is. */
static inline __u32 sluice_inbound_bit(__u32 protocol, __u32 workload_port_be) {
  return ((protocol << 16 ^ workload_port_be) * 0x9e3779b1u) >> 25;
}
/* Of a learned address, whose halves are given as they lie in memory. Its upper bits are worth
 * something: there every byte of the address has a say. */
static inline __u64 sluice_learned_mix(__u64 first, __u64 second) {
  return (first * 0x9e3779b97f4a7c15ull ^ second) * 0xd6e8feb86659fd93ull;
}
static inline __u32 sluice_learned_bit(__u64 first, __u64 second) {
  return (__u32)(sluice_learned_mix(first, second) >> 55);
}
/* What says in an entry of `learned` whose entry it is; see struct sluice_learned. */
static inline __u16 sluice_learned_check(__u32 scope, __u64 first, __u64 second) {
  return (__u16)(sluice_learned_mix(first, second) >> 48 ^ (scope * 0x9e3779b1u) >> 16);
}

/* One element of map `slots`. Slot 0 is never used: a lookup that yields 0 found nothing. */
struct sluice_slot {
  __u64 word;         /* written last, by one aligned store */
  __u64 generation;   /* the whole generation; the word carries its low 24 bits */
  __u64 incarnation;  /* random; names and ifindexes are reused, this is not */
  __u64 netns_cookie; /* interfaces: the namespace the ifindex belongs to; a packet from another is
                         dropped */
  __u64 cgroup_id;    /* cgroups: inode number of the directory */
  __u64 sever_until;  /* until then a peer that sends into a connection which policy now denies is
                         reset */
  __u32 ifindex;
  __u32 scope; /* key of this attachment's learned addresses and flows; never reused in one boot */
  __u32 dhcp4_server_be; /* 0: broadcast only */
  __u32 asker_mark;      /* skb->mark of what this attachment asks a resolver; see below */
  __u32 resolver;        /* which resolver takes its port 53; meaningful with REDIRECT_DNS */
  __u8 state;
  __u8 type;
  __u8 link_layer;
  __u8 workload_is_egress; /* 1: the workload's packets are this device's egress (uplink-like kinds)
                            */
  __u8 dhcp6_server[16];   /* zero: link-scope multicast only */
  __u16
      ethertypes[SLUICE_MAX_EXTRA_ETHERTYPES]; /* host order; further EtherTypes that pass unread */
  __u16 vlans[SLUICE_MAX_VLANS]; /* VLAN ids whose (single) tag is looked through; 0 = none */
  char name[16];                 /* for people who dump the map */
  /* What has not been noted need not be looked up: bits by sluice_inbound_bit(), set before the
   * first flow from outside that has it is written, and cleared only with the slot. */
  __u64 inbound[SLUICE_INBOUND_BITS / 64];
  /* The same of learned addresses, by sluice_learned_bit(). The daemon sets them. */
  __u64 learned[SLUICE_LEARNED_BITS / 64];
};

/* ---- policies: descriptor, poptrie, decisions
 * ----------------------------------------------------------------------- */

/* What a leaf says. Values of SLUICE_LEAF_DECISION and above are an element index (value -
 * SLUICE_LEAF_DECISION). */
enum sluice_leaf {
  SLUICE_LEAF_NONE =
      0, /* no explicit rule: learned addresses, then replies, then the mode decide */
  SLUICE_LEAF_ALLOW = 1, /* explicit allow, all protocols and ports, no expiry */
  SLUICE_LEAF_DENY = 2,
  SLUICE_LEAF_FLOOR = 3, /* denied by the floor */
  SLUICE_LEAF_BROKEN =
      4, /* never stored: the walk's answer to an image that contradicts itself; drop */
  SLUICE_LEAF_DECISION = 16,
};

#define SLUICE_NO_TRIE 0xffffffffu
#define SLUICE_IS_ELEMENT \
  0x80000000u               /* a reference: an element (node or skip) index, else a leaf */
#define SLUICE_STRIDE 6     /* bits that a node decides */
#define SLUICE_MAX_STEPS 22 /* each step takes 6 bits or more of at most 128 */
#define SLUICE_MAX_CHAIN \
  64 /* decisions walked for one packet; the compiler refuses longer chains */

/* One trie: the most significant bit of the address is bit 0. IPv4 uses 32 bits, not the mapped
 * form. */
struct sluice_trie {
  __u32 root;   /* element index of the first node or skip, or SLUICE_NO_TRIE: `leaf` answers for
                   every address. Unused with a direct table. */
  __u32 leaf;   /* meaningful with SLUICE_NO_TRIE */
  __u32 direct; /* first element of a table of 2^direct_bits references (reference i: element
                   direct + i / 8, lane i % 8) that stands for the first levels */
  __u32 direct_bits; /* 0: no table, start at the root; else at least 6 */
};

/* One element of map `policies`. Immutable once a word refers to it. Element indexes are relative
 * to `base`. */
struct sluice_policy {
  __u32
      blob; /* 0: elements are in map `heap`; else index into `blobs` (array of maps), base is 0 */
  __u32 base;     /* first element of the policy's region */
  __u32 elements; /* length of the region */
  __u32 reserved;
  struct sluice_trie ip4;
  struct sluice_trie ip6;
  __u64 digest[2]; /* of the region and the tries: equal policies are stored once */
};

/*
 * A poptrie node (Asai and Ohara, SIGCOMM 2015) over the next 6 bits. Bit i of `vector`: slot i has
 * a child, element `children` + popcount(vector & ((1 << i) - 1)). Else slot i is a leaf: equal
 * neighbours form a run, `leafvec` marks the first slot of each (slots with a child are passed
 * over), and r = popcount(leafvec & ((2 << i) - 1)) - 1 is the run of slot i.
 *
 * A node with at most two different leaves needs no leaf array, since its runs alternate: run r has
 * inline_leaves[r % 2]. This is nearly every node of a list without ports, saves a cache line per
 * lookup and up to half of the memory. Otherwise run r is leaf index `leaves` + r (element
 * index / 8, lane index % 8).
 */
struct sluice_node {
  __u64 vector;
  __u64 leafvec;
  __u32 children; /* element index of the first child; SLUICE_IS_SKIP is not set */
  __u32 leaves;   /* leaf index of the first run, or SLUICE_LEAVES_INLINE */
  __u32 inline_leaves[2];
};
#define SLUICE_LEAVES_INLINE 0xffffffffu

/*
 * Path compression: stands where a node could, for a stretch in which only one continuation
 * matters. When the next `bits` (6..128) bits of the address equal the key, go on with `target`
 * behind them, else the answer is `otherwise`. Turns the 22 steps of a lone /128 into one.
 */
struct sluice_skip {
  __u64 key_high;  /* left-aligned: the next address bit is compared with bit 63 */
  __u64 key_low;   /* bits behind those */
  __u32 bits;      /* SLUICE_IS_SKIP | number of bits; shares its place with sluice_node.children */
  __u32 target;    /* SLUICE_IS_ELEMENT | element index, or a leaf */
  __u32 otherwise; /* a leaf */
  __u32 reserved;
};
#define SLUICE_IS_SKIP 0x80000000u

/*
 * A decision: does this rule speak for the packet, and what does it say; if it does not (another
 * protocol or port, or expired), `next` is asked. The compiler orders a chain by prefix length,
 * longest first, deny before allow.
 */
struct sluice_port_span {
  __u16 first, last; /* host order, inclusive; an unused span is {1, 0}, which contains no port */
};
#define SLUICE_DECISION_SPANS 4
struct sluice_decision {
  __u8 verdict;      /* enum sluice_leaf: SLUICE_LEAF_ALLOW, _DENY or _FLOOR */
  __u8 protocol;     /* IP protocol number */
  __u8 spans;        /* port spans in use; 0: all ports of the protocol */
  __u8 any_protocol; /* 1: every protocol; `protocol` and `spans` are unused */
  __u32 next;        /* a leaf value: what holds where this does not speak */
  __u64 expires;     /* CLOCK_BOOTTIME ns; 0: never */
  struct sluice_port_span span[SLUICE_DECISION_SPANS];
};

/* One element of `heap`: 32 bytes. */
union sluice_element {
  struct sluice_node node;
  struct sluice_skip skip;
  struct sluice_decision decision;
  __u32 leaf[8];
};

/* One element of a blob. A walk goes on within a page without asking the map again, and what lies
 * below one entry of a direct table mostly lies in one page. */
#define SLUICE_PAGE_ELEMENTS 128
struct sluice_blob_page {
  union sluice_element element[SLUICE_PAGE_ELEMENTS];
};

/* ---- learned addresses
 * ---------------------------------------------------------------------------------------------- */

struct sluice_learned_key {
  __u32 scope;
  __u8 address[16];
};
/* Its sluice_learned_check(), for who writes one. */
static inline __u16 sluice_learned_key_check(const struct sluice_learned_key* key) {
  __u64 halves[2];
  __builtin_memcpy(halves, key->address, sizeof(halves));
  return sluice_learned_check(key->scope, halves[0], halves[1]);
}
/*
 * A hash gives the memory of an entry that was taken out to the next one that is put in, at once:
 * a program that has found an entry may be reading another address's by then. So an entry carries
 * a check of its key. It comes first, since the kernel writes a value from its start on: whoever
 * has read anything of the new entry and then the check reads the new check.
 */
struct sluice_learned {
  __u16 check;        /* sluice_learned_check() of the key */
  __u16 port_set;     /* index into `port_sets`; 0: every protocol and port */
  __u32 owner;        /* what vouches for it; for the daemon, which may be another than wrote it */
  __u64 active_until; /* new connections pass until then */
  __u64 grace_until;  /* segments of live connections pass until then while last_seen is fresh */
  __u64 last_seen;    /* written by the program */
};
/* The same in layouts 2 and 3. */
struct sluice_learned_3 {
  __u64 active_until, grace_until, last_seen;
  __u32 port_set, owner;
};
#define SLUICE_PORT_SET_SPANS 20
struct sluice_port_set {
  __u32 spans;
  struct {
    __u8 protocol;
    __u8 any_port;
    struct sluice_port_span ports;
  } span[SLUICE_PORT_SET_SPANS];
};

/* ---- flows that came in from outside
 * -------------------------------------------------------------------------------- */

struct sluice_flow_key {
  __u32 scope;
  __u8 protocol;
  /* Cgroups, of what came in: the device, its lower 24 bits, so that what comes by another is
   * another flow and takes nothing from this one; and once more with 0, for those who do not see
   * the device. Interfaces: 1 is a neighbour. Else 0. */
  __u8 way[3];
  __u8 workload[16];
  __u8 remote[16];
  __u16 workload_port_be; /* ICMP echo: the identifier, in both; ND: 0 */
  __u16 remote_port_be;
};
enum sluice_flow_origin { SLUICE_FLOW_INBOUND = 1, SLUICE_FLOW_OUTBOUND = 2 };
struct sluice_flow {
  __u64 last_seen;
  __u32 origin;
  __u32 ifindex; /* cgroups: the device it came in by, the only one its replies leave by; else 0 */
};

/* ---- DNS redirection: see dns_redirect.h
 * ---------------------------------------------------------------------------- */

#define SLUICE_DNS_PORT 53
#define SLUICE_RESOLVERS 4         /* plugin instances that take port 53 at the same time */
#define SLUICE_RESOLVER_WORKERS 16 /* sockets of each kind that one of them may have */

/* The resolvers' own addresses, all of them local to the host: 127.83.76.N and
 * fd53:6c75:6963:65::N, N from 1 to 254. Workloads in a cgroup reach them over the loopback
 * device; nothing else that is not marked gets an answer there. */
#define SLUICE_RESOLVER_NET4 0x7f534c00u           /* host order, /24 */
#define SLUICE_RESOLVER_NET6 0xfd536c7569630065ull /* upper half, host order, /64 */

/*
 * Who asks: skb->mark = tag | 24 bits of which exactly 12 are set, the attachment's own in one
 * boot. A firewall that sets or clears bits of the mark on the way to the socket so makes it
 * invalid, and never another attachment's.
 */
#define SLUICE_ASKER_TAG 0x5d000000u
#define SLUICE_ASKER_TAG_MASK 0xff000000u
#define SLUICE_ASKER_BITS 24
#define SLUICE_ASKER_WEIGHT 12

enum sluice_socket_kind {
  SLUICE_SOCKET_UDP4 = 0,
  SLUICE_SOCKET_UDP6 = 1,
  SLUICE_SOCKET_TCP4 = 2,
  SLUICE_SOCKET_TCP6 = 3,
  SLUICE_SOCKET_KINDS = 4,
};
/* Index of map `dns_sockets`. */
static inline __u32 sluice_socket_at(__u32 resolver, __u32 kind, __u32 worker) {
  return (resolver * SLUICE_SOCKET_KINDS + kind) * SLUICE_RESOLVER_WORKERS + worker;
}

/* One element of map `dns_resolvers`. */
struct sluice_resolver {
  __u32 workers[SLUICE_SOCKET_KINDS]; /* sockets of each kind; 0: none, what asks is dropped */
  __u8 hosts[SLUICE_SOCKET_KINDS][SLUICE_RESOLVER_WORKERS]; /* N of each socket's address */
};

/* Per CPU and slot: packets to the resolver that it may still send. */
struct sluice_dns_budget {
  __u64 refilled;
  __u32 tokens;
  __u32 reserved;
};

/* A TCP connection to a resolver, as its SYN named it. The ends are those of the resolver's own
 * socket: `asked` is its local address. */
struct sluice_stream_key {
  __u8 peer[16];
  __u8 asked[16];
  __u16 peer_port_be;
  __u16 reserved[3];
};
struct sluice_stream {
  __u32 asker_mark;
  __u32 reserved;
  __u8 asked[16]; /* the server that the workload named; from a cgroup another than the key's */
};
/* In the storage of a workload's socket (cgroups): the servers that it asked, and by way of which
 * of the resolver's addresses. `turn` grows with each question; 0: not used. */
#define SLUICE_ASKED_SERVERS 4
struct sluice_asked {
  __u32 turns;
  __u32 reserved;
  struct {
    __u8 address[16];
    __u32 turn;
    __u32 host; /* N */
  } servers[SLUICE_ASKED_SERVERS];
};
/* In the storage of a resolver's listener, and copied to each connection it accepts. */
struct sluice_stream_owner {
  __u32 resolver;   /* index + 1; 0 is nobody's */
  __u32 asker_mark; /* of the first segment; 0 on a listener */
};

/* ---- counters and events
 * -------------------------------------------------------------------------------------------- */

/* Per CPU and slot: one cache line. The token bucket bounds this attachment's events on this CPU.
 */
struct sluice_counters {
  __u64 allowed_packets, allowed_bytes;
  __u64 denied_packets, denied_bytes;
  __u64 audited_packets; /* would have been denied, passed because of SLUICE_FLAG_AUDIT (also in
                            allowed_*) */
  __u64 events_lost;     /* denials that made no event: bucket empty or ring full */
  __u32 bucket_tokens;
  __u32 tells;       /* answers sent in `tell_second`; see tell.h */
  __u32 tell_second; /* boot time >> 30 */
  __u32 bucket_second;
};

/* Why a packet was judged as it was. Each has a host-wide per-CPU counter in map `reasons`. */
#define SLUICE_REASONS(X)                                                     \
  X(ALLOW_DISABLED, "attachment is disabled")                                 \
  X(ALLOW_RULE, "explicit allow")                                             \
  X(ALLOW_LEARNED, "address learned through DNS")                             \
  X(ALLOW_REPLY, "reply to a connection from outside")                        \
  X(ALLOW_MODE, "denylist lets the rest pass")                                \
  X(ALLOW_HOUSEKEEPING, "ARP, neighbour discovery or DHCP")                   \
  X(ALLOW_LOOPBACK, "loopback")                                               \
  X(ALLOW_DNS, "taken by the resolver")                                       \
  X(DENY_NO_ATTACHMENT, "no attachment for this interface")                   \
  X(DENY_BLOCK_ALL, "mode is block-all")                                      \
  X(DENY_RULE, "explicit deny")                                               \
  X(DENY_FLOOR, "host-wide floor")                                            \
  X(DENY_MODE, "not on the allowlist")                                        \
  X(DENY_TRUNCATED, "headers are cut short or unreadable")                    \
  X(DENY_MALFORMED, "headers contradict each other")                          \
  X(DENY_ETHERTYPE, "EtherType is not IPv4, IPv6 or ARP")                     \
  X(DENY_VLAN, "VLAN tag")                                                    \
  X(DENY_SOURCE_ROUTE, "source route or routing header")                      \
  X(DENY_EXTENSION, "IPv6 extension headers too many or unknown")             \
  X(DENY_MAPPED, "IPv4-mapped address on the wire")                           \
  X(DENY_FRAGMENT, "later fragment cannot match a port rule")                 \
  X(DENY_HOUSEKEEPING, "ARP, neighbour discovery or DHCP outside its bounds") \
  X(DENY_EMBEDDED, "IPv4 address inside NAT64 or 6to4 is not allowed")        \
  X(DENY_UNJUDGED, "uplink guard: came from a link that nothing filters")     \
  X(DENY_UNATTACHED_CGROUP, "cgroup guard: the cgroup is not attached yet")   \
  X(DENY_DNS_BUDGET, "more packets to the resolver than it may send")         \
  X(DENY_DNS_UNSERVED, "no resolver takes port 53 here")                      \
  X(DENY_DNS_FOREIGN, "segment of another workload's query")                  \
  X(DENY_INTERNAL, "a map entry that must exist does not")

enum sluice_reason {
#define X(name, text) SLUICE_REASON_##name,
  SLUICE_REASONS(X)
#undef X
      SLUICE_REASON_COUNT
};

enum sluice_event_type { SLUICE_EVENT_DENIAL = 1, SLUICE_EVENT_TASK_MOVED = 2 };
struct sluice_event {
  __u32 type;
  __u32 slot;
  __u64 incarnation;
  __u64 time;
  __u64 cgroup_id;  /* SLUICE_EVENT_TASK_MOVED: where to; denials by the guards: whose */
  __u32 generation; /* low 24 bits */
  __u32 ifindex;
  __u32 pid;       /* SLUICE_EVENT_TASK_MOVED: thread group id in the initial pid namespace */
  __u16 ethertype; /* host order */
  __u8 family;     /* 4, 6, or 0: not IP */
  __u8 protocol;
  __u8 reason; /* enum sluice_reason */
  __u8 audited;
  __u8 icmp_type, icmp_code;
  __u16 source_port_be, destination_port_be;
  __u8 source[16], destination[16];
  __u32 length;
  __u32 reserved;
};

/* ---- host-wide settings
 * --------------------------------------------------------------------------------------------- */

#define SLUICE_DIRECT_IFINDEXES \
  65536 /* ifindexes below are found in an array; others, and other namespaces', by hash */

struct sluice_interface_key {
  __u64 netns_cookie;
  __u32 ifindex;
  __u32 reserved;
};

/* The only element of map `settings`. */
struct sluice_settings {
  __u32 layout_version;
  __u32 judged_mark;  /* bit set in skb->mark by tc_from when the uplink guard is on; 0: off */
  __u64 netns_cookie; /* the daemon's own namespace */
  __u64 boot_id[2];
  __u32 events_per_second; /* bucket refill, per attachment and CPU */
  __u32 events_burst;
  __u32 sever_mark; /* random; marks a reset that tc_to sends for the workload, so that tc_from lets
                       it by */
  __u32 dns_packets_per_second; /* to the resolver, per attachment and CPU */
  __u32 dns_burst;
  __u32 reserved;
  __u64 learned_idle; /* ns: a live connection's last_seen is fresh for this long */
};

/* In skb->mark, one bit: tc_from judged and passed this packet. In SO_MARK of a packet socket that
   a task brought into an attached cgroup, whole: the uplink guard drops what it sends (nothing else
   ends such a socket). */
#define SLUICE_JUDGED_MARK 0x20000000u
#define SLUICE_DOOMED_MARK 0x51c3d00du

/* Trust of a link or a parent cgroup, for the guards. */
enum sluice_guard_trust { SLUICE_GUARD_TRUSTED = 1, SLUICE_GUARD_BRIDGE = 2 };
