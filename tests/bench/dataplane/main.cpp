// bench_dataplane [--quick] [program] [filter] [calls] [publish] [learn] [attach]: every section
// without names. Exit code 1 when a section could not run; a missed budget is in the table, not in
// the code.
#include <bpf/libbpf.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "bench/dataplane/sandbox.hpp"
#include "bench/dataplane/sections.hpp"

int main(int argc, char** argv) {
  using namespace sluice::bench;
  struct Named {
    const char* name;
    Section section;
  };
  constexpr Named sections[] = {{"program", program_cost}, {"filter", filter_cost},
                                {"calls", call_cost},      {"publish", publish_cost},
                                {"learn", learn_cost},     {"attach", attach_cost}};
  Options options;
  std::vector<std::string> wanted;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    bool known = argument == "--quick";
    if (known) options.quick = true;
    for (const Named& one : sections)
      if (argument == one.name) {
        wanted.push_back(argument);
        known = true;
      }
    if (!known) {
      std::fprintf(stderr,
                   "usage: %s [--quick] [program] [filter] [calls] [publish] [learn] [attach]\n",
                   argv[0]);
      return 2;
    }
  }
  if (geteuid() != 0) {
    std::fprintf(stderr, "%s: makes namespaces and loads BPF programs; run it as root\n", argv[0]);
    return 1;
  }
  utsname kernel{};
  uname(&kernel);
  std::printf("Linux %s, %ld CPUs%s\n", kernel.release, sysconf(_SC_NPROCESSORS_ONLN),
              options.quick ? ", quick: smaller sets, fewer rounds" : "");
  bool whole = true;
  for (const Named& one : sections) {
    bool run = wanted.empty();
    for (const std::string& name : wanted) run = run || name == one.name;
    if (run && !run_section(one.name, one.section, options)) whole = false;
  }
  return whole ? 0 : 1;
}
