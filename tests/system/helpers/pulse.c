/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest that never stops sending: pulse INTERVAL_US (DEVICE HEXFRAME)...
 *
 * Sends each frame on its device in turn, for as long as it lives, also before the device exists
 * and after it is gone. The last eight bytes of each frame are its own sequence number, big-endian,
 * counting the frames that the kernel took. The interval lies between two rounds; 0 sends without
 * pause. On SIGTERM it prints how many of each were sent.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { kStreams = 16, kFrame = 2048 };

struct stream {
  const char* device;
  unsigned char frame[kFrame];
  size_t size;
  uint64_t sent;
  int ifindex;
};

static volatile sig_atomic_t stopping;
static void stop(int number) {
  (void)number;
  stopping = 1;
}

static void pulse(int fd, struct stream* stream) {
  if (stream->ifindex == 0) stream->ifindex = (int)if_nametoindex(stream->device);
  if (stream->ifindex == 0) return;
  struct sockaddr_ll link = {
      .sll_family = AF_PACKET, .sll_ifindex = stream->ifindex, .sll_halen = 6};
  uint64_t sequence = htobe64(stream->sent);
  memcpy(stream->frame + stream->size - sizeof(sequence), &sequence, sizeof(sequence));
  if (sendto(fd, stream->frame, stream->size, 0, (struct sockaddr*)&link, sizeof(link)) >= 0)
    stream->sent++;
  else if (errno == ENXIO || errno == ENODEV)
    stream->ifindex = 0; /* gone; the name may come back as another device */
}

int main(int count, char** word) {
  static struct stream streams[kStreams];
  int used = 0;
  if (count < 4 || count % 2 != 0) {
    fprintf(stderr, "usage: pulse INTERVAL_US (DEVICE HEXFRAME)...\n");
    return 2;
  }
  long interval = atol(word[1]);
  for (int i = 2; i + 1 < count && used < kStreams; i += 2, used++) {
    streams[used].device = word[i];
    for (const char* hex = word[i + 1]; hex[0] && hex[1] && streams[used].size < kFrame; hex += 2) {
      unsigned value = 0;
      sscanf(hex, "%2x", &value);
      streams[used].frame[streams[used].size++] = (unsigned char)value;
    }
  }
  signal(SIGTERM, stop);
  int fd = socket(AF_PACKET, SOCK_RAW, 0);
  if (fd < 0) {
    perror("packet socket");
    return 1;
  }
  printf("pulsing\n");
  fflush(stdout);
  while (!stopping) {
    for (int i = 0; i < used; i++) pulse(fd, &streams[i]);
    if (interval > 0) {
      struct timespec pause = {.tv_nsec = interval * 1000};
      nanosleep(&pause, NULL);
    }
  }
  for (int i = 0; i < used; i++)
    printf("%llu%c", (unsigned long long)streams[i].sent, i + 1 < used ? ' ' : '\n');
  return 0;
}
