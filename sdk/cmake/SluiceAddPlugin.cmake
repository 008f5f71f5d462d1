# sluice_add_plugin(NAME SOURCES...): one plugin library, NAME.so. The same in Sluice's own tree and against the
# installed package (find_package(sluice-sdk CONFIG)).
#
#   One export (a version script), nothing undefined (-z defs), never unloaded (-z nodelete), hidden visibility; built
#   into ${CMAKE_BINARY_DIR}/plugins, installed into lib/sluice/plugins. Link further libraries with
#   target_link_libraries(NAME PRIVATE ...). NO_INSTALL leaves the install rule out (test plugins).
include(GNUInstallDirs)
# Not below a multiarch folder: sluiced looks in <prefix>/lib/sluice/plugins.
set(SLUICE_PLUGIN_INSTALL_DIR lib/sluice/plugins CACHE STRING "Where plugins are installed, below the prefix")
set(SLUICE_PLUGIN_EXPORTS "${CMAKE_CURRENT_LIST_DIR}/sluice_plugin.exports" CACHE INTERNAL "")

function(sluice_add_plugin name)
  cmake_parse_arguments(ARG "NO_INSTALL" "" "" ${ARGN})
  if(NOT ARG_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "sluice_add_plugin(${name}): no sources; write sluice_add_plugin(${name} ${name}.cpp)")
  endif()
  add_library(${name} MODULE ${ARG_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE sluice::sdk)
  if(TARGET sluice_options)
    target_link_libraries(${name} PRIVATE sluice_options)
  endif()
  target_compile_features(${name} PRIVATE cxx_std_20)
  set_target_properties(${name} PROPERTIES
    PREFIX ""
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/plugins
    POSITION_INDEPENDENT_CODE ON
    C_VISIBILITY_PRESET hidden
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON
    LINK_DEPENDS ${SLUICE_PLUGIN_EXPORTS})
  target_link_options(${name} PRIVATE
    "LINKER:--version-script=${SLUICE_PLUGIN_EXPORTS}"
    "LINKER:-z,nodelete" "LINKER:-z,now" "LINKER:-z,relro")
  # A sanitizer's runtime comes from the executable, so its symbols stay open here.
  if(NOT SLUICE_SANITIZE)
    target_link_options(${name} PRIVATE "LINKER:-z,defs")
  endif()
  if(NOT ARG_NO_INSTALL)
    install(TARGETS ${name} LIBRARY DESTINATION ${SLUICE_PLUGIN_INSTALL_DIR} COMPONENT plugins)
  endif()
endfunction()
