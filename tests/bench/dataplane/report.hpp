// One table for every figure: what was measured, the figure, its budget, and what its peers took in
// the same run.
#pragma once

#include <chrono>
#include <string>
#include <utility>
#include <vector>

namespace sluice::bench {

struct Options {
  bool quick = false;  // smaller sets and fewer rounds
};

struct Peer {
  std::string name;
  double nanoseconds;
};

void heading(const std::string& section, const std::string& how);
// `budget` 0: none. Both in nanoseconds.
void row(const std::string& what, double nanoseconds, double budget,
         const std::vector<Peer>& peers = {});
// Another unit, or words.
void row_text(const std::string& what, const std::string& figure, const std::string& budget = {},
              const std::string& peers = {});
[[nodiscard]] std::string duration_text(double nanoseconds);

// `part` 0..1 of the sorted values; sorts them.
[[nodiscard]] double quantile(std::vector<double>& values, double part);
[[nodiscard]] inline double median(std::vector<double> values) {
  return quantile(values, 0.5);
}
// Of rounds that took turns: what others do on the machine only ever adds, so the lower quartile is
// nearer to the truth than the middle, and steadier than the least.
[[nodiscard]] inline double undisturbed(std::vector<double> values) {
  return quantile(values, 0.25);
}

// Nanoseconds of this thread's CPU time, which stands still while others have the CPU.
[[nodiscard]] double cpu_now();

// Nanoseconds of `work` on the wall clock.
template <typename Work>
double timed(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace sluice::bench
