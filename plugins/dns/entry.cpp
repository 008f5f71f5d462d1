#include "dns/plugin.hpp"

SLUICE_PLUGIN(sluice::dns::DnsPlugin)
