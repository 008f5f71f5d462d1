// `sluiced --check FILE` for plugins that the user running the tests built.
#include <unistd.h>

#include <cstdio>

#include "daemon/check.hpp"

int main(int argc, char* argv[]) {
  if (argc != 3) return 2;
  const auto errors = sluice::check_configuration(argv[2], ::getuid());
  for (const auto& error : errors) std::fprintf(stderr, "%s\n", error.c_str());
  return errors.empty() ? 0 : 1;
}
