/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Resolve, then connect at once, many times with names that nobody has asked for before: does a
 * first connection ever fail because the answer was faster than the filter?
 *
 *   first_connect ask udp|tcp 4|6 SERVER ZONE FIRST COUNT
 *       asks for n<FIRST>.ZONE ... and connects to tcp/443 of the answer; prints one line of "word
 *       number" pairs
 *   first_connect serve
 *       accepts on tcp/443, both families, until it is killed
 *
 * Nothing is asked twice and no connection is tried twice: whatever is lost is counted. A
 * connection whose first segment had to be sent again counts as failed too ("slow": TCP does so
 * after a second).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { kAnswerTimeout = 5000, kConnectTimeout = 60000 }; /* milliseconds */

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static socklen_t endpoint(const char* text, uint16_t port, struct sockaddr_storage* out) {
  memset(out, 0, sizeof(*out));
  struct sockaddr_in* four = (struct sockaddr_in*)out;
  struct sockaddr_in6* six = (struct sockaddr_in6*)out;
  if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
    four->sin_family = AF_INET;
    four->sin_port = htons(port);
    return sizeof(*four);
  }
  if (inet_pton(AF_INET6, text, &six->sin6_addr) != 1) {
    fprintf(stderr, "first_connect: %s is no address\n", text);
    exit(2);
  }
  six->sin6_family = AF_INET6;
  six->sin6_port = htons(port);
  return sizeof(*six);
}

static int wait_for(int fd, short events, int timeout) {
  struct pollfd wanted = {.fd = fd, .events = events};
  return poll(&wanted, 1, timeout) == 1;
}

static size_t question(uint8_t* message, uint16_t id, const char* name, uint16_t type) {
  uint8_t* at = message + 12;
  memset(message, 0, 12);
  message[0] = (uint8_t)(id >> 8), message[1] = (uint8_t)id;
  message[2] = 1; /* RD */
  message[5] = 1; /* QDCOUNT */
  while (*name) {
    const size_t length = strcspn(name, ".");
    *at++ = (uint8_t)length;
    memcpy(at, name, length);
    at += length;
    name += length + (name[length] == '.');
  }
  *at++ = 0;
  *at++ = (uint8_t)(type >> 8), *at++ = (uint8_t)type;
  *at++ = 0, *at++ = 1;
  return (size_t)(at - message);
}

static size_t skip_name(const uint8_t* message, size_t length, size_t at) {
  while (at < length && message[at] != 0) {
    if (message[at] >= 0xc0) return at + 2;
    at += 1u + message[at];
  }
  return at + 1;
}

/* The first address of `type` in the answer section: its length, or 0. */
static size_t first_address(const uint8_t* message, size_t length, uint16_t type,
                            uint8_t address[16]) {
  if (length < 12 || (message[3] & 15) != 0) return 0;
  const unsigned answers = (unsigned)message[6] << 8 | message[7];
  size_t at = skip_name(message, length, 12) + 4;
  for (unsigned i = 0; i < answers; i++) {
    at = skip_name(message, length, at);
    if (at + 10 > length) return 0;
    const unsigned seen = (unsigned)message[at] << 8 | message[at + 1],
                   size = (unsigned)message[at + 8] << 8 | message[at + 9];
    if (at + 10 + size > length) return 0;
    if (seen == type && size <= 16) {
      memcpy(address, message + at + 10, size);
      return size;
    }
    at += 10 + size;
  }
  return 0;
}

/* One exchange over UDP; the bytes of the answer, or 0. */
static size_t ask_udp(int fd, const uint8_t* query, size_t size, uint8_t* answer, size_t room) {
  if (send(fd, query, size, 0) != (ssize_t)size) return 0;
  while (wait_for(fd, POLLIN, kAnswerTimeout)) {
    const ssize_t got = recv(fd, answer, room, 0);
    if (got >= 12 && answer[0] == query[0] && answer[1] == query[1]) return (size_t)got;
    if (got < 0) return 0;
  }
  return 0;
}

static size_t ask_tcp(int fd, const uint8_t* query, size_t size, uint8_t* answer, size_t room) {
  uint8_t framed[514] = {(uint8_t)(size >> 8), (uint8_t)size};
  memcpy(framed + 2, query, size);
  if (send(fd, framed, size + 2, MSG_NOSIGNAL) != (ssize_t)(size + 2)) return 0;
  size_t have = 0, want = 2;
  uint8_t buffer[4096];
  while (have < want) {
    if (!wait_for(fd, POLLIN, kAnswerTimeout)) return 0;
    const ssize_t got = recv(fd, buffer + have, want - have, 0);
    if (got <= 0) return 0;
    have += (size_t)got;
    if (have == 2 && want == 2) want += (size_t)buffer[0] << 8 | buffer[1];
    if (want > sizeof(buffer)) return 0;
  }
  if (want - 2 > room) return 0;
  memcpy(answer, buffer + 2, want - 2);
  return want - 2;
}

struct tally {
  unsigned rounds, unanswered, nameless, refused, slow;
  double resolve_us, connect_us, worst_connect_us;
};

static void connect_once(const uint8_t* address, size_t size, struct tally* tally) {
  struct sockaddr_storage to = {0};
  socklen_t length;
  if (size == 4) {
    struct sockaddr_in* four = (struct sockaddr_in*)&to;
    four->sin_family = AF_INET, four->sin_port = htons(443);
    memcpy(&four->sin_addr, address, 4);
    length = sizeof(*four);
  } else {
    struct sockaddr_in6* six = (struct sockaddr_in6*)&to;
    six->sin6_family = AF_INET6, six->sin6_port = htons(443);
    memcpy(&six->sin6_addr, address, 16);
    length = sizeof(*six);
  }
  const double start = now_us();
  const int fd = socket(to.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
  /* Reset at close: no port stays behind in TIME_WAIT. */
  const struct linger none = {.l_onoff = 1, .l_linger = 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof(none));
  int error = 0;
  socklen_t error_size = sizeof(error);
  if (connect(fd, (struct sockaddr*)&to, length) != 0) error = errno;
  if (error == EINPROGRESS) {
    error = 0;
    struct tcp_info info = {0};
    socklen_t info_size = sizeof(info);
    if (!wait_for(fd, POLLOUT, kConnectTimeout) ||
        getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &info_size) != 0 || info.tcpi_total_retrans) {
      tally->slow++;
      close(fd);
      return;
    }
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &error_size);
  }
  if (error) {
    if (tally->refused++ == 0) fprintf(stderr, "first_connect: connect: %s\n", strerror(error));
  } else {
    const double took = now_us() - start;
    tally->connect_us += took;
    if (took > tally->worst_connect_us) tally->worst_connect_us = took;
  }
  close(fd);
}

static int ask(char** words) {
  const int tcp = strcmp(words[0], "tcp") == 0, six = strcmp(words[1], "6") == 0;
  const char* zone = words[3];
  const unsigned first = (unsigned)strtoul(words[4], 0, 10),
                 count = (unsigned)strtoul(words[5], 0, 10);
  struct sockaddr_storage server;
  const socklen_t server_size = endpoint(words[2], 53, &server);
  struct tally tally = {0};
  int fd = -1;
  for (unsigned i = first; i < first + count; i++) {
    uint8_t query[512], answer[4096], address[16];
    char name[256];
    tally.rounds++;
    /* A fresh port now and then, as programs have. */
    if (fd < 0 || i % 16 == 0) {
      if (fd >= 0) close(fd);
      fd = socket(server.ss_family, tcp ? SOCK_STREAM : SOCK_DGRAM, 0);
      const struct linger none = {.l_onoff = 1, .l_linger = 0};
      const int one = 1;
      if (tcp) {
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof(none));
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
      }
      if (connect(fd, (struct sockaddr*)&server, server_size) != 0) {
        if (tally.unanswered++ == 0)
          fprintf(stderr, "first_connect: the server: %s\n", strerror(errno));
        close(fd);
        fd = -1;
        continue;
      }
    }
    snprintf(name, sizeof(name), "n%u.%s", i, zone);
    const uint16_t type = six ? 28 : 1;
    const size_t size = question(query, (uint16_t)(i * 40503u + 1), name, type);
    const double start = now_us();
    const size_t got = (tcp ? ask_tcp : ask_udp)(fd, query, size, answer, sizeof(answer));
    if (got == 0) {
      tally.unanswered++;
      close(fd);
      fd = -1;
      continue;
    }
    tally.resolve_us += now_us() - start;
    const size_t length = first_address(answer, got, type, address);
    if (length == 0) {
      tally.nameless++;
      continue;
    }
    connect_once(address, length, &tally);
  }
  const unsigned good =
      tally.rounds - tally.unanswered - tally.nameless - tally.refused - tally.slow;
  printf(
      "rounds %u unanswered %u nameless %u refused %u slow %u resolve_us %.1f connect_us %.1f "
      "worst_connect_us %.0f\n",
      tally.rounds, tally.unanswered, tally.nameless, tally.refused, tally.slow,
      tally.rounds > tally.unanswered ? tally.resolve_us / (tally.rounds - tally.unanswered) : 0.0,
      good ? tally.connect_us / good : 0.0, tally.worst_connect_us);
  return 0;
}

static int serve(void) {
  const int listener = socket(AF_INET6, SOCK_STREAM, 0), one = 1;
  struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(443)};
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  if (bind(listener, (struct sockaddr*)&any, sizeof(any)) != 0 || listen(listener, 4096) != 0) {
    perror("first_connect: tcp/443");
    return 1;
  }
  puts("serving");
  fflush(stdout);
  for (;;) {
    const int connection = accept(listener, 0, 0);
    if (connection >= 0) close(connection);
  }
}

int main(int argc, char** argv) {
  if (argc == 2 && strcmp(argv[1], "serve") == 0) return serve();
  if (argc == 8 && strcmp(argv[1], "ask") == 0) return ask(argv + 2);
  fprintf(stderr,
          "usage: first_connect ask udp|tcp 4|6 SERVER ZONE FIRST COUNT | first_connect serve\n");
  return 2;
}
