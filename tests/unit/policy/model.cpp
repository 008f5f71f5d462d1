#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "policy/model.hpp"

#include <doctest/doctest.h>

TEST_CASE("placeholder") {}
