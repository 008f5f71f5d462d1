# Warnings and sanitizers for everything compiled here, in one interface target.
option(SLUICE_WARNINGS_AS_ERRORS "Treat warnings as errors" OFF)
set(SLUICE_SANITIZE "" CACHE STRING "Value of -fsanitize= for the host, plugins and tests")

add_library(sluice_options INTERFACE)
target_compile_options(sluice_options INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Wcast-align)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC 12 sees overflows inside std::string and std::vector that are none (its bug 105329 and kin), with -O3 only.
  target_compile_options(sluice_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict;-Wno-stringop-overflow>)
endif()
if(SLUICE_WARNINGS_AS_ERRORS)
  target_compile_options(sluice_options INTERFACE -Werror)
endif()
if(SLUICE_SANITIZE)
  # Global, so that plugins built by sluice_add_plugin() and examples share the runtime.
  add_compile_options(-fsanitize=${SLUICE_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=undefined)
  add_link_options(-fsanitize=${SLUICE_SANITIZE})
endif()
