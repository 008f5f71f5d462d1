// Where this build is installed, for what no command line and no configuration says. Made from
// cmake/InstallPaths.cmake, as the shipped configuration and the unit are.
#pragma once

namespace sluice {

extern const char* const kInstalledConfig;   // <etc>/sluice/sluice.toml
extern const char* const kInstalledPlugins;  // <prefix>/lib/sluice/plugins

}  // namespace sluice
