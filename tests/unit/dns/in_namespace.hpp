// The main of a test that wants a network namespace of its own, that is root. Included once, first.
#pragma once

#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>

#include "unit/dns/resolver_lab.hpp"

int main(int argc, char** argv) {
  if (!dns_test::enter_namespace()) {
    std::puts("needs CAP_SYS_ADMIN for a network namespace of its own: skipped");
    return 77;
  }
  return doctest::Context(argc, argv).run();
}
