/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lives in a cgroup and does as it is told: one command a line on standard input, one answer a line
 * ("ok ...", or the name of the errno). Every way into the network that a process has is a command,
 * so that the test decides what is tried when.
 */
/* clang-format off
 *
 *   socket ID KIND FAMILY              KIND: tcp mptcp udp udplite ping raw:N hdrincl packet; FAMILY: 4, 6, 46 (IPv6 for both)
 *   bind ID ADDRESS PORT | listen ID | accept ID NEW
 *   connect ID ADDRESS PORT            waits up to the socket's patience, two seconds unless told
 *   patience ID MILLISECONDS
 *   send ID HEX                        on a connected socket
 *   sendto ID ADDRESS PORT HEX
 *   sendmmsg ID PORT HEX ADDRESS...    one call, a message for each address
 *   fastopen ID ADDRESS PORT HEX       data in the SYN
 *   uring-connect ID ADDRESS PORT | uring-send ID HEX | uring-sendmsg ID ADDRESS PORT HEX
 *   frame ID DEVICE HEX                a packet socket
 *   vnet-header ID                     its frames begin with one from now on
 *   recv ID MILLISECONDS | close ID
 *   disconnect ID                      connect() to no family
 *   cork ID 0|1
 *   hoard ID                           fills the socket's option memory
 *
 * clang-format on
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

enum { kSockets = 64, kWords = 40 };

static int sockets[kSockets];
static int families[kSockets];
static int patience_of[kSockets]; /* milliseconds */

static void answer(long result) {
  if (result >= 0)
    printf("ok %ld\n", result);
  else
    printf("%s\n", strerrorname_np((int)-result));
}

static long outcome(long result) {
  return result < 0 ? -errno : result;
}

static long set_patience(int id, int milliseconds) {
  struct timeval patience = {.tv_sec = milliseconds / 1000, .tv_usec = milliseconds % 1000 * 1000L};
  patience_of[id] = milliseconds;
  return outcome(setsockopt(sockets[id], SOL_SOCKET, SO_SNDTIMEO, &patience,
                            sizeof(patience))); /* bounds connect too */
}

static size_t from_hex(const char* text, unsigned char* bytes, size_t capacity) {
  size_t count = 0;
  for (; text[0] && text[1] && count < capacity; text += 2) {
    unsigned value;
    if (sscanf(text, "%2x", &value) != 1) break;
    bytes[count++] = (unsigned char)value;
  }
  return count;
}

/* The address in the form the socket's family takes: an IPv6 socket gets an IPv4 address mapped. */
static socklen_t address_of(int id, const char* text, const char* port,
                            struct sockaddr_storage* address) {
  memset(address, 0, sizeof(*address));
  if (families[id] == 4) {
    struct sockaddr_in* four = (struct sockaddr_in*)address;
    four->sin_family = AF_INET;
    four->sin_port = htons((unsigned short)atoi(port));
    inet_pton(AF_INET, text, &four->sin_addr);
    return sizeof(*four);
  }
  struct sockaddr_in6* six = (struct sockaddr_in6*)address;
  six->sin6_family = AF_INET6;
  six->sin6_port = htons((unsigned short)atoi(port));
  char mapped[80];
  snprintf(mapped, sizeof(mapped), "%s%s", strchr(text, ':') ? "" : "::ffff:", text);
  inet_pton(AF_INET6, mapped, &six->sin6_addr);
  return sizeof(*six);
}

static long open_socket(int id, const char* kind, const char* family) {
  int domain = strcmp(family, "4") == 0 ? AF_INET : AF_INET6, one = 1, zero = 0, fd;
  families[id] = domain == AF_INET ? 4 : 6;
  if (strcmp(kind, "tcp") == 0)
    fd = socket(domain, SOCK_STREAM, 0);
  else if (strcmp(kind, "mptcp") == 0)
    fd = socket(domain, SOCK_STREAM, IPPROTO_MPTCP);
  else if (strcmp(kind, "udp") == 0)
    fd = socket(domain, SOCK_DGRAM, 0);
  else if (strcmp(kind, "udplite") == 0)
    fd = socket(domain, SOCK_DGRAM, IPPROTO_UDPLITE);
  else if (strcmp(kind, "ping") == 0)
    fd = socket(domain, SOCK_DGRAM, domain == AF_INET ? (int)IPPROTO_ICMP : (int)IPPROTO_ICMPV6);
  else if (strncmp(kind, "raw:", 4) == 0)
    fd = socket(domain, SOCK_RAW, atoi(kind + 4));
  else if (strcmp(kind, "hdrincl") == 0) {
    fd = socket(domain, SOCK_RAW, IPPROTO_RAW);
    if (fd >= 0 && domain == AF_INET6)
      setsockopt(fd, IPPROTO_IPV6, 36 /* IPV6_HDRINCL */, &one, sizeof(one));
  } else if (strcmp(kind, "packet") == 0)
    fd = socket(AF_PACKET, SOCK_RAW, 0);
  else
    return -EINVAL;
  if (fd < 0) return -errno;
  if (domain == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof(zero));
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  sockets[id] = fd;
  return set_patience(id, 2000);
}

static long send_many(int id, const char* port, const char* hex, char** addresses, int count) {
  unsigned char data[256];
  struct iovec part = {.iov_base = data, .iov_len = from_hex(hex, data, sizeof(data))};
  struct sockaddr_storage names[kWords];
  struct mmsghdr messages[kWords];
  memset(messages, 0, sizeof(messages));
  for (int i = 0; i < count; i++) {
    messages[i].msg_hdr.msg_namelen = address_of(id, addresses[i], port, &names[i]);
    messages[i].msg_hdr.msg_name = &names[i];
    messages[i].msg_hdr.msg_iov = &part;
    messages[i].msg_hdr.msg_iovlen = 1;
  }
  return outcome(sendmmsg(sockets[id], messages, (unsigned)count, 0));
}

struct uring_call {
  int fd, patience; /* milliseconds */
  struct sockaddr_storage address;
  socklen_t length;
  unsigned char data[256];
  size_t size;
  struct iovec part;
  struct msghdr message;
};
static long by_uring(void (*prepare)(struct io_uring_sqe*, struct uring_call*),
                     struct uring_call* call) {
  struct io_uring ring;
  int result = io_uring_queue_init(4, &ring, 0);
  if (result < 0) return result;
  prepare(io_uring_get_sqe(&ring), call);
  result = io_uring_submit(&ring);
  if (result >= 0) {
    struct __kernel_timespec patience = {.tv_sec = call->patience / 1000,
                                         .tv_nsec = call->patience % 1000 * 1000000L};
    struct io_uring_cqe* done = NULL;
    result = io_uring_wait_cqe_timeout(&ring, &done, &patience);
    if (result == 0) {
      result = done->res;
      io_uring_cqe_seen(&ring, done);
    }
  }
  io_uring_queue_exit(&ring);
  return result;
}

static void prepare_connect(struct io_uring_sqe* entry, struct uring_call* call) {
  io_uring_prep_connect(entry, call->fd, (struct sockaddr*)&call->address, call->length);
}
static void prepare_send(struct io_uring_sqe* entry, struct uring_call* call) {
  io_uring_prep_send(entry, call->fd, call->data, call->size, MSG_NOSIGNAL);
}
static void prepare_sendmsg(struct io_uring_sqe* entry, struct uring_call* call) {
  call->part = (struct iovec){call->data, call->size};
  call->message = (struct msghdr){.msg_name = &call->address,
                                  .msg_namelen = call->length,
                                  .msg_iov = &call->part,
                                  .msg_iovlen = 1};
  io_uring_prep_sendmsg(entry, call->fd, &call->message, MSG_NOSIGNAL);
}

/* Keys for signed segments, until there is no room: option memory that the kernel charges. */
static long hoard(int id) {
  struct tcp_md5sig key = {.tcpm_keylen = 8, .tcpm_key = "hoarded"};
  struct sockaddr_in* peer = (struct sockaddr_in*)&key.tcpm_addr;
  peer->sin_family = AF_INET;
  for (unsigned number = 1; number < 1u << 16; number++) {
    peer->sin_addr.s_addr = htonl(0x0a000000u + number);
    if (setsockopt(sockets[id], IPPROTO_TCP, TCP_MD5SIG, &key, sizeof(key)) != 0)
      return errno == ENOMEM ? (long)number : -errno;
  }
  return -ERANGE;
}

static void receive(int id, int milliseconds) {
  unsigned char data[2048];
  struct pollfd ready = {.fd = sockets[id], .events = POLLIN};
  if (poll(&ready, 1, milliseconds) <= 0) {
    answer(-ETIMEDOUT);
    return;
  }
  ssize_t size = recv(sockets[id], data, sizeof(data), MSG_DONTWAIT);
  if (size < 0) {
    answer(-errno);
    return;
  }
  printf("ok ");
  for (ssize_t i = 0; i < size; i++) printf("%02x", data[i]);
  printf("\n");
}

static void obey(char** word, int words) {
  const char* command = word[0];
  int id = words > 1 ? atoi(word[1]) % kSockets : 0;
  unsigned char data[2048];
  struct sockaddr_storage address;
  struct uring_call call = {.fd = sockets[id], .patience = patience_of[id]};
  if (strcmp(command, "socket") == 0 && words == 4) {
    answer(open_socket(id, word[2], word[3]));
  } else if (strcmp(command, "bind") == 0 && words == 4) {
    socklen_t length = address_of(id, word[2], word[3], &address);
    answer(outcome(bind(sockets[id], (struct sockaddr*)&address, length)));
  } else if (strcmp(command, "listen") == 0) {
    answer(outcome(listen(sockets[id], 4)));
  } else if (strcmp(command, "accept") == 0 && words == 3) {
    int accepted = accept(sockets[id], NULL, NULL);
    if (accepted >= 0) sockets[atoi(word[2]) % kSockets] = accepted;
    answer(outcome(accepted));
  } else if (strcmp(command, "connect") == 0 && words == 4) {
    socklen_t length = address_of(id, word[2], word[3], &address);
    answer(outcome(connect(sockets[id], (struct sockaddr*)&address, length)));
  } else if (strcmp(command, "patience") == 0 && words == 3) {
    answer(set_patience(id, atoi(word[2])));
  } else if (strcmp(command, "send") == 0 && words == 3) {
    size_t size = from_hex(word[2], data, sizeof(data));
    answer(outcome(send(sockets[id], data, size, MSG_NOSIGNAL)));
  } else if (strcmp(command, "sendto") == 0 && words == 5) {
    socklen_t length = address_of(id, word[2], word[3], &address);
    size_t size = from_hex(word[4], data, sizeof(data));
    answer(
        outcome(sendto(sockets[id], data, size, MSG_NOSIGNAL, (struct sockaddr*)&address, length)));
  } else if (strcmp(command, "sendmmsg") == 0 && words > 4) {
    answer(send_many(id, word[2], word[3], word + 4, words - 4));
  } else if (strcmp(command, "fastopen") == 0 && words == 5) {
    socklen_t length = address_of(id, word[2], word[3], &address);
    size_t size = from_hex(word[4], data, sizeof(data));
    answer(outcome(sendto(sockets[id], data, size, MSG_NOSIGNAL | MSG_FASTOPEN,
                          (struct sockaddr*)&address, length)));
  } else if (strcmp(command, "uring-connect") == 0 && words == 4) {
    call.length = address_of(id, word[2], word[3], &call.address);
    answer(by_uring(prepare_connect, &call));
  } else if (strcmp(command, "uring-send") == 0 && words == 3) {
    call.size = from_hex(word[2], call.data, sizeof(call.data));
    answer(by_uring(prepare_send, &call));
  } else if (strcmp(command, "uring-sendmsg") == 0 && words == 5) {
    call.length = address_of(id, word[2], word[3], &call.address);
    call.size = from_hex(word[4], call.data, sizeof(call.data));
    answer(by_uring(prepare_sendmsg, &call));
  } else if (strcmp(command, "frame") == 0 && words == 4) {
    struct sockaddr_ll link = {
        .sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(word[2]), .sll_halen = 6};
    size_t size = from_hex(word[3], data, sizeof(data));
    answer(outcome(sendto(sockets[id], data, size, 0, (struct sockaddr*)&link, sizeof(link))));
  } else if (strcmp(command, "vnet-header") == 0 && words == 2) {
    int on = 1;
    answer(outcome(setsockopt(sockets[id], SOL_PACKET, PACKET_VNET_HDR, &on, sizeof(on))));
  } else if (strcmp(command, "recv") == 0 && words == 3) {
    receive(id, atoi(word[2]));
  } else if (strcmp(command, "disconnect") == 0) {
    struct sockaddr nobody = {.sa_family = AF_UNSPEC};
    answer(outcome(connect(sockets[id], &nobody, sizeof(nobody))));
  } else if (strcmp(command, "cork") == 0 && words == 3) {
    int on = atoi(word[2]);
    answer(outcome(setsockopt(sockets[id], IPPROTO_UDP, 1 /* UDP_CORK */, &on, sizeof(on))));
  } else if (strcmp(command, "hoard") == 0) {
    answer(hoard(id));
  } else if (strcmp(command, "close") == 0) {
    answer(outcome(close(sockets[id])));
  } else {
    answer(-EINVAL);
  }
}

int main(void) {
  char line[8192];
  setvbuf(stdout, NULL, _IOLBF, 0);
  while (fgets(line, sizeof(line), stdin)) {
    char* word[kWords];
    int words = 0;
    for (char* next = strtok(line, " \n"); next && words < kWords; next = strtok(NULL, " \n"))
      word[words++] = next;
    if (words > 0) obey(word, words);
  }
  return 0;
}
