// Built for ABI 2.0. Its static constructor must never run: the host reads the note before it
// loads.
#include <cstdlib>

namespace {
const int kRan = setenv("SLUICE_VILLAIN_OTHER_MAJOR_RAN", "1", 1);
}

__asm__(
    ".pushsection .note.sluice,\"a\",%note\n"
    ".balign 4\n.long 7\n.long 8\n.long 1\n.asciz \"Sluice\"\n.balign 4\n"
    ".long 2\n.long 0\n"
    ".popsection\n");

extern "C" __attribute__((visibility("default"))) const void* sluice_plugin_v1() {
  return &kRan;
}
