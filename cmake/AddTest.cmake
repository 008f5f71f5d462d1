# sluice_add_test(PATH LIBRARIES...): a doctest program from PATH.cpp, registered under its path ("unit/policy/compiler").
# A test that needs root and a real kernel goes through sluice_add_system_test(), which runs tests/system by pytest. One that
# hangs ends as a failure with its name, after the time in CMakePresets.json where a test has none of its own.
function(sluice_add_test path)
  string(REPLACE "/" "_" target "test_${path}")
  add_executable(${target} ${CMAKE_SOURCE_DIR}/tests/${path}.cpp)
  target_link_libraries(${target} PRIVATE sluice_options ${ARGN})
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  add_test(NAME ${path} COMMAND ${target})
endfunction()

# sluice_add_system_test(PATH): tests/PATH.py under pytest, as root, with real namespaces.
function(sluice_add_system_test path)
  add_test(NAME ${path}
           COMMAND /usr/bin/python3 -m pytest -q -p no:cacheprovider ${CMAKE_SOURCE_DIR}/tests/${path}.py
           WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}/tests)
  set_tests_properties(${path} PROPERTIES
    RESOURCE_LOCK kernel
    ENVIRONMENT "SLUICE_BUILD_DIR=${CMAKE_BINARY_DIR};PYTHONDONTWRITEBYTECODE=1")
endfunction()
