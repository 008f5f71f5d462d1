// `sluiced --check FILE` for plugins that the user running the tests built.
#include <unistd.h>

#include "daemon/check.hpp"

int main(int argc, char* argv[]) {
  if (argc != 3) return 2;
  return sluice::print(sluice::check_configuration(argv[2], ::getuid()));
}
