// What a policy costs: time to compile, size of the image, and the walk in the kernel over a no-op
// program, through BPF_PROG_TEST_RUN. Medians; ratios carry over to other machines, nanoseconds do
// not.
#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "bench/policy/sets.hpp"
#include "packet/policy_walk/kernel_walk.hpp"
#include "policy/compiler.hpp"

namespace sluice::bench {
namespace {

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

// Processor time of this thread: the compiler is one thread and waits for nothing, so this is what
// it takes on a core of its own.
double cpu_milliseconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) / 1e6;
}

template <typename Work>
double milliseconds(int times, Work work) {
  std::vector<double> took;
  for (int i = 0; i < times; ++i) {
    const double start = cpu_milliseconds();
    work();
    took.push_back(cpu_milliseconds() - start);
  }
  return median(took);
}

Layer layer_of(const std::vector<Prefix>& set, const std::vector<PortRange>& ports,
               bool mixed_actions) {
  Layer layer;
  layer.rules.reserve(set.size());
  std::size_t n = 0;
  for (const Prefix& prefix : set) {
    const bool deny = mixed_actions && ++n % 4 == 0;
    layer.rules.push_back({.action = deny ? Action::deny : Action::allow,
                           .prefix = prefix,
                           .domain = {},
                           .ports = ports,
                           .expires = {},
                           .name = {}});
  }
  return layer;
}

const Floor kFloor{
    .deny = {*Prefix::parse("169.254.169.254/32"), *Prefix::parse("fd00:ec2::254/128"),
             *Prefix::parse("100.100.100.200/32"), *Prefix::parse("168.63.129.16/32")}};

CompiledPolicy must_compile(const Layer& layer) {
  const LayerInput input{.layer = &layer};
  auto compiled = compile({&input, 1}, kFloor, BootTime{1});
  if (!compiled) {
    std::fprintf(stderr, "%s\n", compiled.error().message.c_str());
    std::exit(1);
  }
  return std::move(*compiled);
}

void compile_times() {
  std::printf("%-34s %12s %12s %10s\n", "compile", "CPU time", "elements", "image");
  const auto row = [](const char* name, const Layer& layer) {
    const CompiledPolicy compiled = must_compile(layer);
    const int times = layer.rules.size() >= 500000 ? 5 : layer.rules.size() >= 50000 ? 21 : 201;
    const double took = milliseconds(times, [&] { (void)must_compile(layer); });
    std::printf("%-34s %9.3f ms %12zu %7.2f MiB\n", name, took, compiled.elements.size(),
                static_cast<double>(compiled.elements.size() * sizeof(sluice_element)) / 1048576);
  };
  const std::vector<PortRange> https{*PortRange::parse("tcp/443")};
  for (std::uint8_t family : {std::uint8_t{4}, std::uint8_t{6}})
    for (std::size_t count : {1, 100, 1000, 4000, 100000, 1000000}) {
      const auto set = prefixes(count, family);
      const std::string name = fmt::format("IPv{}, {} prefixes", family, count);
      row(name.c_str(), layer_of(set, {}, false));
      row((name + ", allow+deny").c_str(), layer_of(set, {}, true));
      row((name + ", tcp/443").c_str(), layer_of(set, https, true));
    }
}

void walk_costs() {
  using test::KernelWalk, test::Program, test::Question, test::Storage;
  constexpr std::size_t kQuestions = 1u << 18;
  std::printf(
      "\n%-30s %-5s %7s %7s %7s %8s %8s | ns per run; what reading the question and the descriptor "
      "adds to a no-op,\n%77s| and what the lookup adds to that; hot: one address again and again; "
      "random: %zu addresses in the set\n",
      "walk", "in", "no-op", "+read", "", "+hot", "+random", "", kQuestions);
  for (std::uint8_t family : {std::uint8_t{4}, std::uint8_t{6}})
    for (bool ports : {false, true})
      for (std::size_t count : {1, 1000, 10000, 100000, 1000000}) {
        const auto set = prefixes(count, family);
        const CompiledPolicy compiled = must_compile(layer_of(
            set, ports ? std::vector{*PortRange::parse("tcp/443")} : std::vector<PortRange>{},
            true));
        std::mt19937_64 random(7);
        std::vector<Question> questions(kQuestions);
        for (Question& question : questions)
          question = {.address = address_in(set, random), .family = family};
        for (Storage storage : {Storage::heap, Storage::blob}) {
          auto walk = KernelWalk::load(compiled, questions, storage);
          if (!walk) {
            std::fprintf(stderr, "%s\n", walk.error().message.c_str());
            std::exit(1);
          }
          const Program lookup = family == 4 ? Program::lookup4 : Program::lookup6;
          std::vector<double> noop, read_hot, read_random, hot, cold;
          // In turn, so that a disturbance does not fall on one of them only.
          for (int round = 0; round < 11; ++round) {
            const auto ns = [&](Program program, bool same) {
              return *walk->nanoseconds(program, same, kQuestions);
            };
            noop.push_back(ns(Program::noop, true));
            read_hot.push_back(ns(Program::question_only, true));
            hot.push_back(ns(lookup, true) - read_hot.back());
            read_random.push_back(ns(Program::question_only, false));
            cold.push_back(ns(lookup, false) - read_random.back());
          }
          const std::string name =
              fmt::format("IPv{}, {} prefixes{}", family, count, ports ? ", ports" : "");
          std::printf("%-30s %-5s %7.1f %7.1f %7.1f %8.1f %8.1f\n", name.c_str(),
                      storage == Storage::heap ? "heap" : "blob", median(noop),
                      median(read_hot) - median(noop), median(read_random) - median(noop),
                      median(hot), median(cold));
          std::fflush(stdout);
        }
      }
}

}  // namespace
}  // namespace sluice::bench

int main(int argc, char** argv) {
  const char* what = argc > 1 ? argv[1] : "";
  if (std::strcmp(what, "walk") != 0) sluice::bench::compile_times();
  if (std::strcmp(what, "compile") != 0) sluice::bench::walk_costs();
  return 0;
}
