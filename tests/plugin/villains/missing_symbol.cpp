// The right note, but nobody wrote SLUICE_PLUGIN(): no entry.
#include <sluice/plugin.hpp>

SLUICE_PLUGIN_NOTE_
