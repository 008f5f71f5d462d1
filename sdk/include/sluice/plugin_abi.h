/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plugin ABI, major 1: the only thing that crosses between the host and a plugin. This header
 * is its manual. Plugin authors include <sluice/plugin.hpp> instead and never see it.
 *
 * Rules that hold everywhere:
 *   - Every struct that may grow opens with `size`, the writer's sizeof. A field at or beyond
 * `size` is absent. Fields are only appended; that raises SLUICE_ABI_MINOR. A change of threading
 * or meaning is a new major and a new entry symbol. An array of such structs advances by the
 * writer's `size`, the same in all its elements; none is embedded in another. Structs without
 * `size` never change.
 *   - Nothing throws across. A call returns 0 (or a count) on success and a negative errno
 * otherwise; a call that fails changes nothing.
 *   - Pointers passed in are borrowed for the length of the call, both ways. Strings are {data,
 * length}, UTF-8, not terminated.
 *   - [strand]: called only on the plugin's own thread, one call at a time, in order; [any]: from
 * any thread; [loader]: on the host's loading thread, before the strand exists.
 *   - All times are CLOCK_BOOTTIME nanoseconds; a deadline is such a time, a ttl or a delay a
 * length. Addresses are 16 bytes in network byte order, IPv4 in the first four.
 *   - What a minor later than 0 brought says so: "since 1.1".
 */
#ifndef SLUICE_PLUGIN_ABI_H
#define SLUICE_PLUGIN_ABI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SLUICE_ABI_MAJOR 1
#define SLUICE_ABI_MINOR 1
#define SLUICE_PLUGIN_ENTRY \
  "sluice_plugin_v1" /* the one exported symbol: const struct sluice_plugin *(*)(void) */

/* An ELF note carries the version so that it is read before dlopen and a wrong plugin's
   constructors never run. Section ".note.sluice", name "Sluice", type 1, descriptor: struct
   sluice_note. */
#define SLUICE_NOTE_SECTION ".note.sluice"
#define SLUICE_NOTE_NAME "Sluice"
#define SLUICE_NOTE_TYPE 1
struct sluice_note {
  uint32_t abi_major;
  uint32_t abi_minor;
};

struct sluice_string {
  const char* data;
  size_t length;
};

/* ---- roles
 * ----------------------------------------------------------------------------------------------------------
 */

#define SLUICE_ROLE_DISCOVERY (1u << 0)     /* finds workloads */
#define SLUICE_ROLE_POLICY_SOURCE (1u << 1) /* decides their policy */
#define SLUICE_ROLE_RESOLVER (1u << 2)      /* turns domain rules into learned addresses */
#define SLUICE_ROLE_OBSERVER (1u << 3)      /* is told what happens */
#define SLUICE_ROLE_DECIDER \
  (1u << 4) /* since 1.1: decides single DNS questions that no rule decides */
#define SLUICE_ROLE_ANSWER_SOURCE \
  (1u << 5) /* since 1.1: brings DNS answers that another server found */

/* ---- options: declared as data, checked by the host before the plugin is created
 * ------------------------------------ */

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

/* The value of one option as configured or defaulted. Lists and tables in order; a table alternates
 * key, value. */
struct sluice_option_value {
  uint32_t size;
  uint32_t type;
  struct sluice_string path;
  uint32_t is_set; /* 0: neither configured nor defaulted; the rest is zero */
  uint32_t boolean;
  int64_t integer; /* also DURATION: nanoseconds */
  struct sluice_string string;
  const struct sluice_string* items;
  size_t item_count;
};

struct sluice_config {
  uint32_t size;
  struct sluice_string instance; /* "taps" of [plugin.taps] */
  const struct sluice_option_value* values;
  size_t value_count;
  struct sluice_string
      config_directory; /* directory of the configuration file: base of relative paths */
  struct sluice_string
      state_directory; /* a directory of the instance's own, created on first use by the plugin */
};

/* ---- the things plugins speak of
 * ------------------------------------------------------------------------------------ */

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
  struct sluice_string
      netns_path; /* interfaces in another namespace: a path to enter it; empty: the host's own */
};

typedef uint64_t sluice_attachment; /* 0 is none; never names another attachment later */

struct sluice_attachment_info {
  uint32_t size;
  uint32_t mode; /* enum sluice_policy_mode in force */
  sluice_attachment id;
  uint64_t incarnation;
  uint64_t generation;
  const struct sluice_target* target; /* a pointer, because it may grow */
  const struct sluice_label* labels;
  size_t label_count;
  struct sluice_string discovered_by; /* instance name of the discovery */
  struct sluice_string state;         /* "filtering", "adopted" */
  /* since 1.1 */
  uint32_t audit;      /* 1: what policy denies is counted and reported, and passes */
  uint32_t redirected; /* 1: its port 53, whatever server it asks, ends in the sockets that its
                          wire's resolver serves */
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

/* since 1.1 */
struct sluice_prefix {
  uint8_t family; /* 4 or 6 */
  uint8_t length; /* 0..32 or 0..128 */
  uint8_t reserved[6];
  uint8_t address[16]; /* host bits must be zero */
};

#define SLUICE_RULE_ALLOW 1
#define SLUICE_RULE_DENY 2
#define SLUICE_RULE_PUBLIC_SUFFIX \
  (1u << 0) /* flags: the pattern may cover a public suffix ("*.com", ".co.uk") */
#define SLUICE_NO_RULE \
  UINT32_MAX /* where the index of a domain rule is asked for, and none is meant */

struct sluice_rule {
  uint32_t size;
  uint8_t action;        /* SLUICE_RULE_ALLOW or _DENY */
  uint8_t family;        /* 4, 6, or 0: a domain rule */
  uint8_t prefix_length; /* 0..32 or 0..128 */
  uint8_t reserved;
  uint8_t address[16];         /* host bits must be zero */
  struct sluice_string domain; /* "pypi.org", "*.pypi.org", ".pypi.org"; only with family 0 */
  const struct sluice_port_range* ports;
  size_t port_count;         /* 0: every protocol and port */
  uint64_t expires;          /* CLOCK_BOOTTIME ns; 0: never */
  struct sluice_string name; /* for reports */
  /* since 1.1; only with family 0 and SLUICE_RULE_ALLOW. */
  const struct sluice_prefix* ranges; /* reserved ranges (private, loopback, link-local...) whose
                                         addresses this rule may grant; without, none */
  size_t range_count;
  const uint16_t* types; /* RR types that this rule lets through beside A, AAAA, HTTPS and SVCB */
  size_t type_count;
  uint32_t flags; /* SLUICE_RULE_PUBLIC_SUFFIX */
  uint32_t id;    /* domain_rules: what learn() calls it; a rule that opens the same keeps it over
                     changes, another never gets it. Else 0 */
};

struct sluice_layer {
  uint32_t size;
  uint32_t mode;    /* enum sluice_policy_mode */
  uint32_t audit;   /* enum sluice_tristate */
  uint32_t replies; /* enum sluice_tristate */
  const struct sluice_rule* rules;
  size_t rule_count;
};

/* Result of a change of policy. The host fills what the caller's size has room for. */
struct sluice_applied {
  uint32_t size;
  uint32_t rule_index; /* on failure: index of the rule at fault, or UINT32_MAX */
  uint64_t generation; /* on success: in the kernel, read back */
  uint64_t digest[2];  /* of the policy in force */
  char message[240];   /* on failure: terminated text for people */
};

struct sluice_address {
  uint8_t family; /* 4 or 6 */
  uint8_t reserved[7];
  uint8_t bytes[16];
};

/* ---- names (since 1.1) ---- */

/* One end of a connection. */
struct sluice_endpoint {
  uint8_t family; /* 4 or 6 */
  uint8_t reserved;
  uint16_t port; /* host order */
  uint8_t reserved2[4];
  uint8_t address[16];
};

struct sluice_listener {
  uint32_t size;
  int32_t fd;
};

/* One question of one attachment. */
struct sluice_query {
  uint32_t size;
  uint16_t type; /* RR type */
  uint16_t reserved;
  uint64_t id; /* in ask(): the asker's own, not in use; in decide(): the host's own, to be repeated
                  in decided() */
  sluice_attachment attachment;
  struct sluice_string name; /* presentation form: lower-case ASCII, dots between labels, none at
                                the end, \DDD and \. escapes; the root is "." */
};

enum sluice_decision_action {
  SLUICE_DECISION_NONE = 0, /* no opinion: to the asker a refusal, as is a deadline that passed */
  SLUICE_DECISION_ALLOW = 1,
  SLUICE_DECISION_DENY = 2,
};

/* What a decider says of one query. */
struct sluice_decision_made {
  uint32_t size;
  uint32_t action; /* enum sluice_decision_action */
  uint64_t ttl_ns; /* may stand this long for the same attachment, name and type; 0: for this query
                      only */
  const struct sluice_port_range* ports;  /* allow: what the addresses are opened for */
  size_t port_count;                      /* 0: every protocol and port */
  const struct sluice_address* addresses; /* allow: answer with these and ask no upstream. Subject
                                             to the same checks as an upstream's */
  size_t address_count;
  uint64_t address_ttl_ns; /* TTL of `addresses`; rounded down to seconds, raised to the resolver's
                              least */
  const struct sluice_prefix* ranges; /* allow: as sluice_rule.ranges */
  size_t range_count;
  struct sluice_string reason; /* for reports and, in its first 200 bytes, for whoever asked */
};

struct sluice_answer_address {
  uint8_t family; /* 4 or 6 */
  uint8_t reserved[3];
  uint32_t ttl; /* seconds, as the record had it */
  uint8_t bytes[16];
};

/* Of a push: what one domain rule, or the word of a decider, opens. */
struct sluice_grant {
  uint32_t size;
  uint32_t rule; /* sluice_rule.id as domain_rules gave it; SLUICE_NO_RULE: no rule names it, and a
                    decider of the wire allowed it */
  const struct sluice_address* addresses;
  size_t address_count;
  uint64_t ttl_ns;                       /* how long new connections may use them */
  uint64_t grace_ns;                     /* how much longer live ones may */
  const struct sluice_port_range* ports; /* without a rule: what they are opened for */
  size_t port_count;                     /* 0: every protocol and port */
};

/* What has to be open before one answer may be given. */
struct sluice_push {
  uint32_t size;
  uint32_t reserved;
  const struct sluice_string* names; /* the question's name, then every name that led from it to an
                                        address; form as in sluice_query */
  size_t name_count;                 /* 1 at least */
  const struct sluice_grant*
      grants; /* several where several rules decide on the name, or where TTLs differ */
  size_t grant_count;
};

/* An answer that another DNS server found for a question of an attachment and will give once it
 * may. */
struct sluice_answer {
  uint32_t size;
  uint32_t reserved;
  sluice_attachment attachment;
  struct sluice_string name; /* as asked; form as in sluice_query */
  const struct sluice_string*
      chain; /* the CNAME and DNAME targets in order, from the one that `name` points to */
  size_t chain_count;
  const struct sluice_answer_address* addresses; /* of the last name of the chain */
  size_t address_count;
};

enum sluice_query_verdict {
  SLUICE_QUERY_ALLOWED = 1, /* by a rule, a decision or the mode; answered, also where the answer is
                               "there is no such name" */
  SLUICE_QUERY_DENIED = 2,  /* by a rule, a decision or the mode */
  SLUICE_QUERY_FILTERED =
      3, /* the name is allowed, the type or every address of the answer is not */
  SLUICE_QUERY_FAILED =
      4, /* no upstream, no decision in time, or the kernel did not take the addresses */
  SLUICE_QUERY_LIMITED = 5, /* over a budget of the attachment */
  SLUICE_QUERY_INVALID = 6, /* not a question that is served: FORMERR, NOTIMP, BADVERS */
};
#define SLUICE_QUERY_CACHED (1u << 0) /* flags: no upstream was asked for it */
#define SLUICE_QUERY_AUDITED \
  (1u << 1) /* would have been refused, and was answered because of audit */
#define SLUICE_QUERY_DECIDED (1u << 2) /* a decider decided, not a rule */
#define SLUICE_QUERY_PUSHED (1u << 3)  /* the answer came from an answer source */
#define SLUICE_QUERY_STREAM (1u << 4)  /* asked over TCP */
#define SLUICE_NO_EXTENDED_ERROR UINT16_MAX

/* What became of one query. Made on the path of each: nothing in it needs formatting, unknown
 * strings stay empty. */
struct sluice_query_report {
  uint32_t size;
  uint16_t type;          /* RR type */
  uint16_t response_code; /* 12 bits */
  sluice_attachment attachment;
  uint64_t time;             /* when it was answered or dropped */
  struct sluice_string name; /* as in sluice_query: whoever asked chose every byte of it */
  uint8_t verdict;           /* enum sluice_query_verdict */
  uint8_t flags;             /* SLUICE_QUERY_... */
  uint16_t extended_error;   /* INFO-CODE of RFC 8914, or SLUICE_NO_EXTENDED_ERROR */
  uint32_t count; /* identical queries it stands for (merged, dropped in a row); 0 is read as 1 */
  struct sluice_string rule;              /* pattern of the rule that decided */
  struct sluice_string reason;            /* why not, for people */
  struct sluice_string upstream;          /* "192.0.2.53:53"; empty: none was asked */
  const struct sluice_address* addresses; /* those given in the answer */
  size_t address_count;
  uint64_t decision_ns, upstream_ns, push_ns; /* how long each took; 0: was not needed */
};

struct sluice_counters_info {
  uint32_t size;
  uint32_t reserved;
  uint64_t allowed_packets, allowed_bytes, denied_packets, denied_bytes, audited_packets,
      events_lost;
};

struct sluice_denial {
  uint32_t size;
  uint32_t audited;             /* 1: the packet passed because of audit */
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

/* ---- services: what the host offers. Functions take the plugin's own `host` handle
 * ---------------------------------- */

struct sluice_host; /* opaque */

/* For every plugin. */
struct sluice_common_services {
  uint32_t size;
  /* [any] level: 0 trace, 1 debug, 2 info, 3 warning, 4 error */
  void (*log)(struct sluice_host*, uint32_t level, struct sluice_string message);
  /* [any] */
  uint64_t (*now)(struct sluice_host*);
  /* [strand] One-shot, re-armed by calling again with the same id; the plugin's on_timer(id)
   * follows. */
  int (*timer_set)(struct sluice_host*, uint64_t id, uint64_t delay_ns);
  int (*timer_cancel)(struct sluice_host*, uint64_t id);
  /* [strand] events: EPOLLIN, EPOLLOUT...; level-triggered; on_fd(fd, events) follows. The fd stays
   * the plugin's; unwatch before close. */
  int (*fd_watch)(struct sluice_host*, int fd, uint32_t events);
  int (*fd_unwatch)(struct sluice_host*, int fd);
  /* [any] The plugin's on_wake(token) follows on the strand. -ESHUTDOWN after stop. How a plugin's
   * own threads reach it. */
  int (*wake)(struct sluice_host*, uint64_t token);
  /* [any] The instance cannot go on: it is stopped, its reason is shown, it is restarted with
   * backoff. */
  void (*failed)(struct sluice_host*, struct sluice_string reason);
  /* since 1.1 */
  /* [strand] Leaves a duplicate of `fd` with the service manager, so that it outlives the daemon's
     death and restart. A name in use is replaced. `name`: 1 to 64 bytes of [a-zA-Z0-9._-];
     instances do not see each other's. -ENOTSUP: there is no service manager that keeps
     descriptors. */
  int (*keep_fd)(struct sluice_host*, struct sluice_string name, int fd);
  /* [any] A new descriptor (close-on-exec, the caller's) of what was kept under that name, in this
   * life or an earlier one; -ENOENT: nothing. */
  int (*kept_fd)(struct sluice_host*, struct sluice_string name);
  /* [strand] Forgets it. -ENOENT: nothing was kept under that name. */
  int (*drop_fd)(struct sluice_host*, struct sluice_string name);
};

struct sluice_discovery_services {
  uint32_t size;
  /* [strand] Returns when the filter is in the kernel. Idempotent per target, whose labels are
     replaced. -ENODEV/-ENOENT: the target is gone. -EEXIST: another discovery has it; this one gets
     it when that one lets go: attach again soon to learn its id. `message` is filled on failure. */
  int (*attach)(struct sluice_host*, const struct sluice_target*, const struct sluice_label*,
                size_t label_count, sluice_attachment* id, struct sluice_applied* message);
  /* [strand] Returns when the filter is gone. Only its own attachments. */
  int (*detach)(struct sluice_host*, sluice_attachment, struct sluice_string reason);
  /* [strand] New labels; the wiring is matched again and policy follows. */
  int (*relabel)(struct sluice_host*, sluice_attachment, const struct sluice_label*,
                 size_t label_count);
  /* [strand] Everything that exists has been attached (after start, and after each resync). Adopted
     attachments that nobody claimed are then dropped. */
  int (*listed)(struct sluice_host*);
};

struct sluice_policy_services {
  uint32_t size;
  /* [strand] Replaces this source's layer; returns when it is in the kernel, read back. Rejects
   * whole. */
  int (*replace_layer)(struct sluice_host*, sluice_attachment, const struct sluice_layer*,
                       struct sluice_applied*);
  /* [strand] Removes rules equal to those in `remove`, then adds those in `add`; same contract.
     `base_generation` 0 or the generation the delta was made for: -ESTALE when another is in force.
   */
  int (*update_layer)(struct sluice_host*, sluice_attachment, uint64_t base_generation,
                      const struct sluice_rule* add, size_t add_count,
                      const struct sluice_rule* remove, size_t remove_count,
                      struct sluice_applied*);
  /* [strand] Withdraws the layer: as if this source had never spoken. */
  int (*withdraw_layer)(struct sluice_host*, sluice_attachment, struct sluice_applied*);
  /* [strand] Replaces many layers with one call: all are checked first, none is touched when one is
   * refused. `failed_index` tells which. */
  int (*replace_layers)(struct sluice_host*, const sluice_attachment*, const struct sluice_layer*,
                        size_t count, size_t* failed_index, struct sluice_applied*);
};

struct sluice_resolver_services {
  uint32_t size;
  /* [any] Returns when all of the push is in the kernel; all or nothing, over all of its grants. An
     address under several grants is opened for the ports of all of them. -ESTALE: a grant names a
     rule that is not in force any more: judge again by the list that came last, or is about to.
     -EACCES: an explicit rule or the floor denies an address on all ports of its grant; rule_index
     counts the addresses of all grants through. -EPERM: nobody decides there. -ENOSPC: no room. */
  int (*learn)(struct sluice_host*, sluice_attachment, const struct sluice_push*,
               struct sluice_applied*);
  /* [any] */
  int (*revoke)(struct sluice_host*, sluice_attachment, const struct sluice_address*, size_t count);
  /* since 1.1 */
  /* [strand] The sockets that take port 53 of every attachment whose wire names this instance;
     replaces the former set, an empty one ends the redirection. UDP sockets and TCP listeners:
     bound, IP_TRANSPARENT or IPV6_TRANSPARENT, one of each {family, protocol} per worker. The
     descriptors stay the plugin's: serve() without one before closing it. Redirection survives the
     plugin: what is sent to sockets that are gone is dropped. */
  int (*serve)(struct sluice_host*, const struct sluice_listener*, size_t count);
  /* [any] Whose datagram carries this mark (SO_MARK of the packet, by SO_RCVMARK). Cheap: for each
     query. -ENOENT: nobody's; the query must be dropped, no other sign of its origin can be
     trusted. */
  int (*asker_of_mark)(struct sluice_host*, uint32_t mark, sluice_attachment*);
  /* [any] Who is at the other end of a connection accepted on a listener, and which server it
     thinks it talks to. -ENOENT: nobody known; close it. */
  int (*asker_of_stream)(struct sluice_host*, int accepted_fd, sluice_attachment*,
                         struct sluice_endpoint* asked);
  /* [any] Puts the query to the decider of the attachment's wire. 0: exactly one event `decided`
     follows, by `deadline` at the latest. -ENOENT: the wire has no decider, or there is no such
     attachment. -EHOSTDOWN: it has one that does not run. -EBUSY: too many are undecided. In none
     of these does an event follow. */
  int (*ask)(struct sluice_host*, const struct sluice_query*, uint64_t deadline);
  /* [any] Answers the event answer_pushed: 0 once the addresses are in the kernel, else a negative
     errno and text for people. -ENOENT: nobody waits for it any more. */
  int (*pushed)(struct sluice_host*, uint64_t push_id, int result, struct sluice_string message);
  /* [any] Tells observers. Never waits; what finds no room with an observer is dropped and counted
   * there. Cheap where nobody observes. */
  int (*report)(struct sluice_host*, const struct sluice_query_report*, size_t count);
};

struct sluice_observer_services {
  uint32_t size;
  /* [strand] */
  int (*counters)(struct sluice_host*, sluice_attachment, struct sluice_counters_info*);
  /* [strand] Calls `each` for every attachment before it returns. */
  int (*list)(struct sluice_host*,
              void (*each)(void* context, const struct sluice_attachment_info*), void* context);
};

/* since 1.1 */
struct sluice_decider_services {
  uint32_t size;
  /* [any] Answers the event decide. The first answer counts. -ENOENT: there is no such query, or it
     was for another, or its deadline has passed. */
  int (*decided)(struct sluice_host*, uint64_t query_id, const struct sluice_decision_made*);
};

/* since 1.1 */
struct sluice_answer_source_services {
  uint32_t size;
  /* [strand] Returns when the resolver of the attachment's wire has judged the answer and its
     addresses are in the kernel: give it to the guest then and only then. -ENOENT: no such
     attachment under a wire that names this source, or no resolver there. -EHOSTDOWN: the resolver
     does not run. -ETIMEDOUT: it has not answered by `deadline`. Else what the resolver refused
     with. */
  int (*push_answer)(struct sluice_host*, const struct sluice_answer*, uint64_t deadline,
                     struct sluice_applied*);
};

/* Given to create(). Tables of roles the plugin does not hold are null. The tables live until
   destroy() has returned; the `host` handle for ever, so that a thread the plugin forgot is
   answered -ESHUTDOWN. Services tagged [strand] answer -EPERM on another thread and in create(),
   -ESHUTDOWN after stop() and in quarantine. */
struct sluice_services {
  uint32_t size;
  uint32_t abi_minor; /* the host's */
  struct sluice_host* host;
  const struct sluice_common_services* common;
  const struct sluice_discovery_services* discovery;
  const struct sluice_policy_services* policy;
  const struct sluice_resolver_services* resolver;
  const struct sluice_observer_services* observer;
  /* since 1.1 */
  const struct sluice_decider_services* decider;
  const struct sluice_answer_source_services* answer_source;
};

/* ---- what a plugin offers
 * -------------------------------------------------------------------------------------------- */

/* Functions that a plugin does not need may be null, except create, start, stop and destroy. A
   function that fails returns a negative errno and writes up to `capacity` bytes of text,
   terminated, into `message`. An event (on_..., attachment_..., domain_rules, denials,
   plugin_state, decided, answer_pushed, queries, decide) that returns a negative errno fails the
   instance, as failed() does. */
struct sluice_plugin {
  uint32_t size;
  uint32_t abi_minor; /* the plugin's */
  struct sluice_string name, version, summary;
  uint32_t roles;
  uint32_t option_count;
  const struct sluice_option* options;

  /* [loader] Reads the configuration, opens nothing that lasts. Counted against the start deadline.
     Also called by --check, in a throwaway process. */
  int (*create)(const struct sluice_services*, const struct sluice_config*, void** self,
                char* message, size_t capacity);
  /* [strand] Within the start deadline (10 s). */
  int (*start)(void* self, char* message, size_t capacity);
  /* [strand] Within the stop deadline (5 s). Everything the plugin started is joined when it
   * returns. */
  void (*stop)(void* self);
  /* [strand] After stop, or after a create whose start failed. */
  void (*destroy)(void* self);

  /* [strand] */
  int (*on_timer)(void* self, uint64_t id);
  int (*on_fd)(void* self, int fd, uint32_t events);
  int (*on_wake)(void* self, uint64_t token);
  /* [strand] Events were dropped because the mailbox was full: forget what you know, list again. */
  int (*on_resync)(void* self);

  /* [strand] All roles but discovery; observers hear of every attachment. `info` includes labels. A
     policy source answers `added` by speaking for it (or by staying silent); the attachment's
     wiring names this instance, or the call would not come. */
  int (*attachment_added)(void* self, const struct sluice_attachment_info* info);
  int (*attachment_changed)(void* self, const struct sluice_attachment_info* info);
  int (*attachment_removed)(void* self, const struct sluice_attachment_info* info,
                            struct sluice_string reason);

  /* [strand] Resolvers: the domain rules of one attachment, united over its sources, whole, after
   * each change. */
  int (*domain_rules)(void* self, sluice_attachment, const struct sluice_rule*, size_t count);

  /* [strand] Observers. */
  int (*denials)(void* self, const struct sluice_denial*, size_t count);
  int (*plugin_state)(void* self, const struct sluice_plugin_state*);

  /* [strand] --reload reached the instance with options that changed. -ENOTSUP or null: the host
   * restarts the instance. */
  int (*reconfigure)(void* self, const struct sluice_config*, char* message, size_t capacity);
  /* [loader] --check: report each error in files the options name as "file:line:column: text"; log
     doubts as warnings. A policy source may show rules: replace_layer at attachment 0, not kept. */
  int (*check)(void* self, void (*report)(void* context, struct sluice_string error),
               void* context);

  /* since 1.1 */
  /* [strand] Resolvers: what became of an ask(). `query_id` is the one it gave. Action NONE with a
     reason where the deadline passed or the decider went. */
  int (*decided)(void* self, uint64_t query_id, const struct sluice_decision_made*);
  /* [strand] Resolvers: judge this answer as if an upstream had given it, learn its addresses, then
     call pushed(push_id). Not to be waited for: return, and answer when it is done. */
  int (*answer_pushed)(void* self, uint64_t push_id, const struct sluice_answer*);
  /* [strand] Observers. */
  int (*queries)(void* self, const struct sluice_query_report*, size_t count);
  /* [strand] Deciders: say what you think through decided(), now or later, from any thread. */
  int (*decide)(void* self, const struct sluice_query*);
};

typedef const struct sluice_plugin* (*sluice_plugin_entry)(void);

#ifdef __cplusplus
}
#endif

#endif /* SLUICE_PLUGIN_ABI_H */
