#include "interfaces/plugin.hpp"

SLUICE_PLUGIN(sluice::interfaces::InterfacesPlugin)
