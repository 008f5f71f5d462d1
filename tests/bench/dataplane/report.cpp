#include "bench/dataplane/report.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include <fmt/format.h>
#include <time.h>

namespace sluice::bench {
namespace {

void print(const std::string& what, const std::string& figure, const std::string& budget,
           const std::string& verdict, const std::string& peers) {
  std::printf("  %-54s %12s %12s %-5s %s\n", what.c_str(), figure.c_str(), budget.c_str(),
              verdict.c_str(), peers.c_str());
  std::fflush(stdout);
}

}  // namespace

std::string duration_text(double nanoseconds) {
  const double size = std::abs(nanoseconds);
  if (size < 1e3) return fmt::format("{:.0f} ns", nanoseconds);
  if (size < 1e6) return fmt::format("{:.1f} us", nanoseconds / 1e3);
  if (size < 1e9) return fmt::format("{:.2f} ms", nanoseconds / 1e6);
  return fmt::format("{:.2f} s", nanoseconds / 1e9);
}

void heading(const std::string& section, const std::string& how) {
  std::printf("\n%s: %s\n", section.c_str(), how.c_str());
  print("", "figure", "budget", "", "peers in the same run");
}

void row(const std::string& what, double nanoseconds, double budget,
         const std::vector<Peer>& peers) {
  std::string others;
  for (const Peer& peer : peers)
    others += fmt::format("{}{} {}", others.empty() ? "" : ", ", peer.name,
                          duration_text(peer.nanoseconds));
  print(what, duration_text(nanoseconds), budget > 0 ? "<= " + duration_text(budget) : "",
        budget <= 0             ? ""
        : nanoseconds <= budget ? "ok"
                                : "OVER",
        others);
}

void row_text(const std::string& what, const std::string& figure, const std::string& budget,
              const std::string& peers) {
  print(what, figure, budget, "", peers);
}

double cpu_now() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

double quantile(std::vector<double>& values, double part) {
  std::ranges::sort(values);
  const auto at = static_cast<std::size_t>(part * static_cast<double>(values.size()));
  return values[std::min(at, values.size() - 1)];
}

}  // namespace sluice::bench
