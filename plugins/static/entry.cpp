#include "static/plugin.hpp"

SLUICE_PLUGIN(sluice::static_policy::StaticPlugin)
