/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A process that is in a new cgroup from its first instruction and sends at once: newcomer CGROUP
 * PORT HEX ADDRESS...
 *
 * Makes the directory, starts a child inside it (clone3 with CLONE_INTO_CGROUP, so that not even a
 * move lies between), and the child sends UDP to each address in turn until it is killed by the end
 * of standard input. Prints "made" when the child runs.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void send_for_ever(const char* port, const char* hex, char** addresses, int count) {
  unsigned char data[64];
  size_t size = 0;
  for (; hex[0] && hex[1] && size < sizeof(data); hex += 2) {
    unsigned value = 0;
    sscanf(hex, "%2x", &value);
    data[size++] = (unsigned char)value;
  }
  data[size++] = 0; /* which address it was for */
  int fd4 = socket(AF_INET, SOCK_DGRAM, 0), fd6 = socket(AF_INET6, SOCK_DGRAM, 0);
  for (;;) {
    for (int i = 0; i < count; i++) {
      struct sockaddr_in four = {.sin_family = AF_INET,
                                 .sin_port = htons((unsigned short)atoi(port))};
      struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = four.sin_port};
      data[size - 1] = (unsigned char)i;
      if (inet_pton(AF_INET, addresses[i], &four.sin_addr) == 1)
        sendto(fd4, data, size, 0, (struct sockaddr*)&four, sizeof(four));
      else if (inet_pton(AF_INET6, addresses[i], &six.sin6_addr) == 1)
        sendto(fd6, data, size, 0, (struct sockaddr*)&six, sizeof(six));
    }
    struct timespec pause = {.tv_nsec = 20000};
    nanosleep(&pause, NULL);
  }
}

int main(int count, char** word) {
  if (count < 5) {
    fprintf(stderr, "usage: newcomer CGROUP PORT HEX ADDRESS...\n");
    return 2;
  }
  if (mkdir(word[1], 0755) != 0) {
    fprintf(stderr, "%s: %s\n", word[1], strerror(errno));
    return 1;
  }
  int directory = open(word[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  struct clone_args into = {
      .flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)directory};
  long child = syscall(SYS_clone3, &into, sizeof(into));
  if (child < 0) {
    fprintf(stderr, "%s: clone into cgroup: %s\n", word[1], strerror(errno));
    rmdir(word[1]);
    return 1;
  }
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    send_for_ever(word[2], word[3], word + 4, count - 4);
  }
  printf("made\n");
  fflush(stdout);
  char byte;
  while (read(STDIN_FILENO, &byte, 1) > 0) {
  }
  kill((pid_t)child, SIGKILL);
  waitpid((pid_t)child, NULL, 0);
  /* The directory is free only when the kernel has put the task away. */
  for (int i = 0; i < 1000 && rmdir(word[1]) != 0 && errno == EBUSY; i++) {
    struct timespec pause = {.tv_nsec = 1000000};
    nanosleep(&pause, NULL);
  }
  return 0;
}
