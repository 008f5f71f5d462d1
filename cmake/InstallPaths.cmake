# Where an installed Sluice keeps things, said once: the shipped configuration, the unit and what is compiled in all take it
# from here. Prefix /usr means /etc and /usr/share, as GNUInstallDirs has it; another prefix has its own etc and share.
# What the daemon keeps (/var/lib, /var/log, /run) is where systemd puts it, whatever the prefix.
include(GNUInstallDirs)
include(${CMAKE_CURRENT_LIST_DIR}/../sdk/cmake/SluiceAddPlugin.cmake)  # SLUICE_PLUGIN_INSTALL_DIR

set(SLUICE_CONFIG_DIRECTORY ${CMAKE_INSTALL_FULL_SYSCONFDIR}/sluice)
set(SLUICE_CONFIG_FILE ${SLUICE_CONFIG_DIRECTORY}/sluice.toml)
set(SLUICE_PRESETS_DIRECTORY ${CMAKE_INSTALL_FULL_DATADIR}/sluice/presets)
cmake_path(ABSOLUTE_PATH SLUICE_PLUGIN_INSTALL_DIR BASE_DIRECTORY ${CMAKE_INSTALL_PREFIX} NORMALIZE
           OUTPUT_VARIABLE SLUICE_PLUGIN_DIRECTORY)
