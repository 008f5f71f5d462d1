/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every map, once. All are pinned by the daemon and shared by every program; sizes marked "set at
 * load" come from the configuration. None is per attachment.
 */
#pragma once

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#include "layout.h"

/* Attachments by slot. The daemon maps it and publishes by storing `word`. */
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 8192); /* set at load */
  __type(key, __u32);
  __type(value, struct sluice_slot);
} slots SEC(".maps");

/* Interfaces of the daemon's own namespace: ifindex to slot. An array, since a hash costs 25 to 35
 * ns more. */
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, SLUICE_DIRECT_IFINDEXES);
  __type(key, __u32);
  __type(value, __u32);
} interfaces SEC(".maps");

/* The others: larger ifindexes, and other namespaces. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(max_entries, 65536);
  __type(key, struct sluice_interface_key);
  __type(value, __u32);
} far_interfaces SEC(".maps");

/* Attached cgroups by id, for the guards and for sockets met outside the cgroup's own hooks. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(max_entries, 65536);
  __type(key, __u64);
  __type(value, __u32);
} cgroups SEC(".maps");

/* The slot of the cgroup a program runs for: no lookup. Shared by all hooks of one cgroup; survives
 * link updates. */
struct {
  __uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
  __type(key, __u64);
  __type(value, __u64);
} cgroup_slot SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 16384); /* set at load */
  __type(key, __u32);
  __type(value, struct sluice_policy);
} policies SEC(".maps");

/* The policy heap: images of ordinary policies. Written through a mapping into free space only. */
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 524288); /* set at load; 32 bytes each */
  __type(key, __u32);
  __type(value, union sluice_element);
} heap SEC(".maps");

/* Images too large for the heap: arrays of as many pages as they take. */
struct sluice_blob {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE | BPF_F_INNER_MAP);
  __uint(max_entries, 1);
  __type(key, __u32);
  __uint(value_size, sizeof(struct sluice_blob_page));
};
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
  __uint(max_entries, 1024);
  __type(key, __u32);
  __array(values, struct sluice_blob);
} blobs SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(max_entries, 1048576); /* set at load */
  __type(key, struct sluice_learned_key);
  __type(value, struct sluice_learned);
} learned SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1024);
  __type(key, __u32);
  __type(value, struct sluice_port_set);
} port_sets SEC(".maps");

/* Flows that came in from outside. */
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 65536); /* set at load */
  __type(key, struct sluice_flow_key);
  __type(value, struct sluice_flow);
} flows SEC(".maps");

/* Flows that workloads opened themselves, and when each was last seen. Apart from the others: each
 * packet from another port is one more, and must not push out what came in to a neighbour. */
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 65536); /* set at load: as flows */
  __type(key, struct sluice_flow_key);
  __type(value, __u64);
} own_flows SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, 8192); /* set at load: as slots */
  __type(key, __u32);
  __type(value, struct sluice_counters);
} counters SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, SLUICE_REASON_COUNT);
  __type(key, __u32);
  __type(value, __u64);
} reasons SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_RINGBUF);
  __uint(max_entries, 262144);
} events SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(map_flags, BPF_F_MMAPABLE);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct sluice_settings);
} settings SEC(".maps");

/* See sluice_now_roughly(). Not pinned: nothing in it outlives a tick. */
struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, __u64);
} clock_glance SEC(".maps");

/* See sluice_was_just_noted(). Not pinned, as above. */
struct sluice_last_noted {
  __u64 serial; /* odd while it is written */
  __u64 tick;
  struct sluice_flow_key key;
  __u32 reserved;
};
struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct sluice_last_noted);
} last_noted SEC(".maps");

/* Moves of tasks that found the ring full: the daemon then looks at every task of every attached
 * cgroup. */
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, __u64);
} lost_moves SEC(".maps");

/* Sockets that take port 53; sluice_socket_at() names the place. An entry goes with its socket, so
 * that a resolver which died is a lookup that finds nothing. */
struct {
  __uint(type, BPF_MAP_TYPE_SOCKMAP);
  __uint(max_entries, (SLUICE_RESOLVERS * SLUICE_SOCKET_KINDS * SLUICE_RESOLVER_WORKERS));
  __type(key, __u32);
  __type(value, __u64);
} dns_sockets SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, SLUICE_RESOLVERS);
  __type(key, __u32);
  __type(value, struct sluice_resolver);
} dns_resolvers SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, 8192); /* set at load */
  __type(key, __u32);
  __type(value, struct sluice_dns_budget);
} dns_budgets SEC(".maps");

/* Connections to a resolver, noted at the SYN and read once they are accepted. */
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 65536);
  __type(key, struct sluice_stream_key);
  __type(value, struct sluice_stream);
} dns_streams SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_SK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
  __type(key, int);
  __type(value, struct sluice_stream_owner);
} dns_owners SEC(".maps");

struct {
  __uint(type, BPF_MAP_TYPE_SK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, int);
  __type(value, struct sluice_asked);
} dns_asked SEC(".maps");

/* Uplink guard: interfaces of the daemon's namespace whose traffic is not judged. Value: enum
 * sluice_guard_trust. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(max_entries, 4096);
  __type(key, __u32);
  __type(value, __u32);
} trusted_interfaces SEC(".maps");

/* Cgroup guard: parents whose children must be attached. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __uint(max_entries, 1024);
  __type(key, __u64);
  __type(value, __u32);
} guarded_cgroups SEC(".maps");

/* Sockets that a task brought into an attached cgroup; see swept.h. What a listener accepts
 * inherits the tag. */
struct {
  __uint(type, BPF_MAP_TYPE_SK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
  __type(key, int);
  __type(value, __u32);
} swept_sockets SEC(".maps");
