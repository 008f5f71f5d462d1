/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a program asks of its C library, built once against glibc and once against musl: looks a
 * name up and prints "found" or "no", the milliseconds it took, and the addresses.
 */
#define _POSIX_C_SOURCE 200809L
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  struct timespec start, end;
  struct addrinfo hints, *list = 0;
  memset(&hints, 0, sizeof(hints));
  hints.ai_socktype = SOCK_STREAM;
  clock_gettime(CLOCK_MONOTONIC, &start);
  const int error = getaddrinfo(argv[1], "443", &hints, &list);
  clock_gettime(CLOCK_MONOTONIC, &end);
  const double milliseconds =
      (double)(end.tv_sec - start.tv_sec) * 1e3 + (double)(end.tv_nsec - start.tv_nsec) / 1e6;
  printf("%s %.3f", error ? "no" : "found", milliseconds);
  for (struct addrinfo* at = list; at; at = at->ai_next) {
    char text[INET6_ADDRSTRLEN];
    const void* address = at->ai_family == AF_INET
                              ? (const void*)&((struct sockaddr_in*)at->ai_addr)->sin_addr
                              : (const void*)&((struct sockaddr_in6*)at->ai_addr)->sin6_addr;
    printf(" %s", inet_ntop(at->ai_family, address, text, sizeof(text)));
  }
  puts("");
  if (list) freeaddrinfo(list);
  return 0;
}
