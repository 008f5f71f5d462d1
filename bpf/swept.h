/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Sockets that a task brought into an attached cgroup from elsewhere. shutdown() tells their owner,
 * but is not for good: connect(AF_UNSPEC) revives a TCP socket. So the daemon tags them as well. A
 * tag stays as long as its socket, and no socket option or capability of the owner's takes it away
 * (an XFRM policy, a mark or a device binding could be undone with CAP_NET_ADMIN or CAP_NET_RAW).
 */
#pragma once

#include "report.h"

enum bpf_func_id___sluice { BPF_FUNC_skc_to_mptcp_sock___sluice = 196 };

static __always_inline int sluice_is_swept(struct bpf_sock* socket) {
  if (!socket) return 0;
  if (bpf_sk_storage_get(&swept_sockets, socket, 0, 0)) return 1;
  /* An MPTCP socket sends by subflows, which are sockets of their own: the tag is on their owner,
   * which kernel 5.19 finds. */
  if (!bpf_core_enum_value_exists(enum bpf_func_id___sluice, BPF_FUNC_skc_to_mptcp_sock___sluice))
    return 0;
  void* owner = bpf_skc_to_mptcp_sock(socket);
  return owner && bpf_sk_storage_get(&swept_sockets, owner, 0, 0);
}

/* On the root cgroup, from the first tag on: such a socket belongs to any cgroup but the attached
 * one, or to one that is gone. Every packet of the host passes here; one whose socket has no
 * storage costs two look-ups that end at once. */
SEC("cgroup_skb/egress")
int sluice_stop_swept(struct __sk_buff* skb) {
  if (!sluice_is_swept(skb->sk)) return 1;
  sluice_report_guard(SLUICE_REASON_DENY_UNATTACHED_CGROUP, skb->len, skb->ifindex);
  return 0;
}
