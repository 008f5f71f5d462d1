#include "journal/plugin.hpp"

SLUICE_PLUGIN(sluice::journal::JournalPlugin)
