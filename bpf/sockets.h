/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Sockets made outside a cgroup and used inside it hit no cgroup hook of it: a socket belongs to
 * the cgroup it was made in. So a task that enters a cgroup is reported, the daemon lists its
 * sockets with sluice_list_sockets and shuts those that belong elsewhere, for good (swept.h).
 */
#pragma once

#include "kernel.h"

struct kernfs_node___sluice {
  __u64 id;
} __attribute__((preserve_access_index));
struct cgroup___sluice {
  struct kernfs_node___sluice* kn;
  int level;
} __attribute__((preserve_access_index));
struct css_set___sluice {
  struct cgroup___sluice* dfl_cgrp;
} __attribute__((preserve_access_index));
struct task_struct___sluice {
  int pid, tgid;
  struct css_set___sluice* cgroups;
} __attribute__((preserve_access_index));
struct sock_cgroup_data___sluice {
  struct cgroup___sluice* cgroup;
} __attribute__((preserve_access_index));
struct sock_common___sluice {
  unsigned short skc_family;
} __attribute__((preserve_access_index));
struct sock___sluice {
  struct sock_common___sluice __sk_common;
  struct sock_cgroup_data___sluice sk_cgrp_data;
} __attribute__((preserve_access_index));
struct socket___sluice {
  short type;
  struct sock___sluice* sk;
} __attribute__((preserve_access_index));
struct seq_file___sluice;
struct bpf_iter_meta___sluice {
  struct seq_file* seq;
} __attribute__((preserve_access_index));
struct bpf_iter__task_file___sluice {
  struct bpf_iter_meta___sluice* meta;
  struct task_struct___sluice* task;
  __u32 fd;
  struct file* file;
} __attribute__((preserve_access_index));

static __always_inline void sluice_report_move(__u32 tgid, __u64 cgroup_id) {
  struct sluice_event* event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
  if (!event) {
    /* The daemon sees the count and looks at every task of every attached cgroup. */
    __u32 zero = 0;
    __u64* lost = bpf_map_lookup_elem(&lost_moves, &zero);
    if (lost) __sync_fetch_and_add(lost, 1);
    return;
  }
  __builtin_memset(event, 0, sizeof(*event));
  event->type = SLUICE_EVENT_TASK_MOVED;
  event->time = bpf_ktime_get_boot_ns();
  event->pid = tgid;
  event->cgroup_id = cgroup_id;
  bpf_ringbuf_submit(event, 0);
}

/* Arguments: struct cgroup *to, const char *path, struct task_struct *task, bool threadgroup. */
SEC("tp_btf/cgroup_attach_task")
int sluice_task_attached(__u64* arguments) {
  struct cgroup___sluice* to = (void*)arguments[0];
  struct task_struct___sluice* task = (void*)arguments[2];
  /* The event fires for every hierarchy; the id tells cgroup2 from v1 directories in user space. */
  sluice_report_move(BPF_CORE_READ(task, tgid), BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id));
  (void)to;
  return 0;
}

/* clone3(CLONE_INTO_CGROUP) puts a child elsewhere without a move; it shares or copies its parent's
 * files. */
SEC("tp_btf/sched_process_fork")
int sluice_task_forked(__u64* arguments) {
  struct task_struct___sluice *parent = (void*)arguments[0], *child = (void*)arguments[1];
  struct cgroup___sluice *from = BPF_CORE_READ(parent, cgroups, dfl_cgrp),
                         *to = BPF_CORE_READ(child, cgroups, dfl_cgrp);
  if (from != to) sluice_report_move(BPF_CORE_READ(child, tgid), BPF_CORE_READ(to, kn, id));
  return 0;
}

/* What sluice_list_sockets writes for each INET, INET6 or PACKET socket of a task. */
struct sluice_socket_row {
  __u32 fd;
  __u16 family;
  __u16 type;
  __u64 cgroup_id;
};

SEC("iter/task_file")
int sluice_list_sockets(struct bpf_iter__task_file___sluice* context) {
  struct file* file = context->file;
  if (!file) return 0;
  struct socket___sluice* socket = (void*)bpf_sock_from_file(file);
  if (!socket) return 0;
  struct sock___sluice* sk = BPF_CORE_READ(socket, sk);
  if (!sk) return 0;
  struct sluice_socket_row row = {
      .fd = context->fd,
      .family = BPF_CORE_READ(sk, __sk_common.skc_family),
      .type = (__u16)BPF_CORE_READ(socket, type),
      .cgroup_id = BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn, id),
  };
  if (row.family == 2 || row.family == 10 || row.family == 17)
    bpf_seq_write(context->meta->seq, &row, sizeof(row));
  return 0;
}
