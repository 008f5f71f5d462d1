// What is measured, one function per section.
#pragma once

#include "bench/dataplane/report.hpp"

namespace sluice::bench {

void program_cost(const Options& options);  // the program alone
void filter_cost(const Options& options);   // packets through a device
void call_cost(const Options& options);     // socket calls in a cgroup
void publish_cost(const Options& options);  // from rules to in force
void learn_cost(const Options& options);    // a resolver's push
void attach_cost(const Options& options);   // attach, restart, memory

}  // namespace sluice::bench
