# sluice_add_bpf(NAME SOURCE): compiles SOURCE for the BPF target and embeds it. Link the interface target NAME to
# include "NAME.skel.h" (bpftool's skeleton; the object is inside it, so nothing is looked up at run time).
find_program(SLUICE_CLANG NAMES clang clang-19 clang-18 clang-17 clang-16 clang-15 clang-14 REQUIRED)
find_program(SLUICE_BPFTOOL NAMES bpftool PATHS /usr/sbin /sbin REQUIRED)

function(sluice_add_bpf name source)
  set(object ${CMAKE_CURRENT_BINARY_DIR}/${name}.bpf.o)
  set(skeleton ${CMAKE_CURRENT_BINARY_DIR}/${name}.skel.h)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
    set(arch arm64)
  else()
    set(arch x86)
  endif()
  # Debian keeps <asm/...> below the multiarch folder, which the BPF target does not search.
  add_custom_command(
    OUTPUT ${object}
    COMMAND ${SLUICE_CLANG} -target bpf -mcpu=v3 -O2 -g -std=gnu11 -D__TARGET_ARCH_${arch} -Wall -Wextra -Werror
            -Wno-unused-function -I${CMAKE_CURRENT_SOURCE_DIR} -isystem /usr/include/${CMAKE_LIBRARY_ARCHITECTURE}
            -MD -MF ${object}.d -c ${CMAKE_CURRENT_SOURCE_DIR}/${source} -o ${object}
    DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${source}
    DEPFILE ${object}.d
    VERBATIM)
  add_custom_command(
    OUTPUT ${skeleton}
    COMMAND ${SLUICE_BPFTOOL} gen skeleton ${object} name ${name} > ${skeleton}
    DEPENDS ${object}
    VERBATIM)
  add_custom_target(${name}_skeleton DEPENDS ${skeleton})
  add_library(${name} INTERFACE)
  add_dependencies(${name} ${name}_skeleton)
  target_include_directories(${name} SYSTEM INTERFACE ${CMAKE_CURRENT_BINARY_DIR})
endfunction()
