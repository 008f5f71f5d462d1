/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What sluice_learn is given, and what it says of it; see learn.h. */
#pragma once

#include "layout.h"

#define SLUICE_LEARN_ENTRIES 16

enum sluice_learn_outcome {
  SLUICE_LEARN_UNTOUCHED = 0,
  SLUICE_LEARN_NEW = 1,  /* was not there, or opened nothing any more */
  SLUICE_LEARN_KEPT = 2, /* was there, and the moment of its last packet is kept */
};
struct sluice_learn_entry {
  struct sluice_learned_key key;
  __u32 outcome; /* written by the program */
  __u64 active_until, grace_until;
  __u16 check, port_set; /* as in struct sluice_learned */
  __u32 owner;
};
struct sluice_learn_batch {
  __u32 count; /* entries in use */
  __s32 error; /* written by the program: negative errno, and no entry behind it was touched */
  struct sluice_learn_entry entries[SLUICE_LEARN_ENTRIES];
};
