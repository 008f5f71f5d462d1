// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* One object: every program and every map. The daemon loads the programs that the kernel knows and
 * the host needs. */
#include "cgroup_workload.h"
#include "guards.h"
#include "learn.h"
#include "sockets.h"
#include "swept.h"
#include "tc_workload.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
