#include "cgroups/plugin.hpp"

SLUICE_PLUGIN(sluice::cgroups::CgroupsPlugin)
