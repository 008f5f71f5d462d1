// How villains hang: until the test lets them go, so that no thread outlives it.
#pragma once

#include <unistd.h>
#include <sluice/plugin.hpp>

inline void hang_on(int release_fd) {
  if (release_fd < 0)
    for (;;) ::pause();  // nobody lets it go: for processes that are killed
  char byte = 0;
  while (::read(release_fd, &byte, 1) < 0) {
  }
}
