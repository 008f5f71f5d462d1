// SPDX-License-Identifier: Apache-2.0
#include "workload_files.hpp"

SLUICE_PLUGIN(WorkloadFiles)
