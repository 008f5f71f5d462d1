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
struct cgroup_subsys_state___sluice {
  struct cgroup_subsys_state___sluice* parent;
} __attribute__((preserve_access_index));
struct cgroup___sluice {
  struct cgroup_subsys_state___sluice self;
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
  struct sock___sluice* sk;
} __attribute__((preserve_access_index));
struct inode___sluice {
  unsigned long i_ino;
} __attribute__((preserve_access_index));
struct file___sluice {
  struct inode___sluice* f_inode;
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

/*
 * What sluice_list_sockets writes for each INET, INET6 or PACKET socket of a task: this, then the
 * lineage of the socket, then that of the task. Both are read here, in one moment: a cgroup that
 * was removed has no directory any more and lives on in its sockets with all that are above it, and
 * a directory's name may be another cgroup's by now.
 */
struct sluice_socket_row {
  __u64 inode;
  __u32 task;   /* its thread group */
  __u32 thread; /* another one where a thread has a table of descriptors for itself */
  __u32 fd;
  __u32 family;
};

static __always_inline struct cgroup___sluice* sluice_parent_of(struct cgroup___sluice* cgroup) {
  void* state = BPF_CORE_READ(cgroup, self.parent);
  return state ? state - bpf_core_field_offset(struct cgroup___sluice, self) : 0;
}

/* The id of a cgroup and of each above it (SLUICE_LINEAGE at most), then 0. */
#define SLUICE_LINEAGE 64
static __always_inline void sluice_write_lineage(struct seq_file* seq,
                                                 struct cgroup___sluice* cgroup) {
  for (int level = 0; level < SLUICE_LINEAGE && cgroup; ++level) {
    __u64 id = BPF_CORE_READ(cgroup, kn, id);
    bpf_seq_write(seq, &id, sizeof(id));
    cgroup = sluice_parent_of(cgroup);
  }
  __u64 end = 0;
  bpf_seq_write(seq, &end, sizeof(end));
}

SEC("iter/task_file")
int sluice_list_sockets(struct bpf_iter__task_file___sluice* context) {
  struct task_struct___sluice* task = context->task;
  struct file* file = context->file;
  if (!task || !file) return 0;
  struct socket___sluice* socket = (void*)bpf_sock_from_file(file);
  if (!socket) return 0;
  struct sock___sluice* sk = BPF_CORE_READ(socket, sk);
  if (!sk) return 0;
  struct sluice_socket_row row = {
      .inode = BPF_CORE_READ((struct file___sluice*)file, f_inode, i_ino),
      .task = BPF_CORE_READ(task, tgid),
      .thread = BPF_CORE_READ(task, pid),
      .fd = context->fd,
      .family = BPF_CORE_READ(sk, __sk_common.skc_family),
  };
  if (row.family != 2 && row.family != 10 && row.family != 17) return 0;
  struct seq_file* seq = context->meta->seq;
  bpf_seq_write(seq, &row, sizeof(row));
  sluice_write_lineage(seq, BPF_CORE_READ(sk, sk_cgrp_data.cgroup));
  sluice_write_lineage(seq, BPF_CORE_READ(task, cgroups, dfl_cgrp));
  return 0;
}
