// A table that ends before destroy(): no release ever had such a one.
#include <sluice/plugin.hpp>

SLUICE_PLUGIN_NOTE_
extern "C" __attribute__((visibility("default"))) const sluice_plugin* sluice_plugin_v1() {
  static sluice_plugin table{};
  table.size = offsetof(sluice_plugin, destroy);
  return &table;
}
