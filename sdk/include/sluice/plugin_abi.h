/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plugin ABI, major 1: the only thing that crosses between the host and a plugin. This header is its manual.
 * Plugin authors include <sluice/plugin.hpp> instead and never see it.
 *
 * Rules that hold everywhere:
 *   - Every struct that may grow opens with `size`, the writer's sizeof. A field at or beyond `size` is absent. Fields
 *     are only appended; that raises SLUICE_ABI_MINOR. A change of threading or meaning is a new major and a new
 *     entry symbol. An array of such structs advances by the writer's `size`, the same in all its elements; none is
 *     embedded in another. Structs without `size` never change.
 *   - Nothing throws across. A call returns 0 (or a count) on success and a negative errno otherwise; a call that fails
 *     changes nothing.
 *   - Pointers passed in are borrowed for the length of the call, both ways. Strings are {data, length}, UTF-8, not
 *     terminated.
 *   - [strand]: called only on the plugin's own thread, one call at a time, in order; [any]: from any thread;
 *     [loader]: on the host's loading thread, before the strand exists.
 *   - All times are CLOCK_BOOTTIME nanoseconds. Addresses are 16 bytes in network byte order, IPv4 in the first four.
 */
#ifndef SLUICE_PLUGIN_ABI_H
#define SLUICE_PLUGIN_ABI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SLUICE_ABI_MAJOR 1
#define SLUICE_ABI_MINOR 0
#define SLUICE_PLUGIN_ENTRY "sluice_plugin_v1" /* the one exported symbol: const struct sluice_plugin *(*)(void) */

/* An ELF note carries the version so that it is read before dlopen and a wrong plugin's constructors never run.
   Section ".note.sluice", name "Sluice", type 1, descriptor: struct sluice_note. */
#define SLUICE_NOTE_SECTION ".note.sluice"
#define SLUICE_NOTE_NAME "Sluice"
#define SLUICE_NOTE_TYPE 1
struct sluice_note {
  uint32_t abi_major;
  uint32_t abi_minor;
};

struct sluice_string {
  const char *data;
  size_t length;
};

/* ---- roles ---------------------------------------------------------------------------------------------------------- */

#define SLUICE_ROLE_DISCOVERY (1u << 0)     /* finds workloads */
#define SLUICE_ROLE_POLICY_SOURCE (1u << 1) /* decides their policy */
#define SLUICE_ROLE_RESOLVER (1u << 2)      /* turns domain rules into learned addresses */
#define SLUICE_ROLE_OBSERVER (1u << 3)      /* is told what happens */

/* ---- options: declared as data, checked by the host before the plugin is created ------------------------------------ */

enum sluice_option_type {
  SLUICE_OPTION_STRING = 1,
  SLUICE_OPTION_INTEGER = 2,
  SLUICE_OPTION_BOOLEAN = 3,
  SLUICE_OPTION_STRING_LIST = 4,
  SLUICE_OPTION_STRING_TABLE = 5, /* TOML table of strings */
  SLUICE_OPTION_DURATION = 6,     /* TOML string "30s", "5m", "8h", "250ms"; value in nanoseconds */
};
#define SLUICE_OPTION_REQUIRED (1u << 0)

struct sluice_option {
  uint32_t size;
  uint32_t type; /* enum sluice_option_type */
  uint32_t flags;
  struct sluice_string path;          /* dotted below the plugin's table: "tls.ca" */
  struct sluice_string default_value; /* TOML text of the default; empty: none */
  struct sluice_string help;          /* one line */
};

/* The value of one option as configured or defaulted. Lists and tables in order; a table alternates key, value. */
struct sluice_option_value {
  uint32_t size;
  uint32_t type;
  struct sluice_string path;
  uint32_t is_set; /* 0: neither configured nor defaulted; the rest is zero */
  uint32_t boolean;
  int64_t integer; /* also DURATION: nanoseconds */
  struct sluice_string string;
  const struct sluice_string *items;
  size_t item_count;
};

struct sluice_config {
  uint32_t size;
  struct sluice_string instance; /* "taps" of [plugin.taps] */
  const struct sluice_option_value *values;
  size_t value_count;
  struct sluice_string config_directory; /* directory of the configuration file: base of relative paths */
  struct sluice_string state_directory;  /* a directory of the instance's own, created on first use by the plugin */
};

/* ---- the things plugins speak of ------------------------------------------------------------------------------------ */

struct sluice_label {
  struct sluice_string key, value;
};

enum sluice_target_kind { SLUICE_TARGET_INTERFACE = 1, SLUICE_TARGET_CGROUP = 2 };
enum sluice_side {
  SLUICE_SIDE_AUTOMATIC = 0,
  SLUICE_SIDE_WORKLOAD_INGRESS = 1, /* tap, tun, host-side veth */
  SLUICE_SIDE_WORKLOAD_EGRESS = 2,  /* uplink, macvtap, device inside the workload's namespace */
};

struct sluice_target {
  uint32_t size;
  uint32_t kind;             /* enum sluice_target_kind */
  struct sluice_string name; /* interface name, or cgroup path below the cgroup2 mount ("/a/b") */
  uint32_t ifindex;          /* interfaces: required */
  uint32_t side;             /* enum sluice_side */
  uint64_t cgroup_id;        /* cgroups: inode number of the directory; 0: the host looks it up */
  struct sluice_string netns_path; /* interfaces in another namespace: a path to enter it; empty: the host's own */
};

typedef uint64_t sluice_attachment; /* 0 is none; never names another attachment later */

struct sluice_attachment_info {
  uint32_t size;
  uint32_t mode; /* enum sluice_policy_mode in force */
  sluice_attachment id;
  uint64_t incarnation;
  uint64_t generation;
  const struct sluice_target *target; /* a pointer, because it may grow */
  const struct sluice_label *labels;
  size_t label_count;
  struct sluice_string discovered_by; /* instance name of the discovery */
  struct sluice_string state;         /* "filtering", "adopted" */
};

enum sluice_policy_mode {
  SLUICE_POLICY_BLOCK_ALL = 0,
  SLUICE_POLICY_ALLOWLIST = 1,
  SLUICE_POLICY_DENYLIST = 2,
  SLUICE_POLICY_DISABLED = 3,
  SLUICE_POLICY_UNSET = 255, /* leave it to the other sources */
};
enum sluice_tristate { SLUICE_FALSE = 0, SLUICE_TRUE = 1, SLUICE_UNSET = 2 };

struct sluice_port_range {
  uint8_t protocol; /* IP protocol number */
  uint8_t any_port;
  uint16_t first, last; /* host order, inclusive */
};

#define SLUICE_RULE_ALLOW 1
#define SLUICE_RULE_DENY 2

struct sluice_rule {
  uint32_t size;
  uint8_t action;        /* SLUICE_RULE_ALLOW or _DENY */
  uint8_t family;        /* 4, 6, or 0: a domain rule */
  uint8_t prefix_length; /* 0..32 or 0..128 */
  uint8_t reserved;
  uint8_t address[16];         /* host bits must be zero */
  struct sluice_string domain; /* "pypi.org", "*.pypi.org", ".pypi.org"; only with family 0 */
  const struct sluice_port_range *ports;
  size_t port_count;         /* 0: every protocol and port */
  uint64_t expires;          /* CLOCK_BOOTTIME ns; 0: never */
  struct sluice_string name; /* for reports */
};

struct sluice_layer {
  uint32_t size;
  uint32_t mode;    /* enum sluice_policy_mode */
  uint32_t audit;   /* enum sluice_tristate */
  uint32_t replies; /* enum sluice_tristate */
  const struct sluice_rule *rules;
  size_t rule_count;
};

/* Result of a change of policy. The host fills what the caller's size has room for. */
struct sluice_applied {
  uint32_t size;
  uint32_t rule_index;  /* on failure: index of the rule at fault, or UINT32_MAX */
  uint64_t generation;  /* on success: in the kernel, read back */
  uint64_t digest[2];   /* of the policy in force */
  char message[240];    /* on failure: terminated text for people */
};

struct sluice_address {
  uint8_t family; /* 4 or 6 */
  uint8_t reserved[7];
  uint8_t bytes[16];
};

struct sluice_counters_info {
  uint32_t size;
  uint32_t reserved;
  uint64_t allowed_packets, allowed_bytes, denied_packets, denied_bytes, audited_packets, events_lost;
};

struct sluice_denial {
  uint32_t size;
  uint32_t audited; /* 1: the packet passed because of audit */
  sluice_attachment attachment; /* 0: a guard's denial */
  uint64_t time;
  uint64_t generation; /* low 24 bits */
  struct sluice_string reason;
  uint8_t family, protocol, icmp_type, icmp_code;
  uint16_t source_port, destination_port; /* host order */
  uint16_t ethertype;
  uint16_t reserved;
  uint32_t length; /* bytes of the packet */
  uint8_t source[16], destination[16];
  struct sluice_string rule; /* the rule that explains it, where there is one */
};

struct sluice_plugin_state {
  uint32_t size;
  uint32_t reserved;
  struct sluice_string instance, state, reason;
};

/* ---- services: what the host offers. Functions take the plugin's own `host` handle ---------------------------------- */

struct sluice_host; /* opaque */

/* For every plugin. */
struct sluice_common_services {
  uint32_t size;
  /* [any] level: 0 trace, 1 debug, 2 info, 3 warning, 4 error */
  void (*log)(struct sluice_host *, uint32_t level, struct sluice_string message);
  /* [any] */
  uint64_t (*now)(struct sluice_host *);
  /* [strand] One-shot, re-armed by calling again with the same id; the plugin's on_timer(id) follows. */
  int (*timer_set)(struct sluice_host *, uint64_t id, uint64_t delay_ns);
  int (*timer_cancel)(struct sluice_host *, uint64_t id);
  /* [strand] events: EPOLLIN, EPOLLOUT...; level-triggered; on_fd(fd, events) follows. The fd stays the plugin's; unwatch before close. */
  int (*fd_watch)(struct sluice_host *, int fd, uint32_t events);
  int (*fd_unwatch)(struct sluice_host *, int fd);
  /* [any] The plugin's on_wake(token) follows on the strand. -ESHUTDOWN after stop. How a plugin's own threads reach it. */
  int (*wake)(struct sluice_host *, uint64_t token);
  /* [any] The instance cannot go on: it is stopped, its reason is shown, it is restarted with backoff. */
  void (*failed)(struct sluice_host *, struct sluice_string reason);
};

struct sluice_discovery_services {
  uint32_t size;
  /* [strand] Returns when the filter is in the kernel. Idempotent per target; labels of a known target are replaced.
     -ENODEV/-ENOENT: the target is gone. -EEXIST: another discovery owns it. On failure `message` is filled. */
  int (*attach)(struct sluice_host *, const struct sluice_target *, const struct sluice_label *, size_t label_count,
                sluice_attachment *id, struct sluice_applied *message);
  /* [strand] Returns when the filter is gone. Only its own attachments. */
  int (*detach)(struct sluice_host *, sluice_attachment, struct sluice_string reason);
  /* [strand] New labels; the wiring is matched again and policy follows. */
  int (*relabel)(struct sluice_host *, sluice_attachment, const struct sluice_label *, size_t label_count);
  /* [strand] Everything that exists has been attached (after start, and after each resync). Adopted attachments that nobody claimed are
     then dropped. */
  int (*listed)(struct sluice_host *);
};

struct sluice_policy_services {
  uint32_t size;
  /* [strand] Replaces this source's layer; returns when it is in the kernel, read back. Rejects whole. */
  int (*replace_layer)(struct sluice_host *, sluice_attachment, const struct sluice_layer *, struct sluice_applied *);
  /* [strand] Removes rules equal to those in `remove`, then adds those in `add`; same contract. `base_generation` 0 or the
     generation the delta was made for: -ESTALE when another is in force. */
  int (*update_layer)(struct sluice_host *, sluice_attachment, uint64_t base_generation, const struct sluice_rule *add,
                      size_t add_count, const struct sluice_rule *remove, size_t remove_count, struct sluice_applied *);
  /* [strand] Withdraws the layer: as if this source had never spoken. */
  int (*withdraw_layer)(struct sluice_host *, sluice_attachment, struct sluice_applied *);
  /* [strand] Replaces many layers with one call: all are checked first, none is touched when one is refused. `failed_index` tells which. */
  int (*replace_layers)(struct sluice_host *, const sluice_attachment *, const struct sluice_layer *, size_t count,
                        size_t *failed_index, struct sluice_applied *);
};

struct sluice_resolver_services {
  uint32_t size;
  /* [strand] Returns when the addresses are in the kernel; all or nothing. `ttl_ns`: how long new connections may use them;
     `grace_ns`: how much longer live ones may. `rule` names the domain rule (index as given by domain_rules). */
  int (*learn)(struct sluice_host *, sluice_attachment, const struct sluice_address *, size_t count, uint64_t ttl_ns,
               uint64_t grace_ns, uint32_t rule, struct sluice_applied *);
  /* [strand] */
  int (*revoke)(struct sluice_host *, sluice_attachment, const struct sluice_address *, size_t count);
};

struct sluice_observer_services {
  uint32_t size;
  /* [strand] */
  int (*counters)(struct sluice_host *, sluice_attachment, struct sluice_counters_info *);
  /* [strand] Calls `each` for every attachment before it returns. */
  int (*list)(struct sluice_host *, void (*each)(void *context, const struct sluice_attachment_info *), void *context);
};

/* Given to create(). Tables of roles the plugin does not hold are null. The tables live until destroy() has returned; the
   `host` handle for ever, so that a thread the plugin forgot is answered -ESHUTDOWN. Services tagged [strand] answer -EPERM
   on another thread and in create(), -ESHUTDOWN after stop() and in quarantine. */
struct sluice_services {
  uint32_t size;
  uint32_t abi_minor; /* the host's */
  struct sluice_host *host;
  const struct sluice_common_services *common;
  const struct sluice_discovery_services *discovery;
  const struct sluice_policy_services *policy;
  const struct sluice_resolver_services *resolver;
  const struct sluice_observer_services *observer;
};

/* ---- what a plugin offers -------------------------------------------------------------------------------------------- */

/* Functions that a plugin does not need may be null, except create, start, stop and destroy. A function that fails returns a
   negative errno and writes up to `capacity` bytes of text, terminated, into `message`. An event (on_..., attachment_...,
   domain_rules, denials, plugin_state) that returns a negative errno fails the instance, as failed() does. */
struct sluice_plugin {
  uint32_t size;
  uint32_t abi_minor; /* the plugin's */
  struct sluice_string name, version, summary;
  uint32_t roles;
  uint32_t option_count;
  const struct sluice_option *options;

  /* [loader] Reads the configuration, opens nothing that lasts. Counted against the start deadline. Also called by --check,
     in a throwaway process. */
  int (*create)(const struct sluice_services *, const struct sluice_config *, void **self, char *message, size_t capacity);
  /* [strand] Within the start deadline (10 s). */
  int (*start)(void *self, char *message, size_t capacity);
  /* [strand] Within the stop deadline (5 s). Everything the plugin started is joined when it returns. */
  void (*stop)(void *self);
  /* [strand] After stop, or after a create whose start failed. */
  void (*destroy)(void *self);

  /* [strand] */
  int (*on_timer)(void *self, uint64_t id);
  int (*on_fd)(void *self, int fd, uint32_t events);
  int (*on_wake)(void *self, uint64_t token);
  /* [strand] Events were dropped because the mailbox was full: forget what you know, list again. */
  int (*on_resync)(void *self);

  /* [strand] Policy sources, resolvers and observers. `info` includes labels. A policy source answers `added` by speaking for it (or
     by staying silent); the attachment's wiring names this instance, or the call would not come. */
  int (*attachment_added)(void *self, const struct sluice_attachment_info *info);
  int (*attachment_changed)(void *self, const struct sluice_attachment_info *info);
  int (*attachment_removed)(void *self, const struct sluice_attachment_info *info, struct sluice_string reason);

  /* [strand] Resolvers: the domain rules of one attachment, united over its sources, whole, after each change. */
  int (*domain_rules)(void *self, sluice_attachment, const struct sluice_rule *, size_t count);

  /* [strand] Observers. */
  int (*denials)(void *self, const struct sluice_denial *, size_t count);
  int (*plugin_state)(void *self, const struct sluice_plugin_state *);

  /* [strand] --reload reached the instance with options that changed. -ENOTSUP or null: the host restarts the instance. */
  int (*reconfigure)(void *self, const struct sluice_config *, char *message, size_t capacity);
  /* [loader] --check: look at files the options name and report each error as "file:line:column: text" through `report`. */
  int (*check)(void *self, void (*report)(void *context, struct sluice_string error), void *context);
};

typedef const struct sluice_plugin *(*sluice_plugin_entry)(void);

#ifdef __cplusplus
}
#endif

#endif /* SLUICE_PLUGIN_ABI_H */
